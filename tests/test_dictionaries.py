"""Dictionaries: encode and decode as their layouts define them, stored, bundled, refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import cache, hosts
from safetensors.torch import load_file, save_file

import tl_bilinear as tlb
from tl_bilinear.checkpoints.dictionaries import (
    bundled_dictionaries,
    load_dictionary,
    save_dictionary,
)
from tl_bilinear.checkpoints.error import CheckpointError
from tl_bilinear.dictionary import Dictionary

D_IN, N, K = 6, 20, 4


def random_dictionary(activation: str = "topk", dtype: torch.dtype = torch.float64) -> Dictionary:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return Dictionary(
        encoder=normal(D_IN, N),
        encoder_bias=normal(N),
        decoder=normal(N, D_IN),
        decoder_bias=normal(D_IN),
        activation=activation,  # pyright: ignore[reportArgumentType]
        hook_name="blocks.1.hook_mlp_out",
        k=K if activation.startswith("topk") else None,
        threshold=normal(N).abs() if activation == "jumprelu" else None,
    )


def saelens_folder(folder: Path, architecture: str = "topk", **config) -> Path:
    """A folder as SAELens writes it, from nothing of ours."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"W_enc": (D_IN, N), "b_enc": (N,), "W_dec": (N, D_IN), "b_dec": (D_IN,)}
    if architecture == "jumprelu":
        shapes["threshold"] = (N,)
    tensors = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    settings = {
        "architecture": architecture,
        "d_in": D_IN,
        "d_sae": N,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {"hook_name": "blocks.1.hook_mlp_out"},
    }
    if architecture == "topk":
        settings["k"] = K
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(settings | config))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def saelens_twin(folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations and reconstruction, one vector at a time, as the layout is described."""
    config = json.loads((folder / "cfg.json").read_text())
    w = {key: t.double() for key, t in load_file(folder / "sae_weights.safetensors").items()}
    rescale = config.get("rescale_acts_by_decoder_norm", False)
    norms = w["W_dec"].pow(2).sum(1).sqrt() if rescale else torch.ones(N, dtype=torch.float64)
    rows = []
    for vector in x:
        shifted = vector - w["b_dec"] if config["apply_b_dec_to_input"] else vector
        before = [float((shifted @ w["W_enc"][:, i] + w["b_enc"][i]) * norms[i]) for i in range(N)]
        if config["architecture"] == "jumprelu":
            row = [
                p if p > max(0.0, float(w["threshold"][i])) else 0.0 for i, p in enumerate(before)
            ]
        else:
            top = sorted(range(N), key=lambda i: -before[i])[: config.get("k", N)]
            row = [max(p, 0.0) if i in top else 0.0 for i, p in enumerate(before)]
        rows.append(row)
    z = torch.tensor(rows, dtype=torch.float64)
    return z, (z / norms) @ w["W_dec"] + w["b_dec"]


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
@pytest.mark.parametrize("centres", [True, False])
def test_the_saelens_layout_is_read_as_it_is_defined(tmp_path, architecture, centres):
    folder = saelens_folder(tmp_path / "sae", architecture, apply_b_dec_to_input=centres)
    found = load_dictionary(folder, dtype=torch.float64)
    x = torch.randn(50, D_IN, dtype=torch.float64)
    z, reconstruction = saelens_twin(folder, x)
    torch.testing.assert_close(found.encode(x), z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.decode(found.encode(x)), reconstruction, rtol=1e-9, atol=1e-9)
    assert found.hook_name == "blocks.1.hook_mlp_out" and found.source == str(folder)
    assert load_dictionary(folder).encoder.dtype == torch.float32


def test_decoder_norms_are_folded_and_old_configurations_are_read(tmp_path):
    folder = saelens_folder(tmp_path / "new", rescale_acts_by_decoder_norm=True)
    x = torch.randn(50, D_IN, dtype=torch.float64)
    z, reconstruction = saelens_twin(folder, x)
    found = load_dictionary(folder, dtype=torch.float64)
    torch.testing.assert_close(found.encode(x), z, rtol=1e-5, atol=1e-5)  # folded in float32
    torch.testing.assert_close(found.decode(z), reconstruction, rtol=1e-5, atol=1e-5)

    old = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "metadata": None}
    folder = saelens_folder(tmp_path / "old", "standard", hook_name="blocks.3.hook_x", **old)
    found = load_dictionary(folder)
    assert (found.activation, found.k, found.hook_name) == ("topk", K, "blocks.3.hook_x")


def scope_folder(folder: Path, **config) -> Path:
    generator = torch.Generator().manual_seed(2)
    shapes = {"w_enc.weight": (N, D_IN), "w_dec.weight": (D_IN, N), "b_dec": (D_IN,)}
    tensors = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    folder.mkdir(parents=True)
    settings = {"point": ["mlp-in", 7], "target": None, "k": 15, "expansion": 4, "normalize": None}
    (folder / "config.json").write_text(json.dumps(settings | config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_the_scope_layout_is_read_as_it_is_defined(tmp_path):
    folder = scope_folder(tmp_path / "7-mlp-in-x4-k15")
    found = load_dictionary(tmp_path, "7-mlp-in-x4-k15", dtype=torch.float64)
    w = {name: t.double() for name, t in load_file(folder / "model.safetensors").items()}
    x = torch.randn(50, D_IN, dtype=torch.float64)
    before = (x - w["b_dec"]) @ w["w_enc.weight"].T
    mask = before >= before.sort(-1, descending=True).values[:, 14:15]
    assert ((before < 0) & mask).any()  # no ReLU in this layout: the case is there
    z = before * mask
    torch.testing.assert_close(found.encode(x), z, rtol=1e-9, atol=1e-9)
    expected = z @ w["w_dec.weight"].T + w["b_dec"]
    torch.testing.assert_close(found.decode(z), expected, rtol=1e-9, atol=1e-9)
    assert found.hook_name == "blocks.7.mlp.hook_in"
    with pytest.raises(CheckpointError, match='SAELens has no "topk-signed"'):
        save_dictionary(found, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu"])
def test_saved_is_read_back_exactly_and_whole(tmp_path, activation, monkeypatch):
    dictionary = replace(random_dictionary(activation), centres_input=activation != "relu")
    folder = save_dictionary(dictionary, tmp_path / "sae", model_name="tiny")
    again = load_dictionary(folder)
    for name in ("encoder", "encoder_bias", "decoder", "decoder_bias", "threshold"):
        a, b = getattr(dictionary, name), getattr(again, name)
        assert a is b is None or torch.equal(a, b)
    for name in ("activation", "k", "hook_name", "centres_input"):
        assert getattr(again, name) == getattr(dictionary, name)
    with pytest.raises(CheckpointError, match="is not an empty folder"):
        save_dictionary(dictionary, folder)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError):
        save_dictionary(dictionary, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sae"]


FAULTS = [
    ({"architecture": "gated"}, "'gated' is not known"),
    ({"architecture": "batchtopk"}, "save_inference_model"),
    ({"activation_fn_str": "tanh-relu"}, "'tanh-relu' is not known"),
    ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
    ({"hook_head_index": 3}, "hook_head_index is 3"),
    ({"k": 0}, "`k` must be between 1 and the 20 features"),
    ({"k": "many"}, "needs a whole number `k`"),
    ({"d_sae": 21}, "says {'d_sae': 21}"),
]


@pytest.mark.parametrize(("config", "words"), FAULTS)
def test_a_wrong_configuration_is_refused_by_name(tmp_path, config, words):
    with pytest.raises(CheckpointError, match=words):
        load_dictionary(saelens_folder(tmp_path / "sae", **config))


SCOPE_FAULTS = [
    ({"point": ["mlp-in"]}, "`point` must be"),
    ({"point": ["mlp-inside", 3]}, "is not known"),
    ({"bilinear_encoder": True}, "bilinear encoder"),
    ({"normalize": 2.3}, "`normalize` is 2.3"),
    ({"target": ["mlp-out", 7]}, "transcoder"),
    ({"k": None}, "whole number `k`"),
]


@pytest.mark.parametrize(("config", "words"), SCOPE_FAULTS)
def test_a_wrong_scope_configuration_is_refused_by_name(tmp_path, config, words):
    with pytest.raises(CheckpointError, match=words):
        load_dictionary(scope_folder(tmp_path / "scope", **config))


def test_damaged_files_give_one_clear_error(tmp_path, unchecked):
    folder = saelens_folder(tmp_path / "sae")
    weights = folder / "sae_weights.safetensors"
    whole, tensors = weights.read_bytes(), load_file(weights)
    weights.write_bytes(whole[:300])
    with pytest.raises(CheckpointError, match="cut or damaged"):
        load_dictionary(folder)
    save_file({"W_enc": tensors["W_enc"]}, weights)
    with pytest.raises(CheckpointError, match="lacks \\['W_dec', 'b_dec'\\]"):
        load_dictionary(folder)
    save_file(tensors | {"b_dec": torch.full((D_IN,), torch.nan)}, weights)
    with pytest.raises(CheckpointError, match="b_dec has entries that are not finite"):
        load_dictionary(folder)
    save_file(tensors | {"W_dec": tensors["W_dec"].to(torch.int8)}, weights)
    with pytest.raises(CheckpointError, match="stored as torch.int8"):
        load_dictionary(folder)
    save_file(tensors | {"W_dec": torch.randn(N, D_IN + 1)}, weights)
    with pytest.raises(CheckpointError, match="a dictionary needs encoder"):
        load_dictionary(folder)
    weights.rename(folder / "sae_weights.pt")
    with pytest.raises(CheckpointError, match="only sae_weights.pt, which is not opened"):
        load_dictionary(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        load_dictionary(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(CheckpointError, match="neither cfg.json"):
        load_dictionary(folder)
    with pytest.raises(CheckpointError, match="the folders \\['sae'\\]: name one"):
        load_dictionary(tmp_path)
    with pytest.raises(CheckpointError, match="neither a bundled dictionary"):
        load_dictionary("nowhere")
    with pytest.raises(CheckpointError, match="leads out"):
        load_dictionary(tmp_path, "../other")


def test_hub_ids_are_read_from_the_cache(tmp_path, monkeypatch):
    cache(tmp_path, "owner/some-scope", lambda at: saelens_folder(at / "2-mlp-out"), monkeypatch)
    found = load_dictionary("owner/some-scope", "2-mlp-out")
    assert found.n_features == N and found.source == "owner/some-scope/2-mlp-out"
    with pytest.raises(CheckpointError, match="is not in the local Hugging Face cache"):
        load_dictionary("owner/absent", "2-mlp-out")


def test_a_dictionary_that_does_not_fit_together_is_refused(unchecked):
    good = random_dictionary()
    faults = [
        ({"activation": "tanh"}, "`activation` 'tanh' is not known"),
        ({"k": None}, "`k` belongs to the topk activations"),
        ({"k": N + 1}, f"between 1 and the {N} features"),
        ({"threshold": torch.ones(N).double()}, "`threshold` belongs to"),
        ({"decoder": good.encoder}, "decoder \\[n, d_in\\]"),
        ({"decoder_bias": good.decoder_bias.float()}, "share dtype"),
        ({"encoder_bias": good.encoder_bias * torch.nan}, "encoder_bias has entries"),
    ]
    for change, words in faults:
        with pytest.raises(ValueError, match=words):
            replace(good, **change)
    with pytest.raises(ValueError, match='give "encoder" or "decoder"'):
        good.directions("both")  # pyright: ignore[reportArgumentType]


def test_the_bundled_pair_reads_what_its_card_says():
    from tl_bilinear.checkpoints.bundled import bundled_stories
    from tl_bilinear.checkpoints.dictionaries.load import BUNDLED
    from tl_bilinear.training import measure_fidelity

    assert bundled_dictionaries() == ("stories-5l-mlp-in", "stories-5l-mlp-out")
    files = [path for path in BUNDLED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000
    card = (BUNDLED / "README.md").read_text()
    model = tlb.load("stories-5l", host=hosts()[-1])
    for name in bundled_dictionaries():
        dictionary = load_dictionary(name)
        assert (dictionary.d_in, dictionary.n_features, dictionary.k) == (64, 512, 16)
        x = torch.randn(20, 64)
        z, reconstruction = bundled_twin(BUNDLED / name, x)
        torch.testing.assert_close(dictionary.encode(x), z)
        torch.testing.assert_close(dictionary.decode(z), reconstruction)
        stated = float(next(r for r in card.splitlines() if name in r).split("|")[3])
        found = measure_fidelity(model, dictionary, bundled_stories()[:3])
        assert found.fvu == pytest.approx(stated, rel=0.15)
        assert found.loss < found.spliced < found.zeroed and found.recovered > 0.8


def bundled_twin(folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    w = {key: t.float() for key, t in load_file(folder / "sae_weights.safetensors").items()}
    before = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    z = torch.where(before >= before.sort(-1).values[:, -16:-15], before, 0.0).clamp_min(0)
    return z, z @ w["W_dec"] + w["b_dec"]
