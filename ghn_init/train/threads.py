"""How many threads a training process computes with on a CPU."""

from __future__ import annotations

import math
import os
import sys
import time

import torch
import torch.nn.functional as F

_REPEATS = 40


def use(threads: int, quiet: bool = False) -> int:
    """Compute with so many threads from now on, and say so on stderr; the number.

    Arguments:
        threads: 0: see `choose`.
        quiet: say nothing.
    """
    threads = threads or choose()
    torch.set_num_threads(threads)
    if not quiet:
        print(f"computing with {threads} of {available()} threads; OMP_NUM_THREADS sets another "
              "number", file=sys.stderr)  # fmt: skip
    return threads


def available() -> int:
    """The cores of each process on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def choose() -> int:
    """All available cores, or one where that is faster now.

    Threads wait for each other after every operation. On a machine that does other work, one of
    them always is late: many threads may then be many times slower than one.
    """
    most = available()
    if most == 1:
        return 1
    one = _seconds(1)
    return most if _seconds(most, limit=one) < one else 1


def _seconds(threads: int, limit: float = math.inf) -> float:
    """The time of some small convolutions, forward and backward; more than `limit` is no matter."""
    torch.set_num_threads(threads)
    x, weight = torch.ones(32, 32, 16, 16), torch.ones(32, 32, 3, 3, requires_grad=True)
    F.conv2d(x, weight, padding=1).relu().sum().backward()  # starts the threads
    start, seconds = time.perf_counter(), 0.0
    for _ in range(_REPEATS):
        if seconds < limit:
            F.conv2d(x, weight, padding=1).relu().sum().backward()
            seconds = time.perf_counter() - start
    return seconds
