"""What a training run is: everything that decides about its trajectory, and a little besides."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ghn_init.errors import GHNInitError
from ghn_init.hypernetwork.config import ARCHITECTURES, GHNConfig
from ghn_init.images.constants import LARGE_IMAGES
from ghn_init.train.sampling import Widths

PRECISIONS = ("fp32", "bf16")
PARAMETRIZATIONS = ("standard", "mup")
AUGMENTATIONS = ("crop", "mirror", "none")


@dataclass(frozen=True)
class TrainConfig:
    """A training run (GHN-3 paper, Section 5; defaults from there where it gives them).

    Arguments:
        nets: folder of architectures, see `load_nets`.
        data: images, see `load_images`.
        image_size: height and width of the images.
        holdout: training images held out for choosing, evenly over the classes.
        num_nets: use only the first so many training architectures; None: all.
        start_from: checkpoint to take the first weights from, by name or path; None: new ones.
        arch: a name of `ARCHITECTURES`.
        hidden_size: width d of the hypernetwork.
        layers: number of its layers (GHN-2 has one).
        heads: attention heads; 0: 16 where d > 64, else 8.
        meta_batch: architectures in a step, over all processes (m).
        batch_size: images that an architecture sees in a step (b).
        own_images: every architecture of a step sees its own images; otherwise all see the same,
            as in the papers. Most of a step's noise is that of its images (README).
        augment: `"crop"` for random crops, every other one mirrored; `"mirror"`; `"none"`.
        steps: length of the run.
        lr, weight_decay: of AdamW.
        warmup: steps in which the learning rate rises linearly.
        cooldown: 0: the learning rate then follows a cosine to 0. Otherwise it stays, and falls
            linearly to 0 in so many last steps; such a run can be made longer afterwards.
        parametrization: `"standard"`, or `"mup"`: learning rates and initial weights by fan-in
            (Yang et al., Tensor Programs V, Table 3), see `parameter_groups`.
        clip: largest norm of the gradient.
        network_clip: largest norm of the gradient by one network's parameters; 0: any. A network
            without normalization may otherwise outweigh all others in a step.
        gamma: weight of the norms of predicted tensors in the loss (Eq. 10).
        label_smoothing: of the cross-entropy.
        dropout: between the linear layers of the target networks' classifiers.
        precision: `"fp32"`, or `"bf16"` for autocast.
        widths: of the target networks.
        curriculum: steps in which the target networks grow, see `MetaBatches`.
        rare_share: chance of a target network to be of a rare kind, see `MetaBatches`.
        seed: of everything that is random.
        patience: steps in a row without a finite loss after which the run stops.
    """

    nets: str
    data: str
    steps: int
    image_size: int = 32
    holdout: int = 0
    num_nets: int | None = None
    start_from: str | None = None
    arch: str = "ghn3"
    hidden_size: int = 64
    layers: int = 3
    heads: int = 0
    meta_batch: int = 8
    batch_size: int = 64
    own_images: bool = False
    augment: str = "crop"
    lr: float = 4e-4
    weight_decay: float = 1e-2
    warmup: int = 500
    cooldown: int = 0
    parametrization: str = "standard"
    clip: float = 5.0
    network_clip: float = 0.0
    gamma: float = 3e-5
    label_smoothing: float = 0.0
    dropout: float = 0.5
    precision: str = "fp32"
    widths: Widths = field(default_factory=Widths)
    curriculum: int = 0
    rare_share: float = 0.0
    seed: int = 0
    patience: int = 20

    def __post_init__(self) -> None:
        """Raises `GHNInitError` for values that no run can have."""
        if self.arch not in ARCHITECTURES:
            raise GHNInitError(f"unknown --arch {self.arch!r}: {', '.join(ARCHITECTURES)}.")
        if self.precision not in PRECISIONS:
            raise GHNInitError(f"unknown --precision {self.precision!r}: {', '.join(PRECISIONS)}.")
        if self.parametrization not in PARAMETRIZATIONS:
            raise GHNInitError(
                f"unknown --parametrization {self.parametrization!r}: "
                f"{', '.join(PARAMETRIZATIONS)}."
            )
        if self.augment not in AUGMENTATIONS:
            raise GHNInitError(f"unknown --augment {self.augment!r}: {', '.join(AUGMENTATIONS)}.")
        for name in ("cooldown", "network_clip"):
            if getattr(self, name) < 0:
                raise GHNInitError(f"--{name.replace('_', '-')} must not be negative.")
        for name in ("steps", "image_size", "hidden_size", "layers", "meta_batch", "batch_size"):
            if getattr(self, name) < 1:
                raise GHNInitError(f"--{name.replace('_', '-')} must be at least 1.")
        if self.hidden_size % max(4, self.ghn(2).heads):
            raise GHNInitError(
                f"--hidden-size {self.hidden_size} must be a multiple of 4 and of the heads."
            )
        if not self.lr > 0 or not self.clip > 0 or not 0 <= self.dropout < 1:
            raise GHNInitError("--lr and --clip must be positive, --dropout from 0 to below 1.")
        if not 0 <= self.rare_share <= 1:
            raise GHNInitError("--rare-share must be from 0 to 1.")

    def ghn(self, num_classes: int) -> GHNConfig:
        """The configuration of the hypernetwork: its decoder is as wide as the paper's."""
        gated = self.arch == "ghn2"
        channels = self.hidden_size * (2 if gated else 1)
        kernel = 16 if self.image_size >= LARGE_IMAGES else 11
        return GHNConfig(
            arch=self.arch,
            hidden_size=self.hidden_size,
            layers=1 if gated else self.layers,
            heads=1 if self.arch != "ghn3" else self.heads or (16 if self.hidden_size > 64 else 8),
            max_shape=(channels, channels, kernel, kernel),
            num_classes=num_classes,
        )

    @property
    def images_per_step(self) -> int:
        """Of all architectures together."""
        return self.batch_size * (self.meta_batch if self.own_images else 1)

    def to_json(self) -> str:
        """As text, for the run's folder and the metadata of the result."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def from_json(text: str) -> TrainConfig:
    """The configuration that `to_json` wrote.

    Raises:
        GHNInitError: it is something else.
    """
    try:
        values: Mapping[str, Any] = json.loads(text)
        widths = Widths(**{k: _tuple(v) for k, v in values["widths"].items()})
        return TrainConfig(**{**values, "widths": widths})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GHNInitError(f"not the configuration of a training run: {error}.") from error


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Names of the fields in which two runs differ."""
    names = typing.get_type_hints(TrainConfig)
    return [name for name in names if getattr(old, name) != getattr(new, name)]


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
