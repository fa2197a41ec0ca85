"""MetaInit: norms of the weights for which the loss is nearly linear where training starts.

Dauphin & Schoenholz, 2019, "MetaInit: Initializing learning by learning to initialize"; the paper's
appendix has the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ghn_init.errors import GHNInitError
from ghn_init.graph.inputs import given_inputs, likely_inputs
from ghn_init.methods.learned_scales import Goal, Learning, Values, learn
from ghn_init.methods.method import Given, Job, Method
from ghn_init.methods.trial import Trial, check_classes, trial
from ghn_init.seeds import torch_generator
from ghn_init.settings import Count, Positive, Share, check

_EPS = 1e-5
"""epsilon of the gradient quotient (Eq. 1)."""


@dataclass(frozen=True)
class MetaInitSettings:
    """Settings of MetaInit; the defaults are those of the paper's code.

    Arguments:
        steps: of the norms' optimizer.
        batch: images in a step.
        lr: by which a norm changes in the first step.
        momentum: of the steps.
    """

    steps: Count = 500
    batch: Count = 64
    lr: Positive = 0.1
    momentum: Share = 0.9

    def __post_init__(self) -> None:
        """Raises `GHNInitError` for values that no run can have."""
        check(self)


def nearly_linear(job: Job) -> Given:
    """Change the norms of weights so that a step changes the gradient little.

    Needs no data: as in the paper, images are standard normal noise, new in every step, and labels
    are random. Given images (and labels) take their place. Weights of two or more dimensions that
    may be written change; biases and norms are left. Everything runs in evaluation mode, as the
    paper's code does: batch norms use their running statistics.
    """
    with trial(job, batch_statistics=False) as tried:
        work = _MetaInit(job, tried)
        how = Learning(
            "metainit",
            lambda _, norms: NormSigns(norms, job.options.lr, job.options.momentum),
            work.goal,
            work.figures,
        )
        weights = [n for n, p in tried.start.items() if n in job.writable and p.dim() > 1]
        return learn(job, tried, how, weights)


class _MetaInit:
    def __init__(self, job: Job, tried: Trial) -> None:
        self.job, self.tried = job, tried
        self.shape, scores = self._first_that_runs()
        check_classes(scores, torch.zeros(len(scores), dtype=torch.long))
        self.classes = scores.shape[1]

    def goal(self, values: Values, step: int) -> Goal:
        """The gradient quotient of one batch."""
        return Goal(self._quotient(values, step, differentiable=True))

    def figures(self, values: Values) -> dict[str, float]:
        """Of the first step's batch."""
        return {"gradient quotient": self._quotient(values, 0, differentiable=False).item()}

    def _quotient(self, values: Values, step: int, differentiable: bool) -> Tensor:
        """GQ = 1/N |(g - H g) / (g + eps sign(g)) - 1|_1 (Eq. 1), over all N parameters.

        H is the loss's Hessian; H g is the gradient of half the square of g.
        """
        images, labels = self._batch(step)
        loss = self.tried.losses(images, labels, values).mean()
        trained = [values[name] for name in self.tried.trained]
        gradients = _gradients(loss, trained, True)
        half = torch.stack([g.square().sum() / 2 for g in gradients]).sum()
        products = _gradients(half, trained, differentiable)
        total = torch.zeros((), device=loss.device, dtype=loss.dtype)
        for g, product in zip(gradients, products, strict=True):
            sign = torch.where(g >= 0, 1.0, -1.0)
            total = total + ((g - product) / (g + _EPS * sign) - 1).abs().sum()
        return total / sum(p.numel() for p in trained)

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        if self.job.images is not None and self.job.labels is not None:
            return self.tried.batch(step, self.job.options.batch)
        draw = torch_generator(self.job.seed, "metainit", step)
        size = self.job.options.batch
        images = torch.randn(size, *self.shape, generator=draw)
        labels = torch.randint(self.classes, (size,), generator=draw)
        return self.tried.fitted(images), labels.to(self.tried.device)

    def _first_that_runs(self) -> tuple[tuple[int, ...], Tensor]:
        """The shape of one image, and the model's output for two of noise."""
        first: GHNInitError | None = None
        for shape in _shapes(self.job):
            noise = torch.randn(2, *shape, generator=torch_generator(self.job.seed, "metainit"))
            try:
                return shape, self.tried.outputs(self.tried.fitted(noise))
            except GHNInitError as error:
                first = first or error
        raise first or GHNInitError("there is no input to draw noise for: give images.")


def _shapes(job: Job) -> list[tuple[int, ...]]:
    """Of one image: as it is given, or as it is likely."""
    if job.images is not None:
        return [tuple(job.images.shape[1:])]
    given = None if job.example_inputs is None else [given_inputs(job.example_inputs)]
    tensors = (
        leaf
        for inputs in given or likely_inputs(job.model)
        for leaf in pytree.tree_leaves((inputs.args, dict(inputs.kwargs)))[:1]
    )
    return list(dict.fromkeys(tuple(t.shape[1:]) for t in tensors if isinstance(t, Tensor)))


def _gradients(
    output: Tensor, inputs: Sequence[Tensor], differentiable: bool
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        output, inputs, create_graph=differentiable, allow_unused=True, materialize_grads=True
    )


class NormSigns:
    """Sign descent with momentum on norms (the paper's appendix).

    Arguments:
        norms: of the parameters at the start.
        lr: of a step.
        momentum: of the steps.
    """

    def __init__(self, norms: Sequence[float], lr: float, momentum: float) -> None:
        self.norms, self.lr, self.momentum = list(norms), lr, momentum
        self.factors = [1.0] * len(self.norms)
        self.memory = [0.0] * len(self.norms)

    def update(self, gradient: Sequence[float], constraint: bool) -> None:
        """Make a step; the gradient is with respect to the factors."""
        for i, value in enumerate(gradient):
            along = value * self.factors[i]  # the sign of the gradient with respect to the norm
            sign = float(along > 0) - float(along < 0)
            self.memory[i] = self.momentum * self.memory[i] - self.lr * sign
            norm = abs(self.factors[i]) * self.norms[i]
            if norm > 0:
                self.factors[i] *= (norm + self.memory[i]) / norm


METAINIT = Method(
    name="metainit",
    values=None,
    summary="norms of the weights, learned so that the loss is nearly linear; needs no data",
    paper="Dauphin & Schoenholz, NeurIPS 2019",
    optional=("images", "labels"),
    refine=nearly_linear,
    options=MetaInitSettings,
)
