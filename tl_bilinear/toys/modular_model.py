"""Small models of several operations modulo p on shared weights.

Two forms. "heads": one MLP, whose output is read by one unembedding per operation. "token": a
residual stream a + b + task token through two or more MLPs, read by one unembedding.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_bilinear.tensor import BilinearTensor
from tl_bilinear.toys.mlp import MLP, Activation, equal_parameters, gaussian

Form = Literal["heads", "token"]


@dataclass(frozen=True)
class ModularConfig:
    """The architecture; checked on creation (ValueError).

    Attributes:
        p: how many numbers there are.
        n_operations: heads, or task tokens.
        form: "heads" (one MLP, no residual stream) or "token" (residual).
        activation: of the MLPs.
        d_model: of the embeddings and of what the unembedding reads.
        d_mlp: of a gated MLP; one without a gate has 3/2 of it, for equal parameters.
        n_layers: MLPs; one for "heads".
    """

    p: int = 31
    n_operations: int = 2
    form: Form = "heads"
    activation: Activation = "bilinear"
    d_model: int = 32
    d_mlp: int = 48
    n_layers: int = 1

    def __post_init__(self):
        for name in ("p", "n_operations", "d_model", "d_mlp", "n_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: give a number above 0")
        if self.form not in ("heads", "token"):
            raise ValueError(f'`form` must be "heads" or "token", got {self.form!r}')
        if self.form == "heads" and self.n_layers != 1:
            raise ValueError(
                f'the form "heads" has one MLP, got n_layers={self.n_layers}: give `form="token"`'
            )


class ModularModel(nn.Module):
    """Logits of every operation for pairs (a, b). No biases and no norms.

    Args:
        config: the architecture.
        seed: of the weights; torch's own generator is left as it was.
    """

    def __init__(self, config: ModularConfig, *, seed: int = 0):
        super().__init__()
        self.config = config
        c = config
        d_mlp = equal_parameters(c.d_mlp, c.activation)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.W_a = nn.Parameter(torch.randn(c.p, c.d_model) / c.d_model**0.5)
            self.W_b = nn.Parameter(torch.randn(c.p, c.d_model) / c.d_model**0.5)
            n_tokens = c.n_operations if c.form == "token" else 0
            self.W_task = nn.Parameter(torch.randn(n_tokens, c.d_model) / c.d_model**0.5)
            self.mlps = nn.ModuleList(
                MLP(c.d_model, d_mlp, c.d_model, c.activation) for _ in range(c.n_layers)
            )
            answers = c.p * (c.n_operations if c.form == "heads" else 1)
            self.W_U = gaussian(c.d_model, answers)

    def forward(self, pairs: Int[Tensor, "pair 2"]) -> Float[Tensor, "operation pair answer"]:
        stream = self.embed(pairs)
        for layer in range(self.config.n_layers):
            stream = self.run_layer(layer, stream)
        return self.unembed(stream)

    def embed(self, pairs: Int[Tensor, "pair 2"]) -> Float[Tensor, "task pair d_model"]:
        """What the first MLP reads, for each task token; for heads the first axis has size 1.

        Raises:
            ValueError: numbers outside 0 to p - 1.
        """
        if len(pairs) and not 0 <= int(pairs.min()) <= int(pairs.max()) < self.config.p:
            raise ValueError(
                f"numbers from {int(pairs.min())} to {int(pairs.max())} were given: this model "
                f"knows 0 to {self.config.p - 1}"
            )
        numbers = (self.W_a[pairs[:, 0]] + self.W_b[pairs[:, 1]])[None]
        return numbers + self.W_task[:, None] if self.config.form == "token" else numbers

    def run_layer(
        self, layer: int, stream: Float[Tensor, "task pair d_model"]
    ) -> Float[Tensor, "task pair d_model"]:
        """The stream behind a layer: with the MLP's output added, or for heads that alone."""
        output = self.mlps[layer](stream)
        return stream + output if self.config.form == "token" else output

    def unembed(
        self, stream: Float[Tensor, "task pair d_model"]
    ) -> Float[Tensor, "operation pair answer"]:
        """Logits from the stream behind the last layer."""
        logits = stream @ self.W_U
        if self.config.form == "token":
            return logits
        return logits[0].unflatten(-1, (self.config.n_operations, self.config.p)).transpose(0, 1)

    def unembedding(self, operation: int) -> Float[Tensor, "d_model answer"]:
        """The columns of W_U that read one operation's answers; all of them for the token form."""
        if self.config.form == "token":
            return self.W_U
        return self.W_U.unflatten(-1, (self.config.n_operations, self.config.p))[:, operation]

    def mlp_tensor(self, layer: int) -> BilinearTensor:
        """A layer's MLP as a tensor of the stream.

        Raises:
            ValueError: no such layer, or an MLP that is not bilinear.
        """
        if not 0 <= layer < self.config.n_layers:
            raise ValueError(f"layer {layer} of a model with {self.config.n_layers}")
        mlp = self.mlps[layer]
        assert isinstance(mlp, MLP)
        return mlp.tensor()

    def tensor(self) -> BilinearTensor:
        """The whole model: two one-hot numbers, one behind the other, to the logits of all heads.

        Input `[one_hot(a), one_hot(b)]` of size 2p, output `operation * p + answer`.

        Raises:
            ValueError: the token form, whose stream runs past its MLPs and whose logits have
                degree 2^n_layers (take `mlp_tensor(layer)`), or an MLP that is not bilinear.
        """
        if self.config.form != "heads":
            raise ValueError(
                'a model of the form "token" is no single bilinear tensor, since its stream runs '
                "past its MLPs: take `mlp_tensor(layer)`"
            )
        numbers = torch.cat([self.W_a, self.W_b]).detach().T
        return self.mlp_tensor(0).change_basis(numbers).contract_out(self.W_U.detach().T)

    def one_hot(self, pairs: Int[Tensor, "pair 2"]) -> Float[Tensor, "pair d_in"]:
        """What `tensor()` reads for these pairs, in the weights' dtype."""
        a, b = nn.functional.one_hot(pairs, self.config.p).to(self.W_U.dtype).unbind(1)
        return torch.cat([a, b], dim=-1)
