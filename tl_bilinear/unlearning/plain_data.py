"""Frozen dataclasses as plain JSON data, and back."""

import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


def to_plain(value: Any) -> Any:
    """Dataclasses as objects, tuples as lists; numbers that JSON lacks as "nan", "inf", "-inf".

    Fields whose metadata say `plain=False` are left out.
    """
    if is_dataclass(value) and not isinstance(value, type):
        kept = [each for each in fields(value) if each.metadata.get("plain", True)]
        return {each.name: to_plain(getattr(value, each.name)) for each in kept}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: type[Record], data: Any) -> Record:
    """What `to_plain` made of a dataclass of this kind.

    Raises:
        ValueError: data of another shape, with the field's name.
    """
    return _read(kind, data, kind.__name__)


def _read(kind: Any, data: Any, where: str) -> Any:
    if is_dataclass(kind):
        return _record(kind, data, where)
    return _read_value(kind, data, where)


def _read_value(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        if data is None and type(None) in arguments:
            return None
        return _read(next(a for a in arguments if a is not type(None)), data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"{where} must be a list, got {type(data).__name__}")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            kinds = [arguments[0]] * len(data)
        else:
            kinds = list(arguments)
        if len(kinds) != len(data):
            raise ValueError(f"{where} must have {len(kinds)} entries, got {len(data)}")
        pairs = enumerate(zip(kinds, data, strict=True))
        return tuple(_read(each, item, f"{where}[{i}]") for i, (each, item) in pairs)
    if origin is Literal:
        if data not in arguments:
            raise ValueError(f"{where} must be one of {arguments}, got {data!r}")
        return data
    if kind is float and isinstance(data, int | float | str) and not isinstance(data, bool):
        try:
            return float(data)
        except ValueError:
            raise ValueError(f"{where} must be a number, got {data!r}") from None
    if kind is Any or isinstance(data, kind) and not (kind is int and isinstance(data, bool)):
        return data
    raise ValueError(f"{where} must be {kind.__name__}, got {data!r}")


def _record(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be an object, got {type(data).__name__}")
    hints = get_type_hints(kind)
    wanted = [each.name for each in fields(kind) if each.metadata.get("plain", True)]
    if set(data) != set(wanted):
        raise ValueError(
            f"{where} has the fields {sorted(data)}; {sorted(wanted)} are expected: it was written "
            "by another version, or is no such file"
        )
    return kind(**{name: _read(hints[name], data[name], f"{where}.{name}") for name in wanted})
