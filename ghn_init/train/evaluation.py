"""Accuracy of predicted parameters without any training (GHN-3 paper, Tables 2 and 11)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ghn_init.errors import GHNInitError
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.hypernetwork.prediction import predict_graphs
from ghn_init.images.batches import Images
from ghn_init.images.evaluation import top1
from ghn_init.progress import Progress
from ghn_init.resuming import ResultsFile
from ghn_init.seeds import torch_generator
from ghn_init.train.config import Evaluation
from ghn_init.train.networks.nets import Net, TargetNetwork, build_network
from ghn_init.train.networks.zoo import ZooNet
from ghn_init.weights.tiling import repeated_all


@dataclass(frozen=True)
class Accuracies:
    """Top-1 accuracies of one split, in percent, an entry a network.

    Arguments:
        split: name of the architectures.
        predicted: with the parameters that the hypernetwork predicts.
        random: the same networks, randomly initialized; empty where that was not asked for.
        families: of networks of the zoo; empty for others.
    """

    split: str
    predicted: tuple[float, ...]
    random: tuple[float, ...] = ()
    families: tuple[str, ...] = ()

    def summary(self) -> str:
        """A line for a table: mean, standard deviation and best; then the means by family."""
        return "\n".join([self._line(), *self._family_lines()])

    def _family_lines(self) -> list[str]:
        found: dict[str, list[float]] = {}
        for family, accuracy in zip(self.families, self.predicted, strict=False):
            found.setdefault(family, []).append(accuracy)
        return [
            f"  {family:14} {len(values):4} nets  {statistics.mean(values):5.1f}"
            for family, values in found.items()
        ]

    def _line(self) -> str:
        line = f"{self.split:8} {len(self.predicted):4} nets  predicted {_describe(self.predicted)}"
        return line + (f"  random {_describe(self.random)}" if self.random else "")


def evaluate(
    ghn: GHN,
    nets: Sequence[Net],
    images: Images,
    split: str,
    how: Evaluation | None = None,
    results: Path | None = None,
) -> Accuracies:
    """Predict the parameters of each network and measure its accuracy, without training it.

    Batch normalization uses the statistics of the batch, as in training: no running ones exist.

    Arguments:
        ghn: the hypernetwork; networks are evaluated on its device.
        nets: architectures.
        images: test images.
        split: name of the architectures, for the result.
        how: see there.
        results: file for the accuracies by network; an evaluation that was stopped goes on in it.

    Raises:
        GHNInitError: the images have other classes than the hypernetwork predicts, or `results`
            belongs to another evaluation.
    """
    how = how or Evaluation()
    if len(images.classes) != ghn.config.num_classes:
        raise GHNInitError(
            f"the hypernetwork predicts {ghn.config.num_classes} classes, and the images have "
            f"{len(images.classes)}."
        )
    key = {"split": split, "ghn": _digest(ghn), **vars(how), **images_key(images)}
    key.pop("quiet")
    names = ("evaluation", "accuracies")
    file = ResultsFile(results, key, lambda row: [float(value) for value in row], list, names)
    with Progress(len(nets), "network", min(len(file.rows), len(nets)), how.quiet) as progress:
        for index in range(len(file.rows), len(nets)):
            file.add(_evaluate_one(ghn, nets[index], images, how, index))
            progress.step(split=split, mean=statistics.mean(row[0] for row in file.rows))
    rows = file.rows[: len(nets)]
    random = tuple(row[1] for row in rows) if how.control else ()
    families = tuple(net.family for net in nets if isinstance(net, ZooNet))
    return Accuracies(split, tuple(row[0] for row in rows), random, families)


def _evaluate_one(ghn: GHN, net: Net, images: Images, how: Evaluation, index: int) -> list[float]:
    """Accuracy with predicted parameters, and of the control, in percent."""
    network = build_network(net, len(images.classes), images.image_size)
    with torch.no_grad():
        (blocks,) = predict_graphs([network.graph], ghn)
        predicted = repeated_all(blocks, network.graph.shapes)
        found = [accuracy(network, predicted, images, how)]
        if how.control:
            random = network.random_params(torch_generator(how.seed, "control", index))
            random = {name: tensor.to(ghn.device) for name, tensor in random.items()}
            found.append(accuracy(network, random, images, how, how.control))
    return found


def accuracy(
    network: TargetNetwork,
    params: Mapping[str, Tensor],
    images: Images,
    how: Evaluation,
    batches: int | None = None,
) -> float:
    """Top-1 accuracy in percent, over all images or the first `batches` batches."""

    def outputs(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=how.precision == "bf16"):
            return network(x, params)

    return top1(outputs, images, how.batch_size, batches)[0]


def _describe(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    error = spread / math.sqrt(len(values))
    return (
        f"{statistics.mean(values):5.1f} ± {error:.1f} (s.e.), std {spread:4.1f}, "
        f"best {max(values):.1f}"
    )


def _digest(ghn: GHN) -> float:
    """A sum over all weights, by which hypernetworks are told apart."""
    return sum(float(p.detach().double().abs().sum()) for p in ghn.parameters())


def images_key(images: Images) -> dict[str, int]:
    """By which sets of images are told apart: number, size, and labels in their order."""
    order = torch.arange(1, len(images.labels) + 1)
    labels = int((images.labels.cpu() * order).sum())
    return {"images": len(order), "image_size": images.image_size, "labels": labels}
