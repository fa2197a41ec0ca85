"""One run: fine-tune a model that is initialized, and follow its accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_init.compare.settings import FineTuning, Point
from ghn_init.errors import GHNInitError
from ghn_init.images.batches import Images, steps_per_epoch
from ghn_init.images.evaluation import top1
from ghn_init.methods.running import first_tensor
from ghn_init.seeds import seed_of

_MOMENTUM = 0.9


@dataclass(frozen=True)
class Outcome:
    """How a run went.

    Arguments:
        curve: `(steps made, accuracy in percent)`.
        diverged_at: the step, counted from 1, whose loss was not finite or after which the
            model's outputs were not; the run ended there. None: there was none.
        predicted: share of the model's parameters that a hypernetwork predicted.
        seconds: that the run took.
        initializing: seconds of these that the initialization took.
    """

    curve: tuple[tuple[int, float], ...]
    diverged_at: int | None = None
    predicted: float = 0.0
    seconds: float = 0.0
    initializing: float = 0.0

    @property
    def accuracy(self) -> float | None:
        """After the last step; None where the run diverged."""
        return None if self.diverged_at is not None else self.curve[-1][1]

    def reached(self, accuracy: float) -> float:
        """Steps up to the first look that found this accuracy; infinite if none did."""
        return next((float(steps) for steps, found in self.curve if found >= accuracy), math.inf)


def fine_tune(
    model: nn.Module,
    train: Images,
    evaluation: Images,
    how: FineTuning,
    point: Point,
    seed: int,
    looks: Iterable[int],
    watch: Callable[[int, float], None],
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Outcome:
    """Fine-tune a model in place. Batch normalization trains and follows its running statistics.

    Arguments:
        model: initialized, on the device of the images.
        train: images to train on: `seed` decides about their order, crops and mirroring.
        evaluation: images for the accuracy.
        how: the budget.
        point: the hyperparameters.
        seed: of the images and of what else is random, as dropout. The global RNG is left alone.
        looks: steps after which the accuracy is measured, see `FineTuning.evaluations`.
        watch: called after every step, with the number of steps made and the loss.
        memory_format: see `runnable_format`.

    Returns: accuracies, and where the run diverged; no share and no time.
    """
    model.to(memory_format=memory_format)
    device = next(model.parameters()).device
    looks = frozenset(looks)
    optimizer = _optimizer(model, how, point)
    curve: list[tuple[int, float]] = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed_of(seed, "fine-tuning"))
        model.train()
        batches = train.train_batches(how.batch_size, seed, 0, how.steps)
        for step, (images, labels) in enumerate(batches, 1):
            optimizer.param_groups[0]["lr"] = how.learning_rate(point.lr, step - 1)
            images = images.contiguous(memory_format=memory_format)
            loss = _step(model, optimizer, images, labels, how)
            watch(step, loss)
            if not math.isfinite(loss):
                return Outcome(tuple(curve), diverged_at=step)
            if step in looks:
                accuracy = evaluate(model, evaluation, how, memory_format)
                if accuracy is None:
                    return Outcome(tuple(curve), diverged_at=step)
                curve.append((step, accuracy))
    return Outcome(tuple(curve))


def evaluate(
    model: nn.Module,
    images: Images,
    how: FineTuning,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> float | None:
    """Top-1 accuracy in percent, with running statistics; None if an output is not finite."""
    training = model.training
    model.eval()
    percent, finite = top1(
        lambda x: _outputs(model, x.contiguous(memory_format=memory_format), how),
        images,
        how.batch_size,
    )
    model.train(training)
    return percent if finite else None


def runnable_format(
    build: Callable[[], nn.Module], train: Images, how: FineTuning
) -> torch.memory_format:
    """The memory format to fine-tune a model in: channels last, which is faster, if it can.

    Arguments:
        build: gives a model of the kind, to be thrown away.
        train: images; there must be a batch of them.
        how: the budget.

    Raises:
        GHNInitError: the model does not run on the images or has not as many outputs as classes,
            or there are too few images.
    """
    steps_per_epoch(len(train.labels), how.batch_size)
    batch, _ = next(iter(train.subset(torch.arange(2)).test_batches(2)))
    shape, classes = "x".join(map(str, batch.shape[1:])), len(train.classes)
    gpus = [batch.device] if batch.device.type == "cuda" else []
    failure: Exception | None = None
    for memory_format in (torch.channels_last, torch.contiguous_format):
        model = build().train()
        try:
            model.to(batch.device).to(memory_format=memory_format)
            with torch.no_grad(), torch.random.fork_rng(gpus):
                found = first_tensor(model(batch.contiguous(memory_format=memory_format)))
        except Exception as error:  # whatever a model raises for a size or format
            failure = failure or error
            continue
        if found.shape != (2, classes):
            raise GHNInitError(
                f"the model's output for 2 images is {tuple(found.shape)}, and the data has "
                f"{classes} classes: it must be (2, {classes})."
            )
        return memory_format
    reason = (str(failure).splitlines() or [type(failure).__name__])[0]
    raise GHNInitError(
        f"the model does not run on images of {shape}: {reason}. Give another image size, or a "
        "model for this one."
    ) from failure


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    how: FineTuning,
) -> float:
    """One update; its loss, which may be anything."""
    loss = F.cross_entropy(_outputs(model, images, how), labels)
    optimizer.zero_grad()
    loss.backward()
    if how.clip:
        nn.utils.clip_grad_norm_(model.parameters(), how.clip)
    optimizer.step()
    return loss.item()


def _outputs(model: nn.Module, images: Tensor, how: FineTuning) -> Tensor:
    """In float32; of a model with several heads those of the first."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=how.precision == "bf16"):
        return first_tensor(model(images)).float()


def _optimizer(model: nn.Module, how: FineTuning, point: Point) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if how.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, point.lr, _MOMENTUM, weight_decay=point.weight_decay, fused=True
        )
    return torch.optim.AdamW(parameters, point.lr, weight_decay=point.weight_decay, fused=True)
