"""Ways to unlearn behind one interface, found by name. A new one is one file and one line here."""

from tl_bilinear.unlearning.methods import (
    difference_of_means,
    fitted,
    grad_diff,
    hinge,
    leace,
    modes,
    npo,
    random_directions,
    random_modes,
    rmu,
    unedited,
)
from tl_bilinear.unlearning.methods.method import TRIALS as TRIALS
from tl_bilinear.unlearning.methods.method import AbstractMethod as AbstractMethod
from tl_bilinear.unlearning.methods.method import Kind as Kind
from tl_bilinear.unlearning.methods.method import Problem as Problem

METHODS: dict[str, type[AbstractMethod]] = {
    module.METHOD.name: module.METHOD
    for module in (
        unedited,
        fitted,
        hinge,
        grad_diff,
        npo,
        rmu,
        modes,
        random_modes,
        random_directions,
        difference_of_means,
        leace,
    )
}


def method_named(name: str) -> type[AbstractMethod]:
    """The method of a name.

    Raises:
        ValueError: an unknown name; gold, which is a model and not a method.
    """
    if name == "gold":
        raise ValueError(
            "`gold` is a model that you train without the forget set: give it as gold="
        )
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: give one of {', '.join(METHODS)}")
    return METHODS[name]
