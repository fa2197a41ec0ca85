"""The settings of a training run, of when it saves and logs, and of an evaluation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Annotated, Any

from ghn_init.errors import GHNInitError
from ghn_init.hypernetwork.config import ARCHITECTURES, GHNConfig
from ghn_init.images.constants import LARGE_IMAGES
from ghn_init.settings import Count, NotNegative, OneOf, Positive, Range, Share, Whole, check
from ghn_init.train.networks.genotypes import DEFAULT_CHANNELS, Architecture

TRAIN_SPLITS = {"deepnets": "train", "zoo": "zoo-train", "vits": "vits-train"}
"""Spaces of architectures, and the split of each that is trained on."""

SPACES = tuple(",".join(some) for n in (1, 2, 3) for some in combinations(TRAIN_SPLITS, n))

PRECISIONS = ("fp32", "bf16")
PARAMETRIZATIONS = ("standard", "mup")
DECODERS = ("full", "low-rank")
AUGMENTATIONS = ("crop", "mirror", "none")

_WIDE = 64
"""Hidden sizes above this have 16 attention heads, the others 8 (GHN-3 paper, Table 1)."""


_TINY = 16
"""Below this size, the last layers of some networks see a single position of an image."""


@dataclass(frozen=True)
class Widths:
    """How wide training networks are drawn (GHN-2 paper, Appendix A: wider where they are small).

    Arguments:
        channels: initial channels of the target networks, to draw from.
        fc_dims: widths of the hidden layer of their classifiers, to draw from.
        max_params: a width is drawn only if the network then has at most about so many
            parameters; the smallest width may always be drawn.
    """

    channels: Annotated[tuple[int, ...], Range(1)] = (32, 48, 64, 80, 96, 112, 128)
    fc_dims: Annotated[tuple[int, ...], Range(1)] = (64, 128, 192, 256)
    max_params: Count = 2_000_000

    def __post_init__(self) -> None:
        """Raises `GHNInitError` for values that no widths can have."""
        check(self)
        for name in ("channels", "fc_dims"):
            object.__setattr__(self, name, tuple(sorted(getattr(self, name))))

    def allowed(self, architecture: Architecture) -> tuple[int, ...]:
        """The channels that an architecture may have."""
        params = max(architecture.num_params.values(), default=0)
        fitting = [
            c for c in self.channels if params * (c / DEFAULT_CHANNELS) ** 2 <= self.max_params
        ]
        return tuple(fitting) or self.channels[:1]


@dataclass(frozen=True)
class TrainConfig:
    """A training run (GHN-3 paper, Section 5; defaults from there where it gives them).

    Arguments:
        data: folder with train/<class>/<image> and test/ or val/; or torchvision:NAME:PATH.
        steps: length of the run.
        nets: folder of architectures, as `ghn-init train make-nets` or DeepNets-1M has it; not
            needed where there are models.
        models: of timm or torchvision, to train on beside the architectures or in their place, as
            `timm:resnet*,regnetx_002,torchvision:resnet18`; a * stands for anything.
        max_model_params: models with more parameters are left out.
        image_size: height and width of the images, in pixels.
        holdout: training images held out for choosing, evenly over the classes.
        space: of the architectures.
        share: chance of an architecture to be one of the zoo, the ViTs or the models, where there
            are others too.
        num_nets: use only the first N architectures of each space; by default all.
        start_from: train this checkpoint further, given by name or path; by default the first
            weights are random.
        arch: kind of the hypernetwork.
        hidden_size: width d of the hypernetwork.
        layers: of the hypernetwork (GHN-2 always has one).
        heads: attention heads of the hypernetwork; 0: 16 if the hidden size is above 64, else 8.
        decoder: full: of the hypernetwork's paper, which repeats blocks in layers that are wider
            than the hypernetwork; or low-rank: LoGAH's product of two factors.
        rank: of the low-rank decoder's factors.
        max_channels: of layers that the low-rank decoder predicts without repeating blocks: those
            of a ViT-L by default. The more, the fewer numbers a narrow layer is made of.
        meta_batch: architectures in a step, over all processes (m).
        batch_size: images that an architecture sees in a step (b).
        own_images: give every architecture of a step images of its own; otherwise all see the
            same, as in the papers. Most of a step's noise is that of its images.
        augment: crop: random crops, every other one mirrored; mirror: only that; or none.
        optimizer: adamw; or another of `timm.optim.list_optimizers()`, such as lamb, adam or sgd.
        lr: learning rate.
        weight_decay: of the optimizer.
        warmup: steps in which the learning rate rises linearly.
        cooldown: 0: the learning rate follows a cosine to 0. Otherwise it stays constant, and
            falls linearly to 0 in the last N steps; such a run can be made longer afterwards.
        parametrization: standard; or mup: learning rates and initial weights by fan-in (Yang et
            al., Tensor Programs V, Table 3).
        clip: largest norm of the gradient.
        network_clip: largest norm of the gradient by one network's parameters; 0: any. A network
            without normalization may otherwise outweigh all others in a step.
        gamma: weight of the norms of predicted tensors in the loss (GHN-3 paper, Eq. 10).
        label_smoothing: of the cross-entropy.
        teacher: a model by name, or path/to/file.py:factory, whose soft labels for the images are
            learned too; by default none. It takes the images as they are in a batch.
        teacher_weights: file of its state dict, of safetensors or of `torch.save`.
        teacher_share: of the soft labels in the loss; the rest is the labels'.
        temperature: by which logits are divided for the soft labels.
        dropout: between the linear layers of the target networks' classifiers.
        precision: of the computation; bf16 is autocast.
        widths: of the target networks.
        curriculum: steps in which the largest target networks grow from the smallest tenth to all.
        rare_share: chance of a target network to be of a rare kind: without normalization, or
            without global pooling.
        seed: of everything that is random.
        patience: steps in a row without a finite loss after which the run stops.
    """

    data: str
    steps: Count
    nets: str | None = None
    models: str | None = None
    max_model_params: Count = 30_000_000
    image_size: Annotated[int, Range(8)] = 32
    holdout: Whole = 0
    space: Annotated[str, OneOf(SPACES)] = "deepnets"
    share: Share = 0.5
    num_nets: Count | None = None
    start_from: str | None = None
    arch: Annotated[str, OneOf(ARCHITECTURES)] = "ghn3"
    hidden_size: Count = 64
    layers: Count = 3
    heads: Whole = 0
    decoder: Annotated[str, OneOf(DECODERS)] = "full"
    rank: Count = 32
    max_channels: Count = 4096
    meta_batch: Count = 8
    batch_size: Count = 64
    own_images: bool = False
    augment: Annotated[str, OneOf(AUGMENTATIONS)] = "crop"
    optimizer: str = "adamw"
    lr: Positive = 4e-4
    weight_decay: NotNegative = 1e-2
    warmup: Whole = 500
    cooldown: Whole = 0
    parametrization: Annotated[str, OneOf(PARAMETRIZATIONS)] = "standard"
    clip: Positive = 5.0
    network_clip: NotNegative = 0.0
    gamma: NotNegative = 3e-5
    label_smoothing: Share = 0.0
    teacher: str | None = None
    teacher_weights: str | None = None
    teacher_share: Share = 0.5
    temperature: Positive = 2.0
    dropout: Annotated[float, Range(0, 0.99)] = 0.5
    precision: Annotated[str, OneOf(PRECISIONS)] = "fp32"
    widths: Widths = field(default_factory=Widths)
    curriculum: Whole = 0
    rare_share: Share = 0.0
    seed: int = 0
    patience: Count = 20

    def __post_init__(self) -> None:
        """Raises `GHNInitError` for values that no run can have."""
        check(self)
        if self.nets is None and self.models is None:
            raise GHNInitError("there is nothing to train on: give --nets, --models, or both.")
        self.ghn(num_classes=2)  # which checks that its sizes go together
        if self.decoder == "low-rank" and self.parametrization == "mup":
            raise GHNInitError("parametrization is mup: the low-rank decoder has only standard.")
        if self.batch_size == 1 and self.image_size < _TINY:
            raise GHNInitError(
                f"batch_size is 1: batch normalization needs more of images below {_TINY} pixels."
            )

    def ghn(self, num_classes: int) -> GHNConfig:
        """The configuration of the hypernetwork: its decoder is as wide as the paper's."""
        gated, low_rank = self.arch == "ghn2", self.decoder == "low-rank"
        channels = self.max_channels if low_rank else self.hidden_size * (2 if gated else 1)
        kernel = 16 if self.image_size >= LARGE_IMAGES else 11
        heads = self.heads or (16 if self.hidden_size > _WIDE else 8)
        return GHNConfig(
            arch=self.arch,
            hidden_size=self.hidden_size,
            layers=1 if gated else self.layers,
            heads=heads if self.arch == "ghn3" else 1,
            max_shape=(channels, channels, kernel, kernel),
            num_classes=num_classes,
            rank=self.rank if low_rank else 0,
            rows=channels * kernel if low_rank else 0,
        )

    @property
    def images_per_step(self) -> int:
        """Of all architectures together."""
        return self.batch_size * (self.meta_batch if self.own_images else 1)

    def to_json(self) -> str:
        """As text, for the run's folder and the metadata of the result."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Schedule:
    """When a run saves and logs, and how it loads; none of it changes the result.

    Arguments:
        save_every: steps between two checkpoints.
        keep_every: steps between two hypernetworks that are kept beside the last one, as
            ghn-STEP.safetensors; 0: none is.
        log_every: steps between two lines of metrics.
        workers: processes that build networks ahead; 0: the training process itself.
        threads: of each process on the CPU, which may change the last digits; 0: as many as the
            run began with, and at first all cores, or one where that is faster now, measured. By
            default torch's own setting is left alone (on the command line: 0, unless the
            environment sets OMP_NUM_THREADS).
        profile: wait for the GPU after each part of a step, so that their shares are exact.
        quiet: show no progress bar.
    """

    save_every: Count = 250
    keep_every: Whole = 0
    log_every: Count = 10
    workers: Whole = 0
    threads: Whole | None = None
    profile: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        """Raises `GHNInitError` for values that no schedule can have."""
        check(self)


@dataclass(frozen=True)
class Evaluation:
    """How networks are evaluated.

    Arguments:
        batch_size: images that a batch normalization takes its statistics from.
        precision: of the computation; bf16 is autocast.
        control: also evaluate the networks randomly initialized, on the first N batches; 0: do
            not.
        seed: of the random initializations.
        quiet: show no progress bar.
    """

    batch_size: Count = 64
    precision: Annotated[str, OneOf(PRECISIONS)] = "fp32"
    control: Whole = 16
    seed: int = 0
    quiet: bool = False

    def __post_init__(self) -> None:
        """Raises `GHNInitError` for values that no evaluation can have."""
        check(self)


def from_json(text: str) -> TrainConfig:
    """The configuration that `to_json` wrote.

    Raises:
        GHNInitError: it is something else.
    """
    try:
        values: Mapping[str, Any] = json.loads(text)
        drawn = values["widths"]
        widths = Widths(tuple(drawn["channels"]), tuple(drawn["fc_dims"]), drawn["max_params"])
        return TrainConfig(**{**values, "widths": widths})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GHNInitError(f"not the configuration of a training run: {error}.") from error


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Names of the fields in which two runs differ."""
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    return [name for name in names if getattr(old, name) != getattr(new, name)]
