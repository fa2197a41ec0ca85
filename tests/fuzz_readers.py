"""Fuzzes the readers of checkpoints: whatever a file holds, they answer, or raise GHNInitError.

    python tests/fuzz_readers.py --inputs 1000000            mutations only, no other package
    python tests/fuzz_readers.py --inputs 1000000 --atheris  coverage-guided (pip install atheris)

Both start from small files in every real layout. An input fails the run if it makes a reader raise
anything else, take more than 5 seconds, need more than 4 GB of address space beyond what Python
and torch take, call or import anything, or open a file. The input is then left in the file
`fuzz-failure`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import pickle
import random
import re
import resource
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from checkpoint_files import (
    as_joblib,
    as_safetensors,
    as_torch,
    as_torch_legacy,
    published,
    tiny_state,
)

from ghn_init.errors import GHNInitError
from ghn_init.hypernetwork.config import GHNConfig
from ghn_init.loading.layouts import read_contents, read_weights

SECONDS = 5.0  # for one input
ADDRESS_SPACE = 4 << 30  # bytes, for all of them

# Audit events of Python: what none of the readers does.
_FORBIDDEN = (
    *("os.", "subprocess.", "socket.", "exec", "compile"),
    *("pickle.", "ctypes.", "shutil.", "import", "open"),
)
_watching = False


class Executed(BaseException):
    """Something was called that no reader calls."""


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if not _watching:
        return
    if event.startswith(_FORBIDDEN):
        raise Executed(f"{event} {arguments}")


def read(data: bytes) -> str:
    """Feeds one input to the readers; the outcome in a word."""
    try:
        file = io.BytesIO(data)
        for tensor in read_contents(file).tensors.values():
            tensor.read(file)
        for tensor in read_weights(file).tensors.values():
            tensor.read(file)
    except GHNInitError as error:
        message = str(error)
        assert len(message) < 2000, "an endless message"
        # Without what comes from the file.
        return re.sub(r"(instruction|['\"(]).*|[0-9]", "", message)[:60]
    return "read"


def watch(data: bytes) -> str:
    """`read`, with execution and time looked after."""
    global _watching
    began = time.perf_counter()
    _watching = True
    try:
        outcome = read(data)
    finally:
        _watching = False
    taken = time.perf_counter() - began
    if taken > SECONDS:
        raise TimeoutError(f"an input took {taken:.1f} s")
    return outcome


def seeds() -> list[bytes]:
    """Small files in every layout, and some attacks."""
    small = {"a": torch.ones(3), "b.c": torch.zeros(2, 2, dtype=torch.float16)}
    ghn = tiny_state(GHNConfig("ghn3", 4, 1, 1, (1, 1, 1, 1), 1))
    scattered = published(tiny_state(GHNConfig("ghn3", 4, 1, 1, (1, 1, 2, 2), 1)))
    wrapped = {"state_dict": small, "config": {"hid": 4, "ve": True}, "epoch": 3, "lr": 0.5}
    layer = torch.nn.Linear(2, 1)
    return [
        *(write(small) for write in (as_safetensors, as_joblib, as_torch, as_torch_legacy)),
        *(write(ghn) for write in (as_safetensors, as_joblib, as_torch, as_torch_legacy)),
        *(write(scattered) for write in (as_safetensors, as_joblib)),
        *(write(wrapped) for write in (as_torch, as_torch_legacy)),
        as_joblib(small, 3),
        pickle.dumps(layer.state_dict(), 4),
        as_torch(OrderedDict(layer.named_parameters())),
        as_torch({"a": torch.ones(4, 2).T, "b": [torch.ones(1), (1, "x", None, 2.5, True)]}),
        pickle.dumps({"a": _Reduced(print, "executed")}),
        as_torch({"a": _Reduced(print, "executed")}),
    ]


class _Reduced:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


_NUMBERS = [0, 1, 2, 4, 8, 127, 128, 255, 256, 1000, 1001, 65535, 1 << 31, (1 << 32) - 1, 1 << 40]
_PIECES = [
    *(bytes([code]) for code in b"().0123NKMJGXBCRQbcdehjlopqrstu}]a\x80\x81\x85\x86\x87\x88\x89"),
    *(bytes([code]) for code in b"\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95"),
    b"cos\nsystem\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch.storage\n_load_from_bytes\n",
    b"ctorch\nFloatStorage\n",
    b"\x8c\x02os\x8c\x06system\x93",
    b"q\x00h\x00\x86",
    b"X\x01\x00\x00\x00a",
]


def mutate(data: bytes, rng: random.Random, corpus: list[bytes]) -> bytes:
    """One to four changes; half of the time inside of the container, which then fits again."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        if rng.random() < 0.5:
            data = _mutate_inside(data, rng, corpus)
        else:
            data = _mutate_bytes(data, rng, corpus)
    return data


