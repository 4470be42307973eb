"""`save_pretrained`: a TransformerLens model into a folder that transformers itself loads,
or, where no transformers class can hold it, into one of our own format."""

import copy
import functools
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_bilinear.checkpoints.error import CheckpointError
from tl_bilinear.checkpoints.folder import from_state, without_progress_bar
from tl_bilinear.checkpoints.own_format import reference_of, write_own_format
from tl_bilinear.hosts import get_host
from tl_bilinear.hosts.boot import HostName
from tl_bilinear.hosts.from_plain import boot_plain
from tl_bilinear.hosts.hooked_source import source_of, transformers_state
from tl_bilinear.hosts.self_check import TOLERANCES
from tl_bilinear.hosts.to_llama import llama_parts, wrapped_model
from tl_bilinear.hosts.to_plain import plain_model


def save_pretrained(model: Any, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Save a model, its weights as they are now, and its tokenizer.

    What came from a transformers model keeps its class and configuration, on either host. What was
    built natively, and what weight processing has changed so that its class has no place for it,
    becomes a Llama (`hidden_act` "linear" where it is bilinear). One that no Llama can hold
    (LayerNorm, no norm, learned positions, softcaps, ...) is saved in our own format
    (docs/format.md), which `load` reads and transformers refuses.
    Edits in place, folded norms and centred weights are saved as they stand: log-probabilities
    stay, logits may have lost a constant. What was not folded is read back exactly by `load`.

    Before anything is written, the saved model's log-probabilities are compared with this
    model's on random tokens. Files appear at once or not at all: they are written to a folder
    beside the target, which is then renamed: a process that is killed leaves a hidden folder
    (.name.*.partial), never half a checkpoint. Memory: at most two more copies of the weights.

    Args:
        overwrite: replace an existing checkpoint folder, with all that is in it.

    Returns:
        The folder.

    Raises:
        CheckpointError: a folder that is not empty, or a model that neither a transformers
            class nor our own format can hold, with the reason; nothing is written.
    """
    folder = Path(folder).resolve()
    _require_free(folder, overwrite)
    _write(_writer(model), get_host(model).model.tokenizer, folder)
    return folder


def _writer(model: Any) -> Callable[[Path], None]:
    """What writes the checked model into a folder: its own class, or a Llama, or our format."""
    reasons = []
    for make in (_in_its_own_class, _as_a_llama):
        try:
            saved = make(model)
            if saved is None:
                continue
            saved = saved.to(get_host(model).device)
            _require_same(model, type(saved).__name__, lambda tokens, run=saved: run(tokens).logits)
        except ValueError as error:
            reasons.append(str(error))
        else:
            return functools.partial(_save_quietly, saved)
    return _own_format_writer(model, ". ".join(reasons))


def _in_its_own_class(model: Any) -> Any:
    """The transformers class that a model was made from; None for what was built natively.

    Raises:
        ValueError: weights that the class has no place for, as processing makes them.
    """
    wrapped, source = wrapped_model(model), source_of(model)
    if wrapped is not None:
        model_class, config = wrapped.model_class, copy.deepcopy(wrapped.config)
        state = _own_state(model_class, config, wrapped.state)
    elif source is not None:
        model_class = source.model_class
        config, state = transformers_state(get_host(model).model, source)
    else:
        return None
    return from_state(model_class, config, dict(state), get_host(model).dtype).eval()


def _as_a_llama(model: Any) -> Any:
    """A Llama with the same log-probabilities.

    Raises:
        ValueError: what this model has and no Llama can hold.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    parts = llama_parts(model)
    config = LlamaConfig(**parts.settings)
    return from_state(LlamaForCausalLM, config, dict(parts.state), get_host(model).dtype).eval()


def _own_format_writer(model: Any, no_llama: str) -> Callable[[Path], None]:
    try:
        plain = plain_model(model)
        host: HostName = (
            "hooked_transformer" if plain.kind == "HookedTransformer" else "transformer_bridge"
        )
        device = str(get_host(model).device)
        saved = boot_plain(plain, None, str(model.cfg.model_name), host, device)
    except ValueError as error:
        raise CheckpointError(f"{no_llama}. Nor can our own format hold it: {error}") from None
    _require_same(model, f"{plain.kind} in our own format", saved)
    reference = reference_of(model, plain.settings)
    return lambda folder: write_own_format(plain, reference, folder)


def _save_quietly(saved: Any, folder: Path) -> None:
    with without_progress_bar():
        saved.save_pretrained(folder)


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


def _require_same(model: Any, kind: str, run: Callable[[Tensor], Tensor]) -> None:
    host = get_host(model)
    limit = 10 * TOLERANCES[host.dtype]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(host.W_E.shape[0], (2, min(24, host.n_ctx)), generator=generator)
    logits, _ = host.read(tokens, (), attention_mask=torch.ones_like(tokens))
    with torch.no_grad():
        expected = run(tokens.to(host.device))
    difference = (logits.double().log_softmax(-1) - expected.double().log_softmax(-1)).abs().max()
    if not float(difference) <= limit:
        raise CheckpointError(
            f"as a {kind} this model's log-probabilities would differ by "
            f"{float(difference):.1e} (allowed {limit:.0e}): something acts that is not in its "
            "weights. Remove hooks (model.reset_hooks()), and save before weights are processed"
        )


def _write(write: Callable[[Path], None], tokenizer: Any, folder: Path) -> None:
    """All files into a new folder beside the target, which then takes the target's place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:12]
    partial = folder.parent / f".{folder.name}.{mark}.partial"
    old = folder.parent / f".{folder.name}.{mark}.old"
    try:
        partial.mkdir()
        write(partial)
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
