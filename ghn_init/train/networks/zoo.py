"""Members of real families as target networks: built by timm and torchvision, run functionally.

A member is stored as its family's name and arguments (`ZooNet`). `ZooNetwork` builds it, traces
it to its graph, and computes it with predicted parameters: gradients flow to those. What the graph
leaves (class tokens, layer scale, tables of relative positions) stays as the library's
initialization, seeded, has made it.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from ghn_init.errors import GHNInitError
from ghn_init.graph.graph import Graph
from ghn_init.graph.tracing import trace
from ghn_init.seeds import seed_of
from ghn_init.train.networks.depthwise import depthwise_conv
from ghn_init.train.networks.zoo_families import FAMILIES, HELD_OUT
from ghn_init.train.networks.zoo_families import TRAINED as TRAINED_FAMILIES
from ghn_init.train.networks.zoo_sizes import TRAINED, UNSEEN, Sizes

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
    """

    family: str
    args: Mapping[str, Any]
    num_nodes: int | None = field(default=None, compare=False)
    num_params: int | None = field(default=None, compare=False)

    def build(self, num_classes: int = 10, seed: int = 0) -> nn.Module:
        """The module, with the library's own initialization; the global RNG is left alone.

        Arguments:
            num_classes: outputs.
            seed: of the initialization.

        Raises:
            GHNInitError: there is no such family, or it has no such member.
        """
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
        return ZooNet(
            str(entry["family"]), dict(entry["args"]), entry["num_nodes"], entry["num_params"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise GHNInitError(
            f"not a network of the zoo ({type(error).__name__}: {error})."
        ) from error


def zoo_to_json(net: ZooNet) -> dict[str, Any]:
    """A line of a file of networks."""
    return {**vars(net), "args": dict(net.args)}


class ZooNetwork:
    """A member as a target network: its graph, and a function of the parameters in it.

    Batch normalization takes the statistics of the batch, and nothing is dropped.

    Arguments:
        net: what to build.
        num_classes: outputs.
        image_size: must be 32.

    Raises:
        GHNInitError: the member cannot be built, or images have another size.
    """

    def __init__(self, net: ZooNet, num_classes: int = 10, image_size: int = IMAGE_SIZE) -> None:
        if image_size != IMAGE_SIZE:
            raise GHNInitError(
                f"networks of the zoo are built for images of {IMAGE_SIZE}x{IMAGE_SIZE}, not "
                f"{image_size}x{image_size}."
            )
        self.net, self.num_classes, self.image_size = net, num_classes, image_size
        self._module = _prepared(net.build(num_classes))

    @property
    def num_params(self) -> int:
        """Scalars in all parameters."""
        return sum(p.numel() for p in self._module.parameters())

    @cached_property
    def graph(self) -> Graph:
        """What the hypernetwork reads."""
        return trace(self._module, torch.empty(2, 3, IMAGE_SIZE, IMAGE_SIZE, device="meta"))

    def __call__(self, images: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """Forward pass.

        Arguments:
            images: `(B, 3, 32, 32)`.
            params: the parameters that the graph carries, by name.

        Returns: logits, `(B, num_classes)`.
        """
        if next(self._module.parameters()).device != images.device:
            self._module.to(images.device)
        # Of the vectors predicted in bfloat16, norms take none: they come as float32.
        given = {name: p.float() if p.dim() == 1 else p for name, p in params.items()}
        logits: Tensor = functional_call(self._module, given, (images,))
        return logits

    def random_params(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The library's own initialization of the parameters that the graph carries."""
        seed = int(torch.randint(2**31, (), generator=generator))
        own = dict(self.net.build(self.num_classes, seed).named_parameters())
        return {n: p.detach() for n, p in own.items() if n not in self.graph.left}


def _prepared(module: nn.Module) -> nn.Module:
    """A module to be computed with other parameters than its own."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):  # without running statistics it takes the batch's
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
        elif type(part) is nn.Conv2d and _is_depthwise(part):
            part.forward = partial(_depthwise, part)  # type: ignore[method-assign]
        elif getattr(part, "fused_attn", False):  # its backward pass is slow on CPUs in bfloat16
            part.fused_attn = False  # type: ignore[assignment]
    return module.requires_grad_(False).eval()


def _is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether `depthwise_conv` computes it."""
    height, width = conv.kernel_size
    same = conv.padding == ((height - 1) // 2, (width - 1) // 2)
    square = height == width and height % 2 == 1 and conv.dilation == (1, 1)
    one_stride = conv.stride[0] == conv.stride[1]
    one_kernel_each = conv.groups == conv.in_channels == conv.out_channels > 1
    return same and square and one_stride and one_kernel_each


def _depthwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    if x.is_meta:
        return nn.Conv2d.forward(conv, x)
    out = depthwise_conv(x, conv.weight, conv.stride[0], 1)
    return out if conv.bias is None else out + conv.bias.to(out.dtype)[:, None, None]


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
}
"""Training; unseen members for choosing and for the end; unseen sizes; unseen families."""


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
    network = ZooNetwork(net)
    if network.num_params > sizes.max_params or _macs(network) > sizes.max_macs:
        return None
    return replace(net, num_nodes=len(network.graph), num_params=network.num_params)


def _macs(network: ZooNetwork) -> float:
    """Multiplications for one image."""
    module = network._module.to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.empty(2, 3, IMAGE_SIZE, IMAGE_SIZE, device="meta"))
    total: int = counter.get_total_flops()
    return total / 2 / 2  # a multiplication and an addition count two; of two images
