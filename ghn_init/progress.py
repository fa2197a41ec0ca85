"""What is seen of long commands: tqdm on a terminal, a line now and then in a file, a notice."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

DELAY = 2.0
"""Seconds that something takes before its progress is shown."""

LOG_INTERVAL = 30.0
"""Seconds between two lines where stderr is a file."""

_LOG_FORMAT = "{n_fmt}/{total_fmt} {unit}s [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class Progress(tqdm):  # type: ignore[misc]
    """A tqdm bar on stderr that is never wider than the terminal.

    Arguments:
        total: steps in all.
        unit: what a step is, in the singular.
        done: steps that were made before, in another run.
        silent: show nothing.
    """

    monitor_interval = 0  # no thread: training forks, and `miniters` checks the clock every time

    def __init__(self, total: int, unit: str, done: int = 0, silent: bool = False) -> None:
        shared = {"total": total, "initial": done, "unit": unit, "disable": silent, "delay": DELAY}
        if sys.stderr.isatty():
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            super().__init__(**shared, miniters=1, mininterval=0.5, ncols=width - 1)
        else:
            super().__init__(**shared, miniters=1, mininterval=LOG_INTERVAL, file=_Lines(),
                             bar_format=_LOG_FORMAT)  # fmt: skip

    def refresh(self, *args: Any, **kwargs: Any) -> None:
        """Show the current state; a message above the bar asks for it, perhaps too early."""
        if self._time() >= self.start_t + self.delay:
            super().refresh(*args, **kwargs)

    def step(self, steps: int = 1, **shown: object) -> None:
        """Count steps; further values are shown behind the bar."""
        self.set_postfix(shown, refresh=False)
        self.update(steps)


class _Lines:
    """Writes each state of a bar as a line of its own, without carriage returns."""

    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip(), file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


@contextlib.contextmanager
def notice(text: str, silent: bool = False) -> Iterator[None]:
    """A line on stderr, if the block takes long (`DELAY`): what it waits for."""
    if silent:
        yield
        return
    timer = threading.Timer(DELAY, tqdm.write, (text,), {"file": sys.stderr})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
