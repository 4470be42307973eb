"""The exact maps that edits of weights aim at: an MLP without modes, or through a projection.

All are maps of the MLP's own input, in float64, factored as the layer's weights are: what the
norm's gain and bias do to a reading is undone by solving (hosts.unfolding), never by dividing.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_bilinear.ablation.layer_edit import LayerEdit
from tl_bilinear.hosts import AbstractHost
from tl_bilinear.hosts.unfolding import unfold_readings
from tl_bilinear.quadratic_map import QuadraticMap
from tl_bilinear.tensor import BilinearTensor


def without_modes(
    host: AbstractHost, layer: int, edit: LayerEdit, dtype: torch.dtype
) -> QuadraticMap:
    """The MLP and one more neuron per eigenvector, which subtracts what the edit subtracts.

    Args:
        dtype: the precision that the eigenvectors were computed in.

    Raises:
        ValueError: an eigenvector that reads what the norm's gain hides from the MLP.
    """
    vectors, index = torch.unique(edit.eigenvectors, dim=0, return_inverse=True)
    written = edit.coefficients.new_zeros(len(vectors), edit.coefficients.shape[1])
    written = written.index_add(0, index, edit.coefficients)
    readings = unfold_readings(host, layer, vectors.to(host.device), dtype)
    columns, offsets = readings.columns, readings.offsets
    # Half of the size goes to the legs, so that no weight stands out when it is rounded.
    size = written.norm(dim=1).clamp_min(1e-60).to(columns).sqrt()
    legs, biases = columns * size.sqrt(), offsets * size.sqrt()
    tensor = BilinearTensor(legs, legs, -written.to(columns).mT / size)
    extra = QuadraticMap(tensor, biases, biases, edit.offset.to(columns))
    return host.mlp_weights(layer).to(torch.float64) + extra


def without_outputs(
    host: AbstractHost, layer: int, projector: Float[Tensor, "d_model d_model"], scale: float
) -> QuadraticMap:
    """W_out and b_out times 1 - (1 - scale) P."""
    kept = torch.eye(len(projector)).to(projector) - (1 - scale) * projector
    return host.mlp_weights(layer).to(torch.float64).contract_out(kept.to(host.device))


def without_inputs(
    host: AbstractHost,
    layer: int,
    directions: Float[Tensor, "k d_model"],
    scale: float,
    dtype: torch.dtype,
) -> QuadraticMap:
    """The MLP that reads x - (1 - scale) P x, P being the projection onto the directions.

    Raises:
        ValueError: a direction of what the norm's gain hides from the MLP.
    """
    weights = host.mlp_weights(layer).to(torch.float64)
    norm = host.mlp_norm(layer)
    folded = weights.fold_input_norm(norm.gain, norm.bias, norm.centred)
    basis = orthonormal(directions.double()).to(host.device)
    readings = unfold_readings(host, layer, basis, dtype)

    def edited(column: Tensor, seen: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        lost = (1 - scale) * (basis @ seen)
        return column - readings.columns @ lost, bias - readings.offsets @ lost

    left, left_bias = edited(weights.tensor.left, folded.tensor.left, weights.left_bias)
    right, right_bias = edited(weights.tensor.right, folded.tensor.right, weights.right_bias)
    tensor = replace(weights.tensor, left=left, right=right)
    return replace(weights, tensor=tensor, left_bias=left_bias, right_bias=right_bias)


def orthonormal(directions: Float[Tensor, "k d"]) -> Float[Tensor, "n d"]:
    """Rows that span what the directions span; dependent ones count once."""
    _, sizes, rows = torch.linalg.svd(directions, full_matrices=False)
    return rows[sizes > 1e-10 * sizes.max()]
