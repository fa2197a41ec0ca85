"""Would another decomposition make the orthogonal step faster than Householder's?

    python examples/benchmarks/orthogonal.py --threads 1 --clock cpu

The candidates take the factor Q of the same matrices, shapes of ResNet-50's and ViT-B/16's layers.
Each is given as a multiple of the time of `torch.linalg.qr`, with its distance from orthogonal and
from Householder's Q: for random matrices, and for ones whose columns are repeated with the noise
that `apply` adds, as those of small checkpoints are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from _common import CLOCKS, geometric_mean, median, table, timed
from torch import Tensor

SHAPES = ((576, 64), (1152, 128), (1024, 256), (2048, 512), (4608, 512), (768, 768), (3072, 768))
TOGETHER = 3
"""Matrices of one shape that are decomposed in one call."""


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    rows, ratios = [], []
    for shape in SHAPES:
        matrix = torch.randn(shape, generator=generator)
        repeated = matrix[:, torch.arange(shape[1]) % (shape[1] // 2)]
        repeated = repeated + 3e-5 * torch.randn(shape, generator=generator)
        times = [seconds(function, matrix, options) for function in CANDIDATES.values()]
        ratios.append([time / times[0] for time in times])
        for (name, function), ratio in zip(CANDIDATES.items(), ratios[-1], strict=True):
            errors = [e for m in (matrix, repeated) for e in distances(function, m)]
            rows.append(["x".join(map(str, shape)), name, ratio, *errors])
    header = ["shape", "Q by", "time", "not orthogonal", "off", "repeated: not orthogonal", "off"]
    print(table(header, rows))
    for name, each in zip(CANDIDATES, zip(*ratios, strict=True), strict=True):
        print(f"{name}: {geometric_mean(each):.2f} times the time of Householder's")


def householder(matrix: Tensor) -> Tensor:
    """As `torch.nn.init.orthogonal_` does it: Q with signs that make R's diagonal positive."""
    q, r = torch.linalg.qr(matrix)
    signed: Tensor = q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    return signed


def together(matrix: Tensor) -> Tensor:
    """Several of one shape in one call."""
    return householder(matrix.expand(TOGETHER, -1, -1))[0]


def gram(matrix: Tensor) -> Tensor:
    """Q = A R^-1, with R from the Cholesky decomposition of A^T A in float64."""
    wide = matrix.double()
    r = torch.linalg.cholesky(wide.mT @ wide)
    q: Tensor = torch.linalg.solve_triangular(r, wide.mT, upper=False).mT.float()
    return q


def gram_twice(matrix: Tensor) -> Tensor:
    """The same in float32, and once more for what the first pass has left (CholeskyQR2)."""
    for _ in range(2):
        r = torch.linalg.cholesky(matrix.mT @ matrix)
        matrix = torch.linalg.solve_triangular(r, matrix.mT, upper=False).mT
    return matrix


CANDIDATES: dict[str, Callable[[Tensor], Tensor]] = {
    "Householder": householder,
    "one call for several": together,
    "Gram, float64": gram,
    "Gram twice, float32": gram_twice,
}


def seconds(
    function: Callable[[Tensor], Tensor], matrix: Tensor, options: argparse.Namespace
) -> float:
    """Median, for one matrix."""
    function(matrix)
    found = median(timed(lambda: function(matrix), options.repeat, options.clock)[0])
    return found / TOGETHER if function is together else found


def distances(function: Callable[[Tensor], Tensor], matrix: Tensor) -> list[object]:
    """Largest entries of Q^T Q - I, and of the difference to Householder's Q."""
    try:
        q = function(matrix)
    except RuntimeError:  # the Gram matrix is not positive definite to rounding
        return ["fails", "fails"]
    square = q.mT @ q - torch.eye(q.shape[1])
    return [f"{square.abs().max():.0e}", f"{(q - householder(matrix)).abs().max():.0e}"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--repeat", type=int, default=5, help="default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    main()
