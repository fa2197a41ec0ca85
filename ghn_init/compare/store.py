"""The finished runs of a comparison, in a file, so that it can go on where it was stopped."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ghn_init.compare.finetune import Outcome
from ghn_init.compare.settings import Point
from ghn_init.resuming import ResultsFile


@dataclass(frozen=True)
class Job:
    """A run: what tells it apart from the others of a comparison.

    Arguments:
        method: label of the initialization.
        point: hyperparameters.
        seed: of the run.
        choosing: True: it is evaluated on the validation images, to choose hyperparameters. False:
            it is evaluated on the test images, and reported.
    """

    method: str
    point: Point
    seed: int
    choosing: bool = False


class Store(ResultsFile[tuple[Job, Outcome]]):
    """Finished runs; each is written when it is added.

    Arguments:
        path: JSON file; None: nothing is read or written. What it holds of other methods, seeds
            and hyperparameters stays in it.
        settings: what decides about runs besides their job.

    Raises:
        GHNInitError: the file is damaged, or its runs were made with other settings.
    """

    def __init__(self, path: str | os.PathLike[str] | None, settings: Mapping[str, Any]) -> None:
        super().__init__(path, settings, _from_json, _to_json)
        self.outcomes = dict(self.rows)

    def add(self, row: tuple[Job, Outcome]) -> None:
        """Add a finished run, in the file as well."""
        self.outcomes[row[0]] = row[1]
        super().add(row)


def _to_json(run: tuple[Job, Outcome]) -> dict[str, Any]:
    job, outcome = run
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
        float(entry.get("initializing", 0.0)),  # older files do not have it
    )
    if not outcome.curve and stopped is None:
        raise ValueError("a run without accuracies")
    return job, outcome
