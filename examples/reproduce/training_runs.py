"""What schedules.py trains: initial weights in files, and runs from them, here or with timm."""

from __future__ import annotations

import argparse
import csv
import hashlib
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from experiment import remember
from safetensors.torch import load_model
from torch import nn
from tqdm import tqdm

import ghn_init
from ghn_init import GHN, GHNInitError
from ghn_init.analysis import Batch, diagnose
from ghn_init.compare import FineTuning, Point, Split, fine_tune
from ghn_init.images import first


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Arguments:
        model: its name in timm.
        epochs: of the schedule.
        batch_size: images in a step, over all processes.
        points: learning rates and weight decays, to choose from.
        predicted: the same for predicted parameters.
        arguments: of train.py, besides.
    """

    model: str
    epochs: int
    batch_size: int
    points: tuple[Point, ...]
    predicted: tuple[Point, ...]
    arguments: str


@dataclass(frozen=True)
class Protocol:
    """What is done at a scale.

    Arguments:
        recipes: one a model.
        image_size: of the images.
        images: to train on and to test on; 0: all. (train.py always takes all.)
        seeds: runs of each initialization.
        learned: the initializations that learn on images, as methods.
        shown: images that those are given.
    """

    recipes: tuple[Recipe, ...]
    image_size: int
    images: tuple[int, int]
    seeds: int
    learned: Mapping[str, str]
    shown: int


@dataclass(frozen=True)
class Start:
    """An initialization.

    Arguments:
        name: of the row.
        method: of `apply`.
        ghn: the hypernetwork that it needs.
    """

    name: str
    method: str
    ghn: GHN | None = None


@dataclass(frozen=True)
class Trained:
    """What came of one model and initialization.

    Arguments:
        point: that was taken.
        curves: of each seed, accuracies in percent after each epoch; fewer where it diverged.
        seconds: of the initialization, by seed.
        variance: of activations, by layer.
    """

    point: Point
    curves: Sequence[Sequence[float]]
    seconds: Sequence[float]
    variance: Mapping[str, float]

    def after(self, epochs: int) -> list[float]:
        """Accuracies of the runs that got so far."""
        return [curve[epochs - 1] for curve in self.curves if len(curve) >= epochs]


@dataclass(frozen=True)
class Runs:
    """All runs of a model.

    Arguments:
        recipe, protocol: see there.
        data: images.
        options: of the command line.
    """

    recipe: Recipe
    protocol: Protocol
    data: Split
    options: argparse.Namespace

    def all(self, start: Start) -> Trained:
        """Initialize, choose the point, and train all seeds."""
        seeds = range(self.protocol.seeds)
        seconds = [self.seconds(start, seed) for seed in seeds]
        points = self.recipe.predicted if start.ghn is not None else self.recipe.points
        tried = {point: self.curve(start, point, 0) for point in points}
        point = best(tried, self.recipe.epochs)
        curves = [self.curve(start, point, seed) for seed in seeds]
        return Trained(point, curves, seconds, self.variance(start))

    def weights(self, start: Start, seed: int) -> Path:
        """The file of initial weights."""
        out: Path = self.options.out
        return out / "weights" / f"{self.recipe.model}-{start.name}-{seed}.safetensors"

    def seconds(self, start: Start, seed: int) -> float:
        """Write initial weights; the time that it took."""
        path = self.weights(start, seed)
        settings = {
            "method": start.method,
            "ghn": None if start.ghn is None else start.ghn.origin.sha256 or start.ghn.name,
            "images": self.data.train.digest(),
        }
        seconds: float = remember(
            path.with_suffix(".json"), settings, partial(self.initialize, start, seed, path)
        )
        return seconds

    def initialize(self, start: Start, seed: int, path: Path) -> float:
        size = self.protocol.image_size
        shown, model = self.batch(self.protocol.shown), self.model(seed)
        begun = time.perf_counter()
        images: dict[str, Any] = {"images": shown.images, "labels": shown.labels}
        ghn_init.export(
            model.to(self.options.device), path, name=self.recipe.model, library="timm",
            method=start.method, ghn=start.ghn, seed=seed,
            example_inputs=torch.empty(2, 3, size, size, device="meta"),
            progress=True, **(images if start.name in self.protocol.learned else {}),
        )  # fmt: skip
        return time.perf_counter() - begun

    def model(self, seed: int) -> nn.Module:
        """As timm initializes it."""
        classes = len(self.data.train.classes)
        return ghn_init.create_model(self.recipe.model, "timm", classes, seed)[0]

    def batch(self, count: int) -> Batch:
        """Training images as they are."""
        count = min(count, len(self.data.train.labels))
        return next(iter(first(self.data.train, count).test_batches(count)))

    def variance(self, start: Start) -> dict[str, float]:
        """Of activations by layer, of what is in the file of the first seed."""
        path = self.weights(start, 0)
        variance: dict[str, float] = remember(
            path.with_name(f"{path.stem}-variance.json"), {"weights": sha256(path)},
            partial(self.measure_variance, path),
        )  # fmt: skip
        return variance

    def measure_variance(self, path: Path) -> dict[str, float]:
        model = self.model(0)
        load_model(model, path)
        batch = self.batch(32)
        batch = Batch(batch.images.cpu(), batch.labels.cpu())
        (measured,) = diagnose(model, ["pretrained"], pretrained=model, batch=batch).methods
        return {x.name: x.variance for x in measured.layers if x.variance is not None}

    def curve(self, start: Start, point: Point, seed: int) -> list[float]:
        """Accuracies after each epoch, in percent."""
        weights = self.weights(start, seed)
        name = f"{weights.stem}-{point.lr:g}-{point.weight_decay:g}"
        script = self.options.train_script is not None
        settings = {
            "recipe": asdict(replace(self.recipe, points=(point,), predicted=())),
            "weights": sha256(weights),
            "trainer": f"train.py {self.options.train_args}" if script else "compare",
            "images": self.data.digests(),
        }
        folder = self.options.out / ("timm" if script else "runs") / name
        # What is half done is not gone on with under other settings.
        remember(folder / "begun.json", settings, lambda: None)
        train = self.with_timm if script else self.here
        curve: list[float] = remember(
            folder / "accuracies.json", settings, partial(train, weights, point, seed, folder)
        )
        return curve

    def here(self, weights: Path, point: Point, seed: int, _: Path) -> list[float]:
        """Train as `ghn-init compare` does; a run that was stopped begins again."""
        recipe, train = self.recipe, self.data.train
        model = self.model(seed)
        load_model(model, weights)
        epoch = len(train.labels) // recipe.batch_size
        how = FineTuning(recipe.epochs * epoch, recipe.batch_size, "sgd", eval_every=epoch)
        with tqdm(total=how.steps, unit="step", desc=weights.stem) as line:
            outcome = fine_tune(
                model.to(train.device), train, self.data.test, how, point, seed, how.evaluations(),
                lambda *_: line.update() and None, torch.channels_last,
            )  # fmt: skip
        return [accuracy for _, accuracy in outcome.curve]

    def with_timm(self, weights: Path, point: Point, seed: int, folder: Path) -> list[float]:
        """Train with train.py, or go on where it was stopped."""
        summary, last = folder / "summary.csv", folder / "last.pth.tar"
        if len(accuracies := read_summary(summary)) < self.recipe.epochs:
            command = [*self.command(weights, point, seed, folder),
                       *(["--resume", str(last)] if last.exists() else [])]  # fmt: skip
            print(shlex.join(command), file=sys.stderr, flush=True)
            ended = subprocess.run(command, check=False).returncode
            accuracies = read_summary(summary)
            if ended or len(accuracies) < self.recipe.epochs:
                raise GHNInitError(
                    f"train.py ended with status {ended} after {len(accuracies)} of "
                    f"{self.recipe.epochs} epochs: what it says stands above. The same command "
                    "goes on from the last epoch."
                )
        return accuracies

    def command(self, weights: Path, point: Point, seed: int, folder: Path) -> list[str]:
        """That starts train.py."""
        options, recipe, nproc = self.options, self.recipe, self.options.nproc
        data, size = Path(options.data), str(self.protocol.image_size)
        launcher = [sys.executable]
        if nproc > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone"]
            launcher += ["--nproc-per-node", str(nproc)]
        return [
            *launcher, str(options.train_script), "--data-dir", str(data),
            "--train-split", "train", "--val-split", "test" if (data / "test").is_dir() else "val",
            "--model", recipe.model, "--num-classes", str(len(self.data.train.classes)),
            "--img-size", size, "--initial-checkpoint", str(weights), "--seed", str(seed),
            "--epochs", str(recipe.epochs), "--batch-size", str(recipe.batch_size // nproc),
            "--lr", f"{point.lr:g}", "--weight-decay", f"{point.weight_decay:g}",
            "--device", options.device, "--output", str(folder.parent),
            "--experiment", folder.name, "--checkpoint-hist", "1",
            *shlex.split(recipe.arguments), *shlex.split(options.train_args),
        ]  # fmt: skip


def read_summary(path: Path) -> list[float]:
    """Accuracies after each epoch, in percent, of train.py's file; none where there is no file.

    Where it was stopped and goes on, train.py writes the header again, and an epoch that had not
    been saved a second time: the later one counts.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = {row["epoch"]: row for row in csv.DictReader(file)}
    rows.pop("epoch", None)
    return [float(rows[epoch]["eval_top1"]) for epoch in sorted(rows, key=int)]


def best(tried: Mapping[Point, Sequence[float]], epochs: int) -> Point:
    """The point with the highest accuracy at the end; of equals the first."""
    return max(tried, key=lambda p: tried[p][-1] if len(tried[p]) == epochs else -1.0)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
