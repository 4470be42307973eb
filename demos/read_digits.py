"""What does a bilinear classifier look for in a picture? `make demos` runs this, offline.

The eigenvectors of a digit's interaction matrix are 8x8 pictures (2410.08417, figure 3). All are
saved to one PNG, and the accuracy is shown when only a few of them are kept.

    python demos/read_digits.py [PNG]
"""

import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import tl_bilinear as tlb
from tl_bilinear.toys import Digits, load_classifier
from tl_bilinear.views import eigenvector_figure

KEPT = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)


def main() -> None:
    console = Console(width=110)
    output = Path(sys.argv[1] if len(sys.argv) > 1 else ".cache/digits.png")
    data, model = Digits(), load_classifier()
    images, labels = data.part("test")

    tensor = model.tensor()  # pixels to logits: [10, 64, 64], factored
    with torch.no_grad():
        gap = float((tensor(images) - model(images)).abs().max())
    console.print(f"the model's {tensor.rank} bilinear neurons as one tensor: {gap:.1e} apart")
    console.print(f"accuracy on {len(labels)} held-out pictures: {data.accuracy(model):.4f}\n")

    digits = tlb.eigendecompose(tensor, torch.eye(10))
    table = Table(title="eigenvectors kept of each digit's 64, by |eigenvalue|")
    for column in ("kept", "accuracy", "share of |Q|^2 kept, mean over digits"):
        table.add_column(column, justify="right")
    shares = digits.truncation_curve().mean(0)
    for k in KEPT:
        scores = (images @ digits.eigenvectors[:, :k].mT) ** 2  # [digit, picture, k]
        logits = (scores * digits.eigenvalues[:, None, :k]).sum(-1).T
        accuracy = float((logits.argmax(-1) == labels).double().mean())
        table.add_row(str(k), f"{accuracy:.4f}", f"{float(shares[k - 1]):.3f}")
    console.print(table)
    console.print(f"effective rank, mean over digits: {float(digits.effective_rank().mean()):.1f}")

    output.parent.mkdir(parents=True, exist_ok=True)
    figure = eigenvector_figure(digits, [str(digit) for digit in range(10)])
    figure.savefig(output, dpi=150)
    console.print(f"pictures: {output}", soft_wrap=True)


if __name__ == "__main__":
    main()
