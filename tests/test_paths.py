"""The path expansion against dense tensors over tokens that are written out from the weights."""

import itertools
from typing import Any

import pytest
import torch
from dense_paths import Dense
from models import NATIVE, hosts, native

import tl_bilinear as tlb
from tl_bilinear.circuits.path_norms import norms
from tl_bilinear.circuits.path_term import TokenMatrix
from tl_bilinear.hosts.rotation import read_rotations

SMALL: dict[str, Any] = {
    "n_layers": 1,
    "d_model": 8,
    "n_heads": 2,
    "d_mlp": 7,
    "d_vocab": 11,
    "n_ctx": 6,
}
ROTARY: dict[str, Any] = {
    "positional_embedding_type": "rotary",
    "rotary_dim": 4,
    "n_key_value_heads": 1,
}
CASES = {"LN": ("LN", {}), "RMS": ("RMS", ROTARY), "none": (None, {})}


def small(host: str, case: str, **options: Any) -> Any:
    norm, settings = CASES[case]
    return biased(norm, host, **{**SMALL, **settings, **options})


def biased(norm: str | None, host: str, **options: Any) -> Any:
    """`native`, with biases in the MLPs on a bridge too."""
    if host == "hooked_transformer":
        return native(norm, host, **options).requires_grad_(False)
    from transformer_lens.config import TransformerBridgeConfig

    from tl_bilinear.hosts.native import boot_bilinear

    settings = {**NATIVE, "normalization_type": norm, "dtype": torch.float64, **options}
    model = boot_bilinear(TransformerBridgeConfig(**settings), mlp_bias=True).to(torch.float64)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.requires_grad_(False).parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model.eval()


def assert_equal(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-9) -> None:
    found, expected = found.double(), expected.double()
    scale = max(float(expected.abs().max()), 1e-12)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)


def values_of(rows: Any) -> torch.Tensor:
    return torch.tensor([row.value for row in rows], dtype=torch.float64)


def exactness(host: str, case: str) -> float:
    """A native bridge's RMS and parameter-free norms, and its rotation, are in float32."""
    return 1e-9 if host == "hooked_transformer" or case in ("LN", "none") else 1e-5


def dense(tensor: Any) -> torch.Tensor:
    """[first, second, output] of a factored term."""
    whole = tensor.to_dense()
    return whole.T[:, None] if isinstance(tensor, TokenMatrix) else whole.permute(1, 2, 0)


@pytest.fixture(scope="module", params=itertools.product(hosts(), CASES), ids=" ".join)
def expanded(request):
    host, case = request.param
    torch.manual_seed(1)
    model = small(host, case)
    return model, case, exactness(host, case), tlb.expand_paths(model)


def test_every_term_is_its_dense_twin(expanded):
    model, case, _, paths = expanded
    reference = Dense(model, case)
    count = len(reference.sources) + 1
    assert len([t for t in paths.terms if t.name.startswith("W_U B(")]) == count * (count + 1) // 2
    for term in paths.terms:
        expected = reference.term(term.name)  # its only argument may stand second
        assert_equal(dense(paths.tensor(term.name)).reshape(expected.shape), expected)
        assert term.norm == pytest.approx(float(expected.norm()), rel=1e-9)
        entries = expected[..., 0].numel()
        assert term.size == pytest.approx(float(expected.norm()) / entries**0.5, rel=1e-9)
    assert sum(term.share for term in paths.terms) == pytest.approx(1)


def test_the_largest_entries_are_the_dense_ones(expanded):
    model, case, _, paths = expanded
    reference = Dense(model, case)
    u = model.W_U[:, 3] - model.W_U[:, 5]
    for term in paths.terms:
        whole = reference.term(term.name)
        table = whole[..., 3] - whole[..., 5]
        found = paths.top(term.name, (3, 5), k=6, block=4)
        flat = table.triu() if found.unordered else table
        expected = flat.flatten().abs().sort(descending=True).values[: len(found.rows)]
        assert_equal(values_of(found.rows).abs(), expected)
        squeezed = table.squeeze()
        assert_equal(values_of(found.rows), torch.stack([squeezed[r.ids] for r in found.rows]))
        assert {len(row.arguments) for row in found.rows} == {len(term.arguments)}
    whole, blocks = (
        paths.top("W_U W_E", (3, 5), k=4, **block).rows for block in ({}, {"block": 3})
    )
    assert [row.ids for row in whole] == [row.ids for row in blocks]
    assert_equal(values_of(whole), values_of(blocks))  # blocks may round otherwise
    direction = [row.value for row in paths.top("W_U W_E", u, k=3).rows]
    tokens = [row.value for row in paths.top("W_U W_E", (3, 5), k=3).rows]
    assert direction == pytest.approx(tokens)


