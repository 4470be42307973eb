"""The contract of a layout: how files that transformers has no class for become a Llama."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

Shape = tuple[int, ...]
Config = Mapping[str, Any]
Read = Callable[[str], Float[Tensor, "..."]]


class AbstractLayout(ABC):
    """One way to store a bilinear transformer. Each is a file of this folder.

    A layout is told by its configuration and its names, never by shapes. What it cannot
    convert exactly raises CheckpointError with the configuration key or the tensor's name.
    """

    name: str
    described: str
    """What `recognises` looks for, for the error of a folder that no layout recognises."""

    @abstractmethod
    def recognises(self, config: Config, names: Collection[str]) -> bool:
        """Whether config.json and the stored names are of this layout."""

    @abstractmethod
    def settings(self, config: Config, shapes: Mapping[str, Shape]) -> dict[str, Any]:
        """Arguments of the LlamaConfig that computes the same function.

        Raises:
            CheckpointError: a setting that no Llama can compute.
        """

    @abstractmethod
    def expected(self, config: Config, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Names and shapes that the files must hold: no more, no fewer."""

    @abstractmethod
    def convert(self, config: Config, names: Collection[str], read: Read) -> dict[str, Tensor]:
        """The Llama's state dict, in the stored dtype unless a product needs more."""

    @abstractmethod
    def tokenizer_id(self, config: Config) -> str | None:
        """The hub id of the tokenizer, for folders without one; None where nothing names it."""
