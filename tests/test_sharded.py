"""Models that are spread over processes: each has its part of what one process writes."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import resource
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from test_apply import seeded
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

import ghn_init
from ghn_init import GHNInitError
from ghn_init.methods import registry
from ghn_init.methods.method import Job, Method
from ghn_init.weights import recomputing

if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
    pytest.skip("sharded models need torch 2.6", allow_module_level=True)

from torch.distributed.fsdp import FSDPModule, ShardingStrategy, fully_shard
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP1
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

IS_2_6 = torch.__version__.startswith("2.6.")

# -- models, and ways to shard them


class Tied(nn.Module):
    """Odd sizes, of which processes have unlike parts; one tied weight, a frozen one, zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.norm = nn.Linear(48, 33), nn.LayerNorm(33)
        self.hidden, self.again = nn.Linear(33, 33), nn.Linear(33, 33)
        self.again.weight = self.hidden.weight
        self.frozen, self.zero = nn.Linear(33, 33), nn.Linear(33, 33)
        self.frozen.weight.requires_grad_(False)
        nn.init.zeros_(self.zero.weight)
        self.head = nn.Linear(33, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.inside(x.flatten(1)))
        x = self.norm(x + self.zero(self.again(x).relu()))
        return self.head(self.norm(self.frozen(self.hidden(x))))


def tied() -> nn.Module:
    return Tied()


def deep() -> nn.Module:
    """No norms: what is written depends on the model's own values."""
    return nn.Sequential(nn.Flatten(), *(nn.Linear(48, 48) for _ in range(8)), nn.Linear(48, 10))


def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=10)


def resnet() -> nn.Module:
    return timm.create_model("resnet10t", num_classes=10)


def blocks(model: nn.Module) -> list[nn.Module]:
    """What is sharded by itself: blocks, or layers that are not tied."""
    found = dict(model.named_children())
    if "blocks" in found:
        return list(found["blocks"].children())
    return [m for n, m in found.items() if n.startswith(("layer", "inside", "zero")) or n.isdigit()]


def fsdp2(model: nn.Module) -> nn.Module:
    for block in blocks(model):
        fully_shard(block)
    return fully_shard(model)


def fsdp1(model: nn.Module) -> nn.Module:
    within = blocks(model)
    return FSDP1(
        model,
        device_id=torch.device("cpu"),
        use_orig_params=True,
        auto_wrap_policy=lambda module, recurse, **_: recurse or module in within,
    )


def fsdp1_of_copies(model: nn.Module) -> nn.Module:
    strategy = ShardingStrategy.NO_SHARD
    return FSDP1(
        model, device_id=torch.device("cpu"), use_orig_params=True, sharding_strategy=strategy
    )


def fsdp1_hybrid(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "parts"))
    strategy = ShardingStrategy.HYBRID_SHARD
    cpu = torch.device("cpu")
    return FSDP1(
        model, device_id=cpu, use_orig_params=True, device_mesh=mesh,
        sharding_strategy=strategy,
    )  # fmt: skip


def tensor_parallel(model: nn.Module, mesh: Any = None) -> nn.Module:
    plan = {"blocks.*.mlp.fc1": ColwiseParallel(), "blocks.*.mlp.fc2": RowwiseParallel()}
    return parallelize_module(
        model, mesh or init_device_mesh("cpu", (dist.get_world_size(),)), plan
    )


def both(model: nn.Module) -> nn.Module:
    """Tensor parallel in one direction, FSDP2 in the other: two cuts along one axis."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    tensor_parallel(model, mesh["tensor"])
    for block in blocks(model):
        fully_shard(block, mesh=mesh["data"])
    return fully_shard(model, mesh=mesh["data"])


def hybrid(model: nn.Module) -> nn.Module:
    """Two copies, of two parts each."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "parts"))
    return fully_shard(model, mesh=mesh)


def whole(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, by torch's own means."""
    with contextlib.ExitStack() as unsharded:
        if isinstance(model, FSDP1):
            unsharded.enter_context(FSDP1.summon_full_params(model, writeback=False))
            model = model.module
        held = [*model.named_parameters(), *model.named_buffers()]
        return {
            name.replace("_fsdp_wrapped_module.", ""): (
                t.full_tensor() if isinstance(t, DTensor) else t
            ).detach().clone()
            for name, t in held
        }  # fmt: skip


def alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


FOUR, IMAGES = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 32, 32)
INPUTS = {"tied": FOUR, "deep": FOUR, "vit": IMAGES, "resnet": IMAGES}


def run(model: nn.Module, images: Tensor) -> Tensor:
    """The outputs. (FSDP2 of torch 2.6 does not run in several processes on CPUs.)"""
    if IS_2_6 and any(isinstance(module, FSDPModule) for module in model.modules()):
        return torch.zeros(1, requires_grad=True)
    return model(images)


