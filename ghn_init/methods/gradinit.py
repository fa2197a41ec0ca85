"""GradInit: factors with which the first step of training lowers the loss most.

Zhu et al., 2021, https://arxiv.org/abs/2102.08098; their code is zhuchen03/gradinit on GitHub.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ghn_init.methods.factor_adam import FactorAdam
from ghn_init.methods.learned_scales import Goal, Learning, Values, learn
from ghn_init.methods.method import Given, Job, Method
from ghn_init.methods.trial import Trial, trial
from ghn_init.settings import Count, OneOf, Positive, Range, check


@dataclass(frozen=True)
class GradInitSettings:
    """Settings of GradInit; the defaults are those of the authors' runs on CIFAR-10.

    Arguments:
        steps: of the factors' optimizer.
        batch: images in a step.
        lr: of the factors. The authors take from 1e-3 (ResNet-110) to 1e-1 (VGG-19) with batch
            norm, 1e-2 and 5e-2 without.
        eta: length of the step of training that is tried.
        gamma: largest norm of the loss's gradient.
        optimizer: of the training that is prepared, sgd or adam.
    """

    steps: Count = 390
    batch: Annotated[int, Range(2)] = 128
    lr: Positive = 1e-2
    eta: Positive = 0.1
    gamma: Positive = 1.0
    optimizer: Annotated[str, OneOf(("sgd", "adam"))] = "sgd"

    def __post_init__(self) -> None:
        """Raises `GHNInitError` for values that no run can have."""
        check(self)


def first_step(job: Job) -> Given:
    """Scale parameters so that the loss is lowest after one step of training.

    Needs images and labels. Every parameter that may be written and is not zero gets a factor. The
    gradient is that of all parameters that are trained. Batch norms use the batch's statistics,
    dropout is off.
    """
    with trial(job) as tried:
        work = _GradInit(job.options, tried)
        how = Learning(
            "gradinit",
            lambda names, _: FactorAdam(names, job.options.lr),
            work.goal,
            work.figures,
        )
        return learn(job, tried, how, [n for n in tried.start if n in job.writable])


class _GradInit:
    def __init__(self, settings: GradInitSettings, tried: Trial) -> None:
        self.settings, self.tried = settings, tried

    def goal(self, values: Values, step: int) -> Goal:
        """Paper, Algorithm 1: shrink the gradient while it is too large, else the loss."""
        first, second, third = self._thirds(step)
        with_first = _joined(first, second)
        direction, norm = self._direction(values, *with_first)
        if norm.item() > self.settings.gamma:  # the constraint of Eq. 1, whose gradient is needed
            _, norm = self._direction(values, *with_first, differentiable=True)
            return Goal(norm, constraint=True)
        # Half of the second batch is of the first one, as in the authors' code.
        loss = self._loss_behind(values, direction, *_joined(first, third))
        return Goal(loss / self.settings.eta)

    def figures(self, values: Values) -> dict[str, float]:
        """The loss after one step and the gradient's norm, on the first step's batches."""
        first, second, third = self._thirds(0)
        direction, norm = self._direction(values, *_joined(first, second))
        loss = self._loss_behind(values, direction, *_joined(first, third))
        after = f"loss after a first step of {self.settings.optimizer}"
        return {after: loss.item(), "norm of the gradient": norm.item()}

    def _thirds(self, step: int) -> list[tuple[Tensor, Tensor]]:
        half = max(1, min(self.settings.batch, self._count) // 2)
        return [self.tried.batch(3 * step + part, half) for part in range(3)]

    @property
    def _count(self) -> int:
        assert self.tried.job.images is not None
        return len(self.tried.job.images)

    def _direction(
        self, values: Values, images: Tensor, labels: Tensor, differentiable: bool = False
    ) -> tuple[dict[str, Tensor], Tensor]:
        """A[g], the direction of a step of the optimizer, and the norm of g that suits it."""
        trained = [values[name] for name in self.tried.trained]
        loss = self.tried.losses(images, labels, values).mean()
        gradients = torch.autograd.grad(
            loss, trained, create_graph=differentiable, allow_unused=True, materialize_grads=True
        )
        named = dict(zip(self.tried.trained, gradients, strict=True))
        if self.settings.optimizer == "adam":  # its first step is g's sign, which p = 1 suits
            norm = torch.stack([g.abs().sum() for g in gradients]).sum()
            return {name: g.sign() for name, g in named.items()}, norm
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()  # p = 2
        return {name: g / norm for name, g in named.items()}, norm

    def _loss_behind(
        self, values: Values, direction: Values, images: Tensor, labels: Tensor
    ) -> Tensor:
        """L(theta - eta A[g]) (Eq. 1). As in the authors' code, A[g] is not differentiated."""
        moved = {n: values[n] - self.settings.eta * g.detach() for n, g in direction.items()}
        return self.tried.losses(images, labels, {**values, **moved}).mean()


def _joined(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])


GRADINIT = Method(
    name="gradinit",
    values=None,
    summary="factors of the parameters, learned so that a first step of training does most",
    paper="Zhu et al., 2021, https://arxiv.org/abs/2102.08098",
    images=True,
    labels=True,
    refine=first_step,
    options=GradInitSettings,
)
