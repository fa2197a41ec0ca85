"""The comparison: choose hyperparameters for each method, then run all seeds with them."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ghn_init.analysis.initializations import (
    Checkpoints,
    load_hypernetwork,
    load_hypernetworks,
    needed,
    refuse_needy,
)
from ghn_init.api import apply
from ghn_init.compare.choice import ALL, choose
from ghn_init.compare.comparison import Comparison, Row
from ghn_init.compare.finetune import Outcome, fine_tune, runnable_format
from ghn_init.compare.settings import FineTuning, Point
from ghn_init.compare.store import Job, Store
from ghn_init.errors import GHNInitError
from ghn_init.graph.tracing import trace
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.images.batches import Batch
from ghn_init.images.split import Split, first
from ghn_init.methods.method import NEEDS
from ghn_init.methods.running import MOST_IMAGES
from ghn_init.methods.selection import PRETRAINED
from ghn_init.methods.source import source_name
from ghn_init.methods.variants import Variant, different_methods
from ghn_init.names import abridged
from ghn_init.progress import Progress
from ghn_init.report import Report

CHOICE_SEED = -1
"""Of the runs that choose hyperparameters: none of the reported ones takes part in the choice."""

_WIDENINGS = 3
"""How often the grid of learning rates goes on beyond an end."""


def compare(
    build: Callable[[int], nn.Module],
    methods: Sequence[str | Variant],
    data: Split,
    how: FineTuning,
    points: Sequence[Point],
    *,
    seeds: int = 3,
    ghn: Checkpoints = None,
    source: Any = None,
    pretrained: Any = None,
    reach: Sequence[float] = (),
    results: str | os.PathLike[str] | None = None,
    name: str = "model",
    progress: bool = False,
    widen: bool = False,
) -> Comparison:
    """Fine-tune one model from several initializations, under the same budget.

    Runs of one seed see the same images in the same order, and start with the same values in
    whatever their method leaves. The same arguments give the same accuracies, on a CPU and with
    the same number of threads; the global RNG is left alone.

    Arguments:
        build: the model for a seed, with as many outputs as the data has classes.
        methods: initializations, as `ghn_init.apply` takes them; `"all"` among them stands for
            every other registered one that applies to the model and the data. The result says why
            the rest does not.
        data: images; where they are, the runs compute.
        how: the budget of a run.
        points: hyperparameters. Of several, each method gets those with which it is best on the
            validation images, in a run of the same budget with a seed of its own.
        seeds: how many runs of each method are reported: seeds 0, 1, and so on.
        ghn: hypernetworks, as names, paths or objects: one, or one for ghn3 and one for ghn2.
            Default: the published ones.
        source: what methods that need a source take values from, as in `apply`. (Those that need
            images get some of the training images, without augmentation.)
        pretrained: the same model, trained, as `source`: for the method `pretrained`, which
            otherwise takes the source.
        reach: accuracies, in percent, to count the steps to.
        results: JSON file in which every finished run is kept; those that it has are not made
            again. Methods, seeds and points may differ from those in it.
        name: of the model, for the table and the file.
        progress: show progress on stderr.
        widen: where a method is best at the lowest or highest learning rate, go on beyond it in
            the same ratio, at most three times: the choice is then no matter of the grid's ends.

    Raises:
        GHNInitError: a model that cannot be traced or does not suit the images, a checkpoint that
            cannot be loaded, arguments that do not go together, or a file of other settings. That
            is before the first run.
    """
    points, left_out = tuple(dict.fromkeys(points)), dict[str, str]()
    named = [method for method in methods if method != ALL]
    variants = different_methods(named) if named or ALL not in methods else ()

    def at_hand(variant: Variant) -> tuple[str, ...]:
        return NEEDS if _source_of(variant, source, pretrained) is not None else NEEDS[:2]

    for variant in variants:
        refuse_needy(variant, at_hand(variant))
    _check_plan(data, points, seeds, reach)
    memory_format = runnable_format(lambda: build(0), data.train, how)
    if ALL in methods:

        def attempt(variant: Variant, loaded: Mapping[str, GHN]) -> Report:
            tried = _Runner(
                build, loaded, source, pretrained, data, how, memory_format, Store(None, {}), True
            )
            return tried.initialized(variant.briefest, 0)[1]

        found = choose(ghn, at_hand, [variant.name for variant in variants], attempt)
        variants = tuple(dict.fromkeys((*variants, *found.variants)))
        ghn, left_out = found.hypernetworks, dict(found.left_out)
    hypernetworks = _hypernetworks(variants, ghn)
    _check_precision(build(0), data, how)
    settings = _settings(build(0), name, data, how)
    settings |= {f"{a} checkpoint": h.origin.sha256 or h.name for a, h in hypernetworks.items()}
    runner = _Runner(
        build, hypernetworks, source, pretrained, data, how, memory_format,
        Store(results, settings), not progress,
    )  # fmt: skip
    rows = runner.rows(variants, points, seeds, widen)
    images = (data.train, data.validation, data.test)
    train, choice, test = (0 if part is None else len(part.labels) for part in images)
    return Comparison(
        name,
        how,
        (train, choice, test),
        len(data.train.classes),
        tuple(f"{h.name} (sha256 {h.origin.sha256[:12]})" for h in hypernetworks.values()),
        tuple(reach),
        rows,
        left_out,
    )


@dataclass(frozen=True)
class _Runner:
    """Makes the runs.

    Arguments:
        build, data, how: of `compare`.
        hypernetworks: by architecture.
        source, pretrained: of `compare`.
        memory_format: that the model is fine-tuned in.
        store: of the finished runs, which are not made again.
        silent: show no progress.
    """

    build: Callable[[int], nn.Module]
    hypernetworks: Mapping[str, GHN]
    source: Any
    pretrained: Any
    data: Split
    how: FineTuning
    memory_format: torch.memory_format
    store: Store
    silent: bool

    def rows(
        self, methods: Sequence[Variant], points: Sequence[Point], seeds: int, widen: bool
    ) -> tuple[Row, ...]:
        """Choose the hyperparameters of each method, then make the runs that are reported."""
        for method in methods:
            if all(job.method != self.label(method) for job in self.store.outcomes):
                self.initialized(method.briefest, 0)  # errors are better known before the first run
        self.store.write()
        trials = self._trials(methods, points, widen) if len(points) > 1 else {}
        outcomes = self.store.outcomes
        chosen = {m: self._best(trials[m]).point if trials else points[0] for m in methods}
        runs = {m: [Job(self.label(m), chosen[m], seed) for seed in range(seeds)] for m in methods}
        self._finish([(m, runs[m][seed]) for seed in range(seeds) for m in methods])
        return tuple(
            Row(
                m.label,
                chosen[m],
                tuple(outcomes[job] for job in runs[m]),
                {job.point: outcomes[job].accuracy for job in trials.get(m, ())},
            )
            for m in methods
        )

    def _trials(
        self, methods: Sequence[Variant], points: Sequence[Point], widen: bool
    ) -> dict[Variant, list[Job]]:
        """The runs that choose, made; each method's own ones beyond the grid if it is widened."""
        trials: dict[Variant, list[Job]] = {m: [] for m in methods}
        more = {m: list(points) for m in methods}
        for _ in range(1 + (_WIDENINGS if widen else 0)):
            jobs = {m: [Job(self.label(m), p, CHOICE_SEED, True) for p in more[m]] for m in methods}
            self._finish([(m, job) for m in methods for job in jobs[m]])
            trials = {m: trials[m] + jobs[m] for m in methods}
            tried = {m: [job.point for job in trials[m]] for m in methods}
            more = {m: _beyond(tried[m], self._best(trials[m]).point) for m in methods}
        return trials

    def _best(self, trials: Sequence[Job]) -> Job:
        """The first of equals."""
        return max(trials, key=lambda job: _merit(self.store.outcomes[job]))

    def _finish(self, runs: Sequence[tuple[Variant, Job]]) -> None:
        """Make those runs that are not in the store."""
        left = [run for run in runs if run[1] not in self.store.outcomes]
        steps, done = self.how.steps, len(runs) - len(left)
        with Progress(len(runs) * steps, "step", done * steps, self.silent) as line:
            for method, job in left:
                self.store.add((job, self.run(method, job, line)))

    def label(self, method: Variant) -> str:
        """A method's name in the file of the runs: it says what values were taken from."""
        source = _source_of(method, self.source, self.pretrained)
        if source is None or "source" not in method.needs:
            return method.label
        return f"{method.label} <- {source_name(source)}"

    def initialized(self, method: Variant, seed: int) -> tuple[nn.Module, Report]:
        """A new model, initialized."""
        images, labels = self.batch if method.refines else (None, None)
        model = self.build(seed)
        return apply(
            model.to(self.data.train.device) if method.refines else model,  # it has to run
            method,
            ghn=self.hypernetworks[arch] if (arch := method.method.hypernetwork) else None,
            **needed(method, images, labels, _source_of(method, self.source, self.pretrained)),
            head=self.how.head,
            seed=seed,
            example_inputs=example_inputs(self.data),
            return_report=True,
        )

    @cached_property
    def batch(self) -> Batch:
        """Training images for methods that need some."""
        count = min(len(self.data.train.labels), MOST_IMAGES)
        return next(first(self.data.train, count).test_batches(count))

    def run(self, method: Variant, job: Job, line: Progress) -> Outcome:
        """One run. The images to choose on are looked at once, after the last step."""
        start = time.perf_counter()
        model, report = self.initialized(method, job.seed)
        initializing = round(time.perf_counter() - start, 2)
        how, data = self.how, self.data
        made = 0

        def watch(step: int, loss: float) -> None:
            nonlocal made
            made = step
            seed = "choice" if job.choosing else job.seed
            line.step(method=job.method, lr=f"{job.point.lr:g}", seed=seed, loss=loss)

        evaluation = data.validation if job.choosing else data.test
        assert evaluation is not None
        outcome = fine_tune(
            model.to(data.train.device),
            data.train,
            evaluation,
            how,
            job.point,
            job.seed,
            (how.steps,) if job.choosing else how.evaluations(),
            watch,
            self.memory_format,
        )
        if made < how.steps:
            line.step(how.steps - made, method=job.method, diverged=f"after {made} steps")
        seconds = round(time.perf_counter() - start, 1)
        return replace(
            outcome, predicted=report.coverage, seconds=seconds, initializing=initializing
        )


