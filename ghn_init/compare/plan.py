"""Which runs a comparison consists of, and which hyperparameters they chose."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ghn_init.compare.comparison import Row
from ghn_init.compare.finetune import Outcome
from ghn_init.compare.settings import Point
from ghn_init.compare.store import Job
from ghn_init.methods.variants import Variant

CHOICE_SEED = -1
"""Of the runs that choose hyperparameters: none of the reported ones takes part in the choice."""


@dataclass(frozen=True)
class Plan:
    """Which runs there are.

    Arguments:
        methods, points, seeds: of `compare`.
        outcomes: of the runs that are finished, by job; they grow while the plan is carried out.
    """

    methods: tuple[Variant, ...]
    points: tuple[Point, ...]
    seeds: int
    outcomes: Mapping[Job, Outcome]

    @property
    def count(self) -> int:
        """Of all runs."""
        tried = len(self.points) if len(self.points) > 1 else 0
        return len(self.methods) * (tried + self.seeds)

    def choosing(self) -> Iterator[tuple[Variant, Job]]:
        """The runs that choose hyperparameters."""
        for method, point in itertools.product(self.methods, self.points):
            if len(self.points) > 1:
                yield method, self._trial(method, point)

    def reported(self) -> Iterator[tuple[Variant, Job]]:
        """The runs of all seeds, of those methods whose hyperparameters are chosen."""
        for seed, method in itertools.product(range(self.seeds), self.methods):
            point = self._chosen(method)
            if point is not None:
                yield method, Job(method.label, point, seed)

    def known(self) -> Iterator[tuple[Variant, Job]]:
        """All runs whose hyperparameters are known by now."""
        yield from self.choosing()
        yield from self.reported()

    def unfinished(self) -> list[Variant]:
        """The methods with runs that are still to be made."""
        left = {method for method, job in self.known() if job not in self.outcomes}
        return [method for method in self.methods if method in left]

    def row(self, method: Variant) -> Row:
        """What came out of a method, when all runs are made."""
        point = self._chosen(method)
        assert point is not None
        jobs = [Job(method.label, point, seed) for seed in range(self.seeds)]
        trials = {p: self.outcomes.get(self._trial(method, p)) for p in self.points}
        choice = {p: o.accuracy for p, o in trials.items() if o is not None}
        return Row(method.label, point, tuple(self.outcomes[job] for job in jobs),
                   choice if len(self.points) > 1 else {})  # fmt: skip

    def _trial(self, method: Variant, point: Point) -> Job:
        return Job(method.label, point, CHOICE_SEED, choosing=True)

    def _chosen(self, method: Variant) -> Point | None:
        """The best hyperparameters, the first of equals; None while a trial is missing."""
        if len(self.points) == 1:
            return self.points[0]
        trials = [self.outcomes.get(self._trial(method, point)) for point in self.points]
        found = [trial for trial in trials if trial is not None]
        if len(found) < len(self.points):
            return None
        return self.points[max(range(len(found)), key=lambda i: _merit(found[i]))]


def _merit(trial: Outcome) -> tuple[float, float]:
    """Any accuracy beats a run that diverged; of two that did, the one that lasted longer wins."""
    if trial.accuracy is None:
        assert trial.diverged_at is not None
        return -1.0, float(trial.diverged_at)
    return trial.accuracy, math.inf
