"""Text that a language model writes itself, to distil from when no corpus may be shipped.

Stories are drawn from the beginning-of-text token at a given temperature, many at once with a
key-value cache, and rows that have ended leave the batch. Each batch has its own seed, so a batch
that lies in `cache_folder` is read back instead of drawn again, and an interrupted run goes on.

    stories = sample_stories(teacher, 512, seed=0, cache_folder=".cache/samples")
    stream = stories.stream()
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm.auto import tqdm
from transformers import DynamicCache, PreTrainedModel

from tl_bilinear.optimisation.files import fingerprint_parameters, replace_file

PRUNE_FRACTION = 0.1  # ended rows leave the batch once they are this share of it


@dataclass(frozen=True)
class SampledStories:
    """Stories as token rows; what lies past a row's length is padding.

    `tokens` begin with the beginning-of-text token; the token that ended a story is not stored.
    `complete` is False where the story was cut at the maximum length.
    """

    tokens: Int[Tensor, "story pos"]
    lengths: Int[Tensor, " story"]
    complete: Bool[Tensor, " story"]

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self) -> list[list[int]]:
        """Return each story's tokens, beginning-of-text token first, without padding."""
        lengths = self.lengths.tolist()
        return [row[:n] for row, n in zip(self.tokens.tolist(), lengths, strict=True)]

    def stream(self) -> Int[Tensor, " n_tokens"]:
        """Return all stories one after another, each begun by the beginning-of-text token."""
        inside = torch.arange(self.tokens.shape[1]) < self.lengths[:, None]
        return self.tokens[inside].long()


@torch.no_grad()
def sample_batch(
    model: PreTrainedModel,
    batch_size: int,
    *,
    seed: int,
    temperature: float = 1.0,
    max_tokens: int = 512,
) -> SampledStories:
    """Draw `batch_size` stories at once; the same seed gives the same stories.

    A story ends at the beginning- or end-of-text token. Reproducible on one machine and one torch
    version: another order of floating-point sums may flip a draw.
    """
    start, ends = _boundary_tokens(model)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(batch_size, max_tokens, dtype=torch.long)
    tokens[:, 0] = start
    lengths = torch.full((batch_size,), max_tokens, dtype=torch.long)
    complete = torch.zeros(batch_size, dtype=torch.bool)
    rows = torch.arange(batch_size)  # the stories still in the batch
    cache = DynamicCache(config=model.config)
    for pos in range(1, max_tokens + 1):
        last = tokens[rows, pos - 1].unsqueeze(1).to(model.device)
        logits = model(last, past_key_values=cache, use_cache=True).logits[:, -1]
        probabilities = (logits.float().cpu() / temperature).softmax(-1)
        drawn = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        ended = torch.isin(drawn, ends) & ~complete[rows]
        lengths[rows[ended]] = pos
        complete[rows[ended]] = True
        if pos == max_tokens:
            break
        tokens[rows, pos] = drawn
        running = ~complete[rows]
        if not running.any():
            break
        if running.float().mean() < 1 - PRUNE_FRACTION:
            cache.batch_select_indices(running.nonzero().squeeze(1).to(model.device))
            rows = rows[running]
    tokens[torch.arange(max_tokens) >= lengths[:, None]] = 0
    return SampledStories(tokens, lengths, complete)


