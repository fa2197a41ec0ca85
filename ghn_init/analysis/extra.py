"""The packages of the extra `[plot]`, imported when they are first needed."""

from __future__ import annotations

import importlib
from typing import Any

from ghn_init.errors import GHNInitError


def plot_extra(module: str) -> Any:
    """Import a module of matplotlib or scipy.

    Raises:
        GHNInitError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise GHNInitError(f"this needs {package}: pip install matplotlib scipy.") from error
