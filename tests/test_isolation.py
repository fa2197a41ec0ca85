"""What a trace must not leave behind: in the model, in globals and classes, in caches, in hooks."""

from __future__ import annotations

import collections
import functools
import itertools
import random
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from models import ConvNet
from snapshots import differences, living_fakes, snapshot
from torch import Tensor, nn

import ghn_init
from ghn_init import GHNInitError

SIZE = (2, 3, 16, 16)
GRIDS: dict[Any, Tensor] = {}
SEEN: list[str] = []
COUNT = 0
RANDOM = random.Random(3)


@functools.lru_cache(maxsize=4)
def bounded(h: int, w: int) -> tuple[Tensor, int]:
    return torch.ones(1, 1, h, w), h


@functools.cache
def unbounded(h: int, w: int) -> Tensor:
    return torch.ones(1, 1, h, w)


def cached_on_itself(h: int, w: int) -> Tensor:
    if not hasattr(cached_on_itself, "grid"):
        cached_on_itself.grid = {}  # type: ignore[attr-defined]
    return cached_on_itself.grid.setdefault((h, w), torch.ones(1, 1, h, w))


def in_a_global(h: int, w: int) -> Tensor:
    global COUNT
    COUNT += 1
    return GRIDS.setdefault((h, w), torch.ones(1, 1, h, w) * RANDOM.random())


class OnTheClass:
    grids: list[Tensor] = []  # noqa: RUF012

    def __call__(self, h: int, w: int) -> Tensor:
        self.grids.append(torch.ones(1, 1, h, w))
        type(self).last = self.grids[-1]
        return self.grids[-1]


class InAMethod:
    @functools.lru_cache  # noqa: B019
    def grid(self, h: int, w: int) -> dict[str, Tensor]:
        return {"grid": torch.ones(1, 1, h, w)}

    def __call__(self, h: int, w: int) -> Tensor:
        return self.grid(h, w)["grid"]


def in_a_closure() -> Callable[[int, int], Tensor]:
    last = None

    def grid(h: int, w: int) -> Tensor:
        nonlocal last
        last = torch.ones(1, 1, h, w) if last is None else last
        return last

    return grid


MODULE_LEVEL_CLOSURE = in_a_closure()


def through_a_global_closure(h: int, w: int) -> Tensor:
    return MODULE_LEVEL_CLOSURE(h, w)


class Grid(ConvNet):
    """It multiplies with something that is made once for each size, and asks for a number."""

    def __init__(self, grid: Callable[[int, int], Tensor], asks: bool = False) -> None:
        super().__init__()
        self.grid, self.asks = grid, asks

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.grid(*x.shape[-2:])
        return super().forward(x / max(1.0, x.abs().max().item()) if self.asks else x)


CACHES = [
    bounded_grid := (lambda h, w: bounded(h, w)[0]),
    unbounded,
    cached_on_itself,
    in_a_global,
    OnTheClass(),
    InAMethod(),
    in_a_closure(),
    through_a_global_closure,
]


@pytest.mark.parametrize("asks", [False, True], ids=["meta", "numbers"])
@pytest.mark.parametrize("grid", CACHES, ids=lambda f: getattr(f, "__name__", type(f).__name__))
def test_caches_are_as_before(grid: Callable[[int, int], Tensor], asks: bool) -> None:
    model, x = Grid(grid, asks), torch.rand(SIZE)
    before = snapshot(model)
    fakes = {id(t) for t in living_fakes()}
    ghn_init.trace(model, x)
    assert differences(before, snapshot(model)) == []
    assert [t for t in living_fakes() if id(t) not in fakes] == []
    assert model(x).isfinite().all()


def test_real_entries_of_a_cache_survive() -> None:
    for cache in (unbounded, in_a_global):
        kept = cache(5, 5)
        ghn_init.trace(Grid(cache), torch.rand(SIZE))
        assert cache(5, 5) is kept


def test_caches_are_as_before_when_a_model_does_not_run() -> None:
    class Failing(Grid):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError(f"no luck with {super().forward(x).shape}")

    for grid in CACHES:
        model = Failing(grid)
        before = snapshot(model)
        with pytest.raises(GHNInitError, match="no luck"):
            ghn_init.trace(model, torch.rand(SIZE))
        assert differences(before, snapshot(model)) == []
    assert not [t for t in living_fakes() if t.shape[-2:] == (16, 16)]


