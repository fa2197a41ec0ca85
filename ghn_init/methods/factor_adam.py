"""Adam for factors under a constraint, as GradInit and NIO have it."""

from __future__ import annotations

import math
from collections.abc import Sequence

_DECAY = (0.9, 0.999)
_EPS = 1e-8
_CLIP = 1.0
_SMALLEST = 0.01


class FactorAdam:
    """Adam for one factor a parameter (GradInit's code, `gradinit_optimizers.py`).

    Steps towards the objective and steps back into the constraint have a first moment each, and
    share the second one. Gradients are clipped to [-1, 1]. A weight's factor stays from 0.01 up, a
    bias's from 0.

    Arguments:
        names: of the parameters.
        lr: learning rate.
    """

    def __init__(self, names: Sequence[str], lr: float) -> None:
        count = len(names)
        self.lr = lr
        self.factors = [1.0] * count
        self.smallest = [0.0 if "bias" in name else _SMALLEST for name in names]
        self.steps = [0, 0]  # to the objective, and back into the constraint
        self.first = [[0.0] * count, [0.0] * count]
        self.second = [0.0] * count

    def update(self, gradient: Sequence[float], constraint: bool) -> None:
        """Make a step.

        Arguments:
            gradient: with respect to the factors.
            constraint: it is the constraint's, and not the objective's.
        """
        kind = int(constraint)
        self.steps[kind] += 1
        step = self.lr / (1 - _DECAY[0] ** self.steps[kind])
        correction = 1 - _DECAY[1] ** sum(self.steps)
        for i, value in enumerate(gradient):
            clipped = max(-_CLIP, min(_CLIP, value))
            first = _DECAY[0] * self.first[kind][i] + (1 - _DECAY[0]) * clipped
            second = _DECAY[1] * self.second[i] + (1 - _DECAY[1]) * clipped**2
            self.first[kind][i], self.second[i] = first, second
            moved = self.factors[i] - step * first / (math.sqrt(second / correction) + _EPS)
            self.factors[i] = max(moved, self.smallest[i])
