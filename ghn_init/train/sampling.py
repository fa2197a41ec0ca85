"""Which architectures a step trains on, how wide they are, and which process takes which."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ghn_init.seeds import python_generator, torch_generator
from ghn_init.train.config import Widths
from ghn_init.train.networks.genotypes import Architecture
from ghn_init.train.networks.library import LibraryNet
from ghn_init.train.networks.nets import Net, TargetNetwork, build_network
from ghn_init.train.networks.network import Network
from ghn_init.train.networks.zoo import ZooNet

_NODE = 2e5
"""What a node adds to the time of a network's step, in multiplications for an image: fitted to
times of 80 networks, with GHN-3-T and 64 images (`examples/benchmarks/network_costs.py`)."""

_FIRST_SHARE = 0.1
"""Share of the architectures that a curriculum starts with."""


@dataclass(frozen=True)
class MetaBatches(Dataset[list[tuple[int, TargetNetwork]]]):
    """The target networks of every step, of one process: `self[step]`.

    Every architecture comes once in an epoch of architectures; widths are drawn anew each time.

    Arguments:
        nets: all architectures.
        size: meta-batch size m, over all processes.
        widths: see there.
        seed: of the run.
        num_classes, image_size, dropout: see `Network`.
        rank, world_size: number of this process, and of all.
        curriculum: steps in which the largest architecture that is drawn grows from those of the
            smallest tenth to all; small networks are cheap, and are learned fast. Networks without
            normalization, which are small and hard to learn, come last.
        rare_share: chance of each network to be one of a rare kind: without normalization, or
            without global pooling, which are one in thirty and one in fifty.
        share: chance of each network to be one of the zoo or a model of a library, where there are
            others too; where there are both of these, each is as likely as the other.
    """

    nets: Sequence[Net]
    size: int
    widths: Widths
    seed: int
    num_classes: int
    image_size: int
    dropout: float = 0.0
    rank: int = 0
    world_size: int = 1
    curriculum: int = 0
    rare_share: float = 0.0
    share: float = 0.5

    def __getitem__(self, step: int) -> list[tuple[int, TargetNetwork]]:
        """The networks of this process, each with its place in the meta-batch."""
        drawn = self.architectures(step)
        return [(place, self._build(drawn[place])) for place in self._mine(drawn)]

    def images(self, step: int, batch_size: int) -> Tensor:
        """Which images of a step this process's networks see, where each has its own.

        Arguments:
            step: its number.
            batch_size: images of a network: that in place k sees the k-th so many.

        Returns: `(networks * batch_size,)`, in the order of the networks.
        """
        mine = torch.tensor(self._mine(self.architectures(step)))
        return (mine[:, None] * batch_size + torch.arange(batch_size)).flatten()

    def _mine(self, drawn: Sequence[Net]) -> list[int]:
        """Places in a meta-batch of this process's networks, ascending."""
        if self.world_size == 1:
            return list(range(len(drawn)))
        return balance([self.cost(net) for net in drawn], self.world_size)[self.rank]

    def cost(self, net: Net) -> float:
        """The time of a network's step, in units that only networks are compared by.

        A function of the network alone, so that all processes share out a meta-batch alike.
        """
        nodes = _size(net)
        if isinstance(net, Architecture):
            return nodes * _NODE + Network(net, self.num_classes, self.image_size).macs
        # A node of the zoo has about so many multiplications, where they have not been counted.
        return nodes * _NODE + (nodes * _NODE if net.macs is None else net.macs)

    def architectures(self, step: int) -> list[Net]:
        """The meta-batch of a step, with widths drawn."""
        rng = python_generator(self.seed, "widths", step)
        drawn: list[Net] = []
        for place in range(step * self.size, (step + 1) * self.size):
            if self._real and (not self._deepnets or rng.random() < self.share):
                kind = self._real[0] if len(self._real) == 1 else rng.choice(self._real)
                drawn.append(rng.choice(kind))
                continue
            net = self._next(step, place, rng)
            channels = rng.choice(self.widths.allowed(net))
            drawn.append(net.resized(channels, rng.choice(self.widths.fc_dims)))
        return drawn

    def _next(self, step: int, place: int, rng: random.Random) -> Architecture:
        """The architecture of DeepNets-1M of a place in the sequence of all steps."""
        if self.rare_share and self._rare and rng.random() < self.rare_share:
            return rng.choice(rng.choice(self._rare))
        if step < self.curriculum:
            share = _FIRST_SHARE + (1 - _FIRST_SHARE) * step / self.curriculum
            return self._by_size[rng.randrange(max(1, int(share * len(self._deepnets))))]
        epoch, index = divmod(place, len(self._deepnets))
        return self._deepnets[_order(len(self._deepnets), self.seed, epoch)[index]]

    @cached_property
    def _deepnets(self) -> list[Architecture]:
        return [net for net in self.nets if isinstance(net, Architecture)]

    @cached_property
    def _real(self) -> list[list[Net]]:
        """Networks of the zoo, models of libraries: the kinds of which there are any."""
        zoo: list[Net] = [net for net in self.nets if isinstance(net, ZooNet)]
        models: list[Net] = [net for net in self.nets if isinstance(net, LibraryNet)]
        return [kind for kind in (zoo, models) if kind]

    @cached_property
    def _rare(self) -> list[list[Architecture]]:
        """The rare kinds of which there are any."""
        nets = self._deepnets
        kinds = [net for net in nets if not net.norm], [net for net in nets if not net.glob_avg]
        return [kind for kind in kinds if kind]

    @cached_property
    def _by_size(self) -> list[Architecture]:
        return sorted(self._deepnets, key=lambda net: (not net.norm, _size(net)))

    def _build(self, net: Net) -> TargetNetwork:
        network = build_network(net, self.num_classes, self.image_size, self.dropout)
        _ = network.graph.distances  # computed here, so that a worker does it
        return network


def balance(costs: Sequence[float], groups: int) -> list[list[int]]:
    """Divides items among groups, so that total costs are similar.

    The largest item first, each to the group with the smallest total. No group is left without an
    item if there are enough.

    Returns: for each group, the indices of its items, ascending.
    """
    shares: list[list[int]] = [[] for _ in range(groups)]
    totals = [0.0] * groups
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        group = min(range(groups), key=lambda g: (totals[g], len(shares[g])))
        shares[group].append(item)
        totals[group] += costs[item]
    return [sorted(share) for share in shares]


def _size(net: Net) -> int:
    return net.num_nodes or (net.n_cells if isinstance(net, Architecture) else 0)


_orders: dict[tuple[int, int, int], list[int]] = {}


def _order(count: int, seed: int, epoch: int) -> list[int]:
    """A permutation of the architectures; the last two are remembered."""
    key = (count, seed, epoch)
    if key not in _orders:
        while len(_orders) > 1:
            _orders.pop(next(iter(_orders)))
        generator = torch_generator(seed, "architectures", epoch)
        _orders[key] = torch.randperm(count, generator=generator).tolist()
    return _orders[key]
