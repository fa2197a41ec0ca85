"""Many processes: gradients equal one process's for any split, and any rank may be killed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from runs import ALONE, ENVIRONMENT, command, metrics, ranks_of
from torch import Tensor

from ghn_init.images import Batch, load_images
from ghn_init.train.config import TrainConfig
from ghn_init.train.distributed import World, unused
from ghn_init.train.init import initialize
from ghn_init.train.networks.nets import load_nets
from ghn_init.train.parallel import predictor
from ghn_init.train.sampling import MetaBatches
from ghn_init.train.step import Timer, gradients

MakeConfig = Callable[..., TrainConfig]


def gradient_of_two_steps(config: TrainConfig, world: World) -> dict[str, Tensor]:
    """Of the second of two steps, whose networks need other parts of the hypernetwork.

    In float64: what is decoded together is rounded together, and in float32 that may turn a ReLU.
    """
    nets = load_nets(Path(config.nets), "train")
    sampled = MetaBatches(
        nets, config.meta_batch, config.widths, 0, 2, 32, rank=world.rank, world_size=world.size
    )
    batches = load_images(config.data).train_batches(
        config.images_per_step, 0, 0, 2, places=lambda step: sampled.images(step, config.batch_size)
    )
    ghn = initialize(config, 2).double()
    predict = predictor(ghn, world)
    for step, (images, labels) in enumerate(batches):
        batch = Batch(images.double(), labels)
        ghn.zero_grad()
        timer = Timer(world.device)
        with mock.patch.object(Tensor, "float", lambda tensor: tensor):  # nothing is rounded down
            gradients(ghn, sampled[step], batch, config, step, timer, predict=predict)
    return {name: p.grad for name, p in ghn.named_parameters() if p.grad is not None}


def one_of(rank: int, size: int, config: TrainConfig, folder: Path) -> None:
    torch.set_num_threads(1)
    file = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=file, rank=rank, world_size=size)
    found = gradient_of_two_steps(config, World(rank, size, torch.device("cpu")))
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("size", "meta_batch"), [(2, 3), pytest.param(4, 5, marks=pytest.mark.slow)]
)
def test_gradients_equal_those_of_one_process(
    config: MakeConfig, tmp_path: Path, size: int, meta_batch: int
) -> None:
    """Shares are of one network and of two, and need different parts of the hypernetwork."""
    run = config(dropout=0.0, meta_batch=meta_batch, own_images=True, network_clip=1.0)
    expected = gradient_of_two_steps(run, ALONE)
    mp.spawn(one_of, (size, run, tmp_path), nprocs=size)
    for rank in range(size):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() >= expected.keys()
        for name, gradient in found.items():
            whole = expected.get(name, torch.zeros_like(gradient))
            assert (gradient - whole).norm() <= 1e-9 * whole.norm() + 1e-12, name


def interrupted(arguments: list[str], folder: Path, restarts: int, moment: float, rank: int) -> int:
    """Runs two processes under torchrun, and kills one once, so many seconds after its start."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launcher += ["--max-restarts", str(restarts), "-m", "ghn_init.train", *arguments]
    with (folder / "log").open("w") as log:
        agent = subprocess.Popen([sys.executable, *launcher], env=ENVIRONMENT, stderr=log)
    deadline = time.monotonic() + 120
    while len(ranks := ranks_of(agent.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(moment)
    if agent.poll() is None and rank in ranks:
        os.kill(ranks[rank], 9)
    return agent.wait(600)


def check_restarts(config: TrainConfig, tmp_path: Path, moments: int) -> None:
    """Whichever rank dies, and whenever: torchrun starts again, and nothing can be told."""
    whole = tmp_path / "whole"
    assert interrupted(command(config, whole), tmp_path, 0, 0.0, rank=-1) == 0
    expected = metrics(whole)
    rng = random.Random(0)
    for k in range(moments):
        out, rank = tmp_path / f"killed-{k}", k % 2
        arguments = command(config, out)
        assert interrupted(arguments, tmp_path, 3, rng.uniform(0, 8), rank) == 0, k
        assert metrics(out) == expected, k


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds processes in /proc")
def test_torchrun_restarts_a_run_whose_rank_died(config: MakeConfig, tmp_path: Path) -> None:
    check_restarts(config(steps=12), tmp_path, moments=1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds processes in /proc")
def test_a_rank_may_die_at_any_moment(config: MakeConfig, tmp_path: Path) -> None:
    check_restarts(config(steps=40), tmp_path, moments=20)


def test_a_restart_finds_nothing_of_the_start_before() -> None:
    """torchrun keeps one store for all restarts, with the addresses of processes that have died."""
    store = dist.HashStore()
    for start in range(2):
        store.set("asks/1", "a process that has died")
        with ThreadPoolExecutor() as pool:
            main, other = pool.map(lambda rank: unused(store, rank, 2), range(2))
        assert not main.check(["address"]), start
        other.set("address", str(start))
        assert main.get("address") == str(start).encode()


def test_one_process_is_not_wrapped(config: MakeConfig) -> None:
    ghn = initialize(config(), 2)
    assert list(predictor(ghn, ALONE).parameters()) == list(ghn.parameters())  # type: ignore[attr-defined]
