"""The finished runs of a comparison, in a file, so that it can go on where it was stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghn_init.compare.finetune import Outcome, Point
from ghn_init.errors import GHNInitError
from ghn_init.files import atomic_path


@dataclass(frozen=True)
class Job:
    """A run to be made.

    Arguments:
        method: label of the initialization.
        point: hyperparameters.
        seed: of the run.
        choosing: whether it helps to choose the hyperparameters, and is tested on the images for
            that; or is tested on the test images, and reported.
    """

    method: str
    point: Point
    seed: int
    choosing: bool = False


class Store:
    """Finished runs by job; each is written when it is added.

    Arguments:
        path: JSON file; None: nothing is read or written. What it holds of other methods, seeds
            and hyperparameters stays in it.
        settings: what decides about runs besides their job. A setting that only some of them
            depend on, such as a checkpoint, is left out where it is not needed.

    Raises:
        GHNInitError: the file is damaged, or its runs were made with other settings.
    """

    def __init__(self, path: str | os.PathLike[str] | None, settings: Mapping[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        self._settings = dict(settings)
        self.outcomes: dict[Job, Outcome] = {}
        if self._path is not None and self._path.exists():
            then, self.outcomes = _read(self._path)
            self._check(then)
            self._settings = {**then, **settings}

    def write(self) -> None:
        """Write the file, whole or not at all.

        Raises:
            GHNInitError: it cannot be written.
        """
        if self._path is None:
            return
        settings = json.dumps(self._settings, indent=1)
        runs = [json.dumps(_to_json(job, outcome)) for job, outcome in self.outcomes.items()]
        lines = ",\n".join(runs)  # a run is a line
        with atomic_path(self._path) as temporary:
            text = f'{{"settings": {settings},\n"runs": [\n{lines}\n]}}\n'
            temporary.write_text(text, encoding="utf-8")

    def add(self, job: Job, outcome: Outcome) -> None:
        """Take note of a finished run, in the file as well."""
        self.outcomes[job] = outcome
        self.write()

    def _check(self, then: Mapping[str, Any]) -> None:
        """Refuse runs that cannot stand beside the new ones."""
        changed = [
            f"{name} ({then[name]} then, {now} now)"
            for name, now in self._settings.items()
            if name in then and then[name] != now
        ]
        if changed:
            raise GHNInitError(
                f"{self._path} holds runs with other settings: {', '.join(changed)}. Give the "
                "same arguments to go on with them, or another folder."
            )


def _read(path: Path) -> tuple[dict[str, Any], dict[Job, Outcome]]:
    """Settings and runs."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content["settings"]), dict(map(_from_json, content["runs"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, GHNInitError) as error:
        raise GHNInitError(
            f"{path} is no file of a comparison ({error}). Delete it, or give another folder."
        ) from error


def _to_json(job: Job, outcome: Outcome) -> dict[str, Any]:
    return {
        "method": job.method,
        **vars(job.point),
        "seed": job.seed,
        "choosing": job.choosing,
        "accuracy": outcome.accuracy,
        **vars(outcome),
    }


def _from_json(entry: Mapping[str, Any]) -> tuple[Job, Outcome]:
    point = Point(float(entry["lr"]), float(entry["weight_decay"]))
    job = Job(str(entry["method"]), point, int(entry["seed"]), bool(entry["choosing"]))
    stopped = entry["diverged_at"]
    outcome = Outcome(
        tuple((int(step), float(accuracy)) for step, accuracy in entry["curve"]),
        None if stopped is None else int(stopped),
        float(entry["predicted"]),
        float(entry["seconds"]),
    )
    if not outcome.curve and stopped is None:
        raise ValueError("a run without accuracies")
    return job, outcome
