"""Ways to damage a checkpoint's folder in place, for faults.py."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models import hosts, native, save, tiny_llama, word_tokenizer
from safetensors.torch import load_file, save_file

import tl_bilinear as tlb

GATE = "model.layers.1.mlp.gate_proj.weight"
WEIGHTS = "model.safetensors"


def llama(root: Path) -> Path:
    """A whole checkpoint, to be damaged."""
    return save(tiny_llama(), root / "model")


def own(root: Path) -> Path:
    """The same in our own format."""
    return tlb.save_pretrained(native("LN", hosts()[0], torch.float32), root / "model")


# ---- edits ------------------------------------------------------------------------------------


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_settings(folder: Path, **changes: Any) -> None:
    found = json.loads((folder / "config.json").read_text())["settings"]
    edit_config(folder, settings={**found, **changes})


def edit_weights(folder: Path, edit: Callable[[dict], Any], name: str = WEIGHTS) -> None:
    weights = load_file(folder / name)
    edit(weights)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / name, {"format": "pt"})


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, **changes)


def settings(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_settings(folder, **changes)


def weights(edit: Callable[[dict], Any], name: str = WEIGHTS) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder, edit, name)


def text(name: str, content: str | bytes) -> Callable[[Path], int]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(raw)


def without(*names: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def replaced(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """The weight file with other bytes."""

    def damage(folder: Path) -> None:
        path = folder / WEIGHTS
        path.write_bytes(change(path.read_bytes()))

    return damage


def linked(name: str, to: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(to)

    return damage


def is_folder(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def header_of(raw: bytes) -> tuple[int, bytes]:
    end = 8 + int.from_bytes(raw[:8], "little")
    return end, raw[8:end]


def with_header(raw: bytes, header: bytes) -> bytes:
    end, _ = header_of(raw)
    return len(header).to_bytes(8, "little") + header + raw[end:]


def named_twice(raw: bytes) -> bytes:
    """A header in which two entries have one name."""
    _, header = header_of(raw)
    up = GATE.replace("gate", "up").encode()
    return with_header(raw, header.replace(up, GATE.encode()))


def entry(**changes: Any) -> Callable[[bytes], bytes]:
    """One tensor's entry in the header says something else."""

    def change(raw: bytes) -> bytes:
        header = json.loads(header_of(raw)[1])
        header[GATE] |= changes
        return with_header(raw, json.dumps(header).encode())

    return change


def high_bits(raw: bytes) -> bytes:
    """Flipped bits in the numbers themselves: exponents of all ones."""
    return raw[:-64] + b"\xff" * 64


def flip_header(raw: bytes) -> bytes:
    return raw[:12] + bytes(byte ^ 0x55 for byte in raw[12:40]) + raw[40:]


def transpose(state: dict) -> None:
    state[GATE] = state[GATE].T


def reshape(state: dict) -> None:
    state[GATE] = state[GATE][:20]


def drop(state: dict) -> None:
    del state[GATE]


def surplus(state: dict) -> None:
    state["model.layers.7.mlp.gate_proj.weight"] = torch.zeros(2, 2)


def poison(name: str, value: float) -> Callable[[dict], None]:
    def edit(state: dict) -> None:
        state[name].view(-1)[0] = value

    return edit


def cast(dtype: torch.dtype) -> Callable[[dict], None]:
    def edit(state: dict) -> None:
        state[GATE] = (state[GATE] * 10).to(dtype)

    return edit


def huge(folder: Path) -> None:
    """A file of two terabytes, nearly all of it a hole on the disk."""
    path = folder / WEIGHTS
    raw = path.read_bytes()
    header = json.loads(header_of(raw)[1])
    vocab = 2**34
    size, start = vocab * 16 * 4, len(raw) - header_of(raw)[0]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old = header[name]["data_offsets"]
        keep = [entry for entry in header.values() if "data_offsets" in entry]
        for other in keep:
            if other["data_offsets"][0] > old[0]:
                other["data_offsets"] = [
                    x + size - (old[1] - old[0]) for x in other["data_offsets"]
                ]
        header[name] |= {"shape": [vocab, 16], "data_offsets": [old[0], old[0] + size]}
        start += size - (old[1] - old[0])
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + start)
    edit_config(folder, vocab_size=vocab)


# ---- torch files and shards -----------------------------------------------------------------


