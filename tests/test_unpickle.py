"""The pickle reader: reads what checkpoints are made of, runs nothing, is worn out by nothing."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import shlex
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint_files import GHN3, as_joblib, as_torch, as_torch_legacy, same, tiny_state

from ghn_init.errors import GHNInitError
from ghn_init.hypernetwork.config import GHNConfig
from ghn_init.loading.layouts import expected_shapes, read_contents, read_weights
from ghn_init.loading.readers import pickle_machine, torch_files

State = dict[str, torch.Tensor]
FORMATS: dict[str, Callable[[State], bytes]] = {
    "joblib": as_joblib,
    "torch": as_torch,
    "torch-legacy": as_torch_legacy,
}


def read(data: bytes) -> State:
    file = io.BytesIO(data)
    return {name: tensor.read(file) for name, tensor in read_contents(file).tensors.items()}


def message(data: bytes) -> str:
    with pytest.raises(GHNInitError) as caught:
        read(data)
    return str(caught.value)


# What it must read.


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS.keys())
def test_reads_every_kind_of_tensor(write: Callable[[State], bytes]) -> None:
    base = torch.arange(24.0)
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    state = {
        "plain": torch.randn(3, 4, 5),
        "scalar": torch.tensor(7.0),
        "empty": torch.empty(0, 4),
        "transposed": torch.randn(3, 4).T,
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "slice": base[3:9],
        "every second": base[::2],
        **{str(dtype): torch.ones(3).to(dtype) for dtype in dtypes},
    }
    assert same(read(write(state)), state)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_reads_pickle_protocols(protocol: int) -> None:
    state = tiny_state()
    assert same(read(as_joblib(state, protocol)), state)


def test_reads_attributes_of_state_dicts_and_parameters() -> None:
    layer = torch.nn.Linear(2, 3)
    state = layer.state_dict()  # has a _metadata attribute
    assert same(read(pickle.dumps(state)), state)
    assert same(read(as_torch(OrderedDict(layer.named_parameters()))), state)


def test_joblib_writes_a_plain_pickle(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    state = tiny_state()
    joblib.dump(OrderedDict(state), tmp_path / "x")
    assert same(read((tmp_path / "x").read_bytes()), state)


# What it must not run.


class Reduced:
    """Pickles as a call of any function, with any arguments."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


def load_bytes(data: object) -> Reduced:
    return Reduced(torch.storage._load_from_bytes, data)


