from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from models import ConvNet

import ghn_init
from ghn_init.weights.parallel import side_by_side
from ghn_init.weights.postprocess import PostProcessing, post_process


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def threads_of_a_new_thread() -> int:
    found: list[int] = []

    def ask() -> None:
        torch.ones(2**16).sum()  # torch gives a thread its number when it first computes
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return found[0]


def test_results_are_in_the_order_of_the_items() -> None:
    def square(x: int) -> int:
        time.sleep(0.002 * (x % 3))
        return x * x

    assert side_by_side(square, range(20), lambda x: 1 + (7 * x) % 5) == [x * x for x in range(20)]
    assert side_by_side(square, [], lambda x: 1) == []


def test_small_items_get_a_thread_each_and_large_ones_all() -> None:
    seen: dict[int, tuple[str, int, bool]] = {}

    def look(cost: int) -> None:
        name = threading.current_thread().name
        seen[cost] = name, torch.get_num_threads(), torch.is_grad_enabled()

    side_by_side(look, [100, 3, 2, 1], float)
    assert seen[100] == ("MainThread", 2, False)
    for cost in (3, 2, 1):
        name, threads, gradients = seen[cost]
        assert name.startswith("ghn_init")
        assert (threads, gradients) == (1, False)


def test_the_number_of_threads_stays() -> None:
    def fail(x: int) -> None:
        raise ValueError(x)

    with pytest.raises(ValueError, match="3"):
        side_by_side(fail, [3, 3, 3], float)
    assert torch.get_num_threads() == threads_of_a_new_thread() == 2
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("steps", [PostProcessing(0.1, False), PostProcessing(0.1, True)])
def test_post_processing_does_not_depend_on_the_threads(steps: PostProcessing) -> None:
    graph = ghn_init.trace(ConvNet(), torch.zeros(2, 3, 8, 8))
    drawn = torch.Generator().manual_seed(1)
    tensors = {n: torch.randn(s, generator=drawn) for n, s in graph.shapes.items()}
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        processed = post_process(graph, tensors, steps, torch.Generator().manual_seed(0))
        found.append(processed.tensors)
    assert list(found[0]) == list(found[1])
    assert len(found[0]) == 4
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name])
        assert not torch.equal(weight, tensors[name])
