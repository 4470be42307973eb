"""Edits during generation equal a loop by hand, with and without KV cache, on padded batches.

The loop by hand runs every prompt alone, without padding and without a cache, and edits absolute
positions by indexing. It follows the tokens that `generate` chose and compares the logits of every
step, so that a tie in bfloat16 can neither hide a difference nor make one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from models import NATIVE, hosts
from torch import Tensor

import tl_bilinear as tlb
from tl_bilinear.checkpoints.bundled import ZOO
from tl_bilinear.hosts.generation import hooks_at_positions, token_positions
from tl_bilinear.hosts.stream import StreamSite, edit_stream

PROMPTS = [
    "Once upon a time, there was a little girl named Lily. She went to the park",
    "Tom had a dog.",
    "One day",
]
STEPS = 4
KINDS = (*hosts(), "native")
# Largest difference of logits, in units of the largest logit: rounding, of attention over padded
# rows and of cached keys above all. The edits below move logits by more than five times that.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def model(request, kind) -> Any:
    return build(kind, request.param)


def build(kind: Any, dtype: torch.dtype) -> Any:
    if kind != "native":
        return tlb.load("stories-5l", host=kind, dtype=dtype)
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    tlb.register()
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "stories-5l")
    settings = {**NATIVE, "n_layers": 5, "d_vocab": 512, "n_ctx": 64, "d_model": 64, "d_mlp": 96}
    rotary = {"positional_embedding_type": "rotary", "rotary_dim": 4}
    config = TransformerBridgeConfig(**{**settings, **rotary})
    native = TransformerBridge.boot_native(config, tokenizer=tokenizer)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return native.eval().to(dtype)


def direction(model: Any, seed: int = 0) -> Tensor:
    drawn = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(seed))
    return drawn.to(tlb.get_host(model).dtype)


# ---- each edit twice: through our helper, and by hand for one prompt alone -----------------------

HOOK = "blocks.2.hook_resid_post"


@contextmanager
def ablation(model: Any) -> Iterator[None]:
    """A mode, at every position."""
    u = direction(model, 1).double()
    tensor = tlb.get_host(model).mlp_tensor(2).to(torch.float64)
    values, vectors = torch.linalg.eigh(tensor.symmetrized().interaction_matrix(u))
    with tlb.ablate(model, tlb.Mode(2, u, float(values[-1]), vectors[:, -1]), scale=-30.0):
        yield


@contextmanager
def ablation_by_hand(model: Any) -> Iterator[None]:
    host = tlb.get_host(model)
    u = direction(model, 1).double()
    tensor = host.mlp_tensor(2).to(torch.float64)
    values, vectors = torch.linalg.eigh(tensor.symmetrized().interaction_matrix(u))
    stream: dict[str, Tensor] = {}

    def subtract(value: Tensor, hook: Any) -> Tensor:
        lost = values[-1] * (stream["x"].double() @ vectors[:, -1]) ** 2
        return value - 31.0 * (lost[..., None] * u / u.square().sum()).to(value)

    with host.hooks(
        [
            (host.mlp_input_site(2), lambda value, hook: stream.update(x=value)),
            (host.mlp_out_site(2), subtract),
        ]
    ):
        yield


@contextmanager
def projections(model: Any) -> Iterator[None]:
    """What one layer reads and another writes along a direction, and a mode's mean; nested."""
    u = direction(model, 4).double()
    mode = tlb.Mode(3, direction(model, 5).double(), 2.0, u / u.norm())
    texts = ["Tom had a dog. The dog was big."]
    with (
        tlb.project_inputs(model, tlb.InputMode(1, u), scale=-3.0),
        tlb.project_outputs(model, tlb.OutputMode(2, u), scale=-9.0),
        tlb.ablate(model, mode, "mean", texts=texts),
    ):
        yield


@contextmanager
def projections_by_hand(model: Any) -> Iterator[None]:
    """The mean is of the model with both projections, as the blocks are nested."""
    host = tlb.get_host(model)
    u, write = direction(model, 4).double(), direction(model, 5).double()
    u = u / u.norm()
    stream: dict[int, Tensor] = {}

    def keep(layer: int) -> tuple[str, Callable[..., None]]:
        return host.mlp_input_site(layer), lambda value, hook: stream.update({layer: value})

    def less_input(value: Tensor, hook: Any) -> Tensor:
        x, weights = stream[1].double(), host.mlp_map(1).to(torch.float64)
        return value + (weights(x - 4 * (x @ u)[..., None] * u) - weights(x)).to(value)

    def less_output(value: Tensor, hook: Any) -> Tensor:
        y = value.double()
        return value - (10 * (y @ u)[..., None] * u).to(value)

    def averaged(value: Tensor, hook: Any) -> Tensor:
        lost = 2 * ((stream[3].double() @ u).square() - mean)
        return value - (lost[..., None] * write / write.square().sum()).to(value)

    first = [keep(1), (host.mlp_out_site(1), less_input), (host.mlp_out_site(2), less_output)]
    with host.hooks(first):
        tokens = model.to_tokens("Tom had a dog. The dog was big.")
        x = host.read_streams(tokens, [3])[3][0, 1:]
        mean = (x.double() @ u).square().mean()
        with host.hooks([keep(3), (host.mlp_out_site(3), averaged)]):
            yield


