"""How long the Hub is waited for.

A network that swallows packets makes huggingface_hub 2 wait for 400 seconds: it asks once more for
a minute, and tries each time again. What comes is never too slow for us; only where nothing comes
for some time, we stop.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

from ghn_init.loading.hub_errors import is_timeout

Result = TypeVar("Result")

_DOWNLOADS = "huggingface_hub.file_download"
"""The logger that huggingface_hub warns with before it asks for the rest of a file again."""

_IN_A_ROW = 25.0
"""Seconds: two timeouts of a download that follow so closely had next to nothing in between."""


class Stalled(Exception):
    """A download has brought nothing for some time."""


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """The result of a call that may take so long.

    It is made in a thread: name servers and servers that send their answer byte by byte keep a
    call longer than its own timeouts say. The thread ends with the process, at the latest.

    Raises:
        TimeoutError: it took longer.
        Exception: what the call raises.
    """
    results: queue.SimpleQueue[tuple[Result | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put((call(), None))
        except Exception as caught:
            results.put((None, caught))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer in {seconds:g} s") from None
    if error is not None:
        raise error
    return cast("Result", result)


@contextlib.contextmanager
def cut_when_stalled() -> Iterator[None]:
    """End a download of huggingface_hub in the block at its second timeout in a row.

    It would try six times, for more than a minute. Each of its timeouts
    (`HF_HUB_DOWNLOAD_TIMEOUT`) means that not a single byte came; a slow download has none.

    Raises:
        Stalled: in the block.
    """
    handler = _Timeouts()
    logger = logging.getLogger(_DOWNLOADS)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Timeouts(logging.Handler):
    """Counts the timeouts that huggingface_hub warns of in this thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._thread = threading.get_ident()
        self._last = -_IN_A_ROW

    def emit(self, record: logging.LogRecord) -> None:
        """Raises at the second one in a row; huggingface_hub then cleans up and ends."""
        error = sys.exc_info()[1]
        mine = threading.get_ident() == self._thread
        if not mine or not isinstance(error, Exception) or not is_timeout(error):
            return
        before, self._last = self._last, time.monotonic()
        if self._last - before < _IN_A_ROW:
            raise Stalled(str(error)) from error