class WithState:
    """Runs code in `__setstate__` (the pickle instruction BUILD)."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __setstate__(self, state: dict[str, str]) -> None:
        os.mkdir(state["path"])


def text_pickle(path: str) -> bytes:
    return b"cos\nmkdir\n(V" + path.encode("raw_unicode_escape") + b"\ntR."


def instance(path: str) -> bytes:
    name = path.encode()
    return b"\x80\x02(X" + struct.pack("<I", len(name)) + name + b"ios\nmkdir\n."


def zipped(program: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", program)
    return buffer.getvalue()


ATTACKS: dict[str, Callable[[str], bytes]] = {
    "reduce": lambda p: pickle.dumps(Reduced(os.mkdir, p)),
    "reduce, protocol 2": lambda p: pickle.dumps(Reduced(os.mkdir, p), 2),
    "reduce, text": text_pickle,
    "in a dictionary": lambda p: pickle.dumps(OrderedDict(a=Reduced(os.mkdir, p))),
    "shell": lambda p: pickle.dumps({"a": Reduced(os.system, f"mkdir {shlex.quote(p)}")}),
    "eval": lambda p: pickle.dumps(Reduced(eval, f"__import__('os').mkdir({p!r})")),
    "behind a good state": lambda p: as_joblib({**tiny_state(), "z": Reduced(os.mkdir, p)}),
    "nested pickle in a storage": lambda p: pickle.dumps(
        {"a": load_bytes(pickle.dumps(Reduced(os.mkdir, p)))}
    ),
    "nested torch file in a storage": lambda p: pickle.dumps(
        {"a": load_bytes(as_torch_legacy(Reduced(os.mkdir, p)))}
    ),
    "nested zip file in a storage": lambda p: pickle.dumps(
        {"a": load_bytes(as_torch(Reduced(os.mkdir, p)))}
    ),
    "setstate": lambda p: pickle.dumps({"a": WithState(p)}),
    "instance": instance,
    "torch": lambda p: as_torch({"state_dict": Reduced(os.mkdir, p)}),
    "torch, legacy": lambda p: as_torch_legacy({"state_dict": Reduced(os.mkdir, p)}),
}


def load_carelessly(data: bytes) -> None:
    """As the published implementation loads files."""
    if data.startswith((b"PK", torch_files.LEGACY_MAGIC)):
        torch.load(io.BytesIO(data), weights_only=False)
    else:
        pickle.loads(data)


@pytest.mark.parametrize("make", ATTACKS.values(), ids=ATTACKS.keys())
def test_runs_nothing(make: Callable[[str], bytes], tmp_path: Path) -> None:
    live, mine = tmp_path / "live", tmp_path / "mine"
    with contextlib.suppress(Exception):  # many end in an error, having run
        load_carelessly(make(str(live)))
    assert live.exists(), "the attack does not work: the test is worth nothing"
    found = message(make(str(mine)))
    assert not mine.exists()
    assert any(name in found for name in ("mkdir", "system", "eval", "WithState")), found


def test_numpy_arrays_of_joblib_are_refused_by_name(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    joblib.dump({"a": torch.ones(3).numpy()}, tmp_path / "x")
    assert "joblib.numpy_pickle.NumpyArrayWrapper" in message((tmp_path / "x").read_bytes())


# Allowed names, used otherwise.

GLOBALS = {
    "dict": b"ccollections\nOrderedDict\n",
    "tensor": b"ctorch._utils\n_rebuild_tensor_v2\n",
    "load": b"ctorch.storage\n_load_from_bytes\n",
}


def program(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def storage(count: int = 4) -> bytes:
    """The pickle instructions that load a storage of `count` floats."""
    inner = as_torch_legacy(torch.ones(count)._typed_storage())
    return GLOBALS["load"] + b"B" + struct.pack("<I", len(inner)) + inner + b"\x85R"


def rebuild(offset: bytes, size: bytes, stride: bytes, rest: bytes = b"\x89}") -> bytes:
    """A dictionary with one tensor, its arguments given as pickle instructions."""
    body = GLOBALS["tensor"] + b"(" + storage() + offset + size + stride + rest + b"tR"
    return program(b"}X\x01\x00\x00\x00a", body, b"s")


def number(value: int) -> bytes:
    raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


MISUSES = {
    "dictionary of arguments": program(GLOBALS["dict"], b"]\x85R"),
    "class with arguments": program(GLOBALS["dict"], b"]\x85\x81"),
    "load a string": program(GLOBALS["load"], b"X\x01\x00\x00\x00a\x85R"),
    "load twice": program(GLOBALS["load"], storage(), b"\x85R"),
    "load empty bytes": program(GLOBALS["load"], b"C\x00\x85R"),
    "name it and leave it": program(GLOBALS["load"]),
    "tensor without arguments": program(GLOBALS["tensor"], b")R"),
    "offset behind the end": rebuild(number(4), number(1) + b"\x85", number(1) + b"\x85"),
    "negative offset": rebuild(number(-1), number(1) + b"\x85", number(1) + b"\x85"),
    "size beyond the end": rebuild(number(0), number(5) + b"\x85", number(1) + b"\x85"),
    "stride beyond the end": rebuild(number(0), number(4) + b"\x85", number(2) + b"\x85"),
    "negative stride": rebuild(number(3), number(4) + b"\x85", number(-1) + b"\x85"),
    "huge size": rebuild(number(0), number(1 << 2000) + b"\x85", number(1) + b"\x85"),
    "expanded": rebuild(number(0), number(1 << 40) + b"\x85", number(0) + b"\x85"),
    "true for a size": rebuild(number(0), b"\x88\x85", number(1) + b"\x85"),
    "text for a size": rebuild(number(0), b"X\x01\x00\x00\x004\x85", number(1) + b"\x85"),
    "two sizes, one stride": rebuild(number(0), number(2) * 2 + b"\x86", number(1) + b"\x85"),
    "hooks": rebuild(
        number(0), number(4) + b"\x85", number(1) + b"\x85", b"\x89}X\x01\x00\x00\x00aNs"
    ),
    "attributes of a tensor": program(GLOBALS["tensor"], b"}b"),
    "attributes of a list": program(b"]}b"),
    "persistent reference": program(b"X\x01\x00\x00\x00aQ"),
    "call of a dictionary": program(b"})R"),
    "a storage type called": zipped(program(b"ctorch\nFloatStorage\n", number(1 << 40), b"\x85R")),
    "unknown instruction": program(b"\xff"),
    "a tuple for a key": program(b"})Ns"),
    "nothing on the stack": program(),
    "two things on the stack": program(b"NN"),
    "below the mark": program(b"N(\x85"),
    "memo that is not there": program(b"h\x07"),
    "something behind the end": as_joblib({"a": torch.ones(2)}) + b"x",
}


@pytest.mark.parametrize("data", MISUSES.values(), ids=MISUSES.keys())
def test_refuses_misuse(data: bytes) -> None:
    found = message(data)
    assert found.startswith(("refused", "damaged", "truncated", "it is no checkpoint"))


@pytest.mark.parametrize(
    ("case", "found"),
    [
        ("dictionary of arguments", "uses collections.OrderedDict in a way"),
        ("load a string", "uses torch.storage._load_from_bytes in a way"),
        ("hooks", "uses torch._utils._rebuild_tensor_v2 in a way"),
        ("expanded", "claims the shape"),
        ("size beyond the end", "claims the shape 5 at offset 0, but its storage holds 4"),
        ("attributes of a tensor", "sets attributes"),
        ("attributes of a list", "sets attributes"),
        ("a storage type called", "uses torch.FloatStorage in a way"),
        ("persistent reference", "refers to data in a way"),
    ],
)
def test_says_what_is_misused(case: str, found: str) -> None:
    assert found in message(MISUSES[case])


def test_the_misuses_differ_from_good_files_only_in_what_they_misuse() -> None:
    good = rebuild(number(0), number(4) + b"\x85", number(1) + b"\x85")
    assert torch.equal(read(good)["a"], torch.ones(4))


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (b"little_endianq\x02\x88", b"little_endianq\x02\x89", "header"),
        (b"M\xe9\x03.", b"M\xea\x03.", "header"),
        (b"FloatStorage", b"ShortStorage", "size|small|file|claims|damaged|truncated"),
        (b"K\x03Nt", b"K\x04Nt", "damaged|truncated|size"),
    ],
)
def test_legacy_files_must_be_consistent(old: bytes, new: bytes, found: str) -> None:
    data = as_torch_legacy({"a": torch.ones(3)})
    assert old in data
    with pytest.raises(GHNInitError, match=found):
        read(data.replace(old, new))


# What must not wear it out.


def measured(data: bytes) -> tuple[str, float, float]:
    """The error that reading gives, the MB of memory and the seconds that it takes."""
    tracemalloc.start()
    began = time.process_time()
    try:
        found = message(data)
        return found, tracemalloc.get_traced_memory()[1] / 1e6, time.process_time() - began
    finally:
        tracemalloc.stop()


def nested_tuples(depth: int) -> bytes:
    """A dictionary whose key is a tuple that takes 2**depth steps to hash."""
    return program(b"})", b"q\x00h\x00\x86" * depth, b"Ns")


BOMBS = {
    "bytes that are not there": program(b"\x8e" + struct.pack("<Q", 1 << 60)),
    "text that is not there": program(b"\x8d" + struct.pack("<Q", 1 << 60)),
    "frame that is not there": program(b"\x95" + struct.pack("<Q", 1 << 60)),
    "long number": program(b"\x8b" + struct.pack("<I", 1 << 30)),
    "memo": program(b"Nr\xff\xff\xff\xff"),
    "hash": nested_tuples(200),
    "deep tuples": program(b")", b"\x85" * 100_000),
    "deep lists": program(b"]" * 100_000, b"a" * 99_999),
    "many values": b"\x80\x02" + b"N" * 3_000_000 + b".",
    "much text": b"\x80\x02" + (b"X\x00\x00\x10\x00" + b"a" * (1 << 20)) * 150 + b".",
    "list in itself": program(b"]q\x00h\x00a"),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_do_not_go_off(data: bytes) -> None:
    _, megabytes, seconds = measured(data)
    assert megabytes < 100
    assert seconds < 20  # traced memory is slow; untraced it is under a second


@pytest.mark.parametrize("compression", ["zlib", "gzip", "bz2", "xz", "lzma"])
def test_compressed_files_are_refused_by_name(compression: str, tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    for level in (1, 3, 9):
        joblib.dump(tiny_state(), tmp_path / "x", compress=(compression, level))
        assert "it is compressed" in message((tmp_path / "x").read_bytes())


def test_zip_bomb_is_refused_before_it_is_inflated() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(1 << 26))
    found, megabytes, _ = measured(buffer.getvalue())
    assert "compressed" in found
    assert megabytes < 5


def test_zip_with_an_endless_table_of_contents() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for i in range(60_000):
            archive.writestr(f"x/{i:060}", b"")
    assert "table of contents" in message(buffer.getvalue())


def test_zip_with_overlapping_records() -> None:
    data = bytearray(as_torch({"a": torch.ones(3), "b": torch.ones(3)}))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        one, two = (archive.getinfo(f"archive/data/{i}").header_offset for i in range(2))
    place = data.rindex(struct.pack("<I", two))  # in the table of contents
    data[place : place + 4] = struct.pack("<I", one)
    assert "overlapping" in message(bytes(data))


def test_small_file_that_claims_one_storage_many_times() -> None:
    data = torch.ones(1000)
    states = {f"t{i}": data.view(1000) for i in range(50)}
    assert "larger than the file" in message(as_torch(states))


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS.keys())
def test_every_truncation_is_noticed(write: Callable[[State], bytes]) -> None:
    whole = write({"a": torch.ones(3), "b": torch.zeros(2, 2)})
    assert len(read(whole)) == 2
    for size in range(len(whole)):
        with pytest.raises(GHNInitError):
            read(whole[:size])


def test_flipped_bits_in_torch_files_are_noticed() -> None:
    state = {"a": torch.randn(64)}
    whole = as_torch(state)
    start = whole.index(state["a"].numpy().tobytes())
    for place in range(start, start + 256, 16):
        broken = bytearray(whole)
        broken[place] ^= 4
        assert "checksum" in message(bytes(broken))


def test_reading_a_checkpoint_reads_no_weights() -> None:
    """A file is looked through without its weights, so that their number does not matter."""

    class Counting(io.BytesIO):
        count = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.count += len(data)
            return data

    data = as_joblib(tiny_state(replace(GHN3, hidden_size=64)))
    file = Counting(data)
    read_weights(file)
    assert file.count < len(data) / 2


def test_the_largest_published_checkpoint_is_far_from_the_limits() -> None:
    """GHN-3-XL has 24 layers, and its trainer's files an optimizer state for every tensor."""
    largest = GHNConfig("ghn3", 384, 24, 16, (384, 384, 16, 16), 1000)
    state = {name: torch.ones(1) for name in expected_shapes(largest)}
    moments = {i: {"step": 1, "m": torch.ones(1), "v": torch.ones(1)} for i in range(len(state))}
    data = as_torch_legacy({"state_dict": state, "optimizer": {"state": moments}})
    budget = pickle_machine.Budget()
    cursor = pickle_machine.Cursor(io.BytesIO(data), 0, len(data), budget)
    torch_files._read_legacy(cursor, torch_files._torch_globals())
    assert budget.steps > 0.9 * pickle_machine.MAX_STEPS
    assert budget.text > 0.9 * pickle_machine.MAX_TEXT


@pytest.mark.slow
def test_mutated_files(tmp_path: Path) -> None:
    """A short run of the fuzzer, in a process of its own: its audit hook cannot be taken out."""
    fuzzer = Path(__file__).with_name("fuzz_readers.py")
    done = subprocess.run(
        [sys.executable, fuzzer, "--inputs", "20000", "--seed", "5"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "20,000 inputs" in done.stdout
    assert not list(tmp_path.iterdir())
