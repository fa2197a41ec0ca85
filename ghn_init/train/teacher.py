"""Soft labels: what a trained classifier, the teacher, says of the images of a step.

A label names one class; a teacher says which others an image resembles, and so tells a target
network more about each image (Hinton et al., 2015, https://arxiv.org/abs/1503.02531; for training
hypernetworks: task-aware learngenes, ICML 2025).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_init.errors import GHNInitError
from ghn_init.images.batches import Images
from ghn_init.loading.checkpoint import read_state_dict
from ghn_init.models import create_model
from ghn_init.train.config import TrainConfig


@dataclass(frozen=True)
class Teacher:
    """A trained classifier, and how much it counts.

    Arguments:
        model: in evaluation mode.
        share: of its soft labels in the loss; the rest is the labels'.
        temperature: by which its logits and the target network's are divided.
        key: by which it is told apart from others when a run is resumed.
    """

    model: nn.Module
    share: float
    temperature: float
    key: Mapping[str, Any]

    def soft_labels(self, images: Tensor, precision: str = "fp32") -> Tensor:
        """Probabilities `(B, classes)` at the temperature, for normalized images."""
        device, reduced = images.device.type, precision == "bf16"
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=reduced):
            logits = self.model(images)
        return F.softmax(logits.float() / self.temperature, dim=1)

    def mixed(self, cross_entropy: Tensor, logits: Tensor, soft_labels: Tensor) -> Tensor:
        """`(1 - share) CE + share T^2 KL(teacher || network)` (Hinton et al., Section 2).

        Arguments:
            cross_entropy: with the labels.
            logits: of the target network, `(B, classes)`.
            soft_labels: of the teacher for the same images.
        """
        found = F.log_softmax(logits / self.temperature, dim=1)
        apart = F.kl_div(found, soft_labels, reduction="batchmean") * self.temperature**2
        return (1 - self.share) * cross_entropy + self.share * apart


def load_teacher(config: TrainConfig, images: Images) -> Teacher | None:
    """The teacher of a run; None if it has none.

    Arguments:
        config: of the run.
        images: of the run; the teacher must have as many outputs as these have classes.

    Raises:
        GHNInitError: no such model or file, weights of another model, or outputs for other
            classes.
    """
    if config.teacher is None:
        return None
    if config.teacher_weights is None:
        raise GHNInitError(
            f"teacher {config.teacher} has no weights: give --teacher-weights FILE, the file of "
            "its state dict."
        )
    classes = len(images.classes)
    model, _ = create_model(config.teacher, num_classes=classes)
    _load(model, config.teacher_weights, config.teacher)
    model.eval().requires_grad_(False).to(images.device)
    batch = next(images.subset(torch.arange(2)).test_batches(2))
    with torch.no_grad():
        found = tuple(model(batch.images).shape)
    if found != (2, classes):
        raise GHNInitError(
            f"teacher {config.teacher} gives {found} for 2 images, and the data has {classes} "
            f"classes: it must be (2, {classes})."
        )
    key = {"teacher": hashlib.sha256(Path(config.teacher_weights).read_bytes()).hexdigest()}
    return Teacher(model, config.teacher_share, config.temperature, key)


def _load(model: nn.Module, path: str, name: str) -> None:
    try:
        tensors = read_state_dict(path)
    except GHNInitError as error:
        raise GHNInitError(f"the teacher's weights: {error}") from error
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise GHNInitError(
            f"{path} holds the weights of another model than teacher {name}."
        ) from error
