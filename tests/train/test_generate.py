"""The generator: its space, its splits, its files."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from ghn_init import GHNInitError
from ghn_init.files import locked
from ghn_init.train.networks import generate
from ghn_init.train.networks.generate import SPLITS, make_nets, sample, splits_of
from ghn_init.train.networks.genotypes import to_json
from ghn_init.train.networks.nets import load_nets
from ghn_init.train.networks.network import Network

COUNT = 40


@pytest.mark.parametrize("split", SPLITS)
def test_architectures_keep_to_the_rules_of_their_split(split: str) -> None:
    rules = SPLITS[split]
    for index in range(COUNT):
        a = sample(split, index)
        states = len(a.normal.edges) // 2
        assert rules.cells[0] <= a.n_cells <= rules.cells[1]
        assert rules.min_states <= states <= max(rules.states)
        assert max(a.num_params.values()) <= rules.max_params
        assert a.channels == 32 * rules.widen[0]
        assert rules.norm or not a.norm
        assert a.count("none") == 0 or states > 1
        assert a.num_nodes == len(Network(a).graph)


def test_networks_for_a_search_are_read_from_both_kinds_of_files(tmp_path: Path) -> None:
    """As the generator of DeepNets-1M draws them: larger, all with batch normalization."""
    nets = [sample("search", i) for i in range(COUNT)]
    assert all(net.norm for net in nets)
    assert max(net.n_cells for net in nets) > 18
    meta = {"search": {"nets": [to_json(net) for net in nets], "meta": {}}}
    (tmp_path / "deepnets1m_search_meta.json").write_text(json.dumps(meta))
    assert load_nets(tmp_path, "search") == nets
    make_nets("search", 3, tmp_path, workers=1)
    assert load_nets(tmp_path, "search") == nets[:3]
    assert "search" not in splits_of("deepnets", "eval")


def test_deep_and_dense_networks_are_larger_than_those_in_distribution() -> None:
    def mean_nodes(split: str) -> float:
        return sum(sample(split, i).num_nodes or 0 for i in range(COUNT)) / COUNT

    assert mean_nodes("deep") > 1.5 * mean_nodes("test")
    assert mean_nodes("dense") > 1.3 * mean_nodes("test")


def test_wide_networks_are_the_test_networks_with_more_channels() -> None:
    wide, test = sample("wide", 3), sample("test", 3)
    assert wide.resized(32) == test.resized(32)
    assert wide.channels == 4 * test.channels


def test_training_and_evaluation_never_share_an_architecture() -> None:
    def keys(split: str) -> set[str]:
        return {json.dumps(to_json(sample(split, i).resized(1))) for i in range(3 * COUNT)}

    assert not keys("train") & (keys("test") | keys("val"))
    assert not keys("test") & keys("val")


def test_seeds_differ_and_repeat() -> None:
    assert sample("train", 0, 1) == sample("train", 0, 1) != sample("train", 0, 2)


def test_files_go_on_where_they_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "_CHUNK", 4)
    whole = make_nets("train", 20, tmp_path / "whole", seed=5, workers=1).read_bytes()
    cut = make_nets("train", 7, tmp_path / "cut", seed=5, workers=1)
    with open(cut, "ab") as file:
        file.write(b'{"genotype": {"norm')  # as a kill leaves it
    assert len(load_nets(tmp_path / "cut", "train")) == 7
    assert make_nets("train", 20, tmp_path / "cut", seed=5, workers=2).read_bytes() == whole


def test_files_of_another_seed_or_split_are_not_continued(tmp_path: Path) -> None:
    path = make_nets("train", 2, tmp_path, seed=1, workers=1)
    with pytest.raises(GHNInitError, match="--seed 1"):
        make_nets("train", 4, tmp_path, seed=2, workers=1)
    path.rename(tmp_path / "test.jsonl")
    with pytest.raises(GHNInitError, match="'train', not 'test'"):
        load_nets(tmp_path, "test")


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(GHNInitError, match="make-nets --split deep"):
        load_nets(tmp_path, "deep")
    (tmp_path / "deep.jsonl").write_text("something else\n")
    with pytest.raises(GHNInitError, match="no file of architectures"):
        load_nets(tmp_path, "deep")
    path = make_nets("test", 2, tmp_path, workers=1)
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(GHNInitError, match="line 4"):
        load_nets(tmp_path, "test")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(GHNInitError, match="only 2"):
        load_nets(tmp_path, "test", 3)
    with pytest.raises(GHNInitError, match="unknown split"):
        make_nets("nonsense", 1, tmp_path)
    for count in (0, -1):
        with pytest.raises(GHNInitError, match="give 1 or more"):
            load_nets(tmp_path, "test", count)
        with pytest.raises(GHNInitError, match="give 1 or more"):
            make_nets("test", count, tmp_path)


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(GHNInitError, match="another process writes"):
        make_nets("test", 2, tmp_path)
    make_nets("test", 2, tmp_path, workers=1)


def test_ten_networks_a_second_are_few(tmp_path: Path) -> None:
    """The published generator makes one a second; graphs are built too."""
    start = time.process_time()
    for index in range(COUNT):
        Network(sample("train", index)).graph  # noqa: B018
    assert COUNT / (time.process_time() - start) > 20
