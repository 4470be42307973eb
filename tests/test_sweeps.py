"""Sweeps: what they compute, how they open, and the memory they take."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import hosts, native
from safetensors.torch import save_file
from small_host import shards, small_host, steps, sweep

import tl_bilinear as tlb
from tl_bilinear.decompositions.eigen import Gauge
from tl_bilinear.sweeps import (
    Sweep,
    file_directions,
    output_basis,
    run_sweep,
    target_directions,
    token_directions,
)
from tl_bilinear.sweeps.computations import make_computation
from tl_bilinear.sweeps.directions import Space
from tl_bilinear.sweeps.plan import parse_memory, shown

TESTS = Path(__file__).parent


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("norm", ["RMS", "LN"])
def test_rows_are_the_dense_twin(host: str, norm: str, tmp_path: Path) -> None:
    model = native(norm, host)
    here = tlb.get_host(model)
    computation = make_computation("eigenvalues", {"k": "5", "eigenvectors": "true"})
    done = run_sweep(model, computation, token_directions(model), [1], tmp_path, progress=False)
    w = model.W_U.detach().T
    gain = here.final_norm().gain
    u = w if gain is None else w * gain.detach()
    u = u - u.mean(-1, keepdim=True) if norm == "LN" else u
    dense = here.mlp_tensor(1).to_dense()
    matrices = torch.einsum("no,oij->nij", u, (dense + dense.mT) / 2)
    values = torch.linalg.eigvalsh(matrices)
    order = values.abs().argsort(-1, descending=True)
    tensors = done.tensors(1)
    torch.testing.assert_close(
        tensors["eigenvalues"], values.gather(-1, order)[:, :5], rtol=1e-9, atol=1e-11
    )
    v = tensors["eigenvectors"]
    image = torch.einsum("nij,nkj->nki", matrices, v)
    torch.testing.assert_close(image, tensors["eigenvalues"][..., None] * v, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(tensors["norm"], matrices.flatten(1).norm(dim=1), rtol=1e-9, atol=0)
    assert done.manifest.content["directions"]["folded"] == ["final norm"]


@pytest.mark.parametrize("gauge", ["none", "traceless"])
def test_statistics_of_the_spectrum(gauge: Gauge, tmp_path: Path) -> None:
    host = small_host()
    computation = make_computation("spectrum", {"top": 2, "gauge": gauge})
    run_sweep(host, computation, output_basis(host), [0], tmp_path, progress=False)
    frame = Sweep.load(tmp_path).dataframe()
    assert list(frame["label"]) == [f"e{axis}" for axis in range(6)]
    for row in range(6):
        eigen = tlb.eigendecompose(host.mlp_tensor(0), torch.eye(6).double()[row], gauge=gauge)
        values = eigen.eigenvalues.tolist()
        squares = sum(value**2 for value in values)
        mean = sum(values) / 6
        variance = sum((value - mean) ** 2 for value in values) / 6
        expected = {
            "norm": squares**0.5,
            "trace": float(host.mlp_tensor(0).to_dense()[row].trace()),
            "effective_rank": sum(map(abs, values)) ** 2 / squares,
            "kurtosis": sum((value - mean) ** 4 for value in values) / 6 / variance**2,
            "top_share": (values[0] ** 2 + values[1] ** 2) / squares,
            "positive_share": sum(value**2 for value in values if value > 0) / squares,
            "largest": max(values),
            "smallest": min(values),
            "outliers": int(eigen.outliers()),
        }
        for name, value in expected.items():
            assert frame[name][row] == pytest.approx(value, rel=1e-9), name


def test_a_sweep_opens_as_a_frame_and_by_name(tmp_path: Path) -> None:
    import pandas

    done = sweep(tmp_path)
    frame = Sweep.load(tmp_path).dataframe()
    assert len(frame) == 40 and list(frame.columns) == [
        *("layer", "direction", "label", "image.0", "image.1", "image.2", "image.3", "image.4"),
        *("image.5", "powers.0", "powers.1", "trace"),
    ]
    host = small_host()
    w = host.W_U.T
    direct = [steps(host.mlp_tensor(layer), w) for layer in (0, 1)]
    for name in ("trace", "powers", "image"):
        for layer in (0, 1):
            torch.testing.assert_close(done.tensors(layer)[name], direct[layer][name])
    torch.testing.assert_close(
        torch.tensor(frame["powers.1"].to_numpy()), torch.cat([d["powers"][:, 1] for d in direct])
    )
    assert torch.equal(done.at(1, 7)["image"], done.tensors(1)["image"][7])
    rows = done.dataframe("powers")
    picked = rows[(rows.layer == 1) & (rows.direction == 7)]
    assert picked["powers"].tolist() == done.at(1, 7)["powers"].tolist()
    assert list(picked["k"]) == [0, 1] and set(picked["label"]) == {"7"}
    top = done.top(3, "trace")["trace"].abs()
    assert top.tolist() == sorted(frame["trace"].abs(), reverse=True)[:3]
    assert pandas.read_parquet(done.index).attrs["fingerprint"] in str(done)
    assert set(done.tensors(0)) == {"trace", "powers", "image"}
    for call, words in (
        (lambda: done.tensors(9), "layer 9 was not swept"),
        (lambda: done.at(0, 20), "direction 20 was not swept"),
        (lambda: done.top(1, "size"), "has no column 'size'"),
        (lambda: done.dataframe("size"), "no tensor 'size'"),
        (lambda: done.dataframe("trace"), "need [k]"),
    ):
        with pytest.raises(ValueError, match=words.replace("[", "\\[")):
            call()


def test_sixteen_bit_models_are_swept_in_float32(tmp_path: Path) -> None:
    host = small_host(d_model=9, dtype=torch.bfloat16)
    done = run_sweep(host, "spectrum", token_directions(host), None, tmp_path, progress=False)
    assert done.tensors(0)["norm"].dtype == torch.float32


def test_directions_of_every_kind(tmp_path: Path) -> None:
    model = native("RMS", hosts()[0])
    here = tlb.get_host(model)
    w, gain = model.W_U.detach().T, here.final_norm().gain
    assert gain is not None
    some = token_directions(model, range(3, 6))
    assert some.vectors.untyped_storage().data_ptr() == model.W_U.untyped_storage().data_ptr()
    assert torch.equal(some.vectors, token_directions(model, [3, 4, 5]).vectors)
    pairs = target_directions(model, [(3, 5), 4])
    torch.testing.assert_close(pairs.at(here, 0, 0, 2), torch.stack([w[3] - w[5], w[4]]) * gain)
    assert pairs.labels == ("'3' − '5'", "'4'")
    path = tmp_path / "f.safetensors"
    save_file({"W_dec": w[:7].contiguous(), "W_enc": w[:7].T.contiguous(), "b": w[0].clone()}, path)
    cases: list[tuple[Space, torch.Tensor]]
    cases = [("logits", w[2:4] * gain), ("stream", w[2:4]), ("mlp_out", w[2:4])]
    for space, expected in cases:
        found = file_directions(path, "W_dec", space=space)
        torch.testing.assert_close(found.at(here, 0, 2, 4), expected)
        columns = file_directions(path, "W_enc", columns=True, space=space)
        torch.testing.assert_close(columns.at(here, 0, 2, 4), expected)


@pytest.mark.parametrize(
    ("words", "size"),
    [(1000, 1000), ("1000", 1000), ("4GiB", 2**32), ("1.5g", 3 * 2**29), ("800 MB", 800 * 2**20)],
)
def test_budgets_are_read(words: int | str, size: int) -> None:
    assert parse_memory(words) == size
    assert size <= (parse_memory(shown(size)) or 0) <= 1.01 * size


@pytest.mark.parametrize("words", ["much", "-1", "0", "4 apples", ""])
def test_budgets_that_are_none(words: str) -> None:
    with pytest.raises(ValueError, match="must be bytes or a text such as '4GiB'"):
        parse_memory(words)


def test_chunks_keep_to_the_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = {"chunk": None, "bytes_per_direction": 2**30}
    with pytest.raises(ValueError, match="too small: 1.1.GiB are needed .* give memory="):
        sweep(tmp_path / "a", memory="1GiB", **size)
    assert not (tmp_path / "a").exists()
    done = sweep(tmp_path / "b", memory="5.2GiB", progress=True, **size)
    assert done.manifest.chunk == 5
    first = capsys.readouterr().err.splitlines()[0]
    assert "2 layers x 20 directions in 8 chunks of 5; about 5.1" in first, first
    shards(tmp_path / "b")[0].unlink()
    assert len(sweep(tmp_path / "b", memory="20GiB", **size).computed) == 1, "the cut stays"
    with pytest.raises(ValueError, match="too small: 5.1.GiB are needed for chunks of 5"):
        sweep(tmp_path / "b", memory="3GiB", **size)


PEAK = """
import sys
import pyarrow.parquet, torch
from pathlib import Path
from small_host import small_host
from tl_bilinear.sweeps import run_sweep, token_directions
from tl_bilinear.sweeps.computations import make_computation
def kib(name):  # not ru_maxrss, which begins with what the parent process had
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
torch.linalg.eigh(torch.eye(8) @ torch.eye(8))
host = small_host(128, 512, 400, 1)
directions = token_directions(host)
before = kib("VmRSS")
computation = make_computation("eigenvalues", {"k": 128, "eigenvectors": True})
done = run_sweep(host, computation, directions, None, sys.argv[1], memory="300MiB", progress=False)
print(done.manifest.chunk, kib("VmHWM") - before)
"""


@pytest.mark.one_major(3)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
def test_the_peak_stays_within_the_budget(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    command = [sys.executable, "-c", PEAK, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    chunk, added = map(int, done.stdout.split())  # KiB
    assert 100 < chunk < 256, "the budget decides"
    assert 2**16 < added < 300 * 2**10, "the budget is used, and kept"