class Keeping(ConvNet):
    """It keeps everything that a model can keep, in every kind of place."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: collections.deque[Tensor] = collections.deque(maxlen=3)
        self.ordered = collections.OrderedDict(a=[{"n": {1, 2}}])
        self.default: dict[str, list[Tensor]] = collections.defaultdict(list)
        self.counter, self.numbers = itertools.count(), np.zeros(3)
        self.python, self.torch = random.Random(1), torch.Generator().manual_seed(2)
        self.numpy = np.random.default_rng(3)
        self.steps, self.bank = torch.zeros(()), torch.zeros(4, 8)
        self.register_buffer("ema", torch.zeros(8))
        self.helper = type("Helper", (), {"__slots__": ("last",)})()
        self.lock = threading.Lock()
        self.me = weakref.ref(self)
        self.shared: list[Tensor] = []
        self.stem.shared = self.shared
        self.ready = False
        self.noisy = lambda x: x * (1 + self.python.random() * float(self.numpy.random()))
        self.stem.register_forward_pre_hook(lambda module, args: self.shared.append(args[0]))

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.norm.register_forward_hook(lambda module, args, out: self.queue.append(out))
            self.handle = self.norm.register_forward_hook(lambda module, args, out: out + 0)
            self.ready = True
        with self.lock:
            self.ordered["a"][0]["n"].add(next(self.counter))
        self.default["new"].append(x)
        self.numbers += 1
        self.steps += 1
        self.bank[0] = 1
        self.ema.add_(1)
        self.helper.last = x
        self.extra = torch.rand(3, generator=self.torch)
        assert self.me() is self
        assert self.stem.shared is self.shared
        self.num_calls = getattr(self, "num_calls", 0) + 1
        x = super().forward(self.noisy(x))
        assert len(self.queue) == 1
        return x


def test_a_model_that_keeps_everything_is_as_before() -> None:
    model = Keeping()
    before, state = snapshot(model), {n: t.clone() for n, t in model.state_dict().items()}
    expected = model.python.getstate(), model.torch.get_state(), model.numpy.bit_generator.state
    graph = ghn_init.trace(model)
    assert graph.left == {}
    assert differences(before, snapshot(model)) == []
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert model.python.getstate() == expected[0]
    assert torch.equal(model.torch.get_state(), expected[1])
    assert model.numpy.bit_generator.state == expected[2]
    assert next(model.counter) == 0
    assert not model.numbers.any()
    model(torch.rand(SIZE))
    assert len(model.norm._forward_hooks) == 2
    assert len(model.shared) == 1


class Refusing:
    """An object that cannot be copied, and is shared with the pass."""

    def __init__(self) -> None:
        self.calls, self.seen = 0, [torch.ones(1)]

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError("this cannot be copied")


def test_what_cannot_be_copied_is_as_before() -> None:
    class Counting(ConvNet):
        def __init__(self) -> None:
            super().__init__()
            self.counter, self.local = Refusing(), threading.local()
            self.local.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.counter.calls += 1
            self.counter.last = x
            self.counter.seen.append(x)
            self.local.calls += 1
            return super().forward(x)

    model = Counting()
    before = snapshot(model)
    ghn_init.trace(model)
    assert differences(before, snapshot(model)) == []
    assert vars(model.counter).keys() == {"calls", "seen"}
    assert len(model.counter.seen) == 1
    assert model.local.calls == 0


def test_hooks_count_and_do_not_remain() -> None:
    """Hooks that change a model's outputs are part of it; what they do elsewhere is undone."""

    class Recorder:
        calls = 0

        def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
            self.calls += 1
            SEEN.append(output.device.type)

    printed: list[int] = []
    recorder, calls = Recorder(), []
    model = ConvNet()
    model.stem.register_forward_hook(recorder)
    model.stem.register_forward_hook(lambda m, args, out: calls.append(len(printed)))
    model.extra = nn.Linear(8, 8)
    model.norm.register_forward_hook(
        lambda m, args, out: model.extra(out.transpose(1, -1)).transpose(1, -1)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *args: printed.append(1))
        model.stem.register_forward_hook(lambda m, args, out: print(out.shape))
        graph = ghn_init.trace(model)
    assert (SEEN, recorder.calls, calls) == ([], 0, [])
    assert "extra.weight" in {node.param for node in graph.nodes}
    assert len(printed) <= 2  # once to see whether it runs, and not for each size


def test_the_model_is_not_run_but_where_a_copy_does_not_do() -> None:
    registry: dict[int, nn.Module] = {}
    ran: list[bool] = []

    class Registered(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            ran.append(id(self) in registry)
            return super().forward(x) if id(self) in registry else registry[id(self)](x)

    model = Registered()
    model.note = {"n": [0]}
    registry[id(model)] = model
    Registered.table = registry  # type: ignore[attr-defined]
    before = snapshot(model)
    assert len(ghn_init.trace(model).nodes) == len(ghn_init.trace(ConvNet()).nodes)
    assert differences(before, snapshot(model)) == []

    class Deleted(ConvNet):
        def __del__(self) -> None:
            SEEN.append("deleted")

    ghn_init.trace(Deleted())
    assert SEEN.count("deleted") <= 1
    SEEN.clear()


def test_another_thread_may_use_the_model_meanwhile() -> None:
    class Shared(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            if x.is_meta:
                with ThreadPoolExecutor() as pool:
                    assert pool.submit(model, image).result().device.type == "cpu"
            return super().forward(x)

    model, image = Shared(), torch.rand(SIZE)
    assert ghn_init.trace(model, image) == ghn_init.trace(ConvNet(), image)


def test_containers_with_a_will_of_their_own_are_left_alone() -> None:
    """transformers' table of activations makes a new module of each entry that is read."""
    before = list(dict.items(Making.table))

    class Acting(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(TABLE["relu"](x))

    ghn_init.trace(Acting())
    assert list(dict.items(TABLE)) == before


class Making(collections.OrderedDict[str, Any]):
    table: Any

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key)()


TABLE = Making.table = Making(relu=nn.ReLU, gelu=nn.GELU)
