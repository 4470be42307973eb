"""Interactions of features: the streamed table against the dense one, on tensors and models."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import hosts, native
from strategies import normal, tensors

import tl_bilinear as tlb
from tl_bilinear.decompositions import interaction_table
from tl_bilinear.decompositions.interaction_table import random_rotation, random_tables
from tl_bilinear.dictionary import Dictionary


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def dense(tensor, u, features) -> torch.Tensor:
    """The whole table, from the dense tensor."""
    b = tensor.to_dense()
    q = torch.einsum("o,oij->ij", u, (b + b.mT) / 2)
    return torch.einsum("ai,ij,bj->ab", features, q, features)


@st.composite
def cases(draw):
    tensor = draw(tensors())
    n = draw(st.integers(1, 12))
    return tensor, normal(draw, tensor.d_out), normal(draw, n, tensor.d_in), draw(st.integers(1, 9))


@given(cases(), st.integers(1, 13))
def test_the_streamed_table_is_the_dense_one(case, block):
    tensor, u, features, k = case
    n = len(features)
    k = min(k, max(n, n * (n - 1) // 2))
    whole = dense(tensor, u, features)
    found = interaction_table(tensor, u, features, k, block=block)
    assert_equal(found.self_values, whole.diagonal())
    rows, columns = torch.triu_indices(n, n, 1)
    cross = whole[rows, columns]
    expected = cross.abs().sort(descending=True).values[:k]
    assert_equal(found.cross_values.abs(), expected)
    assert_equal(found.cross_values, whole[tuple(found.cross_pairs.T)])
    assert (found.cross_pairs[:, 0] < found.cross_pairs[:, 1]).all()
    top = whole.diagonal().abs().sort(descending=True).values[:k]
    assert_equal(found.self_values[found.self_top].abs(), top)
    assert found.norm == pytest.approx(float(whole.norm()), rel=1e-9)
    for values, moments in ((whole.diagonal(), found.self_moments), (cross, found.cross_moments)):
        assert moments.count == len(values)
        if len(values) > 1:
            centred = values - values.mean()
            scale = float(values.abs().max())
            assert moments.mean == pytest.approx(float(values.mean()), rel=1e-9, abs=1e-9 * scale)
            assert moments.std == pytest.approx(
                float(centred.square().mean().sqrt()), rel=1e-6, abs=1e-6 * scale
            )


def test_moments_are_those_of_the_dense_table():
    tensor = tlb.BilinearTensor(*torch.randn(3, 8, 11, dtype=torch.float64))
    u, features = torch.randn(8).double(), torch.randn(60, 8).double()
    whole = dense(tensor, u, features)
    found = interaction_table(tensor, u, features, 5, block=17)
    rows, columns = torch.triu_indices(60, 60, 1)
    for values, moments in (
        (whole.diagonal(), found.self_moments),
        (whole[rows, columns], found.cross_moments),
    ):
        centred = values - values.mean()
        variance = centred.square().mean()
        assert moments.mean == pytest.approx(float(values.mean()), rel=1e-9)
        assert moments.std == pytest.approx(float(variance.sqrt()), rel=1e-9)
        expected = float(centred.pow(4).mean() / variance**2)
        assert moments.kurtosis == pytest.approx(expected, rel=1e-9)
        assert moments.square_sum == pytest.approx(float(values.square().sum()), rel=1e-9)
    share = whole.diagonal().square().sum() / whole.square().sum()
    assert found.self_share == pytest.approx(float(share), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_blocks_do_not_change_the_result(dtype):
    tensor = tlb.BilinearTensor(*torch.randn(3, 8, 11, dtype=dtype))
    u, features = torch.randn(8).to(dtype), torch.randn(40, 8).to(dtype)
    results = [interaction_table(tensor, u, features, 40, block=b) for b in (3, 7, 16, 40, 999)]
    for found in results[1:]:
        assert torch.equal(found.cross_pairs, results[0].cross_pairs)
        assert torch.equal(found.cross_values, results[0].cross_values)
        assert torch.equal(found.self_top, results[0].self_top)
        assert found.norm == pytest.approx(results[0].norm, rel=1e-6)


@pytest.mark.parametrize("block", [1, 2, 5, 8])
def test_equal_magnitudes_keep_the_lower_indices(block):
    tensor = tlb.BilinearTensor(*torch.ones(3, 1, 1, dtype=torch.float64))
    features = torch.ones(8, 1, dtype=torch.float64)
    features[3] = -1.0
    found = interaction_table(tensor, torch.ones(1).double(), features, 10, block=block)
    pairs = [[0, j] for j in range(1, 8)] + [[1, 2], [1, 3], [1, 4]]
    assert found.cross_pairs.tolist() == pairs
    assert found.cross_values.tolist() == [-1.0 if 3 in pair else 1.0 for pair in pairs]
    zero = interaction_table(tensor, torch.ones(1).double(), 0 * features, 3, block=block)
    assert zero.cross_pairs.tolist() == [[0, 1], [0, 2], [0, 3]] and zero.norm == 0
    one = interaction_table(tensor, torch.ones(1).double(), features[:1], 1)
    assert one.cross_pairs.shape == (0, 2) and one.cross_moments.count == 0


def test_all_kept_pairs_are_the_tensor_and_truncation_costs_what_it_says():
    tensor = tlb.BilinearTensor(*torch.randn(3, 5, 7, dtype=torch.float64))
    u, features = torch.randn(5).double(), torch.randn(9, 5).double()
    whole = dense(tensor, u, features)
    found = interaction_table(tensor, u, features, 36)
    z = torch.randn(20, 9).double()
    expected = tensor(z @ features) @ u
    assert_equal(found.to_tensor()(z)[:, 0], expected)
    assert found.error < 1e-6 * found.norm
    errors = []
    for k in (1, 3, 9, 20, 36):
        kept = found.truncate(k)
        rebuilt = kept.to_tensor().symmetrized().to_dense()[0]
        left = float((whole - rebuilt).norm())
        assert kept.error == pytest.approx(left, rel=1e-6, abs=1e-6 * found.norm)
        errors.append(kept.error)
    assert errors == sorted(errors, reverse=True)
    best = found.top(3)
    assert [abs(v) for *_, v in best] == sorted((abs(v) for *_, v in best), reverse=True)
    for i, j, value in best:
        assert value == pytest.approx(float(whole[i, j]))
    with pytest.raises(ValueError, match="`k` must be between 1 and the 36"):
        found.truncate(37)


def test_the_baseline_has_the_same_spectrum_and_other_vectors():
    tensor = tlb.BilinearTensor(*torch.randn(3, 6, 8, dtype=torch.float64))
    u, identity = torch.randn(6).double(), torch.eye(6).double()
    mine = interaction_table(tensor, u, identity, 15)
    first, second = random_tables(tensor, u, identity, 15, draws=2, seed=1)
    assert first.norm == pytest.approx(mine.norm) == pytest.approx(second.norm)
    spectra = []
    for table in (mine, first, second):
        matrix = table.to_tensor().symmetrized().to_dense()[0]
        spectra.append(torch.linalg.eigvalsh(matrix))
    assert_equal(spectra[1], spectra[0])
    assert not torch.allclose(first.self_values, mine.self_values)
    assert not torch.allclose(first.self_values, second.self_values)
    again = random_tables(tensor, u, identity, 15, draws=1, seed=1)[0]
    assert torch.equal(again.cross_values, first.cross_values)
    rotations = torch.stack(
        [random_rotation(3, torch.Generator().manual_seed(seed)) for seed in range(2000)]
    )
    torch.testing.assert_close(rotations.mean(0), torch.zeros(3, 3).double(), atol=0.05, rtol=0)
    product = rotations[0] @ rotations[0].T
    assert_equal(product, torch.eye(3).double())


def test_a_gauge_takes_out_the_trace():
    tensor = tlb.BilinearTensor(*torch.randn(3, 5, 7, dtype=torch.float64))
    u, features = torch.randn(5).double(), torch.randn(9, 5).double()
    q = tensor.interaction_matrix(u)
    whole = features @ (q - torch.eye(5).double() * q.trace() / 5) @ features.T
    found = interaction_table(tensor, u, features, 4, gauge="traceless")
    assert_equal(found.self_values, whole.diagonal())
    assert_equal(found.cross_values, whole[tuple(found.cross_pairs.T)])


def test_bad_tables_are_refused(unchecked):
    tensor = tlb.BilinearTensor(*torch.randn(3, 5, 7))
    u, features = torch.randn(5), torch.randn(9, 5)
    faults = [
        ((u[:4], features, 3), {}, "`u` must have shape \\[5\\]"),
        ((u, features[:, :4], 3), {}, "rows of 5 numbers"),
        ((u * torch.nan, features, 3), {}, "`u` has entries that are not finite"),
        ((u, features * torch.inf, 3), {}, "`features` has entries that are not finite"),
        ((0 * u, features, 3), {}, "`u` is zero"),
        ((u, features, 37), {}, "between 1 and the 36 pairs of 9 features"),
        ((u, features, 0), {}, "`k` must be"),
        ((u, features, 3), {"block": 0}, "`block` must be"),
        ((u, features, 3), {"gauge": "odd"}, "`gauge` must be"),
    ]
    for arguments, options, words in faults:
        with pytest.raises(ValueError, match=words):
            interaction_table(tensor, *arguments, **options)
    broken = tlb.BilinearTensor(tensor.left * torch.nan, tensor.right, tensor.out)
    with pytest.raises(ValueError, match="interaction matrix has entries"):
        interaction_table(broken, u, features, 3)


# ---- on models ---------------------------------------------------------------------------


def dictionary(hook_name: str, n: int = 20, seed: int = 0, d_in: int = 16) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)

    def of(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Dictionary(of(d_in, n), of(n), of(n, d_in), of(d_in), "topk", hook_name, k=4)


def mlp_values(model, layer: int, hook: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The hook's values, the MLP's output, and rho, at random tokens."""
    host = tlb.get_host(model)
    tokens = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    names = [hook, host.mlp_out_site(layer)]
    scale = f"blocks.{layer}.ln2.hook_scale"
    if host.mlp_norm(layer).exists:
        names.append(scale)
    _, values = host.read(tokens, names)
    rho = values[scale] if scale in values else torch.ones(2, 9, 1)
    return values[hook].double(), values[names[1]].double(), rho.double()


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("norm", ["LN", "RMS", None])
def test_interactions_linear_part_and_constant_are_the_mlp(host, norm):
    """What the MLP makes of z D + b_dec is what the table says, for the hook it was trained on."""
    model = native(norm, host)
    exact = 1e-9 if host == "hooked_transformer" or norm in ("LN", None) else 1e-5
    hook = tlb.get_host(model).mlp_input_site(1)
    inputs, outputs = dictionary(hook), dictionary("blocks.1.hook_mlp_out", seed=1)
    found = tlb.interactions(model, 1, inputs, outputs, [3, 7], k=190, draws=1)
    x, y, _ = mlp_values(model, 1, hook)
    # A dictionary that is a basis: x is reconstructed exactly.
    basis = replace(
        inputs,
        encoder=inputs.encoder[:, :16],
        encoder_bias=inputs.encoder_bias[:16],
        decoder=inputs.decoder[:16],
    )
    square = tlb.interactions(model, 1, basis, outputs, [3, 7], k=120, draws=0)
    assert square.linear is not None and square.constant is not None
    z = torch.linalg.solve(basis.decoder.T, (x - basis.decoder_bias).mT).mT
    for row, feature in enumerate((3, 7)):
        expected = y @ outputs.encoder[:, feature]
        quadratic = square.table(feature).to_tensor()(z)[..., 0]
        value = quadratic + z @ square.linear[row] + square.constant[row]
        scale = float(expected.abs().max())
        torch.testing.assert_close(value, expected, rtol=exact, atol=exact * scale)
    assert (found.in_hook, found.out_hook, found.readout) == (
        hook,
        "blocks.1.hook_mlp_out",
        "encoder",
    )
    assert found.self_interactions.shape == (2, 20) and found.cross_pairs.shape == (2, 190, 2)
    assert len(found.baseline) == 2 and len(found.baseline[0]) == 1
    assert found.provenance.frozen == () and found.provenance.host == tlb.get_host(model).kind
    best = found.top(4)
    assert len(best) == 4 and {row[0] for row in best} <= {"3", "7"}
    assert found.top(1, 7)[0][3] == pytest.approx(found.table(7).top(1)[0][2])
    decoder = tlb.interactions(model, 1, inputs, outputs, [3], readout="decoder", draws=0)
    plain = tlb.interactions(model, 1, inputs.decoder, outputs.decoder, [3], draws=0)
    assert torch.equal(decoder.cross_interactions, plain.cross_interactions)
    assert (decoder.readout, plain.readout) == ("decoder", "given")


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("norm", ["LN", "RMS"])
def test_each_input_hook_is_folded_as_it_is_read(host, norm):
    """The quadratic part, from before the norm, after it, and after its gain."""
    model = native(norm, host, seed=1)
    exact = 1e-9 if host == "hooked_transformer" or norm == "LN" else 1e-5
    own = tlb.get_host(model)
    outputs = dictionary("blocks.1.hook_mlp_out", seed=1)
    weights = own.mlp_map(1).to(torch.float64)
    normalised, _, rho = mlp_values(model, 1, own.mlp_input_site(1))
    stream, _, _ = mlp_values(model, 1, "blocks.1.hook_resid_mid")
    norm_of = own.mlp_norm(1)
    u = outputs.encoder[:, 3]
    expected = weights.quadratic(normalised) @ u
    identity = torch.eye(16).double()
    blank = dictionary("", 16)
    for hook, x, scale in (
        ("blocks.1.ln2.hook_normalized", normalised, 1.0),
        ("blocks.1.hook_resid_mid", stream, rho[..., 0] ** 2),
    ):
        inputs = replace(blank, decoder=identity, hook_name=hook)
        found = tlb.interactions(model, 1, inputs, outputs, [3], k=120, draws=0)
        value = found.tables[0].to_tensor()(x)[..., 0] / scale
        limit = exact * float(expected.abs().max())
        torch.testing.assert_close(value, expected, rtol=exact, atol=limit)
        before_norm = hook.endswith("resid_mid")
        assert (found.linear is None) == bool(found.provenance.frozen) == before_norm
    # After gain and bias: the MLP's own weights, so the whole output comes out.
    inputs = replace(blank, decoder=identity, hook_name="blocks.1.mlp.hook_in")
    found = tlb.interactions(model, 1, inputs, outputs, [3], k=120, draws=0)
    x = normalised * (1 if norm_of.gain is None else norm_of.gain)
    x = x + (0 if norm_of.bias is None else norm_of.bias)
    z = x - inputs.decoder_bias
    assert found.linear is not None and found.constant is not None
    value = found.tables[0].to_tensor()(z)[..., 0] + z @ found.linear[0] + found.constant[0]
    expected = weights(normalised) @ u
    limit = exact * float(expected.abs().max())
    torch.testing.assert_close(value, expected, rtol=exact, atol=limit)


