"""transformers models, in memory, into HookedTransformers (TransformerLens 3.9), biases kept.

A class is one entry of `DECODERS`; what it has beside Llama's names is in a file of its own.
TransformerLens' own converters are not used: they drop the biases of MLPs and attention, want
grouped heads where there are none, and take configurations from tables by name.
"""

from typing import Any

from transformer_lens import HookedTransformer, HookedTransformerConfig

from tl_bilinear.hosts.hooked.decoder import Decoder, refusal
from tl_bilinear.hosts.hooked.fused import GlmDecoder, Phi3Decoder
from tl_bilinear.hosts.hooked.gemma import Gemma2Decoder, Gemma3Decoder, GemmaDecoder
from tl_bilinear.hosts.hooked.olmo2 import Olmo2Decoder
from tl_bilinear.hosts.hooked.rotary import require_same_rotation
from tl_bilinear.hosts.hooked.stablelm import StableLmDecoder
from tl_bilinear.hosts.hooked.windowed import MistralDecoder, QwenDecoder
from tl_bilinear.hosts.hooked_source import remember_source_
from tl_bilinear.hosts.hooked_transformer import BiasedGatedMLP
from tl_bilinear.hosts.registration import register

DECODERS: dict[str, type[Decoder]] = {
    "LlamaForCausalLM": Decoder,
    "MistralForCausalLM": MistralDecoder,
    "Qwen2ForCausalLM": QwenDecoder,
    "Qwen3ForCausalLM": QwenDecoder,
    "GemmaForCausalLM": GemmaDecoder,
    "Gemma2ForCausalLM": Gemma2Decoder,
    "Gemma3ForCausalLM": Gemma3Decoder,
    "Phi3ForCausalLM": Phi3Decoder,
    "GlmForCausalLM": GlmDecoder,
    "Olmo2ForCausalLM": Olmo2Decoder,
    "StableLmForCausalLM": StableLmDecoder,
}


def decoder_of(transformers_model: Any) -> Decoder:
    """How a transformers model is read.

    Raises:
        ValueError: for a class that is not in `DECODERS`.
    """
    name = type(transformers_model).__name__
    if name not in DECODERS:
        raise refusal(
            transformers_model,
            "a HookedTransformer is made of these classes only: "
            + ", ".join(known.removesuffix("ForCausalLM") for known in DECODERS),
        )
    return DECODERS[name](transformers_model)


def hooked_transformer_of(transformers_model: Any, tokenizer: Any) -> HookedTransformer:
    """Build the HookedTransformer with the weights as stored: nothing folded or centred.

    Gemma's gains and embedding are the effective ones, 1 + w and sqrt(d_model) W_E, as
    TransformerLens has them.

    Args:
        transformers_model: of a class in `DECODERS`. The built modules decide what it is
            (gate activation, norms, rotation), not the configuration's keys.
        tokenizer: its tokenizer, or None.

    Raises:
        ValueError: for what a HookedTransformer has no place for, with the reason.
    """
    register()
    decoder = decoder_of(transformers_model)
    device = str(transformers_model.device)
    cfg = HookedTransformerConfig(
        **decoder.settings(), dtype=transformers_model.dtype, device=device, init_weights=False
    )
    model = HookedTransformer(cfg, tokenizer=tokenizer, move_to_device=False)
    require_same_rotation(transformers_model, model)
    if cfg.act_fn != "bilinear" and decoder.holds_gate_biases():
        _hold_biases_(model)
    # Not load_and_process_state_dict: with every step off it still rounds float64 to float32.
    missing, surplus = model.load_state_dict(decoder.state(), strict=False)
    buffers = {name for name, _ in model.named_buffers()}
    assert set(missing) <= buffers and not surplus, (missing, surplus)
    model.to(device, print_details=False)
    remember_source_(model, transformers_model)
    return model.eval()


def _hold_biases_(model: HookedTransformer) -> None:
    """Put a component with all three biases in the place of TransformerLens' GatedMLPs."""
    for block in model.blocks:
        block.mlp = BiasedGatedMLP(model.cfg)
    model.setup()
