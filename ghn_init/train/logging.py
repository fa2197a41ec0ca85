"""Metrics of a run: JSON lines, TensorBoard where it is installed, and the progress bar."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from torch import Tensor

from ghn_init.progress import Progress
from ghn_init.train.config import TrainConfig
from ghn_init.train.state import RunFolder, State
from ghn_init.train.step import Timer, Totals

_SMOOTHING = 0.98
"""Of the loss and accuracy in the progress bar."""


class Logger:
    """Writes the metrics of every `every`-th step, averaged over the steps since the last line.

    Arguments:
        folder: of the run.
        config: of the run.
        state: of the run.
        every: steps between two lines.
        quiet: show no progress bar, and write nothing (processes other than the main one).
    """

    def __init__(
        self, folder: RunFolder, config: TrainConfig, state: State, every: int, quiet: bool
    ) -> None:
        self._folder, self._config, self._state, self._every = folder, config, state, every
        self._progress = Progress(config.steps, "step", state.step, quiet)
        self._first, self._start = state.step, time.monotonic()
        self._shown: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._count = 0
        self._board = None if quiet else _tensorboard(str(folder.path))

    def __enter__(self) -> Logger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.close()
        if self._board is not None:
            self._board.close()

    def step(self, totals: Totals, lr: float, norm: Tensor, finite: bool, timer: Timer) -> None:
        """Take note of a step."""
        state = self._state
        if finite:
            metrics = totals.metrics(self._config.meta_batch)
            metrics["grad_norm"] = norm.item()
            for name, value in metrics.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
                old = self._shown.get(name, value)
                self._shown[name] = _SMOOTHING * old + (1 - _SMOOTHING) * value
            self._count += 1
        shown: dict[str, Any] = {k: v for k, v in self._shown.items() if k in ("loss", "accuracy")}
        if state.skipped:
            shown["skipped"] = state.skipped
        self._progress.step(**shown)
        if state.step % self._every == 0 or state.step == self._config.steps:
            self._write(lr, timer)

    def _write(self, lr: float, timer: Timer) -> None:
        state, count = self._state, max(1, self._count)
        line: dict[str, Any] = {"step": state.step, "lr": lr, "skipped": state.skipped}
        line |= {name: value / count for name, value in self._sums.items()}
        rate = (state.step - self._first) / max(1e-9, time.monotonic() - self._start)
        line |= {"seconds": round(state.seconds, 3), "steps_per_second": rate}
        line["shares"] = timer.shares()
        self._folder.log(line)
        if self._board is not None:
            for name, value in line.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(f"train/{name}", value, state.step)
        self._sums.clear()
        self._count = 0


def _tensorboard(folder: str) -> Any:
    """A writer; None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder)
