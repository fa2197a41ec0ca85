"""The small checkpoint that is part of the package: no network, no download."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = "embedded"
"""Its name."""

EMBEDDED_ARCH = "ghn3"

_FILE = "ghn3-cifar10.safetensors"
_PACKAGE = Path(__file__).resolve().parents[1]


def embedded_path() -> Path:
    """Where it is: inside of an installed package, beside it in a source tree."""
    installed = _PACKAGE / "checkpoints" / _FILE
    return installed if installed.exists() else _PACKAGE.parent / "checkpoints" / _FILE
