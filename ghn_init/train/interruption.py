"""Ctrl-C and SIGTERM end a run after the step that it is in, so that it can be saved."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """In the `with` block, SIGINT and SIGTERM are taken note of; a second SIGINT ends at once.

    Outside of the main thread, which alone may handle signals, nothing is changed. A signal that
    the process ignores, as SIGINT in the background of a script, stays ignored.

    Arguments:
        quiet: say nothing on stderr when a signal arrives.
    """

    def __init__(self, quiet: bool) -> None:
        self.signal: int | None = None
        self._quiet, self._process = quiet, os.getpid()
        self._usual: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            usual = {number: signal.getsignal(number) for number in _SIGNALS}
            self._usual = {n: h for n, h in usual.items() if h not in (signal.SIG_IGN, None)}
        for number in self._usual:
            signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """Whether a signal has arrived."""
        return self.signal is not None

    def deliver(self) -> None:
        """Do now what the signal would have done at once; SIGTERM if another process got it."""
        signal.raise_signal(self.signal or signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker, forked in the block: its parent ends it
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        if not self._quiet:  # `print` must not be called while another one is interrupted
            os.write(2, b"\nstopping after this step; Ctrl-C again: at once, without saving\n")