def chosen(positions: Tensor) -> Tensor:
    """Tokens 2 and 3, and everything from 8 on."""
    return ((positions == 2) | (positions == 3) | (positions >= 8))[..., None]


@contextmanager
def positional(model: Any) -> Iterator[None]:
    delta = 3 * direction(model)

    def edit(value: Tensor, positions: Tensor) -> Tensor:
        return torch.where(chosen(positions), value + delta, value)

    with hooks_at_positions(model, [(HOOK, edit)]):
        yield


@contextmanager
def positional_by_hand(model: Any) -> Iterator[None]:
    delta = 3 * direction(model)

    def edit(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, 2:4] += delta
        value[:, 8:] += delta
        return value

    with tlb.get_host(model).hooks([(HOOK, edit)]):
        yield


@contextmanager
def in_the_stream(model: Any) -> Iterator[None]:
    """Between attention and MLP, a multiple that grows with the position; nested in an ablation."""
    delta = direction(model)

    def edit(value: Tensor, positions: Tensor) -> Tensor:
        return value + (0.3 * positions.clamp(min=0)[..., None]).to(value) * delta

    with ablation(model), hooks_at_positions(model, [(StreamSite(1, "mid"), edit)]):
        yield


@contextmanager
def in_the_stream_by_hand(model: Any) -> Iterator[None]:
    delta = direction(model)

    def edit(value: Tensor) -> Tensor:
        return value + (0.3 * torch.arange(value.shape[1])[:, None]).to(value) * delta

    with ablation_by_hand(model), edit_stream(model, 1, "mid", edit):
        yield


EDITS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "ablation": (ablation, ablation_by_hand),
    "projections": (projections, projections_by_hand),
    "positions": (positional, positional_by_hand),
    "stream": (in_the_stream, in_the_stream_by_hand),
}


def generate(model: Any, text: Any, cache: bool, **options: Any) -> Any:
    return model.generate(
        text,
        max_new_tokens=STEPS,
        do_sample=False,
        use_past_kv_cache=cache,
        stop_at_eos=False,
        verbose=False,
        **options,
    )


def generated(model: Any, cache: bool) -> tuple[list[Tensor], Tensor]:
    """Each row without its padding, and the logits of every step, of one padded batch."""
    found = generate(model, PROMPTS, cache, output_logits=True, return_dict_in_generate=True)
    rows = found.sequences
    lengths = [len(model.to_tokens(prompt)[0]) + STEPS for prompt in PROMPTS]
    assert len(set(lengths)) == 3, "the prompts are meant to be uneven"
    return [row[-n:] for row, n in zip(rows, lengths, strict=True)], torch.stack(found.logits, 1)


def by_hand(model: Any, row: Tensor, edit: Callable[[Any], Any]) -> Tensor:
    """Logits of every step for one row alone: growing text, no cache, no padding."""
    logits = []
    with torch.no_grad(), edit(model):
        for step in range(STEPS):
            prefix = row[: len(row) - STEPS + step]
            logits.append(model(prefix[None])[0, -1])
    return torch.stack(logits)


@pytest.mark.parametrize("edit", EDITS)
def test_generation_equals_a_loop_by_hand(model, edit):
    ours, hand = EDITS[edit]
    manual: dict[tuple[int, ...], Tensor] = {}
    for cache in (True, False):
        with ours(model):
            rows, logits = generated(model, cache)
        for row, found in zip(rows, logits, strict=True):
            key = tuple(row.tolist())
            expected = manual[key] if key in manual else by_hand(model, row, hand)
            manual[key] = expected
            limit = TOLERANCES[expected.dtype] * float(expected.abs().max())
            assert float((found - expected).abs().max()) <= limit
            # What was chosen is the best, up to what the logits may differ by.
            picked = expected.gather(1, row[-STEPS:, None])[:, 0]
            assert bool((expected.max(1).values - picked <= 2 * limit).all())
            if expected.dtype == torch.float32:
                assert row[-STEPS:].tolist() == expected.argmax(1).tolist()
            with torch.no_grad():
                without = model(row[None, :-1])[0, -STEPS:]
            assert float((without - expected).abs().max()) > 5 * limit, "the edit does too little"


# ---- positions ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(kind) -> Any:
    return build(kind, torch.float32)


def seen_by(model: Any, run: Callable[[], Any]) -> list[list[list[int]]]:
    """The positions of every forward pass."""
    seen: list[list[list[int]]] = []
    with hooks_at_positions(model, [(HOOK, lambda value, where: seen.append(where.tolist()))]):
        run()
    return seen


