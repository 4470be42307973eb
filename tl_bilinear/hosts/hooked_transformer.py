"""The HookedTransformer of TransformerLens 3.9 as a host, and its bilinear MLP component."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.components.layer_norm import LayerNorm
from transformer_lens.components.layer_norm_pre import LayerNormPre
from transformer_lens.components.mlps.can_be_used_as_mlp import CanBeUsedAsMLP
from transformer_lens.components.rms_norm import RMSNorm
from transformer_lens.components.rms_norm_pre import RMSNormPre
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.hosts.norm import NO_NORM, Norm


class BilinearMLP(CanBeUsedAsMLP):
    """`((x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out`.

    The parameters and hooks are those of TransformerLens' GatedMLP, with `b_gate` and
    `hook_out` added and `b_in` inside the product (GatedMLP adds it after): that is what makes
    folding a LayerNorm's bias exact.
    """

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        self.select_activation_function()
        d_model, dtype = self.cfg.d_model, self.cfg.dtype
        self.W_gate = nn.Parameter(torch.empty(d_model, self.d_mlp, dtype=dtype))
        self.W_in = nn.Parameter(torch.empty(d_model, self.d_mlp, dtype=dtype))
        self.W_out = nn.Parameter(torch.empty(self.d_mlp, d_model, dtype=dtype))
        self.b_gate = nn.Parameter(torch.zeros(self.d_mlp, dtype=dtype))
        self.b_in = nn.Parameter(torch.zeros(self.d_mlp, dtype=dtype))
        self.b_out = nn.Parameter(torch.zeros(d_model, dtype=dtype))
        self.hook_pre = HookPoint()  # [batch, pos, d_mlp], x W_gate + b_gate
        self.hook_pre_linear = HookPoint()  # [batch, pos, d_mlp], x W_in + b_in
        self.hook_post = HookPoint()  # [batch, pos, d_mlp], their product
        self.hook_out = HookPoint()  # [batch, pos, d_model], before any norm behind the MLP

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        # Contiguous transposes: nn.Linear's memory layout, so that bfloat16 sums in the
        # order in which Hugging Face's modules sum.
        left = self.hook_pre(F.linear(x, self.W_gate.T.contiguous(), self.b_gate))
        right = self.hook_pre_linear(F.linear(x, self.W_in.T.contiguous(), self.b_in))
        product = self.hook_post(self.gated(left) * right)
        return self.hook_out(F.linear(product, self.W_out.T.contiguous(), self.b_out))

    def gated(self, left: Float[Tensor, "batch pos d_mlp"]) -> Float[Tensor, "batch pos d_mlp"]:
        """What multiplies the other input: the gate as it is."""
        return left


class BiasedGatedMLP(BilinearMLP):
    """`(act(x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out`, with cfg.act_fn's activation.

    For gated checkpoints with MLP biases, which TransformerLens' GatedMLP cannot hold.
    """

    def gated(self, left: Float[Tensor, "batch pos d_mlp"]) -> Float[Tensor, "batch pos d_mlp"]:
        """The activation of the gate."""
        return self.act_fn(left)


class HookedTransformerHost(AbstractHost):
    kind = "HookedTransformer"

    def __init__(self, model: Any):
        super().__init__(model)
        # TransformerLens' name for norms that stand behind the sublayers instead of before.
        self._norms_behind = model.cfg.original_architecture in POST_NORM_ARCHITECTURES
        if self.mlp_post_norm(0).exists:
            _add_out_hooks_(model)

    def mlp_norm(self, layer: int) -> Norm:
        return NO_NORM if self._norms_behind else super().mlp_norm(layer)

    def attention_norm(self, layer: int) -> Norm:
        return NO_NORM if self._norms_behind else super().attention_norm(layer)

    def mlp_post_norm(self, layer: int) -> Norm:
        name = self._behind("ln2")
        return NO_NORM if name is None else self._norm(getattr(self._block(layer), name))

    def attention_post_norm(self, layer: int) -> Norm:
        name = self._behind("ln1")
        return NO_NORM if name is None else self._norm(getattr(self._block(layer), name))

    def mlp_out_site(self, layer: int) -> str:
        # hook_mlp_out sits behind a post-norm; edits act on the MLP itself.
        behind = self._behind("ln2") is not None
        return f"blocks.{layer}.mlp.hook_out" if behind else super().mlp_out_site(layer)

    def mlp_post_scale_site(self, layer: int) -> str | None:
        name = self._behind("ln2")
        return None if name is None else f"blocks.{layer}.{name}.hook_scale"

    def attention_post_scale_site(self, layer: int) -> str | None:
        name = self._behind("ln1")
        return None if name is None else f"blocks.{layer}.{name}.hook_scale"

    def _behind(self, norm: str) -> str | None:
        """The name of the norm between a sublayer and the stream; None where there is none."""
        if self._norms_behind:
            return norm
        return f"{norm}_post" if self.model.cfg.use_normalization_before_and_after else None

    def final_norm(self) -> Norm:
        # A HookedTransformer with normalization_type=None is built without one.
        return self._norm(getattr(self.model, "ln_final", None) or nn.Identity())

    def adds_bias_behind(self, layer: int) -> bool:
        return not isinstance(self._mlp(layer), BilinearMLP)

    def _norm(self, module: Any) -> Norm:
        if isinstance(module, (RMSNorm, RMSNormPre)):
            gain = module.w.detach() if isinstance(module, RMSNorm) else None
            return Norm(gain=gain, bias=None, centred=False, eps=module.eps)
        if isinstance(module, LayerNorm):
            return Norm(
                gain=module.w.detach(), bias=module.b.detach(), centred=True, eps=module.eps
            )
        if isinstance(module, LayerNormPre):
            return Norm(gain=None, bias=None, centred=True, eps=module.eps)
        if isinstance(module, nn.Identity):
            return Norm(gain=None, bias=None, centred=False, exists=False)
        raise ValueError(f"unknown norm {type(module).__name__} in a HookedTransformer")

    def _gate_activation(self, mlp: Any) -> Callable[..., Any] | None:
        return None if type(mlp) is BilinearMLP else mlp.act_fn


def _add_out_hooks_(model: Any) -> None:
    """Give TransformerLens' own MLPs the `hook_out` that a BilinearMLP has. Idempotent."""
    bare = [block.mlp for block in model.blocks if not hasattr(block.mlp, "hook_out")]
    for mlp in bare:
        mlp.hook_out = HookPoint()
        mlp.register_forward_hook(lambda module, inputs, output: module.hook_out(output))
    if bare:
        model.setup()
