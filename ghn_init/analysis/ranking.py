"""`rank`: how well untrained scores order architectures by their accuracy (Table 13)."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ghn_init.analysis.extra import plot_extra
from ghn_init.analysis.images import folder_batch, some_images, traced
from ghn_init.analysis.initializations import initialized, load_hypernetwork
from ghn_init.analysis.measure.proxies import PROXIES, zero_cost
from ghn_init.analysis.plots.labels import name_points
from ghn_init.analysis.plots.palette import BLUE
from ghn_init.analysis.results import Result, new_figure, text_table
from ghn_init.api import Checkpoint
from ghn_init.errors import GHNInitError
from ghn_init.graph.graph import Graph
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.images.batches import Batch, Images
from ghn_init.images.evaluation import top1
from ghn_init.methods.running import first_tensor, use_batch_statistics
from ghn_init.progress import Progress
from ghn_init.resuming import ResultsFile
from ghn_init.weights.postprocess import weight_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Ranking(Result):
    """Scores of models beside their accuracies.

    Arguments:
        accuracies: by model, as given.
        scores: by metric, then by model; a model that a metric fails for is missing.
        taus: Kendall's tau (b) between accuracies and scores, by metric; None where it is not
            defined, with fewer than two models or equal scores.
        failures: `(metric, model, reason)`.
    """

    accuracies: Mapping[str, float]
    scores: Mapping[str, Mapping[str, float]]
    taus: Mapping[str, float | None]
    failures: tuple[tuple[str, str, str], ...]

    def table(self) -> str:
        """Scores of each model, and Kendall's tau of each metric."""
        rows: list[Sequence[object]] = [
            (name, accuracy, *(scores.get(name) for scores in self.scores.values()))
            for name, accuracy in self.accuracies.items()
        ]
        rows.append(("Kendall's tau", None, *self.taus.values()))
        lines = [text_table(("model", "accuracy", *self.scores), rows)]
        lines += [f"{metric}, {model}: {reason}" for metric, model, reason in self.failures]
        lines += [
            f"note: tau of {metric} is over {len(scores)} of {len(self.accuracies)} models"
            for metric, scores in self.scores.items()
            if len(scores) < len(self.accuracies)
        ]
        return "\n".join(lines)

    def plot(self) -> Figure:
        """A panel a metric: accuracy over the rank of the score."""
        columns = min(4, len(self.scores))
        rows = -(-len(self.scores) // columns)
        figure = new_figure(0.6 + 2.9 * columns, 0.4 + 2.6 * rows)
        panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
        for panel in panels[len(self.scores) :]:
            panel.set_axis_off()
        places = {}
        for panel, (metric, scores) in zip(panels, self.scores.items(), strict=False):
            ranks = plot_extra("scipy.stats").rankdata(list(scores.values())).tolist()
            reached = [self.accuracies[name] for name in scores]
            places[panel] = list(zip(ranks, reached, strict=True))
            panel.scatter(ranks, reached, color=BLUE, s=18, edgecolor="black", linewidth=0.4)
            panel.set_title(self._title(metric), fontsize=9)
            panel.margins(0.15)
            panel.tick_params(labelsize=7)
            panel.xaxis.set_major_locator(plot_extra("matplotlib.ticker").MaxNLocator(integer=True))
            panel.spines[["top", "right"]].set_visible(False)
        figure.supxlabel("rank by score", fontsize=9)
        figure.supylabel("accuracy", fontsize=9)
        for panel, scores in zip(places, self.scores.values(), strict=True):
            name_points(figure, panel, list(scores), places[panel])
        return figure

    def _title(self, metric: str) -> str:
        tau, count, total = self.taus[metric], len(self.scores[metric]), len(self.accuracies)
        shown = "undefined" if tau is None else f"= {tau:.2f}"
        over = "" if count == total else f" ({count} of {total} models)"
        return f"{metric}: \N{GREEK SMALL LETTER TAU} {shown}{over}"

    def content(self) -> dict[str, Any]:
        """Accuracies, scores, taus and failures."""
        return {
            "accuracies": dict(self.accuracies),
            "scores": {metric: dict(scores) for metric, scores in self.scores.items()},
            "tau": dict(self.taus),
            "failures": self.failures,
        }


def rank(
    models: Mapping[str, nn.Module],
    accuracies: Mapping[str, float],
    data: str | os.PathLike[str],
    *,
    ghn: Checkpoint | None = None,
    metrics: Sequence[str] = tuple(PROXIES),
    input_shape: tuple[int, ...] | None = None,
    batch_size: int = 32,
    images: int = 512,
    seed: int = 0,
    results: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Ranking:
    """Kendall's tau between accuracies and what is known before training (GHN-3 paper, Table 13).

    Arguments:
        models: by name, as they are initialized; the metrics are computed from that. A
            `LazyModels` keeps one at a time in memory.
        accuracies: what training gave, by model.
        data: folder or data set, as in `ghn_init.images.load_images`: a mini-batch of the
            training images for the metrics, test images for the accuracy of predicted parameters.
            A folder that only has one subfolder a class serves as both.
        ghn: a hypernetwork, its name or its path, to add the accuracy that its predicted
            parameters have without any training (metric "ghn", in percent; batch norm uses the
            statistics of batches).
        metrics: of `PROXIES`.
        input_shape: of one image, `(3, H, W)`. Default: guessed for each model, as `trace` does.
        batch_size: images of the mini-batch, and of each batch of the accuracy.
        images: for the accuracy, at most.
        seed: of the choice of images.
        results: JSON file in which the scores of every finished model are kept; models that it
            has are not measured again.
        progress: show progress on stderr.

    Raises:
        GHNInitError: no such folder or metric, a model without accuracy, a hypernetwork for
            another number of classes, a file of other settings, or no extra `[plot]` (scipy).
    """
    unknown = [metric for metric in metrics if metric not in PROXIES]
    if unknown:
        raise GHNInitError(f"unknown metric {unknown[0]!r}: choose among {', '.join(PROXIES)}.")
    if batch_size < 2:
        raise GHNInitError(f"batch_size is {batch_size}: give 2 or more, as batch norm needs.")
    missing = [name for name in models if name not in accuracies]
    if missing:
        raise GHNInitError(f"no accuracy is given for {', '.join(missing[:5])}.")
    plot_extra("scipy.stats")  # before the long part
    how = _How(
        os.fspath(data), None if ghn is None else load_hypernetwork(ghn), tuple(metrics),
        input_shape, batch_size, images, seed,
    )  # fmt: skip
    file = ResultsFile(results, how.settings(), _Scores.from_json, vars, ("settings", "models"))
    done = {row.model: row for row in file.rows}
    left = [name for name in models if name not in done]
    with Progress(len(models) * how.count, "score", (len(models) - len(left)) * how.count,
                  not progress) as line:  # fmt: skip
        for name in left:
            done[name] = how.measure(name, models[name], line)
            file.add(done[name])
    scores = {
        metric: {n: done[n].scores[metric] for n in models if metric in done[n].scores}
        for metric in how.names
    }
    failures = ((m, n, why) for n in models for m, why in done[n].failures.items())
    known = {name: accuracies[name] for name in models}
    taus = {metric: kendall_tau(known, values) for metric, values in scores.items()}
    return Ranking(known, scores, taus, tuple(failures))


@dataclass(frozen=True)
class _Scores:
    """Of one model: scores by metric, and the reasons why there is none."""

    model: str
    scores: Mapping[str, float]
    failures: Mapping[str, str]

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> _Scores:
        return cls(str(row["model"]), dict(row["scores"]), dict(row["failures"]))


@dataclass(frozen=True)
class _How:
    """What a model is measured by: the arguments of `rank`."""

    data: str
    ghn: GHN | None
    metrics: tuple[str, ...]
    input_shape: tuple[int, ...] | None
    batch_size: int
    images: int
    seed: int
    read: dict[int, tuple[Batch, Images | None]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return (*([] if self.ghn is None else ["ghn"]), *self.metrics)

    @property
    def count(self) -> int:
        return len(self.names)

    def settings(self) -> dict[str, Any]:
        """What decides about the scores."""
        ghn = None if self.ghn is None else self.ghn.origin.sha256 or self.ghn.name
        settings = {**vars(self), "ghn": ghn}
        settings.pop("read")
        return settings

    def seen(self, size: int) -> tuple[Batch, Images | None]:
        """The mini-batch, and test images where there is a hypernetwork; of one size read once."""
        if size not in self.read:
            batch = folder_batch(self.data, size, self.batch_size, self.seed)
            test = None
            if self.ghn is not None:
                test = some_images(self.data, size, self.images, test=True)
            self.read[size] = batch, test
        return self.read[size]

    def measure(self, name: str, model: nn.Module, line: Progress) -> _Scores:
        """All scores of one model."""
        scores, failures = dict[str, float](), dict[str, str]()
        graph, shape = traced(model, self.input_shape)
        layers = weight_layers(graph)
        batch, test = self.seen(shape[-1])
        _check_outputs(name, graph, batch)
        if self.ghn is not None:
            assert test is not None
            scores["ghn"] = untrained_accuracy(model, test, self.ghn, batch_size=self.batch_size)
            line.step(model=name, metric="ghn")
        for metric in self.metrics:
            try:
                scores[metric] = zero_cost(metric, model, layers, batch)
            except GHNInitError as error:
                failures[metric] = str(error)
            line.step(model=name, metric=metric)
        return _Scores(name, scores, failures)


def _check_outputs(name: str, graph: Graph, batch: Batch) -> None:
    top = int(batch.labels.max())
    if graph.num_classes is not None and top >= graph.num_classes:
        raise GHNInitError(
            f"{name} has {graph.num_classes} outputs and the data labels up to {top}: build the "
            "models for as many classes as the data has."
        )


def kendall_tau(a: Mapping[str, float], b: Mapping[str, float]) -> float | None:
    """Kendall's tau-b over the models that both have; None where it is not defined."""
    both = [name for name in a if name in b]
    if len(both) < 2:
        return None
    stats = plot_extra("scipy.stats")
    tau = float(stats.kendalltau([a[n] for n in both], [b[n] for n in both]).statistic)
    return None if tau != tau else tau


def untrained_accuracy(
    model: nn.Module, images: Images, ghn: GHN | None = None, *, batch_size: int = 64
) -> float:
    """Top-1 accuracy of a model without any training (GHN-3 paper, Tables 2 and 12), in percent.

    Batch norm uses the statistics of batches, as no running ones exist.

    Arguments:
        model: it is left as it is.
        images: test images.
        ghn: predicts the parameters, without noise. None: the model's own ones are measured.
        batch_size: images in a batch.

    Raises:
        GHNInitError: images, model and hypernetwork have different numbers of classes.
    """
    graph, shape = traced(model, (3, images.image_size, images.image_size))
    predicted = graph.num_classes if ghn is None else ghn.config.num_classes
    if not len(images.classes) == graph.num_classes == predicted:
        raise GHNInitError(
            f"the data has {len(images.classes)} classes, the model {graph.num_classes}, and "
            f"{'it' if ghn is None else ghn.name} predicts {predicted}: they must be the same."
        )
    if ghn is None:
        ready = copy.deepcopy(model)
    else:
        arch = ghn.config.arch
        inputs = torch.empty(2, *shape, device="meta")
        ready, _ = initialized(model, arch, {arch: ghn}, noise=0.0, example_inputs=inputs)
    use_batch_statistics(ready)
    like = next(ready.parameters())
    return top1(lambda x: first_tensor(ready(x.to(like))), images, batch_size)[0]