def _source_of(method: Variant, source: Any, pretrained: Any) -> Any:
    """What a method takes values from."""
    return pretrained if method.method is PRETRAINED and pretrained is not None else source


def example_inputs(data: Split) -> Tensor:
    """What the model is traced with: two images, without memory."""
    size = data.train.image_size
    return torch.empty(2, 3, size, size, device="meta")


def _check_plan(data: Split, points: tuple[Point, ...], seeds: int, reach: Sequence[float]) -> None:
    outside = [value for value in reach if not 0 <= value <= 100]
    if outside:
        raise GHNInitError(f"reach is {outside[0]:g}: give accuracies from 0 to 100 percent.")
    if seeds < 1:
        raise GHNInitError(f"seeds is {seeds}: give 1 or more.")
    if not points:
        raise GHNInitError("there is no learning rate and weight decay: give at least one of each.")
    if len(points) > 1 and data.validation is None:
        raise GHNInitError(
            f"{len(points)} pairs of learning rate and weight decay are to be chosen from, and no "
            "images to choose on are held out: give a number of them, or one pair."
        )


def _beyond(tried: Sequence[Point], best: Point) -> list[Point]:
    """The next learning rate, where the best one is the lowest or highest of several."""
    rates = sorted(point.lr for point in tried if point.weight_decay == best.weight_decay)
    if len(rates) < 2 or best.lr not in (rates[0], rates[-1]):
        return []
    ratio = rates[1] / rates[0] if best.lr == rates[0] else rates[-2] / rates[-1]
    return [replace(best, lr=float(f"{best.lr / ratio:.3g}"))]


