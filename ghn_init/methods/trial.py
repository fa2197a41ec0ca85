"""A copy of a model to try values on. What is run, differentiated and written to is the copy."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ghn_init.errors import GHNInitError
from ghn_init.graph.copies import Copies
from ghn_init.graph.isolation import isolated_rng, plain_attention, set_modes
from ghn_init.graph.surroundings import nothing_left
from ghn_init.graph.tracing import unwrapped
from ghn_init.images.batches import train_rows
from ghn_init.methods.method import Job
from ghn_init.methods.running import (
    BATCH_NORMS,
    double_differentiable,
    first_tensor,
    image_inputs,
)

_HALVES = (torch.float16, torch.bfloat16)


class Trial:
    """A copy of a job's model, in float32 or better, that starts from the job's values.

    Dropout and stochastic depth are off, and whatever else is random is decided by the job's seed.

    Arguments:
        job: the model and where to start from (`Job.tensors`, else the model's own values).
        model: the copy.
        prefix: what wrappers of the job's model put before the names of the copy's parameters.
    """

    def __init__(self, job: Job, model: nn.Module, prefix: str) -> None:
        self.job, self.model, self._prefix = job, model, prefix
        self.start = {prefix + name: p.detach() for name, p in model.named_parameters()}
        self.device = next(iter(self.start.values())).device
        self.trained = tuple(
            name
            for name, param in job.model.named_parameters()
            if param.requires_grad and param.is_floating_point()
        )

    def outputs(self, images: Tensor, values: Mapping[str, Tensor] | None = None) -> Tensor:
        """The model's main output, `(B, ...)`, with these values in the place of its parameters.

        Raises:
            GHNInitError: the model does not run on the images, or returns no tensor.
        """
        new = {n.removeprefix(self._prefix): value for n, value in (values or {}).items()}
        inputs = image_inputs(self.model, images)
        args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
        try:
            with isolated_rng(self.job.seed), plain_attention(), double_differentiable():
                found = functional_call(self.model, new, args, kwargs, tie_weights=True)
        except GHNInitError:
            raise
        except Exception as error:  # whatever a user's forward raises
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise GHNInitError(
                f"{type(self.model).__name__} does not run on the images: {reason}"
            ) from error
        return first_tensor(found)

    def losses(
        self, images: Tensor, labels: Tensor, values: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Cross-entropy of each image, `(B,)`.

        Raises:
            GHNInitError: as `outputs`; or the model is no classifier of so many classes.
        """
        scores = self.outputs(images, values)
        check_classes(scores, labels)
        return F.cross_entropy(scores, labels, reduction="none")

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Some of the job's images and labels, by the number of a step: new ones in every epoch."""
        assert self.job.images is not None
        assert self.job.labels is not None
        count = len(self.job.images)
        rows = train_rows(count, min(size, count), self.job.seed, step)
        images = self.job.images[rows.to(self.job.images.device)]
        labels = self.job.labels[rows.to(self.job.labels.device)]
        return self.fitted(images), labels.to(self.device).long()

    def fitted(self, images: Tensor) -> Tensor:
        """Images where the copy computes, in its precision."""
        return images.to(self.device, next(iter(self.start.values())).dtype)

    def digest(self) -> str:
        """A checksum of the start and of the data: sixteen hexadecimal digits."""
        found = hashlib.sha256()
        for tensor in (*self.start.values(), self.job.images, self.job.labels):
            if tensor is not None:
                flat = tensor.detach().cpu().contiguous().view(-1)
                found.update(flat.view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]


def check_classes(scores: Tensor, labels: Tensor) -> None:
    """Refuse labels that a model's output has no classes for.

    Raises:
        GHNInitError: saying so.
    """
    if scores.dim() != 2 or len(scores) != len(labels):
        raise GHNInitError(
            f"the model's output for {len(labels)} images is {tuple(scores.shape)}: a method that "
            "uses labels needs a classifier, (B, classes)."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= scores.shape[1]:
        raise GHNInitError(
            f"labels are from {low} to {high}, and the model has {scores.shape[1]} outputs: give "
            "class indices from 0, and a model with as many outputs as classes."
        )


@contextlib.contextmanager
def trial(job: Job, batch_statistics: bool = True) -> Iterator[Trial]:
    """A copy of the job's model for the while. What it leaves in globals and on classes is undone.

    Arguments:
        job: of the method.
        batch_statistics: batch norms use the batch's statistics, as in training; else the running
            ones.

    Raises:
        GHNInitError: the model takes several inputs, is on the meta device, or cannot be copied.
    """
    inner, prefix = unwrapped(job.model)
    if any(tensor.is_meta for tensor in (*inner.parameters(), *inner.buffers())):
        raise GHNInitError(
            "the model is on the meta device, and this method has to run it: build it on a real "
            "device."
        )
    _check_one_input(inner)
    new: dict[int, Tensor] = {
        id(p): nn.Parameter(_numbers(job.tensors.get(prefix + name, p), p), requires_grad=False)
        for name, p in inner.named_parameters()
    }
    new |= {id(buffer): _numbers(buffer, buffer) for buffer in inner.buffers()}
    with nothing_left() as around:
        try:
            copies = Copies(inner, new)
        except Exception as error:  # as for anything of a user's that is called
            raise GHNInitError(f"no copy of the model can be made to run: {error}") from error
        around.before(copies.code)
        set_modes(copies.model, training=False)
        for module in copies.model.modules():
            module._backward_hooks.clear()
            module._backward_pre_hooks.clear()
            if batch_statistics and isinstance(module, BATCH_NORMS):
                module.training = True
        try:
            yield Trial(job, copies.model, prefix)
        finally:
            copies.drop()


def _numbers(tensor: Tensor, own: Tensor) -> Tensor:
    """A copy of a tensor where the model's own is; half precision becomes single."""
    dtype = torch.float32 if own.dtype in _HALVES else own.dtype
    return tensor.detach().to(own.device, dtype, copy=True)


def _check_one_input(model: nn.Module) -> None:
    inputs = image_inputs(model, torch.empty(0, device="meta"))
    if not isinstance(inputs, dict) and len(inputs) > 1:
        raise GHNInitError(
            f"{type(model).__name__} takes {len(inputs)} inputs, and this method has images only: "
            "use a method that does not run the model."
        )
