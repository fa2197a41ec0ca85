"""How many threads a training process computes with on a CPU."""

from __future__ import annotations

import os
import time

import torch
import torch.nn.functional as F

_REPEATS = 40


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
    return min({1, most}, key=_seconds) if most > 1 else 1


def _seconds(threads: int) -> float:
    """The time of some small convolutions, forward and backward."""
    torch.set_num_threads(threads)
    x, weight = torch.ones(32, 32, 16, 16), torch.ones(32, 32, 3, 3, requires_grad=True)
    start = 0.0
    for repeat in range(_REPEATS + 3):
        if repeat == 3:  # the first ones start the threads
            start = time.perf_counter()
        F.conv2d(x, weight, padding=1).relu().sum().backward()
    return time.perf_counter() - start
