"""What `tl-bilinear sweep` can compute. A new computation is one new file of this folder.

The file defines a frozen dataclass, a final subclass of `AbstractComputation` whose fields all
have defaults (they become the command's `--set name=value`), and names it `COMPUTATION`.
"""

import dataclasses
import importlib
import pkgutil
from functools import cache
from typing import Any

from tl_bilinear.sweeps.computation import AbstractComputation


@cache
def computations() -> dict[str, type[AbstractComputation]]:
    """Every computation of this folder by its name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [importlib.import_module(f"{__name__}.{name}").COMPUTATION for name in names]
    return {computation.name: computation for computation in found}


def make_computation(name: str, settings: dict[str, Any] | None = None) -> AbstractComputation:
    """A computation by name; settings may be texts ("k=8") or values.

    Raises:
        ValueError: an unknown name or setting, or a value of another type than its default.
    """
    if name not in computations():
        known = "; ".join(f"{name}: {kind.described}" for name, kind in computations().items())
        raise ValueError(f"there is no computation {name!r}: choose one of these ({known})")
    kind: Any = computations()[name]
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    values = {}
    for setting, value in (settings or {}).items():
        if setting not in fields:
            shown = ", ".join(f"{field}={default}" for field, default in fields.items())
            raise ValueError(f"{name} has no setting {setting!r}: it has {shown}")
        values[setting] = _typed(f"{name}'s {setting}", value, fields[setting])
    return kind(**values)


def _typed(what: str, value: Any, default: Any) -> Any:
    kind = type(default)
    if isinstance(value, str) and kind is bool and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, str) and kind is int:
        try:
            return int(value)
        except ValueError:
            pass
    if type(value) is kind:
        return value
    raise ValueError(f"{what} must be of type {kind.__name__} (as {default}), got {value!r}")
