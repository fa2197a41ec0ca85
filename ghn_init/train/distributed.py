"""One process or many: what they tell each other over `torch.distributed`.

A process has its share of the loss, so what is summed over all processes is that of the whole
meta-batch, also where the shares are not of one size. Gradients: see `parallel`.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ghn_init.errors import GHNInitError

_PATIENCE = timedelta(minutes=10)
"""For which processes that have started wait for the others."""

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Arguments:
        rank: number of this process.
        size: of all processes.
        device: where this one computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place."""
        if self.size > 1:
            with together():
                dist.all_reduce(tensor)
        return tensor

    def gather(self, found: T) -> list[T]:
        """What each of the processes has found, in their order."""
        everything = [found] * self.size
        if self.size > 1:
            with together():
                dist.all_gather_object(everything, found)
        return everything

    def any(self, asked: bool) -> bool:
        """Whether it is true in one of the processes."""
        if self.size == 1:
            return asked
        return bool(self.sum(torch.tensor(float(asked), device=self.device)) > 0)

    def broadcast(self, model: nn.Module) -> None:
        """Give all processes the weights of the main one."""
        if self.size > 1:
            with together():
                for tensor in model.state_dict().values():
                    dist.broadcast(tensor, src=0)

    def check_same(self, model: nn.Module) -> None:
        """Raises `GHNInitError` where the processes do not hold the same weights.

        They all apply the same gradients, so this finds broken hardware and bugs.
        """
        if self.size == 1:
            return
        own = torch.stack([p.detach().double().sum() for p in model.parameters()])
        spread = torch.cat([own, -own])
        with together():
            dist.all_reduce(spread, op=dist.ReduceOp.MAX)
        if (spread[: len(own)] + spread[len(own) :]).abs().max() > 0:
            raise GHNInitError("the processes hold different weights. Resume the run.")

    def check_step(self, step: int) -> None:
        """Raises `GHNInitError` where the processes do not resume after the same step."""
        found = self.sum(torch.tensor(float(step), device=self.device))
        if self.any(bool(found != step * self.size)):
            raise GHNInitError("--out must be one folder that all processes of the run share.")

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            with together():
                dist.barrier()


@contextlib.contextmanager
def start(device: str | None = None) -> Iterator[World]:
    """The processes that torchrun started, or this one alone.

    Arguments:
        device: None for a GPU where there is one, else the CPU.

    Raises:
        GHNInitError: the device is not there.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda":
        kind = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        where = torch.device(kind)
        torch.empty(1, device=where)
        if where.type == "cuda":
            torch.cuda.set_device(where)
    except (RuntimeError, AssertionError) as error:
        raise GHNInitError(f"cannot compute on {kind!r}: {str(error).splitlines()[0]}.") from error
    if size > 1:
        backend = "nccl" if where.type == "cuda" else "gloo"
        with together():
            store, _, _ = next(rendezvous("env://", timeout=_PATIENCE))
            own = unused(store, rank, size)
            dist.init_process_group(backend, store=own, rank=rank, world_size=size)
    world = World(rank, size, where)
    yield world
    if size > 1:  # not after an error: closing waits for processes that may be gone
        world.wait()  # one that closes while another still sends can leave it hanging (torch 2.4)
        dist.destroy_process_group()


def unused(store: Store, rank: int, size: int) -> Store:
    """A part of the processes' common store that no earlier start of them has written to.

    torchrun has one store for all its restarts (torch 2.14). In it a process would find the
    addresses of those that have died, and could wait for them for half an hour. So the main process
    chooses a new name, and tells it to those that ask now.

    Arguments:
        store: which all processes share.
        rank, size: number of this process, and of all.

    Raises:
        RuntimeError: a process did not ask in time.
    """
    name = uuid.uuid4().hex
    if rank > 0:
        store.set(f"asks/{rank}", name)
        name = store.get(f"answer/{name}").decode()
        store.set(f"has heard/{name}/{rank}", "")
        return PrefixStore(name, store)
    end = time.monotonic() + _PATIENCE.total_seconds()
    for other in range(1, size):
        while not store.check([f"has heard/{name}/{other}"]):
            if time.monotonic() > end:
                raise RuntimeError(f"process {other} did not come")
            if store.check([f"asks/{other}"]):  # perhaps one that has died: then it asks again
                store.set(f"answer/{store.get(f'asks/{other}').decode()}", name)
            time.sleep(0.01)
    return PrefixStore(name, store)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What all processes do in the block fails where one of them has ended."""
    try:
        yield
    except RuntimeError as error:
        if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", 1)) == 1:
            raise
        reason = str(error).splitlines()[0]
        raise GHNInitError(
            f"another process of this run has ended, or cannot be reached ({reason:.120}). The "
            "same command goes on from the last checkpoint."
        ) from error
