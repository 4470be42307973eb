"""A HookedTransformer's weights back into the transformers class that it was made from.

The class and its configuration are remembered on the model. The weights go back through the same
`Decoder` that read them: its tensors are views of a transformers model's own, here of an empty one,
and are filled in place. What has come to be elsewhere by weight processing has no place there.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SOURCE = "_tl_bilinear_source"


@dataclass(frozen=True)
class Source:
    """What a HookedTransformer was made of."""

    model_class: type
    config: Any
    """transformers' own configuration object; a copy."""


def remember_source_(model: Any, transformers_model: Any) -> None:
    """Note on a HookedTransformer what it is made from."""
    source = Source(type(transformers_model), copy.deepcopy(transformers_model.config))
    object.__setattr__(model, SOURCE, source)


def source_of(model: Any) -> Source | None:
    """What a model was made from; None where it was not made by `hooked_transformer_of`."""
    return getattr(model, SOURCE, None)


def transformers_state(model: Any, source: Source) -> tuple[Any, Mapping[str, Tensor]]:
    """The configuration and the state dict of the class that a HookedTransformer came from.

    Norms that were folded get gains of one; embeddings that have come apart are untied.

    Raises:
        ValueError: biases that the class has no place for, as weight processing makes them.
    """
    from tl_bilinear.hosts.hooked import DECODERS

    config = copy.deepcopy(source.config)
    found = {name: value.detach().cpu() for name, value in model.named_parameters()}
    read = DECODERS[source.model_class.__name__]
    decoder = read(_empty(source.model_class, config, model.cfg.dtype))
    if config.tie_word_embeddings and not _is_tied(decoder, found):
        config.tie_word_embeddings = False
        decoder = read(_empty(source.model_class, config, model.cfg.dtype))
    views = decoder.state(stored=True)
    owned = {p.untyped_storage().data_ptr() for p in decoder.model.parameters()}
    lost = []
    for name, view in views.items():
        value = found.get(name)
        if value is None:
            value = torch.ones_like(view) if name.endswith(".w") else torch.zeros_like(view)
        if view.untyped_storage().data_ptr() not in owned:
            lost += [name] if value.count_nonzero() else []
        elif not (name == "embed.W_E" and config.tie_word_embeddings):
            view.copy_(decoder.as_stored(name, value))
    lost += [name for name, value in found.items() if name not in views and value.count_nonzero()]
    if lost:
        raise ValueError(
            f"{source.model_class.__name__} has no place for {', '.join(lost[:3])} of this "
            "HookedTransformer, which weight processing made"
        )
    return config, decoder.model.state_dict()


def _is_tied(decoder: Any, found: Mapping[str, Tensor]) -> bool:
    return torch.equal(decoder.as_held("embed.W_E", found["unembed.W_U"].T), found["embed.W_E"])


def _empty(model_class: Any, config: Any, dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        made = model_class(config)
    made = made.to_empty(device="cpu").to(dtype)
    made.tie_weights()
    return made