def test_without_a_target_the_entries_are_bigrams(expanded):
    model, case, _, paths = expanded
    reference = Dense(model, case)
    for name in ("W_U W_E", "W_U B(W_E, W_E)", "W_U OV1 W_E", "W_U B(W_E, 1)"):
        whole = reference.term(name).squeeze()
        found = paths.top(name, k=5, block=3)
        assert found.places[-1] == "output token"
        values = values_of(found.rows)
        assert_equal(values.abs(), whole.flatten().abs().sort(descending=True).values[:5])
        assert_equal(values, torch.stack([whole[row.ids] for row in found.rows]))
    with pytest.raises(ValueError, match="give a target"):
        paths.top("W_U B(W_E, OV1 W_E)")


def test_among_some_tokens(expanded):
    model, case, _, paths = expanded
    table = Dense(model, case).term("W_U B(W_E, OV0 W_E)")[..., 3]
    chosen = [1, 4, 9]
    found = paths.top("W_U B(W_E, OV0 W_E)", 3, k=20, among=chosen)
    assert {row.ids for row in found.rows} == set(itertools.product(chosen, chosen))
    for row in found.rows:
        assert_equal(values_of([row])[0], table[row.ids])
    with pytest.raises(ValueError, match="no tokens were given"):
        paths.top("W_U W_E", 3, among=[])


def contracted(model: Any, case: str, tokens: torch.Tensor, terms: list[str]) -> torch.Tensor:
    """[term, logit] at the last position: dense terms summed over patterns and denominators."""
    reference = Dense(model, case)
    _, cache = model.run_with_cache(tokens[None])
    ones = torch.ones(len(tokens), 1, dtype=torch.float64)
    has_norm = case != "none"
    scale = {n: cache[f"{n}.hook_scale"][0] if has_norm else ones for n in NORMS}
    pattern = cache["blocks.0.attn.hook_pattern"][0, :, -1]
    last = len(tokens) - 1

    def weights(source: str) -> torch.Tensor:
        """How much of each argument a source has at the last position."""
        ids = torch.arange(len(tokens)) if source.endswith("W_pos") else tokens
        size = 6 if source.endswith("W_pos") else 11
        if source in ("1", "b_attn"):
            return torch.ones(1, dtype=torch.float64)
        found = torch.zeros(size, dtype=torch.float64)
        if source.startswith("OV"):
            share = pattern[int(source[2])] / scale["blocks.0.ln1"][:, 0]
            return found.index_add(0, ids, share.double())
        found[ids[last]] = 1.0
        return found

    rows = []
    for name in terms:
        inner, tensor = name.removeprefix("W_U "), reference.term(name)
        if name == "b_U":
            rows.append(tensor[0, 0])
            continue
        names = inner.removeprefix("B(").removesuffix(")").split(", ")
        rho = scale["ln_final"][last]
        if len(names) == 2:
            rho = rho * scale["blocks.0.ln2"][last] ** sum(n != "1" for n in names)
            if names[0] == names[1] and not names[0].startswith("OV"):
                names.pop()
        names += ["1"] * (2 - len(names))
        both = [weights(n) for n in names]
        rows.append(torch.einsum("ijo,i,j->o", tensor, *both) / rho)
    return torch.stack(rows)


NORMS = ("blocks.0.ln1", "blocks.0.ln2", "ln_final")


def test_on_a_prompt_every_term_is_the_dense_one_under_its_patterns(expanded):
    model, case, exact, paths = expanded
    tokens = torch.randint(0, 11, (2, 6))
    found = paths.on_prompt(tokens, (3, 5))
    for row in range(2):
        logits = contracted(model, case, tokens[row], list(found.terms))
        expected = logits[:, 3] - logits[:, 5]
        scale = float(expected.abs().max())
        torch.testing.assert_close(
            found.values[row, 0], expected, rtol=exact, atol=exact * scale, check_dtype=False
        )
        own = model(tokens[row][None])[0, -1]
        torch.testing.assert_close(logits.sum(0), own, rtol=exact, atol=exact * scale)


