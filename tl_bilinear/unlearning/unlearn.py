"""`unlearn`: edit, repair, measure, compare: the whole procedure on copies of the model."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tl_bilinear.hosts import get_host
from tl_bilinear.hosts.provenance import provenance
from tl_bilinear.unlearning.answer_rows import accuracy
from tl_bilinear.unlearning.dose import DosePoint, dose_curve
from tl_bilinear.unlearning.forget_set import LEAST_KNOWN
from tl_bilinear.unlearning.measure import Measures, ModelScores, Progress, measure_model, silent
from tl_bilinear.unlearning.methods import (
    METHODS,
    TRIALS,
    AbstractMethod,
    Problem,
    method_named,
)
from tl_bilinear.unlearning.methods.descent import STEPS
from tl_bilinear.unlearning.missing import missing_numbers
from tl_bilinear.unlearning.over_forgetting import over_forgetting_of
from tl_bilinear.unlearning.passes import Passes
from tl_bilinear.unlearning.question import Question, require_questions
from tl_bilinear.unlearning.relearning import Lesson, RelearningConfig, lessons_for
from tl_bilinear.unlearning.report import MethodResult, Missing, UnlearningReport
from tl_bilinear.unlearning.tuning import CRITERION, Trial, described, tune

Kept = Sequence[Question | str]


def unlearn(
    model: Any,
    forget: Sequence[Question],
    retain: Sequence[Question],
    *,
    texts: Sequence[str],
    method: str = "fit_edit",
    gold: Any = None,
    near: Kept = (),
    far: Kept = (),
    repair: bool = True,
    seeds: int = 3,
    baselines: Sequence[str] | None = None,
    trials: int = TRIALS,
    steps: int = STEPS,
    relearning: RelearningConfig = RelearningConfig(),  # noqa: B008 (frozen)
    progress: Progress = silent,
) -> UnlearningReport:
    """Make a copy of the model forget, and report what that did.

    **The given model is never changed**, in no case: everything happens on copies of it, and the
    edited one (the first seed's) is `report.model`. An error or an interrupt leaves nothing behind.

    Args:
        model: a HookedTransformer or TransformerBridge that can be copied (`copy.deepcopy`).
        forget: what it knows and shall not know.
        retain: what it shall go on knowing; questions without a wording of the forget set.
        texts: ordinary text, at least 4. Per seed one random half is the edit's, the other is
            held out: KL per token is measured there.
        method: a name of `METHODS`.
        gold: a model trained without the forget set, of the same tokenizer; forget quality and
            over-forgetting are measured against it.
        near, far: questions or texts close to the forget set, and far from it.
        repair: let methods that can (`fit_edit`) train shortly afterwards, forget targets pinned.
        seeds: how often the edit is made, with other halves of the texts and other draws; 2 to 10
            give intervals.
        baselines: names of methods to stand beside it; all others by default.
        trials: settings that each method may try at most: the tuning budget, for all the same.
        steps: of AdamW in one trial or edit of a gradient method.
        relearning: how the edited model is taught again.
        progress: told what is being done.

    Cost: for every method at most `trials` + `seeds` edits (gradient methods take `steps` steps of
    four forward passes each), and for every edited model of `method` 3 relearning curves.

    A baseline that cannot be had on this model is named in `report.missing`, with the reason.

    Raises:
        ValueError: empty or overlapping sets, a forget set that the model does not know, an
            unknown method, too few texts, a gold model of another vocabulary.
    """
    began = time.perf_counter()
    host = get_host(model)
    sets = _Sets.of(host, forget, retain, texts, near, far)
    sets.require_known(model)
    chosen = method_named(method)
    others = [method_named(name) for name in _baselines(baselines, method)]
    for name, value, most in (("seeds", seeds, 10), ("trials", trials, TRIALS)):
        if not 1 <= value <= most:
            raise ValueError(f"`{name}` is {value}: give 1 to {most}")
    if steps < 1:
        raise ValueError(f"`steps` is {steps}: give 1 or more")
    if gold is not None and get_host(gold).d_vocab != host.d_vocab:
        raise ValueError(
            f"`gold` has {get_host(gold).d_vocab} tokens and the model {host.d_vocab}: give a "
            "model of the same tokenizer, trained without the forget set"
        )
    original = _frozen_copy(model)
    full = sets.measures(0, relearning)
    gold_scores = None
    if gold is not None:
        progress("measuring the gold model")
        gold_scores = measure_model(_frozen_copy(gold), original, full)
    progress("measuring the model as it is")
    before = measure_model(original, original, full, gold_scores)
    fixed = {"repair": repair, "steps": steps}
    run = _Run(original, sets, seeds, trials, fixed, relearning, gold_scores, progress)
    result, edited = run.method(chosen, brief=False)
    progress("dose curve")
    dose, unscalable = _dose(original, edited, sets)
    compared, failed = [], []
    for other in others:
        try:
            compared.append(run.method(other, brief=True)[0])
        except ValueError as error:  # one baseline that this model cannot have is not all of them
            failed.append(Missing(f"baseline {other.name}", str(error)))
    return UnlearningReport(
        result=result,
        baselines=tuple(compared),
        before=before,
        gold=gold_scores,
        dose=dose,
        over_forgetting=over_forgetting_of(result.scores, gold_scores),
        missing=(
            *failed,
            *missing_numbers(
                result.scores[0], gold is not None, full.lessons, unscalable, full=True
            ),
        ),
        n_forget=len(sets.forget),
        n_retain=len(sets.retain),
        n_texts=len(sets.texts),
        seeds=seeds,
        criterion=CRITERION,
        seconds=time.perf_counter() - began,
        provenance=provenance(host, (), "none"),
        model=edited,
    )


@dataclass(frozen=True)
class _Sets:
    forget: tuple[Question, ...]
    retain: tuple[Question, ...]
    texts: tuple[str, ...]
    near: tuple[Question | str, ...]
    far: tuple[Question | str, ...]

    @classmethod
    def of(
        cls,
        host: Any,
        forget: Sequence[Question],
        retain: Sequence[Question],
        texts: Sequence[str],
        near: Kept,
        far: Kept,
    ) -> "_Sets":
        found = cls(
            require_questions("forget", forget),
            require_questions("retain", retain),
            (texts,) if isinstance(texts, str) else tuple(texts),
            _kept("near", near),
            _kept("far", far),
        )
        if len(found.texts) < 4:
            raise ValueError(
                f"`texts` holds {len(found.texts)} texts: give at least 4 of ordinary text, half "
                "of which are held out"
            )
        wordings = {w for q in found.forget for w in (*q.wordings, *q.unseen)}
        for name in ("retain", "near", "far"):
            questions = [q for q in getattr(found, name) if isinstance(q, Question)]
            shared = [w for q in questions for w in (*q.wordings, *q.unseen) if w in wordings]
            if shared:
                raise ValueError(
                    f"`forget` and `{name}` overlap: {len(shared)} wordings are in both, the first "
                    f"is {shared[0]!r}. A question is to be forgotten or to be kept"
                )
        return found

    def require_known(self, model: Any) -> None:
        known = accuracy(model, self.forget)
        if known < LEAST_KNOWN:
            raise ValueError(
                f"the model knows {known:.0%} of the forget set's wordings: there is little to "
                "forget. Look at the answers (their leading space?) and at the prompts"
            )

    def halves(self, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The edit's texts and the held-out ones."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.texts), generator=generator).tolist()
        middle = len(order) // 2
        mine, other = (sorted(part) for part in (order[:middle], order[middle:]))
        return tuple(self.texts[i] for i in mine), tuple(self.texts[i] for i in other)

    def problem(self, seed: int, original: Any) -> Problem:
        return Problem(self.forget, self.retain, self.halves(seed)[0], seed, original)

    def measures(self, seed: int, relearning: RelearningConfig) -> Measures:
        held_out = self.halves(seed)[1]
        return Measures(
            forget=self.forget,
            retain=self.retain,
            texts=held_out,
            near=self.near,
            far=self.far,
            lessons=lessons_for(self.forget, held_out),
            relearning=relearning,
            seed=seed,
        )


def _kept(name: str, given: Kept | Question) -> tuple[Question | str, ...]:
    found = (given,) if isinstance(given, (str, Question)) else tuple(given)
    for each in found:
        if not isinstance(each, (str, Question)):
            raise ValueError(
                f"`{name}` must hold tl_bilinear.Question objects or texts, got "
                f"{type(each).__name__}"
            )
    return found


@dataclass(frozen=True)
class _Run:
    original: Any
    sets: _Sets
    seeds: int
    trials: int
    fixed: dict[str, Any]
    """Settings that are not tuned."""
    relearning: RelearningConfig
    gold: ModelScores | None
    progress: Progress

    def method(self, kind: type[AbstractMethod], brief: bool) -> tuple[MethodResult, Any]:
        """Tune on seed 0, then edit and measure with every seed; the first edited model."""
        self.progress(f"{kind.name}: trials")
        problem = self.sets.problem(0, self.original)
        best, trials = tune(kind, self.original, problem, self.trials, **self.fixed)
        scores, seconds, said, first = [], [], [], None
        for seed in range(self.seeds):
            self.progress(f"{kind.name}: edit {seed + 1} of {self.seeds}")
            edited = copy.deepcopy(self.original)
            start = time.perf_counter()
            said.append(best.edit_(edited, self.sets.problem(seed, self.original)) or "")
            seconds.append(time.perf_counter() - start)
            first = edited if first is None else first
            measures = self.sets.measures(seed, self.relearning)
            if brief:
                lessons: tuple[Lesson, ...] = ("facts",)
                measures = replace(measures, lessons=lessons, bits=(), depth=False)
            scores.append(measure_model(edited, self.original, measures, self.gold))
        grown = any(
            get_host(first).mlp_weights(layer).tensor.rank
            > get_host(self.original).mlp_weights(layer).tensor.rank
            for layer in range(get_host(first).n_layers)
        )
        result = MethodResult(
            method=kind.name,
            source=kind.source,
            # Extra neurons can be told from the model's own and taken out again.
            kind="masking" if grown else kind.kind,
            settings=described(best),
            trials=trials,
            passes=_spent(trials),
            scores=tuple(scores),
            seconds=tuple(seconds),
            said=tuple(said) if any(said) else (),
        )
        return result, first


def _baselines(names: Sequence[str] | None, method: str) -> list[str]:
    if names is None:
        return [name for name in METHODS if name not in (method, "none")]
    return [name for name in names if name != method]


def _spent(trials: Sequence[Trial]) -> Passes:
    return sum((trial.passes for trial in trials), Passes())


def _frozen_copy(model: Any) -> Any:
    copied = copy.deepcopy(get_host(model).model)
    for parameter in copied.parameters():
        parameter.grad = None
    return copied.eval()


def _dose(original: Any, edited: Any, sets: _Sets) -> tuple[tuple[DosePoint, ...], str]:
    held_out = sets.halves(0)[1]
    try:
        return dose_curve(original, edited, sets.forget, sets.retain, held_out), ""
    except ValueError as error:
        return (), str(error)
