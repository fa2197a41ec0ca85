"""Members of real families as target networks, built by timm and torchvision.

A member is stored as its family's name and arguments (`ZooNet`), and computed as a `BuiltNetwork`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ghn_init.errors import GHNInitError
from ghn_init.seeds import seed_of
from ghn_init.train.networks.built import BuiltNetwork
from ghn_init.train.networks.zoo_families import FAMILIES, HELD_OUT, VITS
from ghn_init.train.networks.zoo_families import TRAINED as TRAINED_FAMILIES
from ghn_init.train.networks.zoo_sizes import MODERATE, TRAINED, UNSEEN, Sizes

IMAGE_SIZE = 32
"""Height and width of the images that all members are built for."""


@dataclass(frozen=True)
class ZooNet:
    """A member of a real family.

    Arguments:
        family: a name of `FAMILIES`.
        args: of the family's builder.
        num_nodes: nodes of its graph, where recorded.
        num_params: its parameters, where recorded.
        macs: its multiplications for one image, where recorded.
    """

    family: str
    args: Mapping[str, Any]
    num_nodes: int | None = field(default=None, compare=False)
    num_params: int | None = field(default=None, compare=False)
    macs: float | None = field(default=None, compare=False)

    def build(
        self, num_classes: int = 10, seed: int = 0, *, image_size: int = IMAGE_SIZE
    ) -> nn.Module:
        """The module, with the library's own initialization; the global RNG is left alone.

        Arguments:
            num_classes: outputs.
            seed: of the initialization.
            image_size: must be 32.

        Raises:
            GHNInitError: there is no such family, it has no such member, or images have another
                size.
        """
        if image_size != IMAGE_SIZE:
            raise GHNInitError(
                f"networks of the zoo are built for images of {IMAGE_SIZE}x{IMAGE_SIZE}, not "
                f"{image_size}x{image_size}."
            )
        if self.family not in FAMILIES:
            raise GHNInitError(f"unknown family {self.family!r}: {', '.join(FAMILIES)}.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "zoo", self.family))
            try:
                return FAMILIES[self.family].build(num_classes, **self.args)
            except Exception as error:  # whatever the library raises
                raise GHNInitError(
                    f"cannot build a {self.family} of {dict(self.args)} "
                    f"({type(error).__name__}: {error})."
                ) from error


def zoo_from_json(entry: Mapping[str, Any]) -> ZooNet:
    """The member that `zoo_to_json` wrote.

    Raises:
        GHNInitError: it is something else.
    """
    try:
        counts = entry["num_nodes"], entry["num_params"], entry.get("macs")
        return ZooNet(str(entry["family"]), dict(entry["args"]), *counts)
    except (KeyError, TypeError, ValueError) as error:
        raise GHNInitError(
            f"not a network of the zoo ({type(error).__name__}: {error})."
        ) from error


def zoo_to_json(net: ZooNet) -> dict[str, Any]:
    """A line of a file of networks."""
    return {**vars(net), "args": dict(net.args)}


# -- the draw


@dataclass(frozen=True)
class ZooSplit:
    """Which networks a split draws from.

    Arguments:
        families: names; one is drawn for each network, all equally likely.
        sizes: of the networks.
        side: on a fixed sixteenth of all networks 0 or 1, on the others 2.
    """

    families: tuple[str, ...]
    sizes: Sizes
    side: int


ZOO_SPLITS = {
    "zoo-train": ZooSplit(tuple(TRAINED_FAMILIES), TRAINED, 2),
    "zoo-val": ZooSplit(tuple(TRAINED_FAMILIES), TRAINED, 0),
    "zoo-test": ZooSplit(tuple(TRAINED_FAMILIES), TRAINED, 1),
    "zoo-sizes": ZooSplit(tuple(TRAINED_FAMILIES), UNSEEN, 1),
    "zoo-heldout": ZooSplit(tuple(HELD_OUT), TRAINED, 1),
    "vits-train": ZooSplit(tuple(VITS), MODERATE, 2),
    "vits-val": ZooSplit(tuple(VITS), MODERATE, 0),
    "vits-test": ZooSplit(tuple(VITS), MODERATE, 1),
}
"""Training; unseen members for choosing and for the end; unseen sizes; unseen families. Of the zoo,
and of the ViTs of LoGAH."""


def sample_zoo(split: str, index: int, seed: int = 0) -> ZooNet:
    """The network number `index` of a split, a function of the seed, the split and the number.

    Families take turns.
    """
    rules = ZOO_SPLITS[split]
    family = rules.families[index % len(rules.families)]
    rng = random.Random(f"{seed} {split} {index}")
    while True:
        net = ZooNet(family, FAMILIES[family].draw(rng, rules.sizes))
        if _side(net) == rules.side:
            recorded = _record(net, rules.sizes)
            if recorded is not None:
                return recorded


def _side(net: ZooNet) -> int:
    text = json.dumps([net.family, dict(net.args)], sort_keys=True)
    return min(2, hashlib.sha256(text.encode()).digest()[0] % 32)


def _record(net: ZooNet, sizes: Sizes) -> ZooNet | None:
    """With its number of nodes and parameters; None if it is too large."""
    network = BuiltNetwork(net)
    macs = _macs(network)
    if network.num_params > sizes.max_params or macs > sizes.max_macs:
        return None
    return replace(net, num_nodes=len(network.graph), num_params=network.num_params, macs=macs)


def _macs(network: BuiltNetwork) -> float:
    """Multiplications for one image."""
    module = network._module.to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.empty(2, 3, IMAGE_SIZE, IMAGE_SIZE, device="meta"))
    total: int = counter.get_total_flops()
    return total / 2 / 2  # a multiplication and an addition count two; of two images