def test_terms_sum_to_the_target_everywhere(expanded):
    model, _, exact, paths = expanded
    tokens = torch.randint(0, 11, (2, 5))
    for target in (7, (7, 9), torch.linspace(-1, 1, 8, dtype=torch.float64)):
        for positions in ("last", "all"):
            found = paths.on_prompt(tokens, target, positions=positions)
            scale = float(found.values.abs().max())
            assert found.discrepancy.abs().max() < exact * scale
            assert found.values.shape[1] == (5 if positions == "all" else 1)
    name, value = found.top(1)[0]
    assert value == float(found.value(name)[0, 0])
    assert "logits" in str(found) and "all others" in str(found)


def test_a_term_that_is_left_out_is_missed(expanded):
    """The check of the sums can fail: without any one term that is not small they do not close."""
    _, _, exact, paths = expanded
    found = paths.on_prompt(torch.randint(0, 11, (1, 6)), 3)
    scale = float(found.values.abs().max())
    for name, value in found.top(10):
        without = found.total - found.value(name)
        assert abs(value) > 100 * exact * scale
        assert float((found.target - without).abs().max()) > 50 * exact * scale


def test_rank_blocks_make_no_difference(expanded):
    _, _, _, paths = expanded
    forms = {name: named.form for name, named in paths.forms.items()}
    for ranks in (1, 3):
        for name, norm in norms(paths.layer, forms, ranks).items():
            assert norm == pytest.approx(paths.term(name).norm, rel=1e-9)


def test_denominators_divide_sizes(expanded):
    model, case, _, paths = expanded
    if case == "none":
        with pytest.raises(ValueError, match="takes positive numbers"):
            tlb.expand_paths(model, denominators={"MLP": 2.0})
        return
    given = {"attention": 2.0, "MLP": 3.0, "final": 5.0}
    divided = tlb.expand_paths(model, denominators=given)
    powers = {"W_U W_E": 5, "W_U OV0 W_E": 10, "W_U B(OV0 W_E, OV1 W_E)": 5 * 9 * 4}
    powers |= {"W_U B(W_E, 1)": 15, "W_U B(1, 1)": 5}
    for name, power in powers.items():
        assert divided.term(name).size == pytest.approx(paths.term(name).size / power)
    assert divided.term("W_U B(W_E, OV0 W_E)").scale == "1/(ρ_attn ρ_mlp² ρ_final)"
    with pytest.raises(ValueError, match="takes positive numbers"):
        tlb.expand_paths(model, denominators={"MLP": 0.0})


def test_eigenvectors_of_the_virtual_tokens_interaction_matrix(expanded):
    model, case, _, paths = expanded
    reference = Dense(model, case)
    sources = ["W_E", "OV0 W_E", "OV1 W_E"]
    basis = torch.cat([reference.gain(reference.ln2, reference.sources[s]) for s in sources])
    u = reference.gain(reference.final, torch.eye(8).double()) @ (model.W_U[:, 3] - model.W_U[:, 5])
    weights = model.blocks[0].mlp.W_out @ u
    left, right = basis @ model.blocks[0].mlp.W_gate, basis @ model.blocks[0].mlp.W_in
    matrix = (left * weights) @ right.T
    matrix = (matrix + matrix.T) / 2
    found = paths.virtual_modes((3, 5), k=5)
    values = torch.linalg.eigvalsh(matrix)
    expected = values[values.abs().argsort(descending=True)][:5]
    assert_equal(found.eigenvalues, expected, 1e-7)
    assert found.sources == tuple(sources)
    raw = torch.cat([reference.sources[s] for s in sources])
    for k in range(5):
        vector = raw @ found.functionals[k]
        assert float(vector.norm()) == pytest.approx(1, rel=1e-7)
        assert_equal(matrix @ vector, found.eigenvalues[k] * vector, 1e-6)
        shares = vector.view(3, 11).square().sum(1)
        assert_equal(found.by_source[k], shares, 1e-7)
        best = found.top_tokens(k, 3)
        order = vector.abs().argsort(descending=True)[:3].tolist()
        assert [sources.index(t.source) * 11 + t.id for t in best] == order
        weights = [t.weight for t in best]
        assert weights == pytest.approx(vector[order].tolist(), rel=1e-7)
    some = paths.virtual_tokens((3, 5), [2, 8])
    rows = [s * 11 + t for s in range(3) for t in (2, 8)]
    assert_equal(some.matrix, matrix[rows][:, rows])
    assert some.labels[3] == ("OV0 W_E", "8")
    assert "virtual-token modes" in str(found)


