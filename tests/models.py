"""Tiny random models on every host, and a checkpoint that has everything that goes wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

HostName = Literal["hooked_transformer", "transformer_bridge"]


def hosts() -> tuple[HostName, ...]:
    """The hosts that the installed TransformerLens has."""
    from tl_bilinear.hosts import has_hooked_transformer

    if has_hooked_transformer():
        return ("hooked_transformer", "transformer_bridge")
    return ("transformer_bridge",)


def tiny_llama(hidden_act: str = "linear", **options: Any) -> Any:
    """A random transformers Llama; gains, biases and embeddings are far from their defaults."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 40,
        "max_position_embeddings": 64,
        "mlp_bias": True,
        "attention_bias": True,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(hidden_act=hidden_act, **{**settings, **options}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def logits_of(model: Any):
    """A reference function for `self_check`, independent of any host."""
    return lambda tokens: model(tokens).logits


def process_(model: Any, host: str) -> None:
    """TransformerLens' own weight processing: norms folded, writing weights centred."""
    if host == "hooked_transformer":
        model.process_weights_()
    else:
        model.enable_compatibility_mode()


NATIVE: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 16,
    "d_head": 4,
    "n_heads": 4,
    "d_mlp": 24,
    "d_vocab": 40,
    "n_ctx": 32,
    "act_fn": "bilinear",
    "gated_mlp": True,
    "normalization_type": "RMS",
    "seed": 0,
}


def native(norm: str | None, host: str, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A natively built bilinear model: HookedTransformer on 3.9, a native bridge on either."""
    import tl_bilinear as tlb

    tlb.register()
    settings: dict[str, Any] = {
        **NATIVE,
        "normalization_type": norm,
        "dtype": dtype,
        "device": "cpu",
        **options,
    }
    if host == "hooked_transformer":
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        model: Any = HookedTransformer(HookedTransformerConfig(**settings))
    else:
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge import TransformerBridge

        from tl_bilinear.hosts.native import cast_

        model = TransformerBridge.boot_native(TransformerBridgeConfig(**settings))
        cast_(model, dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model.eval()


def word_tokenizer(folder: Path) -> Path:
    """A tokenizer of whole words, with BOS, beside a model's files."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "one", "two", "three"]
    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(
        tokenizer_object=plain,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        add_bos_token=True,
        name_or_path=str(folder),
    ).save_pretrained(folder)
    return folder


def cache(root: Path, hub_id: str, fill: Callable[[Path], Any], monkeypatch: Any) -> Path:
    """A Hugging Face cache that holds one repository, laid out as huggingface_hub does it."""
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = root / ("models--" + hub_id.replace("/", "--"))
    blobs, snapshot = repository / "blobs", repository / "snapshots" / commit
    for folder in (blobs, snapshot, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    fill(snapshot)
    for number, path in enumerate(sorted(snapshot.iterdir())):
        blob = path.rename(blobs / f"blob{number}")
        path.symlink_to(Path("../../blobs") / blob.name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))
    return snapshot