def sample_stories(
    model: PreTrainedModel,
    n_stories: int,
    *,
    seed: int,
    temperature: float = 1.0,
    max_tokens: int = 512,
    batch_size: int = 256,
    cache_folder: str | Path | None = None,
    progress: bool = True,
) -> SampledStories:
    """Draw `n_stories` stories from `model`, in batches that are kept in `cache_folder`.

    Args:
        model: a causal language model of transformers with a beginning-of-text token.
        n_stories: how many; the last batch is drawn whole and cut.
        seed: batch k is drawn with seed `seed * 1_000_003 + k`.
        temperature: 1 draws from the model's own distribution.
        max_tokens: a story's greatest length, the beginning-of-text token included.
        batch_size: stories drawn at once.
        cache_folder: where finished batches are kept; None keeps nothing.
        progress: show a progress bar.

    Returns:
        The stories, in the order drawn.

    Raises:
        ValueError: for a number that is not positive, a length beyond the model's context, or a
            cache that was drawn with other settings or from another model.
    """
    _check_settings(model, n_stories, temperature, max_tokens, batch_size)
    folder = None if cache_folder is None else Path(cache_folder)
    if folder is not None:
        settings = {
            "model": fingerprint_parameters(model),
            "seed": seed,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "batch_size": batch_size,
        }
        _claim_cache(folder, settings)
    starts = range(0, n_stories, batch_size)
    bar = tqdm(starts, desc="sampling", unit="batch", disable=not progress)
    batches, n_tokens, was_training = [], 0, model.training
    model.eval()
    try:
        for k, _ in enumerate(bar):
            path = None if folder is None else folder / f"batch_{k:05d}.safetensors"
            batch = _read_batch(path)
            if batch is None:
                options = {"temperature": temperature, "max_tokens": max_tokens}
                batch = sample_batch(model, batch_size, seed=seed * 1_000_003 + k, **options)
                _write_batch(batch, path)
            batches.append(batch)
            n_tokens += int(batch.lengths.sum())
            bar.set_postfix(tokens=n_tokens)
    finally:
        model.train(was_training)
    return SampledStories(
        torch.cat([b.tokens for b in batches])[:n_stories],
        torch.cat([b.lengths for b in batches])[:n_stories],
        torch.cat([b.complete for b in batches])[:n_stories],
    )


def _boundary_tokens(model: PreTrainedModel) -> tuple[int, Int[Tensor, " n_ends"]]:
    start, end = model.config.bos_token_id, model.config.eos_token_id
    if start is None:
        raise ValueError(
            "the model's config has no `bos_token_id`, and sampling begins with that token: "
            "set model.config.bos_token_id."
        )
    ends = end if isinstance(end, list) else [] if end is None else [end]
    return start, torch.tensor([start, *ends])


def _check_settings(
    model: PreTrainedModel, n_stories: int, temperature: float, max_tokens: int, batch_size: int
) -> None:
    for name, value in [
        ("n_stories", n_stories),
        ("temperature", temperature),
        ("max_tokens", max_tokens),
        ("batch_size", batch_size),
    ]:
        if value <= 0:
            raise ValueError(f"`{name}` is {value}: give a number above 0.")
    context = model.config.max_position_embeddings
    if max_tokens > context:
        raise ValueError(
            f"`max_tokens` is {max_tokens}, but the model's context is {context}: "
            f"give at most {context}."
        )


def _claim_cache(folder: Path, settings: dict) -> None:
    """Write the settings beside the batches, or check that they are those already written."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    if not path.exists():
        replace_file(path, json.dumps(settings, indent=2).encode())
        return
    found = json.loads(path.read_text())
    changed = [key for key in settings if found.get(key) != settings[key]]
    if changed:
        given = ", ".join(f"{key}={settings[key]!r}" for key in changed)
        stored = ", ".join(f"{key}={found.get(key)!r}" for key in changed)
        raise ValueError(
            f"the sample cache {folder} was drawn with {stored}, but {given} was asked for: "
            "give another cache_folder, or delete this one."
        )


def _write_batch(batch: SampledStories, path: Path | None) -> None:
    if path is None:
        return
    tensors = {
        "tokens": batch.tokens.to(torch.int32),
        "lengths": batch.lengths.to(torch.int32),
        "complete": batch.complete,
    }
    replace_file(path, save(tensors))


def _read_batch(path: Path | None) -> SampledStories | None:
    if path is None or not path.exists():
        return None
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it to draw it again.") from error
    return SampledStories(tensors["tokens"].long(), tensors["lengths"].long(), tensors["complete"])
