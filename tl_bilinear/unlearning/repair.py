"""A short fine-tuning after an edit, held to what the model said before it.

What the edit disturbed is mended by the KL to the unedited model on general text and on the
retained prompts, and all weights are drawn towards the unedited ones: few texts tell little of what
others need. Forgotten answers are pinned where the edit was to take them, from both sides: without
the pin a repair brings them back. In crossed wordings (`crossings`) they must only lose.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.unlearning.answer_rows import known_rows, site_logits
from tl_bilinear.unlearning.contexts import in_contexts
from tl_bilinear.unlearning.crossings import CROSSINGS as EDIT_CROSSINGS
from tl_bilinear.unlearning.crossings import require_count
from tl_bilinear.unlearning.demands import CLEARANCE as EDIT_CLEARANCE
from tl_bilinear.unlearning.demands import Demands, make_demands
from tl_bilinear.unlearning.forget_set import require_forgettable
from tl_bilinear.unlearning.guards import crossed_demands
from tl_bilinear.unlearning.levels import never_learnt_odds
from tl_bilinear.unlearning.question import Question
from tl_bilinear.unlearning.text_metric import Batch, token_rows

TOKENS = 8192
CLEARANCE = 0.5
"""Logits by which a pinned answer loses. An edit loses by more, for other wordings' sake, and goes
below what was never learnt; the repair brings it back to there, except in crossed wordings, which
stand for all that are not given."""
LEAK = 0.05
"""Share of forgotten wordings that may be known behind a repair: of answers never learnt some are
said by chance."""
CROSSINGS = 2 * EDIT_CROSSINGS
"""A repair moves every weight, an edit a few directions: more wordings are to hold it."""
ROWS = 64
"""Prompts drawn for each step."""
WARM = 8
"""One of so many steps is for warming up: Adam's first ones move every weight alike, which harms
what the texts do not show."""


@dataclass(frozen=True, eq=False)
class Anchor:
    """What a model was and said before it was edited: `take_anchor` records it, `repair_` goes back
    to it.

    Memory: the parameters, and a log-probability per token of vocabulary and of the texts.
    """

    demands: Demands
    """In the wordings of the questions, and behind them in crossed ones."""
    n_given: int
    """Rows of the first kind."""
    batches: tuple[Batch, ...]
    log_probabilities: tuple[Float[Tensor, "row pos d_vocab"], ...]
    answers: Float[Tensor, "site d_vocab"]
    """Log-probabilities at the sites of all answers."""
    weights: Mapping[str, Tensor]
    """Parameters by name."""


@dataclass(frozen=True)
class Repair:
    """What a repair did. Where it would have done harm the model is as it was before it."""

    steps: int
    pull: float
    """That it was done with."""
    kept: bool
    kl: tuple[float, float]
    """On the anchor's texts, nats per token: before and after."""
    forget_known: tuple[float, float]
    """In the wordings of the questions; retained ones as well."""
    crossed_known: tuple[float, float]
    """Forgotten answers in crossed wordings; 0 where there are none."""
    retain_known: tuple[float, float]
    pin_error: tuple[float, float]
    """Root-mean-square logits between forgotten answers and their levels."""
    losses: tuple[float, ...] = field(repr=False)

    @property
    def message(self) -> str:
        """Whether it was kept, and why not."""
        if self.kept:
            return f"repaired: KL {self.kl[0]:.4f} -> {self.kl[1]:.4f}"
        pairs = self.kl, self.forget_known, self.crossed_known, self.retain_known
        return f"a repair was tried and undone: {', '.join(_harm(*pairs))}"


Pair = tuple[float, float]
"""Before a repair and after it."""


def _harm(kl: Pair, forget_known: Pair, crossed_known: Pair, retain_known: Pair) -> list[str]:
    """What a repair made worse; nothing where it is to be kept."""
    named = (
        ("KL rose", kl, kl[1] <= kl[0]),
        ("forgotten answers known rose", forget_known, _stays_forgotten(forget_known)),
        ("those known in crossed wordings rose", crossed_known, _stays_forgotten(crossed_known)),
        ("retained answers known fell", retain_known, retain_known[1] >= retain_known[0]),
    )
    return [f"{what} from {was:.4f} to {now:.4f}" for what, (was, now), fine in named if not fine]


def _stays_forgotten(known: Pair) -> bool:
    return known[1] <= max(known[0], LEAK)


