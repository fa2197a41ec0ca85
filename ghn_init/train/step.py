"""One step: predict a meta-batch of networks, run them on images, and the gradient of Eq. 10.

The graph of the hypernetwork and those of the target networks are differentiated apart, joined at
the predicted tensors. So a target network's activations are gone before the next one computes:
memory does not grow with the meta-batch, and the time of each part can be told.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ghn_init.hypernetwork.ghn import GHN
from ghn_init.images.batches import Batch
from ghn_init.seeds import seed_of
from ghn_init.train.config import TrainConfig
from ghn_init.train.distributed import together
from ghn_init.train.networks.nets import TargetNetwork
from ghn_init.train.parallel import Predict, Predictor
from ghn_init.train.teacher import Teacher


class Timer:
    """Seconds spent in the parts of a step.

    Arguments:
        device: a GPU is waited for at the end of each part, if `exact`.
        exact: see `device`; otherwise parts on a GPU only count what it takes to start them.
        clock: gives the time in seconds.
    """

    def __init__(
        self,
        device: torch.device,
        exact: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._wait = exact and device.type == "cuda"

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of the block."""
        start = self._clock()
        yield
        if self._wait:
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + self._clock() - start

    def shares(self) -> dict[str, float]:
        """Share of each part in all of them; starts counting anew."""
        total = sum(self.seconds.values()) or 1.0
        shares = {name: round(seconds / total, 4) for name, seconds in self.seconds.items()}
        self.seconds.clear()
        return shares


@dataclass
class Totals:
    """Sums over networks, to be summed over processes as well.

    Arguments:
        loss: sum of Eq. 10 over the networks, with the soft labels of a teacher if there is one.
        cross_entropy: with the labels, its first term.
        correct: images that were classified correctly.
        seen: networks times images.
        infinite: networks whose loss is not finite.
    """

    values: Tensor = field(default_factory=lambda: torch.zeros(5, dtype=torch.float64))

    def add(self, loss: Tensor, cross_entropy: Tensor, correct: Tensor, seen: int) -> None:
        """Count one network."""
        bad = (~torch.isfinite(loss)).double()
        found = [loss.double(), cross_entropy.double(), correct.double(), bad.new_tensor(seen), bad]
        self.values = self.values.to(bad.device) + torch.stack(found)

    def metrics(self, networks: int) -> dict[str, float]:
        """Means: loss, cross_entropy, accuracy."""
        loss, cross_entropy, correct, seen, _ = self.values.tolist()
        return {
            "loss": loss / networks,
            "cross_entropy": cross_entropy / networks,
            "accuracy": correct / max(1.0, seen),
        }

    @property
    def finite(self) -> bool:
        """Whether all losses are."""
        return self.values[-1].item() == 0


def gradients(
    ghn: GHN,
    networks: Sequence[tuple[int, TargetNetwork]],
    batch: Batch,
    config: TrainConfig,
    step: int,
    timer: Timer,
    teacher: Teacher | None = None,
    predict: Predict | None = None,
) -> Totals:
    """Adds the gradient of the mean loss over a meta-batch to the hypernetwork.

    Arguments:
        ghn: the hypernetwork.
        networks: those of this process, each with its place in the meta-batch.
        batch: images and labels of these networks, on the hypernetwork's device: those of the
            step, or with `own_images` so many for each network, in their order.
        config: of the run.
        step: number of the step, for what is random in it.
        timer: counts the parts `predict`, `teacher`, `forward` and `backward`.
        teacher: whose soft labels are learned too.
        predict: how the hypernetwork predicts; of many processes, what `parallel.predictor` gives.

    Returns: sums over the networks. Where one of them is not finite, gradients are meaningless.
    """
    gpus = [ghn.device] if ghn.device.type == "cuda" else []
    # On CPUs, casting the hypernetwork's weights takes longer than its products of small matrices.
    autocast = torch.autocast(
        ghn.device.type, torch.bfloat16, enabled=config.precision == "bf16", cache_enabled=False
    )
    with timer.part("predict"), autocast if gpus else contextlib.nullcontext():
        predicted = (predict or Predictor(ghn))([network.graph for _, network in networks])
    totals = Totals()
    tensors: list[Tensor] = []
    grads: list[Tensor] = []
    soft_labels = batch.images.new_empty(0)
    for index, ((place, network), params) in enumerate(zip(networks, predicted, strict=True)):
        images, labels = _share(batch, index, config)
        if teacher is not None and (config.own_images or not len(soft_labels)):
            with timer.part("teacher"):
                soft_labels = teacher.soft_labels(images, config.precision)
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
        with timer.part("forward"), torch.random.fork_rng(gpus, enabled=config.dropout > 0):
            if config.dropout > 0:
                torch.manual_seed(seed_of(config.seed, "dropout", step, place))
            with autocast:
                logits = network(images, leaves).float()
            cross_entropy = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
            learned = cross_entropy
            if teacher is not None:
                learned = teacher.mixed(cross_entropy, logits, soft_labels)
            loss = learned + config.gamma * _norms(leaves)  # Eq. 10
            correct = (logits.argmax(1) == labels).sum()
            totals.add(loss.detach(), cross_entropy.detach(), correct, len(labels))
        with timer.part("backward"):
            (loss / config.meta_batch).backward()
            if config.network_clip:
                limit = config.network_clip / config.meta_batch
                torch.nn.utils.clip_grad_norm_(leaves.values(), limit)
        # One that a network does not use has gradient 0: DistributedDataParallel waits for it.
        tensors += params.values()
        grads += (torch.zeros_like(p) if p.grad is None else p.grad for p in leaves.values())
    with timer.part("backward_ghn"), together():
        torch.autograd.backward(tensors, grads)
    return totals


def _share(batch: Batch, index: int, config: TrainConfig) -> Batch:
    """The images and labels that one of this process's networks sees."""
    if not config.own_images:
        return batch
    mine = slice(index * config.batch_size, (index + 1) * config.batch_size)
    return Batch(batch.images[mine], batch.labels[mine])


def _norms(params: dict[str, Tensor]) -> Tensor:
    """The sum of the norms of all predicted tensors."""
    return torch.stack(torch._foreach_norm([p.float() for p in params.values()])).sum()
