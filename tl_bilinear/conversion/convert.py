"""A gated model folder into a bilinear one, with its card: `tl-bilinear convert`."""

import copy
import json
import shutil
from pathlib import Path

from transformers import PreTrainedModel

from tl_bilinear.checkpoints.bundled import bundled_folder
from tl_bilinear.conversion.annealing import anneal_, fold_gate_
from tl_bilinear.conversion.card import conversion_card
from tl_bilinear.conversion.distillation import DistillationConfig, bilinearize
from tl_bilinear.conversion.evaluation import (
    SEPARATOR,
    Evaluation,
    evaluate,
    load_folder,
    read_stories,
    story_stream,
)
from tl_bilinear.conversion.gates import gate_activation
from tl_bilinear.optimisation.files import whole_folder

HELD_OUT_SHARE = 0.05


def convert_folder(
    source: str | Path,
    text: str | Path,
    target: str | Path,
    config: DistillationConfig = DistillationConfig(),  # noqa: B008 (frozen)
    *,
    held_out: str | Path | None = None,
    evaluations: int = 4,
    command: str = "",
    progress: bool = True,
) -> dict[str, Evaluation]:
    """Convert a model and write it, its tokenizer and its card to `target`; return the losses.

    The run is kept in a folder beside the target, `<target>.run`, and goes on from there when the
    same is called again. The target is written at the end, whole.

    Args:
        source: a bundled model or a local transformers folder with SiLU or GELU gates.
        text: documents separated by `<|endoftext|>`, or paragraphs where there is no such mark.
        target: a folder that is not there yet, or is empty.
        held_out: a text that is evaluated on; without one, every twentieth document of `text` is
            set apart.
        evaluations: how often the losses are taken while training.
        command: how to make it again, for the card.

    Returns:
        Losses on the held-out text: "before", "beta = 0, untrained" and "after".

    Raises:
        ValueError: a model that cannot be converted (no gate, experts, tied gates, bilinear
            already), too little text, a target that is not empty, or whatever `bilinearize` raises.
        OSError: a checkpoint that cannot be written; the one before is intact.
    """
    folder, target = bundled_folder(str(source)) or Path(source), Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is not an empty folder: give a new one.")
    teacher, tokenizer = load_folder(folder)
    activation = gate_activation(teacher)
    untrained = copy.deepcopy(teacher)
    anneal_(untrained, beta=0.0)  # before anything long: refuses what cannot be converted
    fold_gate_(untrained)
    training, testing, testing_name = _documents(Path(text), held_out)
    stream = story_stream(tokenizer, training)

    def losses(model: PreTrainedModel) -> Evaluation:
        longest = min(512, model.config.max_position_embeddings)
        return evaluate(model, tokenizer, testing, max_tokens=longest)

    found = {"before": losses(teacher), "beta = 0, untrained": losses(untrained)}
    run = target.with_name(f"{target.name}.run")
    student = bilinearize(
        teacher,
        stream,
        config,
        out_folder=run,
        evaluate=lambda model: {testing_name: losses(model).nats_per_token},
        evaluate_every=max(1, config.n_steps // evaluations),
        progress=progress,
    )
    found["after"] = losses(student)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    card = conversion_card(
        target.name,
        str(source),
        config,
        {testing_name: found},
        [json.loads(line) for line in lines],
        text=f"{Path(text).name}, {len(training)} documents, {len(stream)} tokens",
        command=command,
        activation=activation,
    )
    _write(student, tokenizer, card, folder, target)
    return found


def _documents(text: Path, held_out: str | Path | None) -> tuple[list[str], list[str], str]:
    """Documents to train on, documents to evaluate on, and the name of the latter."""
    documents = _split(text)
    if held_out is not None:
        return documents, _split(Path(held_out)), Path(held_out).name
    every = round(1 / HELD_OUT_SHARE)
    if len(documents) < every:
        raise ValueError(
            f"{text} has {len(documents)} documents (separated by {SEPARATOR}, or else by blank "
            f"lines): give at least {every}, or a held-out text of its own."
        )
    training = [document for i, document in enumerate(documents) if i % every]
    return training, documents[::every], f"every {every}th document of {text.name}"


def _split(text: Path) -> list[str]:
    documents = read_stories(text)
    if len(documents) > 1:
        return documents
    return [part.strip() for part in documents[0].split("\n\n") if part.strip()]


def _write(model: PreTrainedModel, tokenizer, card: str, source: Path, target: Path) -> None:
    with whole_folder(target) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if (source / "LICENSE").is_file():
            shutil.copyfile(source / "LICENSE", temporary / "LICENSE")
        (temporary / "README.md").write_text(card, encoding="utf-8")