def take_anchor(
    model: Any,
    forget: Sequence[Question],
    retain: Sequence[Question],
    texts: Sequence[str],
    *,
    target: float | Float[Tensor, " site"] | None = None,
    clearance: float = CLEARANCE,
    contexts: int = 2,
    crossings: int = CROSSINGS,
    seed: int = 0,
) -> Anchor:
    """Record what the *unedited* model says on texts and retained prompts, and the level that
    forgotten answers are pinned at (arguments as `fit_edit`, which has a larger clearance and half
    as many crossed wordings).

    Raises:
        ValueError: as `fit_edit` for its sets and texts.
    """
    host = get_host(model)
    require_count(crossings)
    forget, retain = require_forgettable(host, forget, retain)
    asked = in_contexts(forget, texts, contexts, seed, host.fits), retain
    level = never_learnt_odds(host, asked[0], seed=seed) if target is None else target
    demands = given = make_demands(host, *asked, level, floor=2.0, clearance=clearance)
    # Behind a clearance of half a logit a tenth and more of the answers come back in wordings that
    # nobody gave; in crossed ones nothing speaks for that little.
    most = max(clearance, EDIT_CLEARANCE)
    others = crossed_demands(host, given, forget, retain, crossings, clearance=most, seed=seed)
    if others is not None:
        demands = given.joined(others)
    batches = tuple(token_rows(host, texts, tokens=TOKENS))
    with torch.no_grad():
        said = tuple(host.model(tokens.to(host.device)).log_softmax(-1) for tokens, _ in batches)
        answers = site_logits(host, demands.rows).log_softmax(-1)
    weights = {name: each.detach().clone() for name, each in host.model.named_parameters()}
    return Anchor(demands, given.rows.n_rows, batches, said, answers, weights)


def repair_(
    model: Any,
    anchor: Anchor,
    *,
    steps: int = 120,
    learning_rate: float = 3e-4,
    pull: float = 30.0,
    pin: float = 0.01,
    retained: float = 1.0,
    undo_harm: bool = True,
    seed: int = 0,
) -> Repair:
    """Fine-tune an edited model in place towards its anchor, by Adam on all its parameters.

    The loss is KL(anchor || model) per token of a batch of texts, plus `retained` times the KL at
    the retained answers, plus `pin` times the squared logits, per forgotten answer, by which these
    miss their levels (either way) and any other demand is missed. The learning rate rises over the
    first eighth of the steps and falls as a cosine. Every step also goes a share of the way back to
    the anchor's weights, `pull` times its learning rate: weight decay as in AdamW, but towards
    where the weights came from (L2-SP: Li, Grandvalet and Davoine 2018, "Explicit inductive bias
    for transfer learning with convolutional networks", section 3). Where forgotten answers come
    back with it, the repair begins anew with a quarter of the pull, and then with none.

    The model stays as it was where the KL has not fallen, or more of the forgotten answers are
    known, as given or in crossed wordings, and more than `LEAK` of them, or fewer retained ones.

    Args:
        pull: 0 where the edit has given a layer other neurons: the old ones are no place to go back
            to. Parameters of another shape than the anchor's are never pulled.
        undo_harm: False to keep whatever comes of one try with this pull.

    Cost: per step one forward and backward pass of a batch of texts and of 64 prompts; up to three
    times the steps where the pull brings answers back.

    Raises:
        ValueError: a step count or rate that is not positive, a negative pull, or a model without
            parameters that take gradients.
    """
    host = get_host(model)
    if steps < 1 or learning_rate <= 0:
        raise ValueError(f"give steps and a learning rate above 0, got {steps}, {learning_rate}")
    if pull < 0:
        raise ValueError(f"`pull` must be 0 or more, got {pull}")
    named = {name: p for name, p in host.model.named_parameters() if p.requires_grad}
    parameters = list(named.values())
    if not parameters:
        raise ValueError("no parameter of this model takes gradients: requires_grad_(True) first")
    saved = [p.detach().clone() for p in parameters]
    pulled = _pulled(named, anchor)
    before = _state(host, anchor)
    pulls = [pull, pull / 4, 0.0] if pull and undo_harm else [pull]
    done = None
    try:
        for pull in pulls:
            _restore(parameters, saved)
            losses: list[float] = []
            turns = _steps(host, anchor, parameters, steps, learning_rate, (pin, retained), seed)
            for loss, rate in turns:
                losses.append(loss)
                _pull(pulled, min(pull * rate, 1))
            kl, forget, across, retain, error = zip(before, _state(host, anchor), strict=True)
            kept = not undo_harm or not _harm(kl, forget, across, retain)
            done = Repair(steps, pull, kept, kl, forget, across, retain, error, tuple(losses))
            if kept or (_stays_forgotten(forget) and _stays_forgotten(across)):
                break
    finally:
        for parameter in parameters:
            parameter.grad = None
        if done is None or not done.kept:
            _restore(parameters, saved)
    assert done is not None
    return done