def _mutate_bytes(data: bytes, rng: random.Random, corpus: list[bytes]) -> bytes:
    start = rng.randrange(len(data) + 1)
    if rng.random() < 0.5:  # structure is at the start and at the end, numbers in the middle
        start = min(start, rng.randrange(300)) if rng.random() < 0.7 else max(0, len(data) - start)
    end = min(len(data), start + rng.choice((0, 1, 1, 2, 4, 8, 30, 300)))
    match rng.randrange(7):
        case 0:
            new = bytes(byte ^ (1 << rng.randrange(8)) for byte in data[start:end])
        case 1:
            new = b""
        case 2:
            new = rng.choice(_PIECES)
        case 3:
            new = data[start:end] * rng.choice((2, 3, 50))
        case 4:
            other = rng.choice(corpus)
            place = rng.randrange(len(other) + 1)
            new = other[place : place + rng.choice((1, 8, 64, 1000))]
        case 5:
            number, size = rng.choice(_NUMBERS), rng.choice((1, 2, 4, 8))
            new = (number % (1 << 8 * size)).to_bytes(size, "little")
        case _:
            return data[:start]
    return data[:start] + new + data[end:]


def _mutate_inside(data: bytes, rng: random.Random, corpus: list[bytes]) -> bytes:
    """Changes what a container holds, and mends sizes and checksums around it."""
    if data.startswith(b"PK"):
        return _mutate_zip(data, rng, corpus)
    if data[3:9] == b"\0\0\0\0\0{":
        return _mutate_safetensors(data, rng, corpus)
    place = data.find(b"B")  # the first byte string of a pickle, perhaps a nested storage
    if place >= 0 and len(data) > place + 5:
        size = int.from_bytes(data[place + 1 : place + 5], "little")
        inner = data[place + 5 : place + 5 + size]
        if inner:
            new = _mutate_bytes(inner, rng, corpus)
            return data[: place + 1] + struct.pack("<I", len(new)) + new + data[place + 5 + size :]
    return _mutate_bytes(data, rng, corpus)


def _mutate_zip(data: bytes, rng: random.Random, corpus: list[bytes]) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = [[entry.filename, archive.read(entry)] for entry in archive.infolist()]
    except Exception:
        return _mutate_bytes(data, rng, corpus)
    if not records:
        return data
    record = rng.choice(records) if rng.random() < 0.3 else records[0]
    record[1] = _mutate_bytes(record[1], rng, corpus)  # type: ignore[arg-type]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in records:
            archive.writestr(name, content)  # type: ignore[arg-type]
    return buffer.getvalue()


def _mutate_safetensors(data: bytes, rng: random.Random, corpus: list[bytes]) -> bytes:
    size = int.from_bytes(data[:8], "little")
    text, rest = data[8 : 8 + size], data[8 + size :]
    try:
        header = json.loads(text)
        entry = header[rng.choice(list(header))]
        field = rng.choice(list(entry))
        match rng.randrange(4):
            case 0:
                entry[field] = rng.choice((None, True, -1, 1.5, "F32", [], {}, [[]], 1 << 70))
            case 1:
                entry[field][rng.randrange(2)] = rng.choice((*_NUMBERS, -1, True, None, 0.5))
            case 2:
                del entry[field]
            case _:
                entry["data_offsets"] = [n + rng.choice((-4, 4)) for n in entry["data_offsets"]]
        text = json.dumps(header).encode()
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, AttributeError):
        text = _mutate_bytes(text, rng, corpus)
    return len(text).to_bytes(8, "little") + text + rest