def as_torch(folder: Path, name: str = "pytorch_model.bin", **options: Any) -> Path:
    """The folder with its weights in a torch file instead."""
    torch.save(load_file(folder / WEIGHTS), folder / name, **options)
    (folder / WEIGHTS).unlink()
    return folder


def torch_weights(edit: Callable[[dict], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = as_torch(folder) / "pytorch_model.bin"
        state = torch.load(path, weights_only=True)
        edit(state)
        torch.save(state, path)

    return damage


def cut_torch(folder: Path) -> None:
    path = as_torch(folder) / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-500])


def training_state(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save({"state_dict": state, "step": 3}, folder / "model.pt")


class Bomb:
    """Pickled, it makes a file of the name it was given as soon as it is read."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


def bomb(kind: str) -> Callable[[Path], None]:
    """Going off, it would leave `executed` beside the folder, which counts as written."""

    def damage(folder: Path) -> None:
        charge = Bomb(folder.parent / "executed")
        (folder / WEIGHTS).unlink()
        path = folder / "pytorch_model.bin"
        if kind == "pickle":
            path.write_bytes(pickle.dumps(charge))
        else:
            torch.save({GATE: charge} if kind == "tensor" else charge, path)

    return damage


def split_names(folder: Path) -> tuple[list[str], list[str]]:
    names = sorted(load_file(folder / WEIGHTS))
    return names[:9], names[9:]


def torch_shards(folder: Path, shards: dict[str, list[str]], weight_map: dict) -> None:
    """The folder's weights spread over torch files, by name, behind an index."""
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    for name, keys in shards.items():
        torch.save({key: state[key] for key in keys}, folder / name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def sharded(folder: Path) -> dict[str, str]:
    """Two safetensors shards behind an index; returns its weight_map."""
    first, second = split_names(folder)
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    save_file({name: state[name] for name in first}, folder / "a.safetensors")
    save_file({name: state[name] for name in second}, folder / "b.safetensors")
    return dict.fromkeys(first, "a.safetensors") | dict.fromkeys(second, "b.safetensors")


def index(folder: Path, weight_map: Any) -> None:
    content = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / (WEIGHTS + ".index.json")).write_text(content)


def lost_shard(folder: Path) -> None:
    index(folder, sharded(folder))
    (folder / "b.safetensors").unlink()


def held_twice(folder: Path) -> None:
    weight_map = sharded(folder)
    first, second = (load_file(folder / f"{name}.safetensors") for name in "ab")
    save_file({**second, "lm_head.weight": first["lm_head.weight"]}, folder / "b.safetensors")
    index(folder, weight_map)


def elsewhere(folder: Path) -> None:
    index(folder, {**sharded(folder), "lm_head.weight": "b.safetensors"})


def unindexed(folder: Path) -> None:
    weight_map = sharded(folder)
    del weight_map["lm_head.weight"]
    index(folder, weight_map)


def escaping(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
        index(folder, {GATE: name})

    return damage


def index_of(weight_map: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        index(folder, weight_map)

    return damage


# ---- the rest ---------------------------------------------------------------------------------


def gated(root: Path) -> Path:
    return save(tiny_llama("silu", mlp_bias=False), root / "model")


def half_annealed(folder: Path, **options: Any) -> None:
    """A gate between SiLU and linear, in the model: no configuration can say it."""
    from tl_bilinear.conversion.annealing import anneal_
    from tl_bilinear.hosts.boot import boot

    model = tiny_llama("silu", mlp_bias=False)
    anneal_(model, 0.5)
    tlb.self_check(boot(model, None, "half", "transformer_bridge"))


def split_twice(state: dict) -> None:
    for layer in (0, 1):
        for name in ("left", "right"):
            state[f"model.layers.{layer}.mlp.{name}.weight"] = torch.ones(24, 16)


def words(folder: Path) -> None:
    word_tokenizer(folder)
    edit_config(folder, vocab_size=4)
    edit_weights(
        folder,
        lambda state: state.update(
            {name: state[name][:4] for name in ("model.embed_tokens.weight", "lm_head.weight")}
        ),
    )


def swap(state: dict) -> None:
    at = "blocks.0.attn."
    state[at + "W_Q"], state[at + "W_K"] = state[at + "W_K"], state[at + "W_Q"]


def nothing(folder: Path) -> None:
    pass


UNREADABLE = "/proc/self/mem"  # opens, and cannot be read from its start: not even by root
OWN_WEIGHTS = "tl_model.safetensors"
