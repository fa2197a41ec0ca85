"""What `diagnose` measures of one method: plain figures, for tables, pictures and words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ghn_init.analysis.measure.correlations import Similarity


@dataclass(frozen=True)
class LayerFigures:
    """Of one convolution or linear weight.

    Arguments:
        name: of the parameter.
        channels: output channels.
        similarity: of its channels.
        variance: of its output; None if the batch does not pass there.
        gradient_norm: of the loss with respect to it; None likewise.
        unscaled_gradient_norm: the same with the model's small scales at 1; None without any.
        is_classifier: whether it gives the class scores.
    """

    name: str
    channels: int
    similarity: Similarity
    variance: float | None
    gradient_norm: float | None
    unscaled_gradient_norm: float | None
    is_classifier: bool


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a weight as a matrix, output channels by the rest, in falling order.

    Arguments:
        values: of the weight.
        before: of the weight before post-processing; None where there was none.
    """

    values: tuple[float, ...]
    before: tuple[float, ...] | None


@dataclass(frozen=True, eq=False)
class Diagnosed:
    """One method's initialization.

    Arguments:
        method: its name.
        loss: of the batch.
        layers: one a weight, in the order of the graph.
        spectra: of the chosen layers.
        small_scales: parameters that scale channels and are nearly zero, as layer scale and the
            last norm of a residual branch often start.
        filters: of the first layer, `(n, H, W, 3)` in [0, 1]; None if it has none to look at.
        coverage: share of scalar parameters that a hypernetwork predicted; None without one.
        left: what a hypernetwork left, with the reason.
        rank_deficient: weights that lacked full rank before the orthogonal step.
    """

    method: str
    loss: float
    layers: tuple[LayerFigures, ...]
    spectra: Mapping[str, Spectrum]
    small_scales: tuple[str, ...]
    filters: Tensor | None
    coverage: float | None
    left: Mapping[str, str]
    rank_deficient: tuple[str, ...]

    def hidden(self) -> tuple[LayerFigures, ...]:
        """The layers but for the classifier, whose outputs and channels are of another kind."""
        return tuple(layer for layer in self.layers if not layer.is_classifier)

    def row(self) -> tuple[object, ...]:
        """A line of the table: the variance and gradient norm of the first and the last layer, and
        means over the layers."""
        hidden = self.hidden()
        similar = [layer.similarity for layer in hidden]
        variances = [layer.variance for layer in hidden if layer.variance is not None]
        norms = [layer.gradient_norm for layer in hidden if layer.gradient_norm is not None]
        return (
            self.method,
            self.loss,
            *_ends(variances),
            *_ends(norms),
            _mean([s.spread for s in similar]),
            f"{100 * _mean([s.duplicates for s in similar]):.1f}%",
            f"{100 * _mean([s.near_duplicates for s in similar]):.1f}%",
            None if self.coverage is None else f"{100 * self.coverage:.2f}%",
        )


def _ends(values: list[float]) -> tuple[float | None, float | None]:
    return (values[0], values[-1]) if values else (None, None)


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))
