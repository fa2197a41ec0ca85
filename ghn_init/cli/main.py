"""The command line `ghn-init`.

Everything heavy is imported by the command that needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Any

from ghn_init.cli import analysis, checkpoints, compare, models, train
from ghn_init.cli.deferred import DeferredParser
from ghn_init.errors import GHNInitError
from ghn_init.version import __version__

_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code is 0, or not with one line on stderr saying what went wrong.

    Arguments:
        arguments: without the program's name. Default: `sys.argv`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows "?"
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            return _run(arguments)
    except GHNInitError as error:
        print(f"ghn-init: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ghn-init: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except OSError as error:
        return _failed(error)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(arguments)
        _import_torch()
        return int(options.run(options) or 0)
    finally:
        sys.stdout.flush()  # that it cannot be written is known here, and not at Python's end


def _import_torch() -> None:
    """Import what every command needs. An exception at Ctrl-C would abort torch's own start."""
    if threading.current_thread() is not threading.main_thread():
        return
    usual = signal.signal(signal.SIGINT, _leave)
    try:
        importlib.import_module("torch")
    finally:
        signal.signal(signal.SIGINT, usual)


def _leave(*_: object) -> None:
    os.write(2, b"ghn-init: interrupted\n")
    os._exit(_INTERRUPTED)


def _failed(error: OSError) -> int:
    """Say what cannot be written, unless nobody reads it any longer."""
    if not isinstance(error, BrokenPipeError):
        what = error.filename or "standard output"
        print(f"ghn-init: {error.strerror or error}: {what}", file=sys.stderr)
    with contextlib.suppress(OSError, ValueError):  # Python writes the rest at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _show_warning(message: Warning | str, *_: Any) -> None:
    from tqdm import tqdm

    tqdm.write(f"ghn-init: warning: {message}", file=sys.stderr)  # above a progress bar


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ghn-init",
        description="Initialize vision models with parameters predicted by graph hypernetworks.",
    )
    parser.add_argument("--version", action="version", version=f"ghn-init {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=DeferredParser)
    models.add_parsers(commands)
    checkpoints.add_parsers(commands)
    analysis.add_parsers(commands)
    compare.add_parser(commands)
    train.add_parser(commands)
    return parser
