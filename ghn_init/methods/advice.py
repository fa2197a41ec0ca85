"""How a checkpoint is best used, where the user does not say it."""

from __future__ import annotations

from ghn_init.hypernetwork.config import Defaults
from ghn_init.hypernetwork.ghn import GHN


def advice(ghn: GHN | None) -> Defaults:
    """Of a loaded hypernetwork; that for the published ones where there is none."""
    return Defaults() if ghn is None else ghn.defaults
