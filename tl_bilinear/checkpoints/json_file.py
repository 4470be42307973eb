"""JSON files, read so that nothing in them is ambiguous."""

import json
from pathlib import Path
from typing import Any

from tl_bilinear.checkpoints.error import CheckpointError, one_line


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        CheckpointError: a file that cannot be read, no JSON, no object, or a key that an
            object holds twice.
    """
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({one_line(error)})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}): fetch the file again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no JSON object: fetch the file again")
    return found


def parse_json(text: str | bytes) -> Any:
    """As json.loads, and ValueError for a key that one object holds twice."""
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found
