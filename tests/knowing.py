"""Tiny models in float64 with a tokenizer of words, and questions about them."""

from typing import Any

from models import native

WORDS = ["<unk>", "<s>", "</s>"] + [f"w{i}" for i in range(37)]


def knowing(host: str, norm: str | None = "RMS", **options: Any) -> Any:
    """A random model of 40 words, w0 to w36; float64, exact."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        name_or_path="words",
    )
    model = native(norm, host, **options)
    # Not set_tokenizer: it would read the tokenizer again, from a name that nothing knows.
    model.tokenizer = tokenizer
    model.cfg.tokenizer_prepends_bos = False
    return model
