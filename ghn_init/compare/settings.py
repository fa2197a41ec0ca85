"""The settings of a comparison; importing them is free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ghn_init.schedule import warmup_cosine
from ghn_init.settings import Count, NotNegative, OneOf, Positive, Whole, check
from ghn_init.train.config import PRECISIONS

OPTIMIZERS = ("adamw", "sgd")

_WARMUP = 20
"""The learning rate rises in the first twentieth of the steps."""

_LOOKS = 10
"""How often a run looks at the test images, if nothing else is asked for."""


@dataclass(frozen=True)
class Point:
    """Hyperparameters of a run that may be chosen for each method.

    Arguments:
        lr: highest learning rate.
        weight_decay: of all parameters.
    """

    lr: Positive
    weight_decay: NotNegative = 0.01

    def __post_init__(self) -> None:
        """Raises `GHNInitError` for values that no run can have."""
        check(self)


@dataclass(frozen=True)
class FineTuning:
    """What all runs of a comparison share.

    Arguments:
        steps: length of a run; the learning rate rises linearly in the first twentieth, then
            follows a cosine to 0.
        batch_size: images in a step.
        optimizer: adamw, or sgd with momentum 0.9.
        precision: of the computation; bf16 is autocast.
        clip: largest norm of the gradient; 0: any.
        eval_every: steps between two looks at the test images; 0: a tenth of the run. The last
            step is always followed by one.
        head: keep: the classification layer starts random, and alike for every method; auto or
            predict, as in `apply`: a hypernetwork that was trained on as many classes predicts it.

    Raises:
        GHNInitError: values that no run can have.
    """

    steps: Count
    batch_size: Count = 64
    optimizer: Annotated[str, OneOf(OPTIMIZERS)] = "adamw"
    precision: Annotated[str, OneOf(PRECISIONS)] = "fp32"
    clip: NotNegative = 5.0
    eval_every: Whole = 0
    head: str = "keep"

    def __post_init__(self) -> None:
        """Raises `GHNInitError` for values that no run can have."""
        check(self)

    def evaluations(self) -> tuple[int, ...]:
        """The steps after which a run looks at the test images."""
        every = self.eval_every or max(1, self.steps // _LOOKS)
        return (*range(every, self.steps, every), self.steps)

    def learning_rate(self, highest: float, step: int) -> float:
        """Of a step, counted from 0."""
        return warmup_cosine(highest, step, self.steps, max(1, self.steps // _WARMUP))
