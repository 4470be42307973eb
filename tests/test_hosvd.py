"""HOSVD: every mode against the SVD of the dense unfolding, small values, truncation, blocks."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import normal, tensors

from tl_bilinear import BilinearTensor, eigendecompose, hosvd
from tl_bilinear.decompositions import gram

pytestmark = pytest.mark.one_major(4)


def close(value: torch.Tensor, expected: torch.Tensor) -> None:
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9 * scale + 1e-12)


def symmetric_dense(tensor: BilinearTensor) -> torch.Tensor:
    dense = tensor.to_dense()
    return (dense + dense.mT) / 2


def unfolding(dense: torch.Tensor, axis: int) -> torch.Tensor:
    return dense.movedim(axis, 0).flatten(1)


def random_tensor(d_out: int, d_in: int, rank: int, d_right: int | None = None):
    sizes = (d_in, d_right or d_in, d_out)
    return BilinearTensor(*(torch.randn(size, rank, dtype=torch.float64) for size in sizes))


def squares(values: torch.Tensor) -> BilinearTensor:
    """A tensor whose output unfolding has the given singular values, in hidden bases."""
    n = len(values)
    basis, outputs = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q for _ in range(2))
    return BilinearTensor(basis, basis, outputs * values)


@pytest.mark.parametrize("small", ["bound", "qr"])
@settings(max_examples=15)
@given(data=st.data())
def test_modes_are_those_of_the_dense_unfoldings(small, data):
    tensor = data.draw(tensors())
    dense = symmetric_dense(tensor)
    found = hosvd(tensor, small=small)
    for spectrum, axis in ((found.output, 0), (found.left, 1), (found.right, 2)):
        matrix = unfolding(dense, axis)
        expected = torch.linalg.svdvals(matrix)
        count = len(spectrum.singular_values)
        assert count == spectrum.available
        # Gram: a value s is known to rounding of the largest square, so its square is compared.
        close(spectrum.singular_values**2, expected[:count] ** 2)
        assert expected[count:].abs().sum() <= 1e-9 * (1 + expected[0])
        modes = spectrum.modes
        close(modes @ modes.T, torch.eye(count, dtype=torch.float64))
        close(modes @ matrix @ matrix.T @ modes.T, (spectrum.singular_values**2).diag())
        largest = modes.gather(1, modes.abs().argmax(1, keepdim=True))
        assert (largest > 0).all()
    close(symmetric_dense(found.to_tensor()), dense)
    assert found.error == 0


@pytest.mark.parametrize("small", ["bound", "qr"])
@settings(max_examples=15)
@given(data=st.data())
def test_left_and_right_spaces_are_decomposed_apart(small, data):
    tensor = data.draw(tensors(same_legs=False))
    dense = tensor.to_dense()
    found = hosvd(tensor, small=small, symmetrized=False)
    assert not found.symmetrized
    for spectrum, axis in ((found.output, 0), (found.left, 1), (found.right, 2)):
        expected = torch.linalg.svdvals(unfolding(dense, axis))
        count = len(spectrum.singular_values)
        close(spectrum.singular_values**2, expected[:count] ** 2)
    close(found.to_tensor().to_dense(), dense)
    cut = found.truncate(1, (1, 1))
    close(cut.error, (dense - cut.to_tensor().to_dense()).norm())


def test_legs_of_different_sizes_need_no_saying():
    tensor = random_tensor(4, 3, 20, d_right=6)
    found = hosvd(tensor)
    assert (found.left.modes.shape, found.right.modes.shape) == ((3, 3), (6, 6))
    with pytest.raises(ValueError, match="decomposed apart, as different spaces"):
        _ = found.input_modes
    with pytest.raises(ValueError, match="`symmetrized=True` needs legs that read one input"):
        hosvd(tensor, symmetrized=True)


@settings(max_examples=15)
@given(st.data())
def test_truncation_leaves_out_what_it_says(data):
    tensor = data.draw(tensors(d_in=4))
    dense = symmetric_dense(tensor)
    found = hosvd(tensor)
    k = data.draw(st.integers(1, len(found.singular_values)))
    k_in = data.draw(st.integers(1, len(found.input_singular_values)))
    # Singular values left out are known to the root of rounding where they are zero.
    rounding = 3e-8 * float(dense.norm())
    for cut in (found.truncate(k, k_in), hosvd(tensor, k, k_in)):
        expected = (dense - symmetric_dense(cut.to_tensor())).norm()
        torch.testing.assert_close(cut.error, expected, rtol=1e-9, atol=rounding)


def test_error_is_exact_and_never_rises_with_k():
    tensor = random_tensor(5, 6, 12)
    dense = symmetric_dense(tensor)
    found = hosvd(tensor)
    errors = {}
    for k in range(1, 6):
        for k_in in range(1, 7):
            cut = found.truncate(k, k_in)
            errors[k, k_in] = float(cut.error)
            expected = (dense - symmetric_dense(cut.to_tensor())).norm()
            torch.testing.assert_close(cut.error, expected, rtol=1e-9, atol=1e-11)
    for (k, k_in), error in errors.items():
        assert error <= errors.get((k - 1, k_in), error) + 1e-12
        assert error <= errors.get((k, k_in - 1), error) + 1e-12
    close(found.truncate(2).truncate(1).error, found.truncate(1).error)
    assert found.core.to_dense().shape == (5, 6, 6)


def test_the_long_way_to_the_error_agrees(monkeypatch):
    """At large sizes the error of an input truncation comes from norms, not from slices."""
    tensor = random_tensor(5, 6, 12)
    exact = hosvd(tensor, 3, 2).error
    monkeypatch.setattr(
        "tl_bilinear.decompositions.higher_order_svd.slices_are_cheap", lambda _: False
    )
    close(hosvd(tensor, 3, 2).error, exact)


@pytest.mark.parametrize(("same_legs", "rank"), [(True, 13), (False, 13), (True, 3)])
def test_streamed_blocks_equal_one_block(monkeypatch, same_legs, rank):
    tensor = random_tensor(7, 8, rank, d_right=8 if same_legs else 5)
    whole = gram.mode_grams(tensor, same_legs)
    product = gram.inner_product(tensor, tensor, same_legs)
    monkeypatch.setattr(gram, "BLOCK", 4)
    assert len(gram.blocks(rank)) == -(-rank // 4)
    parts = gram.mode_grams(tensor, same_legs)
    for name in ("out", "left", "right"):
        close(getattr(parts, name), getattr(whole, name))
    close(gram.inner_product(tensor, tensor, same_legs), product)
    other = random_tensor(7, 8, 6, d_right=tensor.d_right)
    a, b = (symmetric_dense(t) if same_legs else t.to_dense() for t in (tensor, other))
    close(gram.inner_product(tensor, other, same_legs), (a * b).sum())


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_rank_below_d_is_where_the_eigenproblem_is_solved(monkeypatch, rank):
    sizes = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda m: sizes.append(len(m)) or eigh(m))
    tensor = random_tensor(20, 30, rank)
    found = hosvd(tensor)
    assert max(sizes) <= 2 * rank
    dense = symmetric_dense(tensor)
    close(found.singular_values, torch.linalg.svdvals(unfolding(dense, 0))[:rank])
    close(found.input_singular_values, torch.linalg.svdvals(unfolding(dense, 1))[: 2 * rank])
    close(symmetric_dense(found.to_tensor()), dense)


def test_small_singular_values_keep_within_the_bound_and_qr_finds_them():
    true = torch.logspace(0, -12, 13, dtype=torch.float64)
    tensor = squares(true)
    by_gram, by_qr = hosvd(tensor), hosvd(tensor, small="qr")
    bound = by_gram.output.bound
    assert bound is not None and by_qr.output.bound is None
    wrong = (by_gram.singular_values - true).abs()
    assert (wrong <= bound).all()
    assert (wrong / true).max() > 1e-3, "this case does not show what squaring costs"
    assert bound[-1] < 1e-6, "a bound that says nothing"
    assert (by_gram.singular_values.diff() <= 0).all()
    torch.testing.assert_close(by_qr.singular_values, true, rtol=1e-3, atol=1e-15)
    torch.testing.assert_close(by_qr.singular_values[:7], true[:7], rtol=1e-8, atol=0)
    cut = by_qr.truncate(6)
    torch.testing.assert_close(cut.error, true[6:].norm(), rtol=1e-9, atol=0)
    torch.testing.assert_close(by_qr.left.singular_values, true, rtol=1e-3, atol=1e-15)
    assert by_gram.left.bound is not None
    assert ((by_gram.left.singular_values - true).abs() <= by_gram.left.bound).all()


def test_no_bound_where_nothing_small_is_kept():
    tensor = squares(torch.tensor([3.0, 2.0, 1e-7], dtype=torch.float64))
    assert hosvd(tensor).output.bound is not None
    assert hosvd(tensor, 2).output.bound is None


def test_the_bound_follows_the_error_of_float32_products():
    """A wrong Gram matrix of float32 products must not pass for an exact one."""
    true = torch.logspace(0, -6, 7, dtype=torch.float64)
    tensor = squares(true)
    coarse = hosvd(tensor, dtype=torch.float32)
    assert coarse.output.bound is not None
    wrong = (coarse.singular_values - true).abs()
    assert (wrong <= coarse.output.bound).all()
    fine = hosvd(tensor).output.bound
    assert fine is not None and wrong.max() > fine.max()


def test_equal_singular_values_are_one_subspace():
    tensor = squares(torch.tensor([2.0, 5.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    found = hosvd(tensor)
    assert found.output.degenerate_groups() == ((1, 2, 3),)
    (plane,) = found.output.subspaces()
    span = tensor.out[:, [0, 2, 3]] / 2
    close(plane.T @ plane, span @ span.T)
    assert hosvd(squares(torch.arange(1.0, 4.0).double())).output.degenerate_groups() == ()


def test_an_output_mode_is_eigendecomposed_in_turn():
    tensor = random_tensor(5, 6, 12)
    found = hosvd(tensor)
    eigen = found.eigendecompose(1)
    expected = eigendecompose(tensor, found.output_modes[1])
    close(eigen.eigenvalues, expected.eigenvalues)
    close(eigen.eigenvalues.norm(), found.singular_values[1])
    close(found.eigendecompose(0, 2).error, expected_tail(found))
    cut = found.truncate(3, 2)
    assert (cut.eigendecompose(0).eigenvalues.abs() > 1e-9).sum() <= 2
    with pytest.raises(ValueError, match="`mode` must be between 0 and 2, got 3"):
        cut.eigendecompose(3)


def expected_tail(found) -> torch.Tensor:
    matrix = found.tensor.interaction_matrix(found.output_modes[0])
    return torch.linalg.eigvalsh(matrix).square().sort().values[:-2].sum().sqrt()


def test_float32_weights_are_decomposed_in_float64():
    tensor = random_tensor(20, 16, 50)
    found, exact = (
        hosvd(tensor.to(torch.float32)),
        hosvd(tensor.to(torch.float32).to(torch.float64)),
    )
    assert found.singular_values.dtype == found.to_tensor().out.dtype == torch.float32
    torch.testing.assert_close(found.singular_values, exact.singular_values.float())


def test_a_tensor_of_zeros_has_no_spectrum_to_speak_of():
    zero = 0.0 * random_tensor(3, 4, 5)
    found = hosvd(zero)
    assert found.singular_values.abs().sum() == 0 and found.error == 0


def test_bad_input_is_refused():
    tensor = random_tensor(3, 4, 5)
    cases = {
        "`k` must be between 1 and 3": {"k": 4},
        "`k_in` must be between 1 and 4": {"k_in": 0},
        "`k_in` is one number": {"k_in": (1, 2)},
        "`dtype` must be torch.float32 or torch.float64, got torch.float16": {
            "dtype": torch.float16
        },
    }
    for words, arguments in cases.items():
        with pytest.raises(ValueError, match=words):
            hosvd(tensor, **arguments)
    with pytest.raises(ValueError, match="`k` must be between 1 and 2"):
        hosvd(tensor).truncate(2).truncate(3)
    with pytest.raises(ValueError, match="`tensor` is empty"):
        hosvd(BilinearTensor(*(torch.randn(3, 0) for _ in range(3))))
    with pytest.raises(ValueError, match="`tensor.out` has entries that are not finite"):
        hosvd(BilinearTensor(tensor.left, tensor.right, tensor.out * float("nan")))


def test_an_unknown_treatment_is_refused(unchecked):
    with pytest.raises(ValueError, match='`small` must be "bound" or "qr", got "lanczos"|lanczos'):
        hosvd(random_tensor(3, 4, 5), small="lanczos")  # type: ignore[arg-type]


@settings(max_examples=15)
@given(st.data())
def test_the_input_gram_is_the_same_by_slices_and_over_the_rank(data):
    tensor = data.draw(tensors())
    dense = symmetric_dense(tensor)
    expected = torch.einsum("oij,okj->ik", dense, dense)
    close(gram.input_gram(tensor), expected)
    close(gram.mode_grams(tensor, True).left, expected)
    with pytest.MonkeyPatch.context() as patched:  # slices, whatever the sizes say
        patched.setattr(gram, "_symmetric_grams", None)
        few = tensor.contract_out(normal(data.draw, 1, tensor.d_out))
        few = BilinearTensor(*(f.repeat(1, 6) for f in (few.left, few.right, few.out)))
        matrix = symmetric_dense(few)[0]
        close(gram.input_gram(few), matrix @ matrix)


def test_legs_of_two_inputs_of_one_size_are_decomposed_apart():
    tensor = replace(random_tensor(4, 5, 20), shared_input=False)
    found = hosvd(tensor, 3, (4, 2))
    assert not found.symmetrized and not found.to_tensor().shared_input
    dense = tensor.to_dense()
    for modes, leg in ((found.left.modes, 1), (found.right.modes, 2)):
        unfolded = dense.movedim(leg, 0).flatten(1)
        vectors = torch.linalg.svd(unfolded, full_matrices=False).U[:, : len(modes)]
        torch.testing.assert_close(
            (vectors.T @ modes.T).abs().diagonal(), torch.ones(len(modes)).double()
        )
    torch.testing.assert_close((dense - found.to_tensor().to_dense()).norm(), found.error)
