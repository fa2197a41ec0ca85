"""Models of timm and torchvision as target networks: `--models timm:resnet*,regnet*`.

They are built for the images and classes of the run, each once in a process. Of a network that is
kept, only its graph and what is not predicted take memory, so that a run may have hundreds.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ghn_init.errors import GHNInitError
from ghn_init.graph.isolation import isolated_rng
from ghn_init.models import model_builder, model_names
from ghn_init.progress import Progress
from ghn_init.seeds import torch_generator
from ghn_init.train.config import TrainConfig
from ghn_init.train.distributed import World
from ghn_init.train.networks.built import BuiltNetwork

_SHOWN = 20
"""Models that are left out, of which the reason is told."""


@dataclass(frozen=True)
class LibraryNet:
    """A model of a library.

    Arguments:
        library: timm or torchvision.
        name: of the model.
        num_nodes: nodes of its graph, where recorded.
        num_params: its parameters, where recorded.
        macs: its multiplications for one image, where recorded.
    """

    library: str
    name: str
    num_nodes: int | None = field(default=None, compare=False)
    num_params: int | None = field(default=None, compare=False)
    macs: float | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.library}:{self.name}"

    def build(self, num_classes: int = 10, seed: int = 0, *, image_size: int = 32) -> nn.Module:
        """The module, with the library's own initialization; the global RNG is left alone.

        Arguments:
            num_classes: outputs.
            seed: of the initialization.
            image_size: of the images, where the model takes it.

        Raises:
            GHNInitError: there is no such model, or it cannot be built so.
        """
        return model_builder(self.name, self.library, num_classes, seed, image_size=image_size)[0]()


class KeptNetwork(BuiltNetwork):
    """A network that comes from another process as its name."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return kept, (self.net, self.num_classes, self.image_size)


@functools.cache
def kept(net: LibraryNet, num_classes: int, image_size: int) -> BuiltNetwork:
    """The network of a model; a process builds it once.

    Arguments:
        net: the model.
        num_classes, image_size: see `BuiltNetwork`.

    Raises:
        GHNInitError: it cannot be built or traced.
    """
    network = KeptNetwork(net, num_classes, image_size)
    network.forget()
    return network


def find_models(patterns: str) -> list[LibraryNet]:
    """The models that are asked for, each once, in the order of the patterns.

    Arguments:
        patterns: `library:pattern,pattern,library:pattern`, as in shells.

    Raises:
        GHNInitError: a pattern has no library, or matches none of its models.
    """
    found: dict[LibraryNet, None] = {}
    library = ""
    for part in patterns.split(","):
        before, colon, pattern = part.strip().rpartition(":")
        library = before if colon else library
        if not library or not pattern:
            raise GHNInitError(
                f"models is {patterns!r}: give a library and names, as in timm:resnet*,regnet*."
            )
        names = model_names(library)
        matching = fnmatch.filter(names, pattern)
        if not matching:
            close = difflib.get_close_matches(pattern, names, n=3)
            hint = f" Did you mean {', '.join(close)}?" if close else ""
            raise GHNInitError(f"models: {library} has no model {pattern!r}.{hint}")
        found |= dict.fromkeys(LibraryNet(library, name) for name in matching)
    return list(found)


def load_models(
    config: TrainConfig, num_classes: int, world: World, quiet: bool = False
) -> list[LibraryNet]:
    """The models of a run that can serve; a line on stderr says why another is left out.

    Each process tries its share of them, and all get the same list.

    Arguments:
        config: of the run, which names the models.
        num_classes: of the images.
        world: the processes.
        quiet: show no progress bar, and no lines.

    Raises:
        GHNInitError: they cannot be found, or none can serve.
    """
    named = find_models(config.models or "")
    mine = named[world.rank :: world.size]
    tried: dict[LibraryNet, LibraryNet | str] = {}
    with Progress(len(mine), "model", silent=quiet) as progress:
        for net in mine:
            try:
                tried[net] = _tried(net, config, num_classes)
            except Exception as error:  # whatever a library raises
                text = (str(error).splitlines() or [type(error).__name__])[0]
                tried[net] = f"{text:.200}"
            progress.step()
    for others in world.gather(tried):
        tried |= others
    refused = [f"{net}: {tried[net]}" for net in named if isinstance(tried[net], str)]
    if len(refused) == len(named):
        raise GHNInitError(f"none of the {len(named)} models can serve. {refused[0]}")
    for line in refused[:_SHOWN] if not quiet else ():
        print(f"left out: {line}", file=sys.stderr)
    if not quiet:
        more = f", {len(refused) - _SHOWN} more left out" if len(refused) > _SHOWN else ""
        print(f"{len(named) - len(refused)} of {len(named)} models{more}", file=sys.stderr)
    return [found for net in named if isinstance(found := tried[net], LibraryNet)]


def _tried(net: LibraryNet, config: TrainConfig, num_classes: int) -> LibraryNet:
    """With its nodes, parameters and multiplications; an error says why it cannot serve."""
    count = _parameters(net, num_classes, config.image_size)
    if count > config.max_model_params:
        raise GHNInitError(
            f"{count:,} parameters; --max-model-params is {config.max_model_params:,}."
        )
    network = kept(net, num_classes, config.image_size)
    with isolated_rng():
        macs = _train_once(network, config)
    return replace(net, num_nodes=len(network.graph), num_params=count, macs=macs)


def _parameters(net: LibraryNet, num_classes: int, image_size: int) -> int:
    """How many there are, without memory for them where the model can be built so."""
    try:
        with torch.device("meta"):
            module = net.build(num_classes, image_size=image_size)
    except GHNInitError:  # perhaps it needs numbers
        module = net.build(num_classes, image_size=image_size)
    return sum(p.numel() for p in module.parameters())


def _train_once(network: BuiltNetwork, config: TrainConfig) -> float:
    """A step of training with the model's own initialization; an error says what is wrong.

    Returns: the multiplications of the forward pass for one image.
    """
    generator, size = torch_generator(config.seed, "models"), network.image_size
    params = {n: p.requires_grad_() for n, p in network.random_params(generator).items()}
    if not params:
        raise GHNInitError("nothing in it can be predicted.")
    count = min(2, config.batch_size)
    images = torch.randn(count, 3, size, size, generator=generator)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16")
    with autocast, FlopCounterMode(display=False) as counter:
        logits = network(images, params)
    if not isinstance(logits, Tensor) or logits.shape != (count, network.num_classes):
        raise GHNInitError("it is no classifier: it does not give a number for each class.")
    loss = F.cross_entropy(logits.float(), torch.zeros(count, dtype=torch.long))
    loss.backward()
    if not torch.isfinite(loss):
        raise GHNInitError("its loss is not finite.")
    total: int = counter.get_total_flops()
    return total / 2 / count  # a multiplication and an addition count two