def made(build: Callable[[], nn.Module], shard: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The same in every process."""
    torch.manual_seed(7)
    return shard(build())


def applied(model: nn.Module, build: Callable[[], nn.Module], method: str, **options: Any) -> Any:
    if method.startswith("ghn3"):
        options["ghn"] = seeded()
    inputs = INPUTS[build.__name__]
    options = {"seed": 3, "example_inputs": inputs, "return_report": True, **options}
    return ghn_init.apply(model, method, **options)[1]


# -- what the processes do

CASES: dict[str, tuple[int, Callable[[], None]]] = {}
"""By name: how many processes there are, and what each does."""


def check(
    build: Callable[[], nn.Module], shard: Callable[[nn.Module], nn.Module], method: str
) -> None:
    one, parts = made(build, lambda model: model), made(build, shard)
    objects = [id(p) for p in parts.parameters()]
    if shard is fsdp1 or (shard is fsdp2 and not IS_2_6):
        for model in (one, parts):
            run(model, INPUTS[build.__name__])  # keeps some parameters whole
    torch.manual_seed(dist.get_rank())
    random = torch.get_rng_state()
    report = applied(parts, build, method)
    assert torch.equal(random, torch.get_rng_state())
    assert report == applied(one, build, method)
    if method != "rand":
        assert report.written
    alike(whole(parts), whole(one))
    if not isinstance(parts, FSDP1):
        assert [id(p) for p in parts.parameters()] == objects
    run(parts, INPUTS[build.__name__]).sum().backward()


for _size, _shard, _builds in (
    (2, fsdp2, (vit, resnet, tied, deep)),
    (2, fsdp1, (vit, resnet, tied, deep)),
    (2, tensor_parallel, (vit,)),
    (2, fsdp1_of_copies, (deep,)),
    (4, fsdp2, (tied,)),
    (4, fsdp1, (tied,)),
    (4, fsdp1_hybrid, (tied,)),
    (4, both, (vit,)),
    (4, hybrid, (tied,)),
):
    for _build in _builds:
        for _method in ("ghn3-orth", "orth", "rand")[: 3 if _size == 2 and _build is tied else 1]:
            _check = functools.partial(check, _build, _shard, _method)
            CASES[f"{_size} {_shard.__name__} {_build.__name__} {_method}"] = _size, _check


def case(size: int) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def add(function: Callable[[], None]) -> Callable[[], None]:
        CASES[f"{size} {function.__name__}"] = size, function
        return function

    return add


@case(2)
def numbers_of_half_the_size() -> None:
    one, parts = made(vit, nn.Module.bfloat16), made(vit, lambda m: fsdp2(m.bfloat16()))
    options = {"example_inputs": IMAGES.bfloat16()}
    report = applied(parts, vit, "ghn3-orth", **options)
    assert report == applied(one, vit, "ghn3-orth", **options)
    alike(whole(parts), whole(one))


@case(2)
def layers_that_are_forgotten() -> None:
    from ghn_init.sharded import _Shards

    recomputing._LARGE, recomputing._KEPT = 4097, 4096
    alive, most, keep = [0], [0], _Shards.keep

    def counted(shards: Any, name: str, tensor: Tensor) -> None:
        size = tensor.nbytes
        alive[0] += size
        most[0] = max(most[0], alive[0])
        weakref.finalize(tensor, lambda: alive.__setitem__(0, alive[0] - size))
        keep(shards, name, tensor)

    _Shards.keep = counted  # type: ignore[method-assign]
    try:
        for shard in (fsdp1, fsdp2):
            check(vit, shard, "ghn3-orth")
    finally:
        _Shards.keep = keep  # type: ignore[method-assign]
    sizes = [p.nbytes for p in vit().parameters()]
    assert max(sizes) <= most[0] < max(sizes) + sum(sizes) // 20


@case(2)
def compiled() -> None:
    compiled = functools.partial(torch.compile, backend="eager")
    one, parts = made(vit, compiled), made(vit, lambda model: compiled(fsdp2(model)))
    assert applied(parts, vit, "ghn3") == applied(one, vit, "ghn3")
    alike(whole(parts), whole(one))


def fails(shard: Callable[[nn.Module], nn.Module], method: str, match: str, **options: Any) -> None:
    """All processes fail, and no parameter changes."""
    model = made(tied, shard)
    before = whole(model)
    with pytest.raises((GHNInitError, RuntimeError), match=match):
        applied(model, tied, method, **options)
    alike(whole(model), before)
    run(model, FOUR)


def of_this_rank(rank: int, this: Any, other: Any) -> Any:
    return this if dist.get_rank() == rank else other


@case(2)
def one_fails_before_it_begins() -> None:
    for shard in (fsdp1, fsdp2):
        fails(shard, of_this_rank(1, "nonsense", "orth"), "unknown method 'nonsense'")


@case(2)
def one_fails_while_it_computes() -> None:
    def values(job: Job) -> dict[str, Tensor]:
        if dist.get_rank() == 0:
            raise RuntimeError("out of memory")
        return {}

    registry.register(Method("failing", values))
    for shard in (fsdp1, fsdp2):
        fails(
            shard, "failing", of_this_rank(0, "^out of memory", "process 0 failed.*out of memory")
        )


@case(4)
def one_fails_with_the_last_layer() -> None:
    from ghn_init import sharded

    def failing(name: str, tensor: Tensor) -> None:
        if dist.get_rank() == 3 and name == "inside.bias":
            raise GHNInitError("cannot be written")

    sharded.check_writable = failing  # type: ignore[attr-defined]
    fails(hybrid, "ghn3-orth", of_this_rank(3, "^cannot be written", "process 3 failed"))
    fails(fsdp2, "ghn3-orth", of_this_rank(3, "^cannot be written", "process 3 failed"))


@case(2)
def one_has_another_seed() -> None:
    fails(fsdp2, "orth", "processes 0 and 1 have come to different", seed=dist.get_rank())


@case(2)
def one_writes_what_the_other_leaves() -> None:
    fails(fsdp1, "orth", "processes 0 and 1", include_frozen=dist.get_rank() == 0)


@case(2)
def what_needs_the_whole_model() -> None:
    images = torch.rand(2, 3, 4, 4)
    fails(fsdp2, "orth+lsuv", "sharded, and method 'orth\\+lsuv' needs all of it", images=images)
    fails(fsdp1, "select", "sharded, and method 'select' needs all of it", source=Tied())
    fails(lambda m: fsdp2(spectral(m)), "ghn3", "spectral norms need all of it")


def spectral(model: nn.Module) -> nn.Module:
    nn.utils.parametrizations.spectral_norm(model.inside)
    return model


@case(2)
def a_model_without_values() -> None:
    with torch.device("meta"):
        model = fsdp2(Tied())
    with pytest.raises(
        GHNInitError, match=r"inside\.weight is on the meta device, and the model is sharded"
    ):
        applied(model, tied, "orth")


def work(rank: int, size: int, folder: Path) -> None:
    """All cases for so many processes, in one of them."""
    torch.set_num_threads(1)
    limit = datetime.timedelta(minutes=4)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=limit)
    outcomes = {}
    for name in [name for name, (wanted, _) in CASES.items() if wanted == size]:
        try:
            CASES[name][1]()
            outcomes[name] = ""
        except BaseException:  # pytest.fail is none of Exception
            outcomes[name] = traceback.format_exc()
            print(rank, name, outcomes[name], flush=True)
        (folder / f"{rank}.json").write_text(json.dumps(outcomes))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict[str, str]]]:
    """What became of the cases in each of so many processes, which are started once."""
    found: dict[int, list[dict[str, str]]] = {}

    def of(size: int) -> list[dict[str, str]]:
        if size not in found:
            folder = tmp_path_factory.mktemp(f"of_{size}")
            torch.multiprocessing.spawn(work, (size, folder), nprocs=size)
            files = [folder / f"{rank}.json" for rank in range(size)]
            found[size] = [json.loads(file.read_text()) for file in files]
        return found[size]

    return of


@pytest.mark.parametrize("name", CASES)
def test_processes(name: str, outcomes: Callable[[int], list[dict[str, str]]]) -> None:
    for rank, found in enumerate(outcomes(CASES[name][0])):
        assert not found[name], f"process {rank}: {found[name]}"


# -- memory


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def measure(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    peaks = []
    for depth in (2, 128):
        layers = [fully_shard(nn.Linear(1024, 1024, bias=False)) for _ in range(depth)]
        model = nn.Sequential(*(m for layer in layers for m in (layer, nn.LayerNorm(1024))))
        fully_shard(model)
        before = peak()
        ghn_init.apply(model, "ghn3:noise=0", ghn="embedded", example_inputs=torch.zeros(1, 1024))
        peaks.append((before, peak()))
    (folder / f"{rank}.json").write_text(json.dumps(peaks))
    dist.barrier()
    dist.destroy_process_group()


def test_memory_is_bounded(tmp_path: Path) -> None:
    """512 MB of weights in two processes: 256 MB of new parts in each, and little beside."""
    torch.multiprocessing.spawn(measure, (tmp_path,), nprocs=2)
    for rank in range(2):
        (_, small), (before, large) = json.loads((tmp_path / f"{rank}.json").read_text())
        assert large - max(small, before) < 400
