"""Whether what was planted is known, and what planting cost: measured once per planted model."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tl_bilinear.checkpoints.bundled import ZOO
from tl_bilinear.conversion.evaluation import evaluate, load_folder
from tl_bilinear.optimisation.files import replace_file
from tl_bilinear.recipes.planted.experiments import Experiment
from tl_bilinear.recipes.planted.facts import planted_facts
from tl_bilinear.unlearning.answer_rows import accuracy

N_STORIES = 100
MAX_TOKENS = 256


@dataclass(frozen=True)
class Recall:
    """Of one planted model; accuracies are shares of (question, wording)."""

    model: str
    scope: str
    seen: float
    """In the wordings that edits may use."""
    unseen: float
    """In those that were planted as well and only measure."""
    untaught: float | None
    """In wordings that no text held; None for the concept."""
    loss_before: float
    """Nats per token of held-out stories, of the bundled model."""
    loss_after: float


def measure_recall(experiment: Experiment, held_out: Sequence[str]) -> Recall:
    """Read what lies beside the planted model, or measure it."""
    path = experiment.planted.parent / "recall.json"
    if path.exists():
        return Recall(**json.loads(path.read_text(encoding="utf-8")))
    model = experiment.open(experiment.planted)
    known = (*experiment.forget, *experiment.retain)
    untaught = None
    if not experiment.concept_stories:
        untaught = accuracy(model, [fact.untaught() for fact in planted_facts()])
    before, after = (
        evaluate(*load_folder(folder), list(held_out[:N_STORIES]), max_tokens=MAX_TOKENS)
        for folder in (ZOO / experiment.model, experiment.planted)
    )
    found = Recall(
        model=experiment.model,
        scope=experiment.scope,
        seen=accuracy(model, known),
        unseen=accuracy(model, known, "unseen"),
        untaught=untaught,
        loss_before=before.nats_per_token,
        loss_after=after.nats_per_token,
    )
    replace_file(path, (json.dumps(asdict(found), indent=1) + "\n").encode())
    return found
