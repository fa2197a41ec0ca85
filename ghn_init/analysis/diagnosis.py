"""`diagnose`: what each of several methods does to a model's initialization."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ghn_init.analysis.images import random_batch, traced
from ghn_init.analysis.initializations import (
    Checkpoints,
    architecture,
    check_methods,
    initialized,
    load_hypernetworks,
)
from ghn_init.analysis.measure.correlations import channel_similarity
from ghn_init.analysis.measure.filters import first_filters
from ghn_init.analysis.measure.findings import findings
from ghn_init.analysis.measure.measured import Diagnosed, LayerFigures, Spectrum
from ghn_init.analysis.measure.signals import set_to_one, signals, small_scales
from ghn_init.analysis.plots.diagnosis_page import page
from ghn_init.analysis.results import Result, text_table
from ghn_init.api import predict
from ghn_init.errors import GHNInitError
from ghn_init.graph.graph import Graph
from ghn_init.images.batches import Batch
from ghn_init.methods.method import NEEDS
from ghn_init.methods.running import image_inputs
from ghn_init.progress import Progress
from ghn_init.report import Report
from ghn_init.weights.postprocess import classifier_weights, weight_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHOSEN = 4
"""Layers whose correlations and singular values are shown in full."""


@dataclass(frozen=True, eq=False)
class Diagnosis(Result):
    """What was measured on a model, method by method.

    Arguments:
        name: of the model.
        batch: what was propagated.
        layers: names of the convolution and linear weights, in the order of the graph.
        chosen: those whose correlations and singular values are kept in full.
        methods: what was measured, one a method.
    """

    name: str
    batch: str
    layers: tuple[str, ...]
    chosen: tuple[str, ...]
    methods: tuple[Diagnosed, ...]

    @property
    def findings(self) -> tuple[str, ...]:
        """What stands out, in words, each with its figures and the panel that shows them."""
        return tuple(text for method in self.methods for text in findings(method))

    def table(self) -> str:
        """One line a method, and what stands out."""
        header = ("method", "loss", "variance first", "last", "gradient first", "last",
                  "correlation std", "duplicates", "near", "predicted")  # fmt: skip
        lines = [
            f"{self.name}: {len(self.layers)} layers, {self.batch}",
            text_table(header, [method.row() for method in self.methods]),
            *self.findings,
        ]
        return "\n".join(lines)

    def plot(self) -> Figure:
        """One page: filters, correlations, variance, gradients, singular values, and words."""
        return page(self.name, self.batch, self.layers, self.chosen, self.methods, self.findings)

    def content(self) -> dict[str, Any]:
        """Everything but the filters' pixels."""
        return {
            "model": self.name,
            "batch": self.batch,
            "layers": self.layers,
            "methods": [asdict(method) | {"filters": None} for method in self.methods],
            "findings": self.findings,
        }


