"""The TransformerBridge of TransformerLens 3.9 and 4.x as a host, and its bilinear MLP."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components.gated_mlp import GatedMLPBridge
from transformer_lens.model_bridge.generalized_components.joint_gate_up_mlp import (
    JointGateUpMLPBridge,
)
from transformer_lens.model_bridge.generalized_components.normalization import (
    NormalizationBridge,
)

from tl_bilinear.hosts.gates import is_identity
from tl_bilinear.hosts.host import AbstractHost
from tl_bilinear.hosts.norm import NO_NORM, Norm

UNGATED = ("hook_in", "hook_out", "hook_normalized")
"""Hook points that wait for no setting. Others may (use_attn_result), or are aliases."""

ACTIVATION_ATTRIBUTES = ("act_fn", "activation_fn", "act", "activation")


class BilinearForward:
    """A forward pass that multiplies gate and input, whatever the configuration says.

    The stock bridge looks its activation up by name when weights are processed, and takes
    SiLU for every name that it does not know, "linear" among them.
    """

    hook_in: Any
    hook_out: Any
    gate: Any
    out: Any

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        x = self.hook_in(args[0])
        product = self.gate(x) * getattr(self, "in")(x)
        return self.hook_out(self.out(product))


class BilinearMLPBridge(BilinearForward, GatedMLPBridge):
    """`out(gate(x) * in(x))`, raw and in compatibility mode; hooks as on GatedMLPBridge."""


class BilinearJointMLPBridge(BilinearForward, JointGateUpMLPBridge):
    """The same where gate and input share one fused matrix."""


BILINEAR_CLASSES = {
    GatedMLPBridge: BilinearMLPBridge,
    JointGateUpMLPBridge: BilinearJointMLPBridge,
}


def built_activation(mlp: Any) -> Callable[..., Any] | None:
    """The activation that a built transformers or native MLP module holds, if it has one."""
    for name in ACTIVATION_ATTRIBUTES:
        activation = getattr(mlp, name, None)
        if callable(activation):
            return activation
    return None


def adopt_mlp(mlp: Any) -> bool:
    """Make one stock gated bridge bilinear if the activation that it wraps is the identity."""
    target = BILINEAR_CLASSES.get(type(mlp))
    if target is None or not is_identity(built_activation(mlp.original_component)):
        return False
    mlp.__class__ = target
    return True


@contextmanager
def attached(model: Any, hooks: Sequence[tuple[HookPoint, Callable]]) -> Iterator[Any]:
    """Hooks at hook points; at the end these are removed, and no others."""
    handles = []
    model.context_level += 1
    try:
        for point, hook in hooks:
            point.add_hook(hook, level=model.context_level)
            handles.append((point, point.fwd_hooks[-1]))
        yield model
    finally:
        for point, handle in handles:
            handle.hook.remove()
            point.fwd_hooks = [held for held in point.fwd_hooks if held is not handle]
        model.context_level -= 1


class TransformerBridgeHost(AbstractHost):
    kind = "TransformerBridge"

    def hooks(self, hooks: Sequence[tuple[str, Callable]]) -> Any:
        points = [(self._ungated_point(name), hook) for name, hook in hooks]
        found = [(point, hook) for point, hook in points if point is not None]
        # 3.9's own context resolves every alias of the model anew for each hook attached.
        return attached(self.model, found) if len(found) == len(hooks) else super().hooks(hooks)

    def require_sites(self, sites: Sequence[str]) -> None:
        others = [site for site in sites if self._ungated_point(site) is None]
        if others:
            super().require_sites(others)

    def _ungated_point(self, site: str) -> HookPoint | None:
        """The hook point at that place in the module tree, if it waits for no setting."""
        if not site.endswith(UNGATED):
            return None
        point = self._optional(lambda: self.model.get_submodule(site))
        return point if isinstance(point, HookPoint) else None

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        weight = self.model.W_E
        scale = self._optional(lambda: self.model.embed.original_component.embed_scale)
        return weight if scale is None else weight * scale.to(weight)  # Gemma

    def mlp_norm(self, layer: int) -> Norm:
        return self._norm(self._block(layer).ln2) if self._reads_norm(layer) else NO_NORM

    def attention_norm(self, layer: int) -> Norm:
        # OLMo2 has none: 4.x then has no ln1, and in 3.9 that is the post-norm's name.
        ln1 = getattr(self._block(layer), "ln1", None)
        if ln1 is None or self._writer(layer, "hook_attn_out") == "ln1":
            return NO_NORM
        return self._norm(ln1)

    def mlp_post_norm(self, layer: int) -> Norm:
        name = self._writer(layer, "hook_mlp_out")
        return NO_NORM if name == "mlp" else self._norm(getattr(self._block(layer), name))

    def attention_post_norm(self, layer: int) -> Norm:
        name = self._writer(layer, "hook_attn_out")
        return NO_NORM if name == "attn" else self._norm(getattr(self._block(layer), name))

    def mlp_input_site(self, layer: int) -> str:
        if self.mlp_norm(layer).exists:
            return f"blocks.{layer}.ln2.hook_normalized"
        return f"blocks.{layer}.mlp.hook_in"

    def mlp_out_site(self, layer: int) -> str:
        # hook_mlp_out sits behind a post-norm in some families; edits act on the MLP itself.
        return f"blocks.{layer}.mlp.hook_out"

    def mlp_post_scale_site(self, layer: int) -> str | None:
        name = self._writer(layer, "hook_mlp_out")
        return None if name == "mlp" else f"blocks.{layer}.{name}.hook_scale"

    def attention_post_scale_site(self, layer: int) -> str | None:
        name = self._writer(layer, "hook_attn_out")
        return None if name == "attn" else f"blocks.{layer}.{name}.hook_scale"

    def _writer(self, layer: int, alias: str) -> str:
        """The submodule whose output is added to the stream: the sublayer or its post-norm.

        TransformerLens 3.9 calls OLMo2's post-norms ln1 and ln2, 4.x ln1_post and ln2_post;
        the block's own aliases say the same in both.
        """
        return self._block(layer).hook_aliases[alias].removesuffix(".hook_out")

    def _reads_norm(self, layer: int) -> bool:
        """False where the MLP reads the stream as it is (OLMo2)."""
        return self._block(layer).hook_aliases["hook_resid_mid"] == "ln2.hook_in"

    def _norm(self, module: Any) -> Norm:
        if not isinstance(module, NormalizationBridge):
            return NO_NORM
        rms = module.uses_rms_norm
        gain = self._optional(lambda: module.weight)
        bias = None if rms else self._optional(lambda: module.bias)
        if gain is not None:
            gain = gain.detach()
            if getattr(module.config, "rmsnorm_uses_offset", False):
                gain = 1.0 + gain
        bias = None if bias is None else bias.detach()
        return Norm(gain=gain, bias=bias, centred=not rms, eps=self.model.cfg.eps)

    def _gate_activation(self, mlp: Any) -> Callable[..., Any] | None:
        return (
            None if isinstance(mlp, BilinearForward) else built_activation(mlp.original_component)
        )
