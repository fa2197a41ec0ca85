"""A line that says how far something has come, how fast it goes and how long it will take."""

from __future__ import annotations

import sys
import time
from types import TracebackType

_INTERVAL = 0.5
"""Seconds between two versions of the line on a terminal."""

_LOG_INTERVAL = 30.0
"""Seconds between two lines where stderr is a file."""

_BAR = 20


class Progress:
    """Progress on stderr: one line that is overwritten, or in a file a line now and then.

    Arguments:
        total: steps in all.
        unit: what a step is, in the plural.
        done: steps that were made before, in another run.
        silent: show nothing.
    """

    def __init__(self, total: int, unit: str, done: int = 0, silent: bool = False) -> None:
        self._total, self._unit, self._done, self._silent = total, unit, done, silent
        self._first = done
        self._start = time.monotonic()
        self._shown = self._start - (_INTERVAL if sys.stderr.isatty() else 0.0)
        self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._done > self._first and not self._silent:
            self._show(self._text)
            if sys.stderr.isatty():
                print(file=sys.stderr)

    @property
    def rate(self) -> float:
        """Steps a second in this run."""
        return (self._done - self._first) / max(1e-9, time.monotonic() - self._start)

    def update(self, steps: int = 1, **shown: object) -> None:
        """Count steps; further values are shown behind, floats with three digits."""
        self._done += steps
        left = (self._total - self._done) / max(1e-9, self.rate)
        filled = _BAR * self._done // max(1, self._total)
        values = [f"{name} {_format(value)}" for name, value in shown.items()]
        bar = "#" * filled + "." * (_BAR - filled)
        start = f"[{bar}] {self._done}/{self._total} {self._unit}"
        rate = f"{self.rate:.3g} {self._unit}/s"
        self._text = "  ".join([start, *values, rate, f"{_duration(left)} left"])
        interval = _INTERVAL if sys.stderr.isatty() else _LOG_INTERVAL
        if not self._silent and time.monotonic() - self._shown >= interval:
            self._shown = time.monotonic()
            self._show(self._text)

    def _show(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{text.ljust(self._width)}", end="", file=sys.stderr, flush=True)
            self._width = len(text)
        else:
            print(text, file=sys.stderr, flush=True)


def _format(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
