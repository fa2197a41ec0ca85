"""The learning rate of a step, for everything that is trained here.

It is a function of the step, so that a run that is resumed needs nothing stored. torch's
`SequentialLR(LinearLR, CosineAnnealingLR)` and timm's schedulers keep a state, and change the rates
of an optimizer's groups by it.
"""

from __future__ import annotations

import math


def warmup_cosine(highest: float, step: int, steps: int, warmup: int) -> float:
    """Rises linearly to `highest` in the first `warmup` steps, then follows half a cosine to 0.

    Arguments:
        highest: the learning rate at the end of the warm-up.
        step: counted from 0.
        steps: of the whole run, the warm-up included.
        warmup: of these, steps in which the rate rises; 0: none.
    """
    if step < warmup:
        return highest * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return highest * 0.5 * (1 + math.cos(math.pi * done))