def test_bad_features_are_refused(unchecked):
    model = native("RMS", hosts()[0])
    site = tlb.get_host(model).mlp_input_site(1)
    inputs, outputs = dictionary(site), dictionary("blocks.1.hook_mlp_out")
    faults = [
        ((1, dictionary(site, d_in=8), outputs), {}, "`in_features` must be directions of this"),
        ((1, inputs, dictionary(outputs.hook_name, d_in=8)), {}, "`out_features` must be direct"),
        ((0, inputs, outputs), {}, "the input dictionary was trained on 'blocks.1.ln2.hook_norm"),
        ((1, inputs, dictionary("")), {}, "output dictionary does not say what it was trained on"),
        ((1, inputs, inputs), {}, "the output dictionary was trained on"),
        ((2, inputs, outputs), {}, "`layer` 2 is out of range"),
        ((1, inputs, outputs, [20]), {}, "there is no 20"),
        ((1, inputs, outputs, [1, 1]), {}, "`features` must be different"),
        ((1, inputs, outputs, []), {}, "`features` must be different"),
        ((1, inputs, outputs, [1]), {"k": 191}, "between 1 and the 190 pairs"),
        ((1, inputs, outputs, [1]), {"readout": "both"}, 'give "encoder" or "decoder"'),
        ((1, inputs, outputs, [1]), {"draws": -1}, "`draws` must not be below 0"),
        ((1, inputs, outputs, [1]), {"in_labels": ["a"]}, "1 names for 20 input features"),
        ((1, inputs.decoder * torch.nan, outputs), {}, "`in_features` has entries that are not"),
        ((1, inputs, outputs.decoder, [1]), {"texts": ["a b"]}, "have no activations"),
        ((1, inputs, outputs, [1]), {"texts": ["a b"], "ranks": [17]}, "`ranks` must be between"),
    ]
    for arguments, options, words in faults:
        with pytest.raises(ValueError, match=words):
            tlb.interactions(model, *arguments, **options)
    with pytest.raises(ValueError, match="output feature 4 is not among"):
        tlb.interactions(model, 1, inputs, outputs, [1], draws=0).table(4)


