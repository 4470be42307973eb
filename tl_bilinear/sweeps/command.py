"""What `tl-bilinear sweep` is told in words: directions, layers, settings."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from tl_bilinear.hosts import AbstractHost, get_host
from tl_bilinear.hosts.target import Target
from tl_bilinear.sweeps.computations import make_computation
from tl_bilinear.sweeps.directions import (
    Directions,
    Space,
    file_directions,
    output_basis,
    target_directions,
    token_directions,
)
from tl_bilinear.sweeps.error import SweepError
from tl_bilinear.sweeps.plan import parse_memory
from tl_bilinear.sweeps.result import Sweep
from tl_bilinear.sweeps.run import run_sweep


def sweep_in_words(
    load: Callable[[], Any],
    compute: str,
    settings: dict[str, str],
    directions: str,
    space: str | None,
    layers: str | None,
    folder: Path,
    **options: Any,
) -> Sweep:
    """`run_sweep` with everything given as the command has it; the model is loaded last.

    Raises:
        ValueError: words that are not understood, and what `run_sweep` raises.
    """
    computation = make_computation(compute, settings)
    parse_memory(options.get("memory"))
    host = get_host(load())
    return run_sweep(
        host,
        computation,
        read_directions(host, directions, space),
        read_layers(host, layers),
        folder,
        **options,
    )


def interrupted(folder: Path) -> str:
    """What to say after Ctrl-C."""
    try:
        sweep = Sweep.load(folder)
    except SweepError:
        return "interrupted before anything was written"
    total, left = len(sweep.manifest.chunks()), len(sweep.missing())
    return (
        f"interrupted: {total - left} of {total} chunks are finished in {sweep.folder}; the same "
        "command resumes"
    )


def read_directions(model: Any, words: str, space: str | None = None) -> Directions:
    """Directions from a word or a file.

    Args:
        words: "tokens" (the whole unembedding), "tokens:100-299", "basis" (the output basis),
            a JSON file of targets ([" his", [" his", " her"], 317]: a token's text, a pair, an
            id), or a safetensors file of directions in rows, "file.safetensors:key" where it
            holds several tensors and "file.safetensors:key.T" for columns.
        space: for safetensors files, where they are read (`Directions`); "stream" by default.

    Raises:
        ValueError: anything else.
    """
    host = get_host(model)
    kind, _, rest = words.partition(":")
    is_file = ".safetensors" in words
    if space is not None and (not is_file or space not in get_args(Space)):
        raise ValueError(
            f"`space` is for safetensors files and one of {list(get_args(Space))}, got {space!r} "
            f"for {words!r}"
        )
    if kind == "tokens":
        return token_directions(host, _numbers(rest, host.d_vocab, "tokens") if rest else None)
    if words == "basis":
        return output_basis(host)
    if words.endswith(".json"):
        return target_directions(host, _targets(Path(words)), f"targets of {Path(words).name}")
    if is_file:
        path, _, key = words.partition(".safetensors:")
        path = path if path.endswith(".safetensors") else f"{path}.safetensors"
        columns = key.endswith(".T")
        found: Any = space or "stream"
        return file_directions(path, key.removesuffix(".T") or None, columns=columns, space=found)
    raise ValueError(
        f"directions {words!r} are not understood: 'tokens', 'tokens:100-299', 'basis', a .json "
        "file of targets, or a .safetensors file (file.safetensors:key)"
    )


def read_layers(host: AbstractHost, words: str | None) -> tuple[int, ...] | None:
    """Layers from "all", "3", "0-4" or "0,2,4"; None for all."""
    if words is None or words == "all":
        return None
    found: list[int] = []
    for part in words.split(","):
        found += _numbers(part, host.n_layers, "layers")
    return tuple(found)


def read_settings(settings: list[str]) -> dict[str, str]:
    """{"k": "8"} from "k=8"."""
    found = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name or not value or name in found:
            raise ValueError(f"a setting is name=value, each name once, got {setting!r}")
        found[name] = value
    return found


def _numbers(words: str, count: int, what: str) -> range:
    found = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", words)
    first = int(found[1]) if found else 0
    last = int(found[2] or found[1]) if found else -1
    if not 0 <= first <= last < count:
        raise ValueError(
            f"{what} are a number or first-last between 0 and {count - 1} (both included), got "
            f"{words!r}"
        )
    return range(first, last + 1)


def _targets(path: Path) -> list[Target]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None
    if not isinstance(found, list) or not found:
        raise ValueError(f'{path} must hold a list of targets, such as [" his", [" his", 317]]')
    return [tuple(target) if isinstance(target, list) else target for target in found]