def _merit(trial: Outcome) -> tuple[float, float]:
    """Any accuracy beats a run that diverged; of two that did, the one that lasted longer wins."""
    if trial.accuracy is None:
        assert trial.diverged_at is not None
        return -1.0, float(trial.diverged_at)
    return trial.accuracy, math.inf


def _check_precision(model: nn.Module, data: Split, how: FineTuning) -> None:
    """Refuse a model that cannot be trained in the precision."""
    if how.precision != "bf16" or data.train.device.type != "cpu":
        return
    graph = trace(model, example_inputs(data))
    # PyTorch's bfloat16 weight gradients of dilated grouped convolutions are wrong on CPUs (2.14),
    # and those of depthwise ones up to sixty times slower than in float32.
    names = [
        node.param
        for node in graph.nodes
        if node.op == "dil_conv" or (node.op == "sep_conv" and node.shape and node.shape[1] == 1)
    ]
    if names:
        raise GHNInitError(
            "precision bf16 on a CPU: PyTorch's gradients of depthwise and dilated grouped "
            f"convolutions ({abridged(name for name in names if name)}) are wrong or slow there. "
            "Give precision fp32."
        )


def _hypernetworks(methods: Sequence[Variant], ghn: Checkpoints) -> dict[str, GHN]:
    """What the methods need, by architecture; refuses a checkpoint that none needs."""
    given = [ghn] if isinstance(ghn, (str, os.PathLike, GHN)) else ghn
    loaded = [load_hypernetwork(checkpoint) for checkpoint in given or ()]
    for hypernetwork in loaded:
        arch = hypernetwork.config.arch
        if all(method.method.hypernetwork != arch for method in methods):
            raise GHNInitError(
                f"{hypernetwork.name} is a {arch}, and no method needs one: leave it out, or "
                f"compare {arch} too."
            )
    return load_hypernetworks(methods, loaded)


def _settings(model: nn.Module, name: str, data: Split, how: FineTuning) -> dict[str, Any]:
    """What decides about all runs, for the file."""
    return {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        **data.digests(),
        "image_size": data.train.image_size,
        **vars(how),
        "eval_every": how.evaluations()[0],
    }