@pytest.mark.parametrize("place", ["ln2.hook_normalized", "mlp.hook_in", "hook_resid_mid"])
def test_a_gated_mlp_is_refused_wherever_its_features_live(place):
    model = tlb.load("stories-5l-swiglu", check=False)
    inputs = dictionary(f"blocks.1.{place}", d_in=64)
    outputs = dictionary("blocks.1.hook_mlp_out", d_in=64)
    with pytest.raises(tlb.NotBilinearError):
        tlb.interactions(model, 1, inputs, outputs, [3])


@pytest.mark.parametrize("host", hosts())
@pytest.mark.parametrize("readout", ["encoder", "decoder"])
def test_correlations_are_those_of_the_activations_themselves(host, readout):
    from tl_bilinear.checkpoints.bundled import bundled_stories

    texts = bundled_stories()[:2]
    model = tlb.load("stories-5l", host=host)
    own = tlb.get_host(model)
    outputs = tlb.load_dictionary("stories-5l-mlp-out")
    layer = int(outputs.hook_name.split(".")[1])
    inputs = tlb.load_dictionary("stories-5l-mlp-in")
    active_on = []
    xs, ys = [], []
    for text in texts:
        tokens = model.to_tokens(text)
        _, cache = own.read(tokens, [own.mlp_input_site(layer), outputs.hook_name])
        xs.append(cache[own.mlp_input_site(layer)][0, 1:].double())
        ys.append(cache[outputs.hook_name][0, 1:].double())
    x, z = torch.cat(xs), outputs.to(torch.float64).encode(torch.cat(ys))
    active_on = (z > 0).sum(0)
    chosen = [*active_on.argsort(descending=True)[:4].tolist(), int(active_on.argmin())]
    found = tlb.interactions(
        model, layer, inputs, outputs, chosen, readout=readout, texts=texts, ranks=(1, 3), draws=0
    ).correlations
    assert found is not None and found.tokens == len(x)
    assert found.counts.tolist() == active_on[chosen].tolist()
    for row, feature in enumerate(chosen):
        u = outputs.directions(readout)[feature]
        eigen = tlb.eigendecompose(own.mlp_tensor(layer).to(torch.float64), u.double(), 3)
        a, on = z[:, feature], z[:, feature] > 0
        for column, rank in enumerate((1, 3)):
            b = eigen.truncate(rank).contributions(x).sum(-1)
            if on.sum() <= 10:
                assert found.overall[row, column].isnan() and found.active[row, column].isnan()
                continue
            overall = torch.corrcoef(torch.stack([a, b]))[0, 1]
            active = torch.corrcoef(torch.stack([a[on], b[on]]))[0, 1]
            torch.testing.assert_close(found.overall[row, column], overall, rtol=1e-6, atol=1e-8)
            torch.testing.assert_close(found.active[row, column], active, rtol=1e-6, atol=1e-8)
    assert (found.counts > 10).any() and (found.counts <= 10).any()
    assert -1 <= found.mean(3) <= 1 and 0 <= found.share_above(0.5, 1, active=True) <= 1
    with pytest.raises(ValueError, match="`rank` 2 was not measured"):
        found.mean(2)
