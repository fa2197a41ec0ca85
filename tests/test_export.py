"""Models larger than the memory: initialized and written layer by layer, to files or folders."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from models import ConvNet
from safetensors import safe_open
from test_apply import seeded
from torch import Tensor, nn

import ghn_init
from ghn_init import GHNInitError, api, files
from ghn_init.cli.main import main
from ghn_init.loading import state_files
from ghn_init.models import model_builder
from ghn_init.weights import recomputing
from ghn_init.weights.recomputing import Recomputing


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors are forgotten too, all of them at once, so that small models do for tests."""
    monkeypatch.setattr(recomputing, "_LARGE", 4097)
    monkeypatch.setattr(recomputing, "_KEPT", 4096)
    monkeypatch.setattr(api, "Recomputing", lambda: Recomputing(0))


def exported(model: nn.Module | Callable[[], nn.Module], path: Path, **options: Any) -> str:
    """What the report of an export says."""
    return str(ghn_init.export(model, path, name="a model", **options))


def read(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder, by its index if it has one."""
    tensors = {}
    index = folder / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"] if index.exists() else None
    for file in folder.glob("*.safetensors"):
        found = safetensors.torch.load_file(file)
        assert names is None or {names[name] for name in found} == {file.name}
        tensors |= found
    assert names is None or tensors.keys() == names.keys()
    return tensors


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# -- layer by layer is the same as at once


class Tied(nn.Module):
    """Tied in every way: as one module, one parameter, one memory; and a buffer that is a part."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.norm = nn.Linear(48, 64), nn.LayerNorm(64)
        self.hidden, self.again = nn.Linear(64, 64), nn.Linear(64, 64)
        self.again.weight = self.hidden.weight
        self.also = self.hidden
        self.inside.bias = nn.Parameter(self.again.bias.detach())
        self.register_buffer("row", self.hidden.weight.detach()[1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.inside(x.flatten(1)))
        return self.also(self.norm(self.again(x)) + self.norm(self.hidden(x)))


class Overlapping(Tied):
    """A parameter in a part of another's memory: the layers depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.norm.bias = nn.Parameter(self.hidden.weight.detach()[1])


class Computed(Tied):
    """The state dict has what a hook makes of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self._register_state_dict_hook(self.hook)

    @staticmethod
    def hook(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        state["sum"] = module.inside.weight.detach().sum(1)


class Deep(nn.Module):
    """Residual branches without norms, which are scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(48, 64), nn.Linear(64, 10)
        self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x = x + block(x.relu())
        return self.head(x)


def spectral() -> nn.Module:
    model = Tied()
    nn.utils.parametrizations.spectral_norm(model.inside)
    return model


def half() -> nn.Module:
    return Tied().bfloat16()


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Deep()


FOUR = torch.zeros(2, 3, 4, 4)
MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    **{n: (model_builder(n)[0], None) for n in ("resnet10t", "vit_tiny_patch16_224", "levit_128s")},
    **{b.__name__: (b, FOUR) for b in (Tied, Overlapping, Computed, Deep, spectral, half, on_meta)},
}
AS_A_WHOLE = ("Overlapping", "Computed", "spectral", "on_meta")


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, "ghn3-orth") for name in MODELS),
        *itertools.product(
            ("vit_tiny_patch16_224", "Tied", "Deep"), ("ghn3", "orth", "rand", "mimetic")
        ),
    ],
)
def test_layer_by_layer_is_the_same_to_the_bit(name: str, method: str, tmp_path: Path) -> None:
    build, inputs = MODELS[name]
    if inputs is not None:
        build = functools.partial(_seeded, build)
    options: dict[str, Any] = {"method": method, "example_inputs": inputs, "seed": 3}
    if method.startswith("ghn3"):
        options["ghn"] = seeded()
    built = []

    def counted() -> nn.Module:
        built.append(1)
        return build()

    before = torch.get_rng_state()
    reports = [exported(counted, tmp_path / "a.safetensors", **options)]
    assert len(built) == 1 + (name in AS_A_WHOLE and method != "rand")
    reports.append(exported(build(), tmp_path / "b.safetensors", **options))
    assert reports[0] == reports[1]
    assert torch.equal(before, torch.get_rng_state())
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return build()


@pytest.mark.usefixtures("forgetful")
def test_a_method_that_runs_the_model_has_it_whole(tmp_path: Path) -> None:
    options = {"method": "orth+lsuv", "images": torch.rand(8, 3, 8, 8)}
    build = functools.partial(_seeded, ConvNet)
    exported(build, tmp_path / "a.safetensors", **options)
    exported(build(), tmp_path / "b.safetensors", **options)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Half a GB of weights through a tenth of that, in a fresh process."""
    code = """
import functools, resource, sys, torch
from torch import nn
import ghn_init
from ghn_init import api
from ghn_init.weights.recomputing import Recomputing

class Model(nn.Sequential):
    def __init__(self, depth):
        layers = [[nn.Linear(2048, 2048, bias=False), nn.LayerNorm(2048)] for _ in range(depth)]
        super().__init__(*(layer for pair in layers for layer in pair))

def export(depth):
    ghn_init.export(functools.partial(Model, depth), sys.argv[1], name="",
                    ghn="embedded", method="ghn3:noise=0", example_inputs=torch.zeros(1, 2048))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

api.Recomputing = lambda: Recomputing(2**25)
print(export(2), export(32))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "w.safetensors")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    first, then = map(int, ran.stdout.split())
    assert (tmp_path / "w.safetensors").stat().st_size > 512 << 20
    assert then - first < 150


# -- tensors that forget


def test_what_was_forgotten_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputing, "_LARGE", 4097)
    monkeypatch.setattr(recomputing, "_KEPT", 4096)

    def tensors() -> dict[str, Tensor]:
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        found = {str(i): torch.empty(40, 60) for i in range(8)}
        small = torch.ones(60)
        nn.init.trunc_normal_(found["0"], std=0.02)
        found["0"].div_(3)
        found["1"].normal_(generator=generator)
        found["1"][:5].uniform_(generator=generator)  # a part of what was forgotten
        found["2"].fill_(2)
        found["2"][:, 3:7].copy_(small[:4])
        small.zero_()  # what was copied has changed since
        found["3"].uniform_()
        found["3"].numpy()[7] = 5  # no operator
        nn.init.orthogonal_(found["4"])
        found["5"].copy_(found["3"])
        found["6"].uniform_()
        torch._foreach_mul_([found["6"], found["2"]], 2.0)
        found["7"].normal_()
        found["7"].t()[2:4].mul_(-1)
        found["7"].masked_fill_(found["7"] > 1, 0.5)
        found["8"] = found["7"].clone().add_(1)
        found["9"] = torch.empty(60, 40, dtype=torch.int64).random_(0, 9)
        found["10"] = copy.deepcopy(found["0"])
        found["11"] = copy.deepcopy(nn.Linear(64, 64)).weight.detach()
        found["12"] = torch.rand(3)
        return found

    expected = tensors()
    with Recomputing(0) as mode:
        found = tensors()
        forgotten = [memory for memory in mode._memories.values() if not memory.there]
        assert len(forgotten) >= 3
        rows = [t[0].flatten()[:8].tolist() for t in found.values() if t.dim() > 1]
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
    assert rows == [t[0].flatten()[:8].tolist() for t in expected.values() if t.dim() > 1]


# -- folders


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of a ResNet-10."""
    file = tmp_path_factory.mktemp("whole") / "w.safetensors"
    exported(model_builder("resnet10t")[0], file, ghn="embedded")
    return file


def test_a_folder_has_what_the_file_has(whole: Path, tmp_path: Path) -> None:
    folder, expected = tmp_path / "model", safetensors.torch.load_file(whole)
    command = ["export", "resnet10t", "--ghn", "embedded", "-o", str(folder)]
    assert main(command) == 0
    assert [file.name for file in folder.iterdir()] == ["model.safetensors"]
    assert same(read(folder), expected)
    assert main([*command, "--max-shard-size", "6MB"]) == 0  # over the one before
    assert same(read(folder), expected)
    assert not list(tmp_path.glob(".*"))
    shards = sorted(file.name for file in folder.glob("*.safetensors"))
    assert len(shards) > 3
    for number, name in enumerate(shards):
        assert name == f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        with safe_open(folder / name, "pt") as opened:
            sizes = [opened.get_tensor(n).nbytes for n in opened.keys()]  # noqa: SIM118
            assert sum(sizes) <= 6e6 or len(sizes) == 1
            assert opened.metadata()["checkpoint"] == "embedded"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in expected.values())
    assert index["metadata"]["model"] == "resnet10t"


def test_the_hub_reads_a_folder(whole: Path, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    if not hasattr(hub, "load_torch_model"):
        pytest.skip("this huggingface_hub has no load_torch_model")
    exported(model_builder("resnet10t")[0], tmp_path, ghn="embedded", max_shard_size="6MB")
    model = timm.create_model("resnet10t")
    assert not hub.load_torch_model(model, tmp_path, strict=True).missing_keys
    assert same(model.state_dict(), safetensors.torch.load_file(whole))


def test_transformers_read_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    kind = transformers.ViTForImageClassification
    exported(lambda: kind(config), tmp_path, ghn="embedded", max_shard_size=50_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model = kind.from_pretrained(tmp_path)
    assert same(dict(model.state_dict()), read(tmp_path))
    exported(kind(config), tmp_path, method="rand")  # over it
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.usefixtures("forgetful")
def test_tied_weights_are_in_one_shard(tmp_path: Path) -> None:
    options = {"ghn": seeded(), "example_inputs": FOUR}
    build = functools.partial(_seeded, Tied)
    exported(build, tmp_path / "model", max_shard_size=10_000, **options)
    found = read(tmp_path / "model")
    expected = ghn_init.apply(build(), **options).state_dict()
    others = {"also.weight", "hidden.weight", "hidden.bias", "inside.bias", "row"}
    assert found.keys() == expected.keys() - others
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert others <= index["metadata"].keys()
    model = Tied()
    for file in (tmp_path / "model").glob("*.safetensors"):
        model.load_state_dict(safetensors.torch.load_file(file), strict=False)
    assert same(dict(model.state_dict()), dict(expected))


def test_numbers_of_another_type(whole: Path, tmp_path: Path) -> None:
    command = ["export", "resnet10t", "--ghn", "embedded", "-o", str(tmp_path / "w.safetensors")]
    assert main([*command, "--dtype", "bfloat16"]) == 0
    found = safetensors.torch.load_file(tmp_path / "w.safetensors")
    expected = safetensors.torch.load_file(whole)
    assert same(
        found, {n: t.bfloat16() if t.is_floating_point() else t for n, t in expected.items()}
    )
    assert {t.dtype for t in found.values()} == {torch.bfloat16, torch.int64}


def test_numbers_that_are_too_large_for_the_type(tmp_path: Path) -> None:
    model = ConvNet()
    model.norm.running_var.fill_(1e6)
    with pytest.raises(GHNInitError, match=r"norm\.running_var.*too large for torch\.float16"):
        exported(model, tmp_path / "w.safetensors", method="rand", dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def load_into_shards(rank: int, folder: Path) -> None:
    """As examples/integrations/README.md has it, in one of two processes."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    model = timm.create_model("vit_tiny_patch16_224")
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    options = StateDictOptions(full_state_dict=True, strict=False)
    for file in sorted((folder / "model").glob("*.safetensors")):
        set_model_state_dict(model, safetensors.torch.load_file(file), options=options)
    sharded = {name: t.full_tensor() for name, t in model.state_dict().items()}  # type: ignore[attr-defined]
    assert model.blocks[0].attn.qkv.weight.to_local().shape == (288, 192)
    assert same(sharded, read(folder / "model"))
    dist.destroy_process_group()


def test_a_sharded_model_loads_a_folder(tmp_path: Path) -> None:
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        pytest.skip("torch before 2.6 has fully_shard elsewhere")
    build, _ = model_builder("vit_tiny_patch16_224")
    exported(build, tmp_path / "model", ghn="embedded", max_shard_size="5MB")
    torch.multiprocessing.spawn(load_into_shards, (tmp_path,), nprocs=2)


# -- what was there


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    def never() -> nn.Module:
        raise AssertionError

    for name in ("notes.txt", "model.safetensors", "model.safetensors.index.json"):
        folder = tmp_path / name.partition(".")[2]
        folder.mkdir()
        (folder / name).write_text("precious")
        with pytest.raises(GHNInitError, match=rf"cannot write .* it holds {name}, which is not"):
            exported(never, folder)
        assert (folder / name).read_text() == "precious"
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "safetensors/model.safetensors")
    with pytest.raises(GHNInitError, match="not from an export"):
        exported(never, tmp_path / "safetensors")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(GHNInitError, match=r"cannot write .* it is a file"):
        exported(never, tmp_path / "file")


@pytest.mark.parametrize("size", ["5", "GB", "0MB", "-1GB", "5 parsec", 0, -5, True, None])
def test_sizes_of_shards_that_cannot_be(size: Any, tmp_path: Path) -> None:
    path = tmp_path / ("w.safetensors" if size is None else "w")
    with pytest.raises(GHNInitError, match="max_shard_size"):
        exported(ConvNet(), path, method="rand", max_shard_size="5GB" if size is None else size)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(state_files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(GHNInitError, match=r"it takes 0\.0 GB, and 0\.0 GB are free\. Free some"):
        exported(ConvNet(), tmp_path / "w", method="orth")
    assert not list(tmp_path.iterdir())


KILLED = """
import hashlib, os, shutil, signal, sys
from pathlib import Path
import torch
from torch import nn
import ghn_init
from ghn_init import files
from ghn_init.loading.writing import SafetensorsFile

torch.set_num_threads(1)  # threads of OpenMP do not live on in a fork, which would wait for them
model, old = Path(sys.argv[1], "model"), Path(sys.argv[1], "old")
moments, last = 0, 0

def may_be_killed():
    global moments
    moments += 1
    if moments == last:
        os.kill(os.getpid(), signal.SIGKILL)

def watched(function):
    def call(*args, **kwargs):
        may_be_killed()
        found = function(*args, **kwargs)
        may_be_killed()
        return found
    return call

def export(seed):
    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 64))
    ghn_init.export(build, model, name="", method="orth", seed=seed, max_shard_size=17_000,
                    example_inputs=torch.zeros(1, 64))

def content(folder):
    return sorted((file.name, hashlib.sha256(file.read_bytes()).hexdigest())
                  for file in folder.iterdir())

SafetensorsFile.put = watched(SafetensorsFile.put)
files._flush = watched(files._flush)
files._exchange = watched(files._exchange)
files.shutil.rmtree = watched(shutil.rmtree)
export(1)
new = content(model)
shutil.rmtree(model)
export(0)
shutil.copytree(model, old)
seen = []
for last in range(1, 1000):
    moments = 0
    if (child := os.fork()) == 0:
        export(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    found = content(model)
    seen.append("old" if found == content(old) else "new" if found == new else "neither")
    last = 0
    shutil.rmtree(model)
    shutil.copytree(old, model)
    if status == 0:
        break
print(*seen)
"""


def test_a_killed_export_leaves_the_old_folder_or_the_new_one(tmp_path: Path) -> None:
    """Killed at every moment before and after something is written, flushed or moved."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=300)
    seen = found.stdout.split()
    assert len(seen) > 20
    assert seen == ["old"] * seen.count("old") + ["new"] * seen.count("new")
    assert seen.count("old") > 15
    assert seen.count("new") > 2


def test_folders_where_the_system_cannot_exchange_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *args, **kwargs: object())
    for method in ("rand", "orth"):
        exported(ConvNet(), tmp_path / "model", method=method)
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        with safe_open(tmp_path / "model" / "model.safetensors", "pt") as opened:
            assert opened.metadata()["method"] == method


def test_progress_is_by_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ghn_init.progress.DELAY", 1e-9)
    monkeypatch.setattr("ghn_init.progress.LOG_INTERVAL", 0.0)
    command = ["export", "resnet10t", "--method", "orth", "-o", str(tmp_path / "w.safetensors")]
    assert main(command) == 0
    assert "/14 layers [" in capsys.readouterr().err
