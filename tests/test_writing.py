"""What `apply` writes is written completely or not at all; what cannot hold it is left."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from models import ConvNet
from test_apply import equal, seeded, state
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import ghn_init
from ghn_init import GHNInitError
from ghn_init.weights.assignment import assign, unfit_parameters

AFTER_2_5 = tuple(map(int, torch.__version__.split(".")[:2])) > (2, 5)

if AFTER_2_5:
    from torch.distributed.fsdp import fully_shard
else:
    from torch.distributed._composable.fsdp import fully_shard

# -- models that are spread over processes


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x).mean((2, 3))))


def whole_fsdp2(mesh: DeviceMesh) -> nn.Module:
    return fully_shard(Parts(), mesh=mesh)


def part_fsdp2(mesh: DeviceMesh) -> nn.Module:
    model = Parts()
    fully_shard(model.block, mesh=mesh)
    return model


def fsdp1(mesh: DeviceMesh) -> nn.Module:
    return FullyShardedDataParallel(Parts(), device_mesh=mesh, device_id=torch.device("cpu"))


def part_fsdp1(mesh: DeviceMesh) -> nn.Module:
    model = Parts()
    model.block = FullyShardedDataParallel(
        model.block, device_mesh=mesh, device_id=torch.device("cpu"), use_orig_params=True
    )
    return model


def tensor_parallel(mesh: DeviceMesh) -> nn.Module:
    return parallelize_module(Parts(), mesh, {"block": ColwiseParallel(use_local_output=True)})


SHARDED = (whole_fsdp2, part_fsdp2, fsdp1, part_fsdp1, tensor_parallel)
ON_CPU = SHARDED if AFTER_2_5 else (fsdp1, part_fsdp1)
TAKEN = {whole_fsdp2, part_fsdp2, part_fsdp1, tensor_parallel} if AFTER_2_5 else set()
"""What `apply` takes; `tests/test_sharded.py` has what it makes of them."""


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("shard", SHARDED, ids=lambda f: f.__name__)
def test_sharded_models_are_refused_or_taken_and_run_on(
    shard: Callable[[DeviceMesh], nn.Module], ran: bool, mesh: DeviceMesh
) -> None:
    model, images = shard(mesh), torch.rand(2, 3, 16, 16)
    if ran and shard not in ON_CPU:
        pytest.skip("torch before 2.6 cannot run it on a CPU")
    if ran:
        model(images)
    kinds = [(name, type(p)) for name, p in model.named_parameters()]
    for use in (ghn_init.trace, lambda m: ghn_init.predict(m, seeded())):
        with pytest.raises(GHNInitError, match="trace or predict before sharding"):
            use(model)
    if shard not in TAKEN:
        with pytest.raises(GHNInitError, match="apply before sharding"):
            ghn_init.apply(model, ghn=seeded())
    assert [(name, type(p)) for name, p in model.named_parameters()] == kinds
    if shard in TAKEN:
        ghn_init.apply(model, ghn=seeded())
    if shard in ON_CPU:
        first = model(images)
        assert torch.equal(first, model(images))
        first.sum().backward()


def test_an_offloaded_model_is_refused() -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model = accelerate.cpu_offload(ConvNet().eval(), execution_device=torch.device("cpu"))
    images = torch.rand(2, 3, 8, 8)
    before = model(images)
    with pytest.raises(GHNInitError, match="apply before offloading"):
        ghn_init.apply(model, ghn=seeded())
    assert torch.equal(before, model(images))


# -- parameters that cannot be written


def expanded(param: nn.Parameter, tmp_path: Path) -> nn.Parameter:
    return nn.Parameter(param.detach()[:1].clone().expand_as(param))


def overlapping(param: nn.Parameter, tmp_path: Path) -> nn.Parameter:
    return nn.Parameter(torch.rand(99).as_strided(param.shape, (1, 1, 1, 1)[: param.dim()]))


def inference(param: nn.Parameter, tmp_path: Path) -> nn.Parameter:
    with torch.inference_mode():
        return nn.Parameter(torch.rand(param.shape))


def read_only(param: nn.Parameter, tmp_path: Path) -> nn.Parameter:
    param.detach().numpy().tofile(tmp_path / "weights")
    mapped = np.memmap(tmp_path / "weights", dtype="f4", mode="r", shape=tuple(param.shape))
    return nn.Parameter(torch.from_numpy(mapped))


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("name", ["depthwise.weight", "excite.weight"])
@pytest.mark.parametrize("kind", [expanded, overlapping, inference, read_only])
def test_one_bad_parameter_keeps_the_others_from_being_written(
    kind: Callable[[nn.Parameter, Path], nn.Parameter], name: str, tmp_path: Path
) -> None:
    model = ConvNet()
    module, _, attribute = name.partition(".")
    bad = kind(model.get_parameter(name), tmp_path)
    setattr(model.get_submodule(module), attribute, bad)
    before = state(model)
    versions = [p._version for p in model.parameters() if not p.is_inference()]
    with pytest.raises(GHNInitError, match=f"^{name} cannot be written"):
        ghn_init.apply(model, ghn=seeded())
    assert equal(before, state(model))
    assert versions == [p._version for p in model.parameters() if not p.is_inference()]
    bad.requires_grad_(False)  # left, and then it does not matter
    _, report = ghn_init.apply(model, ghn=seeded(), return_report=True)
    assert list(report.left) == [name]
    assert torch.equal(before[name], bad)


def test_memory_that_is_mapped_for_writing_is_written(tmp_path: Path) -> None:
    torch.save(ConvNet().state_dict(), tmp_path / "w.pt")
    content = (tmp_path / "w.pt").read_bytes()
    model = ConvNet()
    model.load_state_dict(torch.load(tmp_path / "w.pt", mmap=True), assign=True)
    ghn_init.apply(model, ghn=seeded())
    assert equal(state(model), state(ghn_init.apply(ConvNet(), ghn=seeded())))
    assert (tmp_path / "w.pt").read_bytes() == content


def test_fakes_and_transformed_parameters_are_refused() -> None:
    with FakeTensorMode():
        model = ConvNet()
    with pytest.raises(GHNInitError, match=r"stem\.weight is a fake tensor"):
        ghn_init.apply(model, ghn=seeded())

    ghn = seeded()

    def inside(weight: Tensor) -> Tensor:
        model = ConvNet()
        model.head._parameters["weight"] = weight  # type: ignore[assignment]
        with pytest.raises(GHNInitError, match=r"is .* torch\.func"):
            ghn_init.apply(model, ghn=ghn)
        return model(torch.ones(2, 3, 8, 8)).sum()

    assert torch.func.grad(inside)(torch.rand(10, 8)).abs().sum() > 0


class Coded(Tensor):
    """A weight that is stored as codes, as torchao's quantized tensors are."""

    codes: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor) -> Coded:
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return Coded(args[0].codes)
        plain = torch.utils._pytree.tree_map_only(Coded, lambda t: t.codes.float() / 8, args)
        if func._schema.is_mutable and isinstance(args[0], Coded):
            raise NotImplementedError(f"{func} on codes")
        return func(*plain, **(kwargs or {}))


