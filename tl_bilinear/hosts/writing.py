"""How a sublayer's output reaches a target: through its post-norm, where it has one.

Most sublayers write into the stream as they are. In Gemma 2 and 3 and in OLMo2 a norm stands
between; with its denominator sigma frozen as the final norm's rho is, the output y adds
u_l . y / (rho sigma) to the target, u_l being u with that norm's gain folded in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.hosts.norm import Norm
from tl_bilinear.hosts.reading import Reading, denominators, directions, softcapped, unembed

# Architectures whose parity and closing sums the tests show. Any other is tried before it is
# attributed: residual or logit multipliers and parallel blocks would make wrong numbers.
SHOWN = frozenset(
    f"{name}ArchitectureAdapter"
    for name in (
        "Llama",
        "Mistral",
        "Qwen2",
        "Qwen3",
        "Gemma1",
        "Gemma2",
        "Gemma3",
        "Phi3",
        "Glm",
        "Olmo2",
        "StableLm",
        "Native",
    )
) | {"NativeBilinearAdapter"}


@dataclass(frozen=True, eq=False)
class Writing:
    """`direction . y / scale + offset` is what a sublayer's output y adds to the target."""

    direction: Float[Tensor, "site d_model"]
    scale: Float[Tensor, "batch site"]
    offset: Float[Tensor, "batch site"]
    """What the post-norm's bias adds; zero without one."""


def writing_hooks(host: AbstractHost, layer: int) -> list[str]:
    """The hooks that `mlp_writing` and `attention_writing` need in the reading."""
    sites = (host.mlp_post_scale_site(layer), host.attention_post_scale_site(layer))
    return [site for site in sites if site is not None]


def mlp_writing(host: AbstractHost, reading: Reading, layer: int) -> Writing:
    """How the MLP's output (`mlp_out_site`) reaches each readout."""
    return _writing(host, reading, host.mlp_post_norm(layer), host.mlp_post_scale_site(layer))


def attention_writing(host: AbstractHost, reading: Reading, layer: int) -> Writing:
    """How the sum of the heads and b_O reaches each readout."""
    norm = host.attention_post_norm(layer)
    return _writing(host, reading, norm, host.attention_post_scale_site(layer))


def frozen_maps(host: AbstractHost) -> tuple[str, ...]:
    """What an attribution takes from the forward pass, for its provenance."""
    if any(writing_hooks(host, layer) for layer in range(host.n_layers)):
        return ("final norm's denominator", "post-norms' denominators")
    return ("final norm's denominator",)


def frozen_slopes(host: AbstractHost, layers: Sequence[int]) -> tuple[str, ...]:
    """The gates of these layers whose slopes are taken from the forward pass; often none."""
    gates = [host.gate(layer) for layer in layers] if host.frozen_gates else []
    names = dict.fromkeys(gate.name for gate in gates if gate is not None)
    return (f"gates' slopes ({', '.join(names)})",) if names else ()


def require_additive(host: AbstractHost) -> None:
    """Raise ValueError for a model whose logits are not W_U norm(sum of what sublayers write).

    Costs nothing for the architectures that are tested, one forward pass of two tokens else.
    """
    adapter = getattr(host.model, "adapter", None)
    if adapter is None or type(adapter).__name__ in SHOWN:
        return
    layers = range(host.n_layers)
    writes = [f"blocks.{i}.{name}" for i in layers for name in ("hook_attn_out", "hook_mlp_out")]
    last = f"blocks.{host.n_layers - 1}.hook_resid_post"
    tokens = torch.tensor([[0, min(1, host.d_vocab - 1)]])
    try:
        host._block(0).ln2  # noqa: B018  (a parallel block has none)
        logits, cache = host.read(
            tokens,
            [host.embedding_site(), *writes, last, host.final_input_site()],
            attention_mask=torch.ones_like(tokens),
        )
    except (KeyError, AttributeError) as error:
        raise ValueError(_refusal(host, f"its blocks are of another kind ({error})")) from None
    total = cache[host.embedding_site()] + sum(cache[write] for write in writes)
    if not _close(total, cache[last]):
        raise ValueError(
            _refusal(host, "what its sublayers write does not add up to its stream (a multiplier?)")
        )
    expected = softcapped(host, unembed(host, cache[host.final_input_site()].double()))
    if not _close(logits, expected):
        raise ValueError(_refusal(host, "its logits are not W_U ln_final(stream) (a multiplier?)"))


def _writing(host: AbstractHost, reading: Reading, norm: Norm, site: str | None) -> Writing:
    u, rho = directions(host, reading), denominators(host, reading)
    if site is None:
        return Writing(u, rho, torch.zeros_like(rho))
    sigma = reading.values[site][..., 0]
    offset = torch.zeros_like(rho) if norm.bias is None else (u @ norm.bias.to(u)) / rho
    return Writing(norm.fold_readout(u), rho * sigma, offset)


def _close(value: Tensor, expected: Tensor) -> bool:
    scale = expected.double().abs().max().clamp_min(1e-30)
    limit = 1e-4 if value.dtype in (torch.float32, torch.float64) else 5e-2
    return bool((value.double() - expected.double()).abs().max() <= limit * scale)


def _refusal(host: AbstractHost, reason: str) -> str:
    return (
        f"{type(host.model.adapter).__name__.removesuffix('ArchitectureAdapter')} models cannot be "
        f"attributed: {reason}. self_check, mlp_map and hooks work on them"
    )
