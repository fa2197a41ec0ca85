"""How a checkpoint is best used, where the user does not say it."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from ghn_init.graph.graph import NORMS
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.loading.embedded import EMBEDDED


@dataclass(frozen=True)
class Advice:
    """Defaults of `apply` that depend on the checkpoint.

    Arguments:
        orth_start: L of the second paper, a layer (int) or a share of the depth (float).
        norms: the normalisation primitives whose predictions are worth taking.
    """

    orth_start: int | float
    norms: AbstractSet[str]


_PUBLISHED = Advice(0.685, NORMS)
"""L is the second paper's for ResNet-50, 37 of 54 (Table 2)."""

_EMBEDDED = Advice(1, frozenset({"bn"}))
"""It repeats 64 x 64 channels in every wider layer, and trains better where all of them go through
the orthogonal step. It has seen few layer norms: what it predicts for them leaves a model's output
all but independent of the image. (Measured: README, "Compare initializations".)"""


def advice(ghn: GHN | None) -> Advice:
    """Of a loaded hypernetwork; that for the published ones where there is none."""
    return _EMBEDDED if ghn is not None and ghn.source == EMBEDDED else _PUBLISHED
