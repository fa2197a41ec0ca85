"""What is known of the training run that made a hypernetwork, to tell others.

It is read from the metadata of the hypernetwork's file, and from the run's folder
(`ghn_init/train/state.py` writes both) as plain JSON: this room knows nothing of training.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from ghn_init.errors import GHNInitError
from ghn_init.hypernetwork.config import Origin
from ghn_init.loading.locate import CONFIG_FILE, HUB_PLACES
from ghn_init.loading.metadata import DATA_KEY, STEP_KEY, TRAINING_KEY, read_folder_config

METRICS_FILE = "metrics.jsonl"

_LAST = 10
"""Lines of metrics, the last ones, over which the accuracy on training images is averaged."""

_PATHS = ("nets", "data", "start_from", "teacher", "teacher_weights")
"""Settings that may have a path of this machine."""


@dataclass(frozen=True)
class Evaluated:
    """Top-1 accuracies of networks with predicted parameters, in percent.

    Arguments:
        split: of the networks.
        images: how many.
        predicted: of each network.
        random: of the same networks, randomly initialized; empty where that was not asked for.
    """

    split: str
    images: int
    predicted: tuple[float, ...]
    random: tuple[float, ...] = ()


@dataclass(frozen=True)
class Run:
    """A training run; empty where nothing is known.

    Arguments:
        training: its settings, as `ghn-init train run` takes them. Paths have their last part only.
        step: steps that were made.
        data: numbers of images, classes and architectures, and the size of images.
        accuracy, loss: means over the last lines of metrics, on training images; the accuracy is
            a share.
        seconds: that training took.
        evaluated: accuracies that lie beside the run.
    """

    training: Mapping[str, Any] = field(default_factory=dict)
    step: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    accuracy: float | None = None
    loss: float | None = None
    seconds: float | None = None
    evaluated: tuple[Evaluated, ...] = ()

    def metadata(self) -> dict[str, str]:
        """For the weights' file."""
        known = {TRAINING_KEY: self.training, DATA_KEY: self.data}
        texts = {key: json.dumps(value, sort_keys=True) for key, value in known.items() if value}
        return texts | ({} if self.step is None else {STEP_KEY: str(self.step)})

    def settings(self) -> dict[str, Any]:
        """For `config.json`."""
        known = {"training": self.training, "steps": self.step, "data": self.data}
        return {name: value for name, value in known.items() if value}

    def command(self) -> str:
        """What trains with these settings: every one of them, whatever the defaults become."""
        flat = {k: v for k, v in self.training.items() if not isinstance(v, dict)}
        for value in self.training.values():
            flat |= value if isinstance(value, dict) else {}
        flat = {{"steps": "max_steps"}.get(name, name): value for name, value in flat.items()}
        words = ["ghn-init train run --out run"]
        for name, value in flat.items():
            option = f"--{name.replace('_', '-')}"
            if value is True:
                words.append(option)
            elif value is not None and value is not False:
                values = value if isinstance(value, list) else [value]
                words.append(shlex.join([option, *map(str, values)]))
        return " \\\n  ".join(words)


def read_run(
    metadata: Mapping[str, str],
    origin: Origin,
    folder: str | os.PathLike[str] | None,
    tensors: Mapping[str, Tensor],
) -> Run:
    """What metadata and a run's folder say.

    Arguments:
        metadata: of the hypernetwork's file.
        origin: of the hypernetwork; its folder is looked into where it is that run's.
        folder: of the run. None: the one in `origin`.
        tensors: of the hypernetwork, by which its evaluations are known.

    Raises:
        GHNInitError: `folder` was given and is no run's, or the metadata is damaged.
    """
    if folder is not None and not (Path(folder) / METRICS_FILE).is_file():
        raise GHNInitError(f"{os.fspath(folder)} is no folder of a run: it has no {METRICS_FILE}.")
    training = _json(metadata, TRAINING_KEY)
    path = Path(folder) if folder is not None else _folder_of(origin, training)
    step = int(metadata[STEP_KEY]) if metadata.get(STEP_KEY, "").isdecimal() else None
    if path is None:
        return Run(without_folders(training), step, _json(metadata, DATA_KEY))
    lines = [line for line in _metrics(path) if step is None or line.get("step", 0) <= step]
    last = lines[-_LAST:]
    training = training or read_folder_config(path / CONFIG_FILE)
    return Run(
        without_folders(training),
        step if step is not None or not lines else int(lines[-1]["step"]),
        _json(metadata, DATA_KEY),
        _mean(last, "accuracy"),
        _mean(last, "loss"),
        lines[-1].get("seconds") if lines else None,
        tuple(_evaluated(path, tensors)),
    )


def _folder_of(origin: Origin, training: Mapping[str, Any]) -> Path | None:
    """The folder of the file, if it is that of the run with these settings."""
    folder = Path(origin.source).parent
    beside = [folder / name for name in (METRICS_FILE, CONFIG_FILE)]
    if not Path(origin.source).is_absolute() or not all(path.is_file() for path in beside):
        return None
    there = without_folders(read_folder_config(beside[1]))
    return folder if without_folders(training) == there else None


def _json(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        content = json.loads(metadata.get(key, "{}"))
    except (ValueError, RecursionError) as error:
        raise GHNInitError(f"the metadata {key!r} of the file is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise GHNInitError(f"the metadata {key!r} of the file is damaged: it is no JSON object.")
    return content


def without_folders(training: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which a path of this machine has only its last part.

    What is stored in a checkpoint or stands on its card is published with it.
    """
    shown = dict(training)
    for name in _PATHS:
        value = shown.get(name)
        if isinstance(value, str) and not value.startswith(HUB_PLACES):
            kind, colon, path = value.rpartition(":") if name == "data" else ("", "", value)
            shown[name] = kind + colon + (PurePath(path).name or path)
    return shown


def _metrics(folder: Path) -> list[dict[str, Any]]:
    found = []
    try:
        text = (folder / METRICS_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise GHNInitError(f"{folder / METRICS_FILE} cannot be read: {error.strerror}.") from error
    for line in text.splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue  # cut by a kill
        if isinstance(content, dict) and isinstance(content.get("step"), int):
            found.append(content)
    return found


def _mean(lines: list[dict[str, Any]], name: str) -> float | None:
    values = [line[name] for line in lines if isinstance(line.get(name), int | float)]
    return statistics.mean(values) if values else None


def _evaluated(folder: Path, tensors: Mapping[str, Tensor]) -> Iterator[Evaluated]:
    """The results of `ghn-init train eval -o` in the folder, or in a folder in it."""
    digest: float | None = None
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        try:
            content = json.loads(path.read_bytes())
            about, rows = content["evaluation"], content["accuracies"]
            if digest is None:  # as in `ghn_init.train.evaluation`
                digest = sum(float(tensor.double().abs().sum()) for tensor in tensors.values())
            same = math.isclose(about["ghn"], digest, rel_tol=1e-9)
            columns = list(zip(*rows, strict=True)) if same else []
            if columns:
                yield Evaluated(str(about["split"]), int(about["images"]), *columns[:2])
        except (OSError, ValueError, LookupError, TypeError):
            continue  # something else
