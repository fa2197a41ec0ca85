"""The sampling of architectures."""

from __future__ import annotations

from ghn_init.train.networks.generate import sample
from ghn_init.train.sampling import MetaBatches, Widths, balance


def test_shares_are_balanced() -> None:
    costs = [100, 10, 90, 20, 50, 60, 40, 30]
    shares = balance(costs, 4)
    assert sorted(i for share in shares for i in share) == list(range(8))
    assert {len(share) for share in shares} == {2}
    totals = [sum(costs[i] for i in share) for share in shares]
    assert max(totals) - min(totals) <= 20


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