@torch.no_grad()
def _restore(parameters: Sequence[Tensor], saved: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, saved, strict=True):
        parameter.copy_(value)


def _steps(
    host: AbstractHost,
    anchor: Anchor,
    parameters: Sequence[Tensor],
    steps: int,
    learning_rate: float,
    weights: tuple[float, float],
    seed: int,
) -> Iterator[tuple[float, float]]:
    """Adam's steps: the loss before each and its learning rate.

    Args:
        weights: of the pin and of retained answers.
    """
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(parameters, lr=learning_rate)
    for step in range(steps):
        rate = learning_rate * _schedule(step, steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        at = int(torch.randint(len(anchor.batches), (), generator=order))
        rows = torch.randperm(anchor.demands.rows.n_rows, generator=order)[:ROWS].sort().values
        with torch.enable_grad():
            loss = _loss(host, anchor, at, rows, *weights)
            optimiser.zero_grad()
            loss.backward()
        optimiser.step()
        yield float(loss.detach()), rate


def _pulled(named: Mapping[str, Tensor], anchor: Anchor) -> list[tuple[Tensor, Tensor]]:
    """Parameters with where they came from."""
    pairs = [(p, anchor.weights[name]) for name, p in named.items() if name in anchor.weights]
    return [(p, there.to(p)) for p, there in pairs if p.shape == there.shape]


@torch.no_grad()
def _pull(pulled: Sequence[tuple[Tensor, Tensor]], share: float) -> None:
    """A share of the way back."""
    for parameter, there in pulled:
        parameter.lerp_(there, share)


def _schedule(step: int, steps: int) -> float:
    """The share of the learning rate that a step has."""
    return min(1, WARM * (step + 1) / steps) * (1 + math.cos(math.pi * step / steps)) / 2


def _loss(
    host: AbstractHost, anchor: Anchor, at: int, rows: Tensor, pin: float, retained: float
) -> Tensor:
    tokens, mask = anchor.batches[at]
    text = _kl(anchor.log_probabilities[at], host.model(tokens.to(host.device)).log_softmax(-1))
    loss = text[mask.to(text.device)].mean()
    demands = anchor.demands.select(rows)
    said = anchor.answers[anchor.demands.rows.sites_of([rows]).to(loss.device)]
    logits = site_logits(host, demands.rows)
    kept = ~demands.forget[demands.rows.site_row].to(logits.device)
    if bool(kept.any()):
        loss = loss + retained * _kl(said[kept], logits[kept].log_softmax(-1)).mean()
    short, pinned = demands.shortfall(logits), demands.pinned.to(logits.device)
    missed = short[pinned].square().sum() + short[~pinned].relu().square().sum()
    return loss + pin * missed / pinned.sum().clamp_min(1)


def _missed(demands: Demands, logits: Tensor) -> Tensor:
    """Signed logits between forgotten answers and what they are pinned at."""
    return demands.shortfall(logits)[demands.pinned.to(logits.device)]


def _kl(before: Tensor, after: Tensor) -> Tensor:
    return (before.exp() * (before - after)).sum(-1)


@torch.no_grad()
def _state(host: AbstractHost, anchor: Anchor) -> tuple[float, float, float, float, float]:
    """KL on the texts, accuracy on forgotten rows as given and in crossed wordings and on retained
    ones as given, and the pin's error."""
    total, count = 0.0, 0
    for (tokens, mask), before in zip(anchor.batches, anchor.log_probabilities, strict=True):
        kl = _kl(before, host.model(tokens.to(host.device)).log_softmax(-1))
        total, count = total + float(kl[mask.to(kl.device)].sum()), count + int(mask.sum())
    logits = site_logits(host, anchor.demands.rows)
    known, mine = known_rows(logits, anchor.demands.rows).double(), anchor.demands.forget
    given = torch.arange(len(mine)) < anchor.n_given
    shares = [known[some] for some in (mine & given, mine & ~given, ~mine & given)]
    forget, crossed, retain = (float(each.sum()) / max(len(each), 1) for each in shares)
    error = float(_missed(anchor.demands, logits).double().square().mean().sqrt())
    return total / count, forget, crossed, retain, error
