"""How well a language model predicts stories: nats per token and bits per byte.

Every story is read on its own: the beginning-of-text token, then its tokens, cut at 512 in all.
Nats per token is the mean of `-log p` over all predicted tokens (the first token is given, the end
of a story is not scored). Bits per byte divides by the UTF-8 bytes that those tokens stand for, so
it compares models of different vocabularies.

    python -m tl_bilinear.conversion.evaluation FOLDER --text FILE --first 150
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from jaxtyping import Float, Int
from rich.console import Console
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tl_bilinear.one_line_errors import errors_in_one_line

SEPARATOR = "<|endoftext|>"


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured: `nats` in all over `n_tokens` predicted tokens and `n_bytes`."""

    nats: float
    n_tokens: int
    n_bytes: int
    n_stories: int

    @property
    def nats_per_token(self) -> float:
        """The mean of `-log p` over the predicted tokens."""
        return self.nats / self.n_tokens

    @property
    def bits_per_byte(self) -> float:
        """The predicted tokens' `-log2 p`, per UTF-8 byte of the text they stand for."""
        return self.nats / math.log(2) / self.n_bytes


def read_stories(path: str | Path) -> list[str]:
    """Read a text of stories separated by `<|endoftext|>`; white space around each is dropped.

    Raises:
        ValueError: where there is no such file, or no story in it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no text file {path}: give one of stories between {SEPARATOR}.")
    stories = [s.strip() for s in path.read_text(encoding="utf-8").split(SEPARATOR)]
    stories = [s for s in stories if s]
    if not stories:
        raise ValueError(f"{path} holds no story: expected text separated by {SEPARATOR}.")
    return stories


def encode_stories(tokenizer, stories: list[str]) -> list[list[int]]:
    """Tokenize each story behind one beginning-of-text token, or end-of-text where there is none.

    Raises:
        ValueError: where the tokenizer has neither.
    """
    start = tokenizer.bos_token_id
    start = tokenizer.eos_token_id if start is None else start
    if start is None:
        raise ValueError(
            "the tokenizer has neither bos_token nor eos_token, and every story begins with one."
        )
    encoded = tokenizer(stories, add_special_tokens=False)["input_ids"] if stories else []
    return [[start, *tokens] for tokens in encoded]


def story_stream(tokenizer, stories: list[str]) -> Int[Tensor, " n_tokens"]:
    """All stories one after another, each behind its beginning-of-text token.

    Raises:
        ValueError: as `encode_stories`.
    """
    rows = encode_stories(tokenizer, stories)
    return torch.tensor([token for row in rows for token in row])


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    tokenizer,
    stories: list[str],
    *,
    max_tokens: int = 512,
    batch_size: int = 16,
    progress: bool = False,
) -> Evaluation:
    """Return the model's loss on stories, each read from its own beginning.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        stories: texts.
        max_tokens: each story is cut at this many tokens, the beginning-of-text token included.
        batch_size: stories run at once.
        progress: show a progress bar.

    Raises:
        ValueError: where there is no story, or no token to predict.
    """
    rows = [row[:max_tokens] for row in encode_stories(tokenizer, stories)]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise ValueError(
            f"nothing to predict in {len(stories)} stories: give texts of some tokens."
        )
    was_training = model.training
    model.eval()
    nats, starts = 0.0, range(0, len(rows), batch_size)
    for i in tqdm(starts, desc="evaluating", unit="batch", disable=not progress):
        tokens, lengths = _pad(rows[i : i + batch_size])
        nats += _batch_nats(model, tokens.to(model.device), lengths.to(model.device))
    model.train(was_training)
    return Evaluation(
        nats=nats,
        n_tokens=sum(len(row) - 1 for row in rows),
        n_bytes=sum(len(text.encode()) for text in _decode(tokenizer, rows)),
        n_stories=len(rows),
    )


def _pad(rows: list[list[int]]) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, " batch"]]:
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for row, values in zip(tokens, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    return tokens, lengths


def _batch_nats(
    model: PreTrainedModel, tokens: Int[Tensor, "batch pos"], lengths: Int[Tensor, " batch"]
) -> float:
    """Sum `-log p` over each row's tokens 1 to length - 1; causal attention hides the padding."""
    logits: Float[Tensor, "batch pos d_vocab"] = model(tokens).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), tokens[:, 1:], reduction="none"
    )
    scored = torch.arange(1, tokens.shape[1], device=tokens.device) < lengths[:, None]
    return float(losses[scored].double().sum())


def _decode(tokenizer, rows: list[list[int]]) -> list[str]:
    return tokenizer.batch_decode([row[1:] for row in rows], clean_up_tokenization_spaces=False)


def load_folder(folder: str | Path):
    """Load a local folder's model (float32) and tokenizer through transformers, offline.

    Returns:
        (model, tokenizer)

    Raises:
        ValueError: where the folder is not there or holds no config.json.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a model folder: expected a config.json in it.")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _main(
    folder: Annotated[Path, typer.Argument(help="A model folder of transformers.")],
    text: Annotated[Path, typer.Option(help=f"Stories separated by {SEPARATOR}.")],
    first: Annotated[int | None, typer.Option(help="Read only the first so many stories.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Cut each story at so many tokens.")] = 512,
) -> None:
    """Print a model's nats per token, tokens and bits per byte on a text."""
    with errors_in_one_line():
        stories = read_stories(text)[:first]
        model, tokenizer = load_folder(folder)
        result = evaluate(model, tokenizer, stories, max_tokens=max_tokens, progress=True)
    Console().print(
        f"{result.nats_per_token:.4f} nats per token, {result.n_tokens} tokens, "
        f"{result.bits_per_byte:.4f} bits per byte, {result.n_stories} stories",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    typer.run(_main)
