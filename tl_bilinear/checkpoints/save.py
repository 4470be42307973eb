"""`save_pretrained`: a TransformerLens model into a folder that transformers itself loads."""

import copy
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_bilinear.checkpoints.error import CheckpointError
from tl_bilinear.checkpoints.folder import from_state, without_progress_bar
from tl_bilinear.hosts import get_host
from tl_bilinear.hosts.self_check import TOLERANCES
from tl_bilinear.hosts.to_llama import llama_parts, wrapped_model


def save_pretrained(model: Any, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Save a model, its weights as they are now, and its tokenizer.

    A bridge of a transformers model keeps its class and configuration; a HookedTransformer
    and a natively built bridge become a Llama (`hidden_act` "linear" where they are bilinear).
    Edits in place, folded norms and centred weights are saved as they stand: log-probabilities
    stay, logits may have lost a constant. What was not folded is read back exactly by `load`.

    Before anything is written, the saved model's log-probabilities are compared with this
    model's on random tokens. Files appear at once or not at all: they are written to a folder
    beside the target, which is then renamed. Memory: at most two more copies of the weights.

    Args:
        overwrite: replace an existing checkpoint folder, with all that is in it.

    Returns:
        The folder.

    Raises:
        CheckpointError: a folder that is not empty, or a model that no Llama can hold, with
            the reason; nothing is written.
    """
    folder = Path(folder).resolve()
    _require_free(folder, overwrite)
    saved = _transformers_model(model)
    _require_same(model, saved)
    _write(saved, get_host(model).model.tokenizer, folder)
    return folder


def _require_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file: give a folder")
    if not any(folder.iterdir()):
        return
    if not overwrite:
        raise CheckpointError(
            f"{folder} is not empty: give another folder, or overwrite=True to replace it"
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is no checkpoint (it has no config.json), and overwrite=True would delete "
            "all that is in it: give another folder"
        )


def _transformers_model(model: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    wrapped = wrapped_model(model)
    if wrapped is None:
        try:
            parts = llama_parts(model)
        except ValueError as error:
            raise CheckpointError(str(error)) from None
        model_class, config, state = LlamaForCausalLM, LlamaConfig(**parts.settings), parts.state
    else:
        model_class, config = wrapped.model_class, copy.deepcopy(wrapped.config)
        state = _own_state(model_class, config, wrapped.state)
    return from_state(model_class, config, dict(state), get_host(model).dtype).eval()


def _own_state(model_class: Any, config: Any, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a transformers class expects, each a copy; unties what has come apart."""
    with torch.device("meta"):
        expected = model_class(config)
    names = list(expected.state_dict())
    if config.tie_word_embeddings:
        tied = dict(expected.all_tied_weights_keys)
        if all(torch.equal(found[name], found[source]) for name, source in tied.items()):
            names = [name for name in names if name not in tied]
        else:
            config.tie_word_embeddings = False
    kept = {found[name].data_ptr() for name in expected.state_dict() if name in found}
    lost: dict[
        int, str
    ] = {}  # a bridge holds each tensor under several names: the first is its own
    for name, value in found.items():
        if value.data_ptr() not in kept and name.endswith(".bias") and value.count_nonzero():
            lost.setdefault(value.data_ptr(), name)
    missing = [name for name in names if name not in found]
    if lost or missing:
        raise CheckpointError(
            f"{model_class.__name__} cannot hold this model as it is now: it has no place for "
            f"{list(lost.values())[:3]}, and the model nothing for {missing[:3]}. Save it before "
            "its weights are processed"
        )
    return {name: found[name].clone(memory_format=torch.contiguous_format) for name in names}


def _require_same(model: Any, saved: Any) -> None:
    host = get_host(model)
    limit = 10 * TOLERANCES[host.dtype]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(host.d_vocab, (2, min(24, host.n_ctx)), generator=generator)
    logits, _ = host.read(tokens, (), attention_mask=torch.ones_like(tokens))
    with torch.no_grad():
        expected = saved.to(host.device)(tokens.to(host.device)).logits
    difference = (logits.double().log_softmax(-1) - expected.double().log_softmax(-1)).abs().max()
    if not float(difference) <= limit:
        raise CheckpointError(
            f"as a {type(saved).__name__} this model's log-probabilities would differ by "
            f"{float(difference):.1e} (allowed {limit:.0e}): something acts that is not in its "
            "weights. Remove hooks (model.reset_hooks()), and save before weights are processed"
        )


def _write(saved: Any, tokenizer: Any, folder: Path) -> None:
    """All files into a new folder beside the target, which then takes the target's place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:12]
    partial = folder.parent / f".{folder.name}.{mark}.partial"
    old = folder.parent / f".{folder.name}.{mark}.old"
    try:
        partial.mkdir()
        with without_progress_bar():
            saved.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        if folder.exists():
            folder.rename(old)
        try:
            partial.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
