"""Details and settings as JSON holds them, without loss or with a complaint."""

import math
from collections.abc import Mapping
from typing import Any

NUMBER = "$float"


def to_plain(value: Any, where: str) -> Any:
    """Strings, numbers, None, lists and objects; a float that JSON lacks as {"$float": "nan"}.

    Raises:
        ValueError: anything else, and keys that are no strings.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {NUMBER: repr(value)}
    if isinstance(value, list | tuple):
        return [to_plain(item, where) for item in value]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value) or NUMBER in value:
            raise ValueError(f"{where}: the keys {list(value)[:3]} must be strings, not {NUMBER!r}")
        return {key: to_plain(item, where) for key, item in value.items()}
    raise ValueError(
        f"{where} holds a {type(value).__name__}: strings, numbers, lists and dictionaries of "
        "them can be written"
    )


def from_plain(value: Any) -> Any:
    """The value that `to_plain` was given, tuples as lists."""
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if isinstance(value, dict):
        if set(value) == {NUMBER}:
            return float(value[NUMBER])
        return {key: from_plain(item) for key, item in value.items()}
    return value