def diagnose(
    model: nn.Module,
    methods: Sequence[str] = ("rand", "orth", "ghn3", "ghn3-orth"),
    *,
    ghn: Checkpoints = None,
    pretrained: nn.Module | None = None,
    source: Any = None,
    batch: Batch | None = None,
    layers: Sequence[str] | None = None,
    input_shape: tuple[int, ...] | None = None,
    batch_size: int = 8,
    seed: int = 0,
    name: str | None = None,
    progress: bool = False,
) -> Diagnosis:
    """Compare a model's initialization by several methods before any training.

    Channel correlations (second paper, Figure 2), variance of activations by depth (GHN-3 paper,
    Figures 6 and 9), gradient norms, singular values before and after post-processing, the first
    layer's filters (GHN-3 paper, Figure 2), and duplicated channels.

    Arguments:
        model: it is left as it is.
        methods: of `apply`, or `"pretrained"`.
        ghn: checkpoint for the ghn methods: a hypernetwork, its name or path, or a list of one a
            architecture. Default: those of `apply`.
        pretrained: the model with published weights, for the method of that name.
        source: what methods that need a source take values from, as in `apply`.
        batch: images and labels, also for methods that need some. Default: standard normal images
            and random labels.
        layers: weights whose correlations and singular values are shown in full. Default: four,
            from the first to the last before the classifier.
        input_shape: of one image, `(C, H, W)`, where there is no batch. Default: as `trace` finds.
        batch_size: of the random batch.
        seed: of the methods and of the random batch.
        name: for titles. Default: the model's class.
        progress: show progress on stderr.

    Raises:
        GHNInitError: a bad argument, model, checkpoint or batch.
    """
    methods = check_methods(methods, NEEDS if source is not None else NEEDS[:2])
    if batch_size < 2:
        raise GHNInitError(f"batch_size is {batch_size}: give 2 or more, as batch norm needs.")
    shape = tuple(batch.images.shape[1:]) if batch is not None else input_shape
    graph, shape = traced(model, shape)
    batch = batch or random_batch(shape, graph.num_classes or 2, batch_size, seed)
    names = weight_layers(graph)
    chosen = _choose(names, classifier_weights(graph), layers)
    hypernetworks = load_hypernetworks(methods, ghn)
    example = image_inputs(model, torch.empty(2, *shape, device="meta"))
    measured = []
    with Progress(len(methods), "method", silent=not progress) as line:
        for method in methods:
            ready, report = initialized(
                model, method, hypernetworks, pretrained, seed=seed, example_inputs=example,
                batch=batch, source=source,
            )  # fmt: skip
            before: dict[str, Tensor] = {}
            if report is not None and report.checkpoint and report.postprocessed:
                before = predict(model, hypernetworks[architecture(method) or ""], graph, seed=seed)
                before = {n: before[n] for n in chosen if n in report.postprocessed}
            measured.append(_measure(ready, method, report, graph, names, chosen, before, batch))
            line.step(method=method)
    title = name or type(model).__name__
    return Diagnosis(title, batch.source, tuple(names), chosen, tuple(measured))


def _choose(
    names: Sequence[str], classifiers: Collection[str | None], wanted: Sequence[str] | None
) -> tuple[str, ...]:
    """The layers to show in full: the wanted ones, or some spread evenly over the depth."""
    if wanted is not None:
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise GHNInitError(
                f"no layer {unknown[0]!r}: give names of weights, such as {names[0]!r}."
            )
        return tuple(wanted)
    hidden = [name for name in names if name not in classifiers] or list(names)
    last = len(hidden) - 1
    indices = {round(last * i / (_CHOSEN - 1)) for i in range(_CHOSEN)}
    return tuple(hidden[i] for i in sorted(indices))


def _measure(
    model: nn.Module,
    method: str,
    report: Report | None,
    graph: Graph,
    names: Sequence[str],
    chosen: Sequence[str],
    before: dict[str, Tensor],
    batch: Batch,
) -> Diagnosed:
    """Everything about one initialized model."""
    weights = {name: param.detach() for name, param in model.named_parameters()}
    missing = [name for name in names if weights.get(name) is None]
    if missing:
        raise GHNInitError(
            f"the {method} model has no parameter {missing[0]!r}: it is another model than the one "
            "to diagnose."
        )
    flow, scales, unscaled = signals(model, names, batch), small_scales(model), {}
    if scales:
        set_to_one(model, scales)
        unscaled = dict(signals(model, names, batch).gradient_norm)
    classifiers = classifier_weights(graph)
    by_ghn = report is not None and report.checkpoint is not None
    return Diagnosed(
        method=method,
        loss=flow.loss,
        layers=tuple(
            LayerFigures(
                name,
                weights[name].shape[0],
                channel_similarity(weights[name]),
                flow.variance.get(name),
                flow.gradient_norm.get(name),
                unscaled.get(name),
                name in classifiers,
            )
            for name in names
        ),
        spectra={
            name: Spectrum(
                singular_values(weights[name]),
                singular_values(before[name]) if name in before else None,
            )
            for name in chosen
        },
        small_scales=scales,
        filters=first_filters(graph, weights),
        coverage=report.coverage if report is not None and by_ghn else None,
        left=report.left if report is not None and by_ghn else {},
        rank_deficient=report.rank_deficient if report is not None else (),
    )


def singular_values(weight: Tensor) -> tuple[float, ...]:
    """Of a weight as a matrix, output channels by the rest, in falling order.

    They come from the smaller Gram matrix in double precision: to 1e-8 of the largest, and in a
    fraction of the time of a singular value decomposition.
    """
    matrix = weight.detach().reshape(weight.shape[0], -1).double()
    gram = matrix @ matrix.t() if matrix.shape[0] <= matrix.shape[1] else matrix.t() @ matrix
    return tuple(torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(0).tolist())
