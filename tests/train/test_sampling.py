"""The sampling of architectures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ghn_init.train.networks.generate import sample
from ghn_init.train.networks.network import Network
from ghn_init.train.networks.zoo import sample_zoo
from ghn_init.train.sampling import MetaBatches, Widths, balance


def test_shares_are_balanced() -> None:
    costs = [100, 10, 90, 20, 50, 60, 40, 30]
    shares = balance(costs, 4)
    assert sorted(i for share in shares for i in share) == list(range(8))
    totals = [sum(costs[i] for i in share) for share in shares]
    assert max(totals) - min(totals) <= 20
    assert [len(share) for share in balance([0, 0, 7, 0], 4)] == [1, 1, 1, 1]
    assert balance([9, 2, 3, 3], 2) == [[0], [1, 2, 3]]


@pytest.mark.parametrize("index", range(6))
def test_multiplications_are_those_of_the_forward_pass(index: int) -> None:
    net = sample("train", index)
    network = Network(net.resized(32), 10, 32)
    params = {n: torch.empty(s, device="meta") for n, s in network.shapes.items()}
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(2, 3, 32, 32, device="meta"), params)
    found = counter.get_total_flops() / 4  # a multiplication and an addition, of two images
    assert network.macs == pytest.approx(found, rel=0.1)  # sizes are rounded up


def test_what_takes_longer_costs_more() -> None:
    nets = [sample("train", 2), sample_zoo("zoo-train", 3)]
    batches = MetaBatches(nets, 8, Widths(), 0, 10, 32, share=0.5)
    cells = batches._deepnets[0]
    assert batches.cost(cells.resized(128)) > 3 * batches.cost(cells.resized(32))
    assert nets[1].macs > 1e6
    assert batches.cost(nets[1]) > batches.cost(replace(nets[1], macs=0.0)) > 0
    assert batches.cost(replace(nets[1], macs=None)) > 0  # made by an earlier version
    ranks = [replace(batches, rank=rank, world_size=3) for rank in range(3)]
    for step in range(5):
        drawn = batches.architectures(step)
        shares = [rank._mine(drawn) for rank in ranks]
        assert all(shares)
        assert sorted(place for share in shares for place in share) == list(range(8))
        totals = [sum(batches.cost(drawn[place]) for place in share) for share in shares]
        assert max(totals) - min(totals) <= max(map(batches.cost, drawn))


def test_meta_batches_cover_all_architectures_with_the_widths_asked_for() -> None:
    nets = [sample("train", i) for i in range(6)]
    widths = Widths((16, 48), (64,), 500_000)
    whole = MetaBatches(nets, 2, widths, 0, 10, 32)
    drawn = [a for step in range(3) for a in whole.architectures(step)]
    assert {a.resized(1) for a in drawn} == {a.resized(1, 64) for a in nets}
    for a in drawn:
        allowed = widths.allowed(next(n for n in nets if n.resized(1, 64) == a.resized(1)))
        assert a.channels in allowed
    halves = [MetaBatches(nets, 2, widths, 0, 10, 32, rank=r, world_size=2)[1] for r in (0, 1)]
    assert sorted(place for half in halves for place, _ in half) == [0, 1]
    assert whole[1][0][1].graph.nodes in [half[0][1].graph.nodes for half in halves]


def test_a_curriculum_begins_with_small_networks() -> None:
    nets = [sample("train", i) for i in range(30)]
    batches = MetaBatches(nets, 4, Widths((16,)), 0, 10, 32, curriculum=100)
    sizes = sorted(net.num_nodes or 0 for net in nets)
    assert all((a.num_nodes or 0) <= sizes[2] for a in batches.architectures(0))
    late = [a.num_nodes or 0 for s in range(90, 100) for a in batches.architectures(s)]
    assert max(late) > sizes[15]


def test_rare_networks_can_be_drawn_more_often() -> None:
    nets = [sample("train", i) for i in range(300)]
    rare = [not net.norm or not net.glob_avg for net in nets]
    assert 0 < sum(rare) < 40
    batches = MetaBatches(nets, 4, Widths((16,)), 0, 10, 32, curriculum=100, rare_share=0.5)
    drawn = [net for step in range(200) for net in batches.architectures(step)]
    assert 0.2 < sum(not net.norm for net in drawn) / len(drawn) < 0.35
    assert 0.2 < sum(not net.glob_avg for net in drawn) / len(drawn) < 0.35
    common = [net for net, is_rare in zip(nets, rare, strict=True) if not is_rare]
    batches = MetaBatches(common, 4, Widths((16,)), 0, 10, 32, rare_share=1.0)
    assert len(batches.architectures(0)) == 4