def test_what_stores_its_values_in_its_own_way_is_left() -> None:
    model = ConvNet()
    codes = torch.randint(-8, 8, (10, 8))
    model.head.weight = nn.Parameter(Coded(codes), requires_grad=False)
    _, report = ghn_init.apply(model, ghn=seeded(), include_frozen=True, return_report=True)
    assert report.left == {"head.weight": "it is a Coded, which stores its values in its own way"}
    assert torch.equal(model.head.weight.codes, codes)


@pytest.mark.parametrize(
    "dtype",
    [torch.complex64, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.int32],
)
def test_other_dtypes_are_left_with_the_dtype_as_the_reason(dtype: torch.dtype) -> None:
    class Net(ConvNet):
        def __init__(self) -> None:
            super().__init__()
            values = torch.randint(1, 100, (8, 8)).to(dtype)
            self.q = nn.Parameter(values, requires_grad=dtype == torch.complex64)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.q.abs() if self.q.is_complex() else self.q.float()
            x = self.norm(self.stem(x)).mean((2, 3))
            return self.head(nn.functional.linear(x, weight * 0.01))

    model = Net()
    before = model.q.clone()
    _, report = ghn_init.apply(model, ghn=seeded(), include_frozen=True, return_report=True)
    assert "q" in report.left
    assert str(dtype).removeprefix("torch.") in report.left["q"]
    assert "head.weight" in report.predicted
    assert torch.equal(model.q.view(torch.uint8), before.view(torch.uint8))


