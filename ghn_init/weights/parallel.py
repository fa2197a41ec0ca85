"""Independent computations side by side on the cores of a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from ghn_init.graph.isolation import one_at_a_time

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    function: Callable[[Item], Result], items: Sequence[Item], cost: Callable[[Item], float]
) -> list[Result]:
    """`[function(item) for item in items]`, without gradients.

    Decomposing one matrix gains little from a second core, decomposing two of them gains all of
    it: torch's threads take an item each. Only an item that costs more than a thread's fair share
    gets all of them.

    Arguments:
        function: may be called from any thread; what is thread-local (a default device, autocast)
            is not what it is in the calling one.
        items: what to call it with.
        cost: of an item, in any unit.

    Returns: the results, in the order of the items.
    """
    with one_at_a_time():  # the number of threads is one of the process
        threads = torch.get_num_threads()
        dearest_first = sorted(range(len(items)), key=lambda i: -cost(items[i]))
        fair = sum(map(cost, items)) / threads
        large = [i for i in dearest_first if cost(items[i]) > fair or threads == 1]
        small = dearest_first[len(large) :]
        found: dict[int, Result] = {}
        with torch.no_grad():
            found |= {i: function(items[i]) for i in large}
        if small:
            found |= zip(small, _one_thread_each(function, [items[i] for i in small]), strict=True)
    return [found[i] for i in range(len(items))]


def _one_thread_each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    threads = torch.get_num_threads()
    alone = torch.no_grad()(function)
    try:
        with ThreadPoolExecutor(
            min(threads, len(items)), "ghn_init", torch.set_num_threads, (1,)
        ) as pool:
            return list(pool.map(alone, items))
    finally:
        torch.set_num_threads(threads)  # threads that are started later begin with the last number