def test_scores_from_weights_are_the_models_own(expanded):
    """Terms summed over a prompt's tokens and positions, under its denominators."""
    model, case, exact, paths = expanded
    tokens = torch.randint(0, 11, (6,))
    _, cache = model.run_with_cache(tokens[None])
    ones = torch.ones(6, dtype=torch.float64)
    scale = ones if case == "none" else cache["blocks.0.ln1.hook_scale"][0, :, 0]
    pattern = cache["blocks.0.attn.hook_pattern"][0].double()
    query = 5
    totals = torch.zeros(2, 6, dtype=torch.float64)
    for key in range(6):
        for term in paths.scores(query - key):
            value = term.tensor().to_dense()
            at_query = {"W_E": tokens[query], "W_pos": query, "1": 0}[term.query]
            at_key = {"W_E": tokens[key], "W_pos": key, "1": 0}[term.key]
            rho = (1 if term.query == "1" else scale[query]) * (
                1 if term.key == "1" else scale[key]
            )
            totals[term.head, key] += value[at_query, at_key] / rho
            entries = value.numel()
            assert term.norm == pytest.approx(float(value.norm()), rel=1e-7)
            assert term.size == pytest.approx(float(value.norm()) / entries**0.5, rel=1e-7)
    torch.testing.assert_close(totals.softmax(-1), pattern[:, query], rtol=0, atol=10 * exact)
    best = paths.top_scores("QK1(W_E, W_E)", k=4, distance=2, block=4)
    whole = next(t for t in paths.scores(2) if t.name == "QK1(W_E, W_E)").tensor().to_dense()
    expected = whole.flatten().abs().sort(descending=True).values[:4]
    assert_equal(values_of(best.rows).abs(), expected)
    assert best.places == ("query token", "key token")


@pytest.mark.parametrize("host", hosts())
def test_rotations_depend_on_the_distance_alone(host):
    model = small(host, "RMS")
    turn = read_rotations(tlb.get_host(model), 0, 6)
    exact = exactness(host, "RMS") / 10
    for query, key in ((5, 3), (3, 1), (2, 0)):
        torch.testing.assert_close(
            turn[query] @ turn[key].T, turn[2] @ turn[0].T, rtol=exact, atol=exact
        )
    assert (turn[1] - turn[0]).abs().max() > 0.1


def test_the_number_of_terms_without_biases():
    """Two heads, rotary, no bias: 3 terms past the MLP, 6 pairs."""
    model = native("RMSPre", hosts()[0], **SMALL, positional_embedding_type="rotary", rotary_dim=4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "b_" in name or "bias" in name:
                parameter.zero_()
    paths = tlb.expand_paths(model)
    assert [len(t.sources) for t in paths.terms] == [1] * 3 + [2] * 6
    names = {t.name: t.order for t in paths.terms}
    assert names["W_U B(W_E, W_E)"] == 1 and names["W_U B(OV1 W_E, OV1 W_E)"] == 2
    assert paths.term("W_U B(OV0 W_E, OV1 W_E)").patterns == (0, 1)
    assert "6 more terms" in paths.table(3) and str(paths)


def test_bad_input_says_what_to_do(unchecked):
    model = small(hosts()[0], "RMS")
    paths = tlb.expand_paths(model)
    tokens = torch.randint(0, 11, (1, 4))
    calls = {
        "no term 'W_U': give one of": lambda: paths.term("W_U"),
        "no term 'QK9'": lambda: paths.top_scores("QK9"),
        "token 11 is out of range": lambda: paths.top("W_U W_E", 11),
        "`k` must be at least 1": lambda: paths.top("W_U W_E", 3, k=0),
        "`k` must be between 1 and d_model = 8": lambda: paths.virtual_modes(3, k=9),
        "no tokenizer": lambda: paths.top("W_U W_E", " his"),
        "`distance` is query minus key": lambda: paths.scores(6),
        "a prompt is empty": lambda: paths.on_prompt(tokens[:, :0], 3),
        "does not fit the model's context of 6": lambda: paths.on_prompt(tokens.repeat(1, 2), 3),
        "a cache does not say": lambda: paths.on_prompt(model.run_with_cache(tokens)[1], 3),
    }
    for words, call in calls.items():
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(ValueError, match="has 2 layers.*source_pairs"):
        tlb.expand_paths(native("RMS", hosts()[0]))
    with torch.no_grad():
        model.blocks[0].mlp.W_out.mul_(2)
    with pytest.raises(ValueError, match="have changed since"):
        paths.top("W_U W_E", 3)


def test_a_gated_model_is_refused():
    gated = native("RMS", hosts()[0], **SMALL, act_fn="silu")
    with pytest.raises(tlb.NotBilinearError):
        tlb.expand_paths(gated)
