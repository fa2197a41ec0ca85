"""NIO: factors with which the gradients of parts of a batch point in one direction.

Yang et al., 2022, https://arxiv.org/abs/2210.05956; their code is HarborYuan/GradCosine on GitHub.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ghn_init.errors import GHNInitError
from ghn_init.methods.factor_adam import FactorAdam
from ghn_init.methods.learned_scales import Goal, Learning, Values, learn
from ghn_init.methods.method import Given, Job, Method
from ghn_init.methods.trial import Trial, trial
from ghn_init.settings import Count, NotNegative, Positive, Range, check


@dataclass(frozen=True)
class NIOSettings:
    """Settings of NIO; the defaults are those of the authors' ResNet-50.

    Arguments:
        steps: of the factors' optimizer.
        batch: images in a step.
        lr: of the factors.
        gamma: largest mean norm of the gradients.
        splits: parts of a batch.
        norm: weight of the gradients' norms beside the cosine, both of which become larger; 0: the
            cosine alone.
        overlap: by which share of its length a part reaches into its neighbors.
    """

    steps: Count = 100
    batch: Annotated[int, Range(2)] = 64
    lr: Positive = 3e-3
    gamma: Positive = 10.0
    splits: Annotated[int, Range(2)] = 4
    norm: NotNegative = 1.0
    overlap: Annotated[float, Range(0, 0.9)] = 0.2

    def __post_init__(self) -> None:
        """Raises `GHNInitError` for values that no run can have."""
        check(self)


def aligned_gradients(job: Job) -> Given:
    """Scale parameters so that the gradients of parts of a batch agree.

    Needs images and labels. Every parameter that may be written and is not zero gets a factor; the
    gradients are those of all parameters that are trained. Batch norms use the batch's statistics,
    dropout is off.
    """
    assert job.images is not None
    if len(job.images) < job.options.splits:
        raise GHNInitError(
            f"nio splits a batch in {job.options.splits}, and there are {len(job.images)} images: "
            "give more."
        )
    with trial(job) as tried:
        work = _NIO(job.options, tried)
        how = Learning(
            "nio",
            lambda names, _: FactorAdam(names, job.options.lr),
            work.goal,
            work.figures,
        )
        return learn(job, tried, how, [n for n in tried.start if n in job.writable])


class _NIO:
    def __init__(self, settings: NIOSettings, tried: Trial) -> None:
        self.settings, self.tried = settings, tried

    def goal(self, values: Values, step: int) -> Goal:
        """Algorithm 3: shrink the gradients while they are too large, else align them.

        The authors' configurations make their norms larger, too, up to the constraint.
        """
        cosine, norms = self._cosine(values, step, differentiable=True)
        if norms.mean().item() > self.settings.gamma:
            return Goal(norms.mean(), constraint=True)
        return Goal(-cosine - self.settings.norm * norms.sum())

    def figures(self, values: Values) -> dict[str, float]:
        """Of the first step's batch."""
        cosine, norms = self._cosine(values, 0, differentiable=False)
        return {
            "mean cosine between gradients": cosine.item(),
            "their mean norm": norms.mean().item(),
        }

    def _cosine(self, values: Values, step: int, differentiable: bool) -> tuple[Tensor, Tensor]:
        """The mean cosine between the parts' gradients (Algorithm 2), and the gradients' norms."""
        images, labels = self.tried.batch(step, self.settings.batch)
        losses = self.tried.losses(images, labels, values)
        trained = [values[name] for name in self.tried.trained]
        rows = []
        for part in self._parts(len(losses)):
            gradients = torch.autograd.grad(
                losses[part].mean(), trained, retain_graph=True, create_graph=differentiable,
                allow_unused=True, materialize_grads=True,
            )  # fmt: skip
            rows.append(torch.cat([g.flatten() for g in gradients]))
        norms = torch.stack([row.square().sum().sqrt() for row in rows])
        pairs = [
            rows[i] @ rows[j] / (norms[i] * norms[j]) for i in range(len(rows)) for j in range(i)
        ]
        return torch.stack(pairs).mean(), norms

    def _parts(self, count: int) -> list[slice]:
        """Overlapping parts of a batch, as the authors' `batch_settings` has them."""
        splits, reach = self.settings.splits, self.settings.overlap
        length = count // splits
        starts = [int((1 - reach) * length * i) for i in range(splits)]
        ends = [int((1 + reach) * length * (i + 1)) for i in range(splits - 1)]
        return [slice(start, end) for start, end in zip(starts, [*ends, count], strict=True)]


NIO = Method(
    name="nio",
    values=None,
    summary="factors of the parameters, learned so that gradients of parts of a batch agree",
    paper="Yang et al., 2022, https://arxiv.org/abs/2210.05956",
    images=True,
    labels=True,
    refine=aligned_gradients,
    options=NIOSettings,
)
