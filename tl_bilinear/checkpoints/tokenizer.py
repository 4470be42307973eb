"""The tokenizer that belongs to a folder's model."""

import warnings
from pathlib import Path
from typing import Any

from tl_bilinear.checkpoints.error import CheckpointError, one_line
from tl_bilinear.checkpoints.hub import hub_tokenizer_folder

FILES = ("tokenizer.json", "tokenizer.model")


def read_tokenizer(folder: Path, elsewhere: str | None, vocab_size: int) -> Any:
    """The folder's tokenizer, or the one of a hub id; None, with a warning, without either.

    Raises:
        CheckpointError: files that hold none, or one with more tokens than the model.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in FILES):
        if elsewhere is None:
            return None
        try:
            folder = hub_tokenizer_folder(elsewhere)
        except CheckpointError as error:
            warnings.warn(f"{folder} is loaded without its tokenizer: {error}", stacklevel=4)
            return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    # tokenizers raises bare Exceptions, transformers whatever a file's contents lead to.
    except Exception as error:
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be read ({one_line(error)}): fetch its files "
            "again, or remove them to load the model without a tokenizer"
        ) from None
    if len(tokenizer) > vocab_size:
        raise CheckpointError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens but the model only "
            f"{vocab_size}: they do not belong together"
        )
    return tokenizer