def test_positions_count_tokens_and_leave_padding_out(plain, kind):
    texts = ["Tom had", "One"]
    length = [len(plain.to_tokens(text)[0]) for text in texts]
    padding = length[0] - length[1]
    prompt = [list(range(length[0])), [-1] * padding + list(range(length[1]))]
    cached = kind != "native"
    # Twice: nothing is carried over from one call to the next.
    for _ in range(2):
        seen = seen_by(plain, lambda: generate(plain, texts, True))
        assert seen[0] == prompt
        for step, found in enumerate(seen[1:], start=1):
            new = [[length[0] + step - 1], [length[1] + step - 1]]
            if not cached:
                new = [
                    row + list(range(n, n + step)) for row, n in zip(prompt, length, strict=True)
                ]
            assert found == new
        assert len(seen) == STEPS


def test_positions_of_plain_passes_and_of_masks(plain):
    tokens = plain.to_tokens("Tom had a dog.")
    count = tokens.shape[1]
    assert seen_by(plain, lambda: plain(tokens)) == [[list(range(count))]]
    mask = torch.ones_like(tokens)
    mask[:, :2] = 0
    seen = seen_by(plain, lambda: plain(tokens, attention_mask=mask))
    assert seen == [[[-1, -1, *range(count - 2)]]]
    mask = torch.ones_like(tokens)
    mask[:, -1] = 0
    seen = seen_by(plain, lambda: plain(tokens, attention_mask=mask))
    assert seen == [[[*range(count - 1), -1]]]


def test_a_failed_pass_leaves_nothing_behind(plain):
    tokens = plain.to_tokens("Tom had a dog.")
    with torch.no_grad():
        before = plain(tokens)
        delta = direction(plain)
        with pytest.raises(KeyError, match="mine"), positional(plain):
            plain(tokens)
            raise KeyError("mine")
        with positional(plain):

            def fail(value: Tensor, hook: Any) -> Tensor:
                raise KeyError("inside")

            with (
                pytest.raises(KeyError, match="inside"),
                tlb.get_host(plain).hooks([("blocks.3.hook_resid_pre", fail)]),
            ):
                plain(tokens)
            changed = plain(tokens[:, :5])
        assert torch.equal(plain(tokens), before)
        assert not any(point.fwd_hooks for point in plain.hook_dict.values())
        with positional_by_hand(plain):
            torch.testing.assert_close(plain(tokens[:, :5]), changed)
        # Nested: the inner one ends, the outer one goes on.
        with edit_stream(plain, 2, "post", lambda value: value + delta):
            with positional(plain):
                both = plain(tokens)
            outer = plain(tokens)
        assert not torch.allclose(both, outer, atol=1e-2)
        with edit_stream(plain, 2, "post", lambda value: value + delta):
            assert torch.equal(plain(tokens), outer)


def test_beams_keep_their_positions(plain, kind):
    if kind != "transformer_bridge":
        pytest.skip("only bridges of transformers models search with beams (hf_generate)")
    tokens = plain.to_tokens("Tom had a dog.")
    seen = seen_by(
        plain, lambda: plain.hf_generate(tokens, max_new_tokens=3, num_beams=3, do_sample=False)
    )
    count = tokens.shape[1]
    assert [found[-1][-1] for found in seen] == [count - 1, count, count + 1]
    assert len(seen[1]) == 3


def test_positions_are_known_in_a_forward_pass_only(plain, kind):
    with token_positions(plain) as positions:
        with pytest.raises(RuntimeError, match="inside a forward pass"):
            positions()
        plain(plain.to_tokens("Tom"))
        if kind != "hooked_transformer":
            with pytest.raises(RuntimeError, match="inside a forward pass"):
                positions()


def test_bad_edits_are_refused(plain):
    def leave(value: Tensor, where: Tensor) -> None:
        return None

    tokens = plain.to_tokens("Tom had a dog.")
    refused = {
        "`edits` is empty": [],
        "'hook_embed' cannot be edited at positions": [("hook_embed", leave)],
        "'blocks.0.attn.hook_pattern' cannot": [("blocks.0.attn.hook_pattern", leave)],
        "`layer` 9 is out of range": [(StreamSite(9, "mid"), leave)],
    }
    for words, edits in refused.items():
        with pytest.raises(ValueError, match=words), hooks_at_positions(plain, edits):
            pass
    with pytest.raises(KeyError, match="no hook named"):
        with hooks_at_positions(plain, [("blocks.0.hook_typo", leave)]):
            pass
    with pytest.raises(RuntimeError, match="nothing was edited: the model never ran .*resid_post"):
        with hooks_at_positions(plain, [(HOOK, leave)]):
            pass
    with pytest.raises(RuntimeError, match="never ran the stream of layer 1, mid"):
        with hooks_at_positions(plain, [(StreamSite(1, "mid"), leave)]):
            pass
    with pytest.raises(ValueError, match="the edit at blocks.2.hook_resid_post returned"):
        with hooks_at_positions(plain, [(HOOK, lambda value, where: value[:, :1])]):
            plain(tokens)