def test_sparse_parameters_are_left() -> None:
    model = ConvNet()
    model.head.weight = nn.Parameter(model.head.weight.detach().to_sparse_csr())
    _, report = ghn_init.apply(model, ghn=seeded(), return_report=True)
    assert report.left == {
        "head.weight": "its layout is sparse_csr: only dense parameters are predicted"
    }


def test_parameters_in_the_memory_of_another_are_left() -> None:
    class Tied(nn.Module):
        """Tied by their data, not as one parameter; and one that is a part of another."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
            self.head = nn.Linear(8, 10)
            self.b.weight.data = self.a.weight.data
            self.c.bias = nn.Parameter(self.head.weight.detach()[3])

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.c(self.b(self.a(x)).relu()).relu())

    model = Tied()
    _, report = ghn_init.apply(model, ghn=seeded(), return_report=True)
    assert report.left == {
        "b.weight": "it shares its memory with a.weight",
        "head.weight": "it shares its memory with c.bias",
    }
    assert torch.equal(model.b.weight, model.a.weight)


def test_parts_of_one_block_of_memory_are_written_each() -> None:
    """As in a flattened LSTM, or with a flat parameter's views: they touch, and do not overlap."""
    model = ConvNet()
    flat = torch.zeros(sum(p.numel() for p in model.parameters()))
    start = 0
    for param in model.parameters():
        param.data = flat[start : start + param.numel()].view_as(param)
        start += param.numel()
    assert unfit_parameters(model) == {}
    _, report = ghn_init.apply(model, ghn=seeded(), return_report=True)
    assert report.left == {}
    assert equal(state(model), state(ghn_init.apply(ConvNet(), ghn=seeded())))


def test_a_models_own_memory_is_kept() -> None:
    model = ConvNet()
    pointers = [p.data_ptr() for p in model.parameters()]
    tensors = {"stem.weight": torch.ones(8, 3, 3, 3)}
    assert assign(model, tensors, 0) == ()
    tensors["stem.weight"].zero_()
    assert model.stem.weight.eq(1).all()
    assert [p.data_ptr() for p in model.parameters()] == pointers


# -- what is around


def test_threads_leave_the_settings_of_the_process_alone() -> None:
    """Each saves and restores them: side by side, the second would save what the first has set."""
    inside, done = (threading.Event(), threading.Event()), threading.Event()

    class First(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            inside[0].set()
            inside[1].wait(0.5)  # in vain, if only one of them is let in at a time
            return super().forward(x)

    class Second(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            inside[1].set()
            done.wait(5)
            return super().forward(x)

    def settings() -> list[object]:
        generators = (
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
        )
        return [*generators, torch.backends.mha.get_fastpath_enabled(), torch.get_num_threads()]

    ghn, errors = seeded(), []
    first, second = First(), Second()

    def work(model: nn.Module) -> None:
        try:
            ghn_init.apply(model, ghn=ghn)
        except BaseException as error:
            errors.append(error)
        finally:
            if model is first:
                done.set()

    torch.manual_seed(3)
    before = settings()
    running = [threading.Thread(target=work, args=(model,)) for model in (first, second)]
    running[0].start()
    inside[0].wait(5)
    running[1].start()
    for thread in running:
        thread.join()
    assert not errors
    assert settings() == before
    expected = state(ghn_init.apply(ConvNet(), ghn=ghn))
    assert equal(state(first), expected)
    assert equal(state(second), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", ["orth", "ghn3", "ghn3-orth"])
def test_the_default_dtype_changes_nothing(dtype: torch.dtype, method: str) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Conv2d(3, 8, 2, stride=2), nn.Linear(8, 10)
            self.token = nn.Parameter(torch.zeros(1, 1, 8))
            self.positions = nn.Parameter(torch.zeros(1, 17, 8))

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
            return self.head(x[:, 0])

    checkpoint = {} if method == "orth" else {"ghn": seeded()}
    models, inputs = [Tokens(), Tokens()], torch.zeros(2, 3, 8, 8)
    models[1].load_state_dict(models[0].state_dict())
    ghn_init.apply(models[0], method, example_inputs=inputs, **checkpoint)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        ghn_init.apply(models[1], method, example_inputs=inputs, **checkpoint)
    finally:
        torch.set_default_dtype(before)
    assert equal(state(models[0]), state(models[1]))
