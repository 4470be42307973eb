"""The pair of dictionaries around one MLP of `stories-5l`: its input and its output.

Both are trained on stories that the model itself writes and, where TEXT is given, on some of
that; `stories.txt` is held out. A run is kept in the work folder; when stopped, the same command
goes on. At the end dictionaries and card replace those in `zoo/dictionaries`, file by file.

    python -m tl_bilinear.recipes.story_dictionaries --work-dir .cache/dictionaries
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from jaxtyping import Float
from rich.console import Console
from torch import Tensor
from tqdm.auto import tqdm

from tl_bilinear.checkpoints import load
from tl_bilinear.checkpoints.dictionaries import load_dictionary, save_dictionary
from tl_bilinear.conversion import sample_stories
from tl_bilinear.conversion.evaluation import load_folder, read_stories
from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.corpus import hook_batches
from tl_bilinear.one_line_errors import errors_in_one_line
from tl_bilinear.optimisation.files import fingerprint_settings, replace_file, whole_folder
from tl_bilinear.recipes.dictionary_card import DictionaryCard, Entry, card_text
from tl_bilinear.training import TopKConfig, measure_fidelity, train_dictionary

ZOO = Path(__file__).parents[1] / "zoo"
MODEL, HELD_OUT_TEXT, FOLDER = "stories-5l", "stories.txt", "dictionaries"
LAYER = 2
SITES = {"mlp-in": "ln2.hook_normalized", "mlp-out": "hook_mlp_out"}
SAMPLING_SEED, SAMPLING_BATCH = 2, 512  # seeds 0 and 1 drew what the models were trained on
N_STORIES = 512
SKIPPED, N_TEXT = 150, 600  # of TEXT: the first are held out everywhere, then so many are read
N_HELD_OUT = 100
RECIPE = TopKConfig(n_features=512, k=16, n_steps=3000, batch_size=2048, learning_rate=2e-3)


def token_rows(
    host: AbstractHost, zoo: Path, work_dir: Path, n_stories: int, text: Path | None
) -> list[Tensor]:
    """One row of tokens per story: the model's own, then those of `text`."""
    model, tokenizer = load_folder(zoo / MODEL)
    samples = sample_stories(
        model,
        n_stories,
        seed=SAMPLING_SEED,
        batch_size=SAMPLING_BATCH,
        cache_folder=work_dir / "samples",
    )
    rows = [torch.tensor(row) for row in samples.rows()]
    if text is not None:
        stories = read_stories(text)[SKIPPED:-1][:N_TEXT]
        rows += [host.to_tokens(story) for story in stories]
    return rows


def read_activations(
    host: AbstractHost, rows: list[Tensor], hooks: list[str]
) -> dict[str, Float[Tensor, "token d_model"]]:
    """What the hooks see at every token of the rows but the first (BOS), in float32."""
    found: dict[str, list[Tensor]] = {hook: [] for hook in hooks}
    for batch in hook_batches(host, tqdm(rows, desc="reading", unit="story", delay=2), hooks):
        for hook, values in batch.items():
            found[hook].append(values.float())
    return {hook: torch.cat(values) for hook, values in found.items()}


def build(
    work_dir: Path,
    *,
    zoo: Path = ZOO,
    text: Path | None = None,
    n_stories: int = N_STORIES,
    n_held_out: int = N_HELD_OUT,
    config: TopKConfig = RECIPE,
    layer: int = LAYER,
) -> tuple[Entry, ...]:
    """Make the pair and its card; return what was measured of each.

    Args:
        work_dir: samples and training states, for resuming.
        zoo: holds the model and the held-out text; the pair is written to `dictionaries` there.
        text: more stories to train on; its first 150 are left out, 600 are read.
        n_stories: how many stories the model writes for training.
        n_held_out: how many stories of `stories.txt` the card's figures are measured on.
    """
    begun = time.monotonic()
    # Of the hosts the bridge is the quickest to read this much text with.
    model = load(zoo / MODEL, host="transformer_bridge")
    host = get_host(model)
    rows = token_rows(host, zoo, work_dir, n_stories, text)
    hooks = {name: f"blocks.{layer}.{site}" for name, site in SITES.items()}
    activations = read_activations(host, rows, list(hooks.values()))
    held_out = read_stories(zoo / HELD_OUT_TEXT)[:n_held_out]
    entries = []
    for name, hook in hooks.items():
        trained = train_dictionary(
            activations[hook],
            config,
            hook_name=hook,
            folder=work_dir / f"run-{name}-{layer}-{fingerprint_settings(config)}",
        )
        stored = _store(trained.dictionary, f"{MODEL}-{name}", work_dir, zoo)
        fidelity = measure_fidelity(model, load_dictionary(stored), held_out)
        entries.append(Entry(f"{MODEL}-{name}", hook, fidelity, trained.seconds))
    card = DictionaryCard(
        entries=tuple(entries),
        config=config,
        layer=layer,
        n_stories=n_stories,
        text=text,
        n_tokens=len(activations[hooks["mlp-in"]]),
        n_held_out=n_held_out,
        seconds=time.monotonic() - begun,
    )
    replace_file(zoo / FOLDER / "README.md", card_text(card).encode())
    return tuple(entries)


def _store(dictionary, name: str, work_dir: Path, zoo: Path) -> Path:
    """Write a dictionary in float16 over the bundled one of its name."""
    with whole_folder(zoo / FOLDER / name) as temporary:
        save_dictionary(dictionary.to(torch.float16), temporary, model_name=MODEL)
    return zoo / FOLDER / name


def _main(
    work_dir: Annotated[Path, typer.Option(help="Samples and states; resumes from here.")],
    text: Annotated[Path | None, typer.Option(help="Also train on stories of this text.")] = None,
    zoo: Annotated[Path, typer.Option(help="Where the models lie.")] = ZOO,
    n_stories: Annotated[int, typer.Option(help="Stories that the model writes.")] = N_STORIES,
    layer: Annotated[int, typer.Option(help="The MLP's layer.")] = LAYER,
    steps: Annotated[int, typer.Option(help="Training steps.")] = RECIPE.n_steps,
    seed: Annotated[int, typer.Option(help="Of weights and batches.")] = RECIPE.seed,
    threads: Annotated[int, typer.Option(help="CPU threads of torch; 0 leaves the default.")] = 0,
) -> None:
    """Rebuild the pair of dictionaries of the bundled story model, without the network."""
    if threads:
        torch.set_num_threads(threads)
    config = replace(RECIPE, n_steps=steps, seed=seed)
    with errors_in_one_line():
        entries = build(
            work_dir, zoo=zoo, text=text, n_stories=n_stories, config=config, layer=layer
        )
    console = Console()
    for entry in entries:
        found = entry.fidelity
        console.print(
            f"{entry.name}: FVU {found.fvu:.4f}, loss {found.loss:.4f}, spliced "
            f"{found.spliced:.4f}, zeroed {found.zeroed:.4f}, dead {found.dead:.3f}"
        )
    console.print(f"written: {zoo / FOLDER}")


if __name__ == "__main__":
    typer.run(_main)
