"""Layouts that transformers has no class for. A new layout is one new file of this folder.

The file defines a final subclass of `AbstractLayout` and one instance of it, `LAYOUT`.
"""

import importlib
import pkgutil
from collections.abc import Collection
from functools import cache

from tl_bilinear.checkpoints.error import CheckpointError
from tl_bilinear.checkpoints.layouts.layout import AbstractLayout, Config


@cache
def layouts() -> tuple[AbstractLayout, ...]:
    """Every layout of this folder, in alphabetical order of its file."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names if name != "layout"]
    return tuple(module.LAYOUT for module in modules)


def find_layout(config: Config, names: Collection[str]) -> AbstractLayout | None:
    """The layout of a checkpoint; None where transformers is to know its class.

    Raises:
        CheckpointError: several layouts recognise it, or none does and its config.json names
            no transformers class either.
    """
    found = [layout for layout in layouts() if layout.recognises(config, names)]
    if len(found) > 1:
        raise CheckpointError(
            f"the layouts {[layout.name for layout in found]} both claim this checkpoint: remove "
            "from config.json or from the weights what belongs to one of them"
        )
    if not found and "model_type" not in config:
        known = "; ".join(f"{layout.name}: {layout.described}" for layout in layouts())
        raise CheckpointError(
            "config.json has no `model_type`, so transformers cannot tell which class it is for, "
            f"and no layout recognises it ({known}). Add model_type, or write a layout (one file "
            "in tl_bilinear/checkpoints/layouts)"
        )
    return found[0] if found else None
