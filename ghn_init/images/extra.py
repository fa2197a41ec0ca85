"""What reading images needs, and a plain install does not bring."""

from __future__ import annotations

import importlib.util

from ghn_init.errors import GHNInitError

_NEEDED = {"PIL": "Pillow", "numpy": "numpy"}
"""Packages, by the name they are imported by."""


def require_extra(command: str) -> None:
    """Refuse to go on without what the extra `[train]` brings.

    Arguments:
        command: that needs it.

    Raises:
        GHNInitError: saying what is missing.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(_NEEDED[name] for name in missing)
        raise GHNInitError(
            f"`{command}` needs {names}, which the extra brings: pip install 'ghn-init[train]'."
        )