def run(inputs: int, seed: int = 0, report: Callable[[str], None] | None = None) -> Counter[str]:
    """Feeds mutations to the readers; how often each outcome came. Raises on the first failure."""
    rng = random.Random(seed)
    corpus = seeds()
    outcomes: Counter[str] = Counter()
    for i in range(inputs):
        data = mutate(rng.choice(corpus), rng, corpus)
        outcome = guarded(data)
        # An outcome that is new may lead to others: the poor man's coverage.
        if outcome not in outcomes and len(data) < 100_000:
            corpus.append(data)
        outcomes[outcome] += 1
        if report is not None and (i + 1) % 100_000 == 0:
            report(f"{i + 1:,} inputs, {len(outcomes)} outcomes, {outcomes['read']:,} read")
    return outcomes


def guarded(data: bytes) -> str:
    """`watch`; an input that fails is left in a file."""
    try:
        return watch(data)
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):
            Path("fuzz-failure").write_bytes(data)
        raise


def run_atheris(inputs: int, seed: int) -> None:
    """The same with libFuzzer choosing what to change, by the code that it reaches."""
    import atheris

    rng, corpus = random.Random(seed), seeds()
    for module in (
        "readers.pickle_machine",
        "readers.torch_files",
        "readers.headers",
        "readers.files",
        "readers.safetensors_files",
        "layouts",
        "readers.stored",
    ):
        _instrument(atheris, f"ghn_init.loading.{module}")

    def change(data: bytes, limit: int, number: int) -> bytes:
        rng.seed(number)
        changed = atheris.Mutate(data, limit) if rng.random() < 0.5 else mutate(data, rng, corpus)
        return bytes(changed[:limit])

    with tempfile.TemporaryDirectory() as folder:
        for i, data in enumerate(corpus):
            (Path(folder) / str(i)).write_bytes(data)
        options = [f"-runs={inputs}", f"-seed={seed + 1}", "-max_len=100000", "-rss_limit_mb=4096"]
        atheris.Setup(
            [sys.argv[0], folder, *options, f"-timeout={SECONDS:.0f}"],
            guarded,
            custom_mutator=change,
        )
        atheris.Fuzz()


def _instrument(atheris: object, name: str) -> None:
    """Puts coverage into the functions of a module that is imported already."""
    module = sys.modules[name]
    for holder in (module, *(v for v in vars(module).values() if isinstance(v, type))):
        if getattr(holder, "__module__", name) != name:
            continue
        for value in vars(holder).values():
            code = getattr(value, "__code__", None)
            if code is not None and getattr(value, "__module__", None) == name:
                with contextlib.suppress(Exception):
                    atheris.instrument_func(value)  # type: ignore[attr-defined]


def warm_up() -> None:
    """Has everything imported that is imported late, harmlessly."""
    b"a".decode("cp437")  # names in old zip files
    for data in seeds():
        read(data)


def limit_memory() -> None:
    """Lets this process take `ADDRESS_SPACE` more than it has: beyond, MemoryError."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE, used + ADDRESS_SPACE))


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzzes the readers of checkpoints.")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true", help="coverage-guided")
    arguments = parser.parse_args()
    warm_up()
    sys.addaudithook(_audit)
    if arguments.atheris:
        run_atheris(arguments.inputs, arguments.seed)
        return
    limit_memory()
    began = time.perf_counter()
    outcomes = run(arguments.inputs, arguments.seed, lambda line: print(line, flush=True))
    for outcome, count in outcomes.most_common():
        print(f"{count:10,}  {outcome}")
    print(f"{arguments.inputs:,} inputs in {time.perf_counter() - began:.0f} s, no failure")


if __name__ == "__main__":
    main()
