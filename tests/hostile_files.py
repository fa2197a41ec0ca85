"""Hostile and damaged checkpoint files of every layout, none larger than 1 MB.

    python tests/hostile_files.py                open each: refused, soon, in little memory
    python tests/hostile_files.py --write DIR    write them, for other programs

Opening each of them must end in `GHNInitError` within `SECONDS` and `MEGABYTES`. The files are made
anew every time, the same each time.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import pickle
import pickletools
import resource
import struct
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors.torch
import torch
from checkpoint_files import (
    GHN2,
    as_joblib,
    as_release,
    as_safetensors,
    as_torch,
    as_torch_legacy,
    published,
    raw_safetensors,
    tiny_state,
)
from test_unpickle import ATTACKS, BOMBS, MISUSES, program

from ghn_init import GHNConfig, GHNInitError, load_ghn
from ghn_init.loading.readers.torch_files import LEGACY_MAGIC

SECONDS, MEGABYTES = 5.0, 300  # of the processor: other work on the machine does not count
LARGEST = 1 << 20  # bytes

Files = Iterator[tuple[str, bytes]]


def corpus() -> dict[str, bytes]:
    """Name -> content."""
    makers = (
        *(safetensors_headers, safetensors_shapes, safetensors_contents, metadata),
        *(pickles, objects, views, zips, damaged),
    )
    files = {name: data for make in makers for name, data in make()}
    assert max(map(len, files.values())) <= LARGEST
    return files


# safetensors


def _sound() -> tuple[dict[str, object], bytes]:
    """Header and numbers of a good file."""
    data = as_safetensors(tiny_state())
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _changed(change: Callable[[dict[str, dict[str, object]]], object]) -> bytes:
    header, numbers = _sound()
    header = copy.deepcopy(header)
    change(header)  # type: ignore[arg-type]
    return raw_safetensors(header, numbers)


def safetensors_headers() -> Files:
    header, numbers = _sound()
    text = json.dumps(header).encode()
    for size in (0, 1, 7, len(text) - 1, len(text) + 1, 1 << 24, 1 << 31, 1 << 62, (1 << 64) - 1):
        yield f"header of {size} bytes", size.to_bytes(8, "little") + text + numbers
    for name, content in {
        "nested lists": b'{"a":' + b"[" * 500_000,
        "nested dictionaries": b'{"a":' * 150_000,
        "a long number": b'{"a":' + b"9" * 500_000 + b"}",
        "many entries": b"{" + b",".join(b'"%d":{}' % i for i in range(80_000)) + b"}",
        "many doubles": b"{" + b",".join([b'"a":1'] * 150_000) + b"}",
        "a list": b'[{"a":1}]',
        "no text": b"{\xff\xfe}",
        "a null character": b'{"a\\u0000":1}',
        "NaN": b'{"a":NaN}',
        "nothing": b"{}",
        "only metadata": b'{"__metadata__":{}}',
    }.items():
        yield f"header: {name}", raw_safetensors(content)
    for value in (1, "x", [], [["a", "b"]], {"a": 1}, {"a": None}, {"a": ["x"] * 50_000}):
        yield (f"metadata: {value!s:.30}", _changed(lambda h, v=value: h.update(__metadata__=v)))  # type: ignore[misc]
    entry = header["ln.bias"]
    for field in ("dtype", "shape", "data_offsets"):
        for value in (
            None,
            True,
            -1,
            1.5,
            "F64",
            "I7",
            [],
            {},
            [[]],
            [None],
            [-1, 3],
            [1 << 70, 1 << 71],
        ):
            yield (
                f"{field}: {value!s:.20}",
                _changed(lambda h, f=field, v=value: h["ln.bias"].update({f: v})),  # type: ignore[misc]
            )
        yield f"no {field}", _changed(lambda h, f=field: h["ln.bias"].pop(f))  # type: ignore[misc]
    for name, new in {"twice": entry, "a list": [], "a number": 3, "null": None}.items():
        yield f"an entry more: {name}", _changed(lambda h, n=new: h.update(more=n))  # type: ignore[misc]


HIDDEN_SHAPES = (
    [0],
    [4, 0],
    [10**18, 0],
    [0, 10**18],
    [2**31, 2**31, 4, 0],
    [2**62, 0],
    [2**63, 0],
    [2**64 + 1, 0],
    [10**30, 0],
    [2**20, 2**20, 2**8, 0],
    [2**40, 0],
    [2**31, 0],
    [2**20, 0],
    [0] * 8,
    [1] * 9,
    [1] * 64,
)


def safetensors_shapes() -> Files:
    """Shapes without any number in them, for the tensors that a configuration is inferred from."""
    names = ("embed.weight", "decoder.conv.2.weight", "decoder.fc.0.weight", "ln.weight",
             "decoder.class_layer_predictor.1.weight", "gnn.0.attn.proj_e.2.weight")  # fmt: skip
    for name in names:
        for shape in HIDDEN_SHAPES:
            state = {k: v for k, v in tiny_state().items() if k != name}
            data = as_safetensors(state)
            size = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + size])
            header[name] = {
                "dtype": "F32",
                "shape": shape,
                "data_offsets": [len(data) - 8 - size] * 2,
            }
            yield f"{name} {shape!s:.40}", raw_safetensors(header, data[8 + size :])


def safetensors_contents() -> Files:
    state = tiny_state()
    for name in ("embed.weight", "decoder.fc.0.bias", "ln.bias"):
        for number in (float("nan"), float("inf"), -float("inf")):
            bad = {**state, name: torch.full_like(state[name], number)}
            yield f"{number} in {name}", as_safetensors(bad)
            yield f"{number} in {name}, joblib", as_joblib(published(bad))
        yield f"without {name}", as_safetensors({k: v for k, v in state.items() if k != name})
        yield f"integers in {name}", as_safetensors({**state, name: state[name].long()})
    huge = {name: tensor.double() * 1e300 for name, tensor in state.items()}
    yield "float64 that become infinite", as_safetensors(huge)
    yield "float64 that become infinite, joblib", as_joblib(published(huge))
    yield "a tensor more", as_safetensors({**state, "more": torch.ones(1)})
    yield "a layer more", as_safetensors({**state, "gnn.7.ln1.bias": torch.ones(8)})
    yield "999 layers", as_safetensors({**state, "gnn.999.ln1.bias": torch.ones(8)})
    yield "a model", as_safetensors(torch.nn.Linear(3, 3).state_dict())
    many = {f"gnn.{i}.ln1.bias": torch.ones(1) for i in range(999)}
    yield "999 layers of one tensor", as_safetensors({**state, **many})
    for heads in (1, 3, 5, 7, 9, 1000):  # 8 channels and 2 heads are right, 1 head is not stated
        name = "gnn.0.attn.proj_e.2"
        bad = {**state, f"{name}.weight": torch.ones(heads, 8), f"{name}.bias": torch.ones(heads)}
        if heads != 1:
            yield f"{heads} heads for 8 channels", as_safetensors(bad)


def metadata() -> Files:
    """What a file says of itself."""
    configurations = (
        *("", "x", "[" * 200_000, "[]", "1", '{"more": 1}', '{"arch": "ghn2"}', '{"heads": 3}'),
        *('{"max_shape": [[4]]}', '{"layers": 1e400}', '{"layers": ' + "9" * 9999 + "}"),
    )
    defaults = (
        *("", "x", "[]", "[" * 200_000, '{"more": 1}', '{"norms": "bn"}', '{"norms": [1]}'),
        *('{"norms": ["x"]}', '{"orth_start": -1}', '{"orth_start": Infinity}'),
    )
    for key, texts in {"config": configurations, "defaults": defaults}.items():
        for text in texts:
            data = safetensors.torch.save(tiny_state(), {f"ghn_init.{key}": text})
            yield f"{key} {text[:20]}", data
    deep: object = ()
    for _ in range(400):  # pickle itself goes no deeper; the program below does
        deep = (deep,)
    doubled: object = (1,)
    for _ in range(60):
        doubled = (doubled, doubled)
    values = (9, -1, 10**300, "x" * 500_000, True, deep, doubled, [doubled], (doubled,) * 4)
    for i, value in enumerate(values):
        for key in ("hid", "max_shape", "num_classes"):
            kind = type(getattr(GHN2, {"hid": "hidden_size"}.get(key, key)))
            if type(value) is kind:
                yield (
                    f"released configuration: {key} {i}",
                    as_release(tiny_state(GHN2), **{key: value}),
                )


# Pickles

KNOWN_CODES = {bytes([code]) for code in b"NKMJGXCB}])(tsuaeqrhjcRbQ."} | {
    bytes([code]) for code in b"\x80\x95\x88\x89\x8a\x8c\x8d\x8e\x85\x86\x87\x94\x93"
}
OTHER_CODES = sorted({op.code.encode("latin-1") for op in pickletools.opcodes} - KNOWN_CODES)


def in_zip(body: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", body)
    return buffer.getvalue()


def in_legacy(body: bytes) -> bytes:
    header = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)
    return LEGACY_MAGIC + pickle.dumps(1001, 2) + header + body + pickle.dumps([], 2)


CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "joblib": lambda body: body,
    "torch": in_zip,
    "torch-legacy": in_legacy,
}


def _items(*pairs: tuple[bytes, bytes]) -> bytes:
    """A pickle of a dictionary; keys and values are instructions."""
    return program(b"}(", *(key + value for key, value in pairs), b"u")


def _long(value: int) -> bytes:
    raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def programs() -> Files:
    """Pickles that no checkpoint needs, for any container."""
    for code in OTHER_CODES:
        yield f"instruction {code!r}", program(b"N", code, bytes(20))
    prime = (1 << 61) - 1
    yield "keys that hash alike", _items(*((_long(i * prime), b"N") for i in range(1, 80_000)))
    yield (
        "keys that hash alike, below 0",
        _items(*((_long(-i * prime), b"N") for i in range(1, 80_000))),
    )
    text = b"X\x0a\x00\x00\x00state_dict"
    config = b"X\x06\x00\x00\x00config"
    nested = b")" + b"\x85" * 5000
    doubled = b")" + b"q\x00h\x00\x86" * 60
    for name, value in {"nested": nested, "doubled": doubled}.items():
        shape = b"}X\x09\x00\x00\x00max_shape" + value + b"s"
        yield f"{name} tuple for a name", program(b"}", value, b"Ns")
        yield f"{name} tuple for a tensor", program(b"}X\x01\x00\x00\x00a", value, b"s")
        yield f"{name} tuple for everything", program(value)
        yield f"{name} tuple in a configuration", _items((text, b"}"), (config, shape))
    yield "many lists", program(b"]" * 400_000)
    yield "many dictionaries", program(b"}" * 400_000)
    yield "many marks", program(b"(" * 900_000)
    yield "many memos", program(b"N", *(b"r" + struct.pack("<I", i) for i in range(180_000)))
    yield "long text", program(b"X" + struct.pack("<I", 900_000), b"a" * 900_000)
    yield "text without end", program(b"X" + struct.pack("<I", 0xFFFFFFFF))
    yield "bytes without end", program(b"B" + struct.pack("<I", 0xFFFFFFFF))
    yield "a name without end", program(b"c" + b"a" * 900_000)


def pickles() -> Files:
    for container, wrap in CONTAINERS.items():
        for name, body in programs():
            yield f"{name} ({container})", wrap(body)[:LARGEST]
    for name, data in {**MISUSES, **BOMBS}.items():
        yield f"{name} (pickle)", data[:LARGEST]
    for name, make in ATTACKS.items():
        yield f"{name} (attack)", make(os.path.join(tempfile.gettempdir(), "never made"))


def objects() -> Files:
    """Good pickles of what is no checkpoint."""
    values = (
        *(None, 1, "x", [], (), {}, [1, 2], {"a": 1}, {1: torch.ones(1)}, torch.ones(3)),
        *({"state_dict": {}}, {"state_dict": [torch.ones(1)]}, {"a": {"b": torch.ones(1)}}),
    )
    for i, value in enumerate(values):
        for container, write in {"torch": as_torch, "torch-legacy": as_torch_legacy}.items():
            yield f"object {i} ({container})", write(value)
        yield f"object {i} (joblib)", pickle.dumps(value, 4)


def views() -> Files:
    """Many tensors of one storage."""
    base = torch.ones(200_000)
    states = {
        "spread": {f"gnn.{i}.ln1.bias": base[:: len(base) - 1] for i in range(250)},
        "alike": {f"t{i}": base[:1000] for i in range(4000)},
        "whole": {f"t{i}": base.view(400, 500).T for i in range(100)},
        "expanded": {"a": torch.ones(1).expand(1 << 40)},
    }
    for name, state in states.items():
        for container, write in {"torch": as_torch, "torch-legacy": as_torch_legacy}.items():
            data = write({**tiny_state(), **state})
            if len(data) <= LARGEST:
                yield f"views: {name} ({container})", data


# Containers


def zips() -> Files:
    whole = as_torch(published(tiny_state()))
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}

    def packed(content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compression) as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return buffer.getvalue()

    for i in range(4):
        content = {k: v for k, v in records.items() if k != f"archive/data/{i}"}
        yield f"zip without storage {i}", packed(content)
    yield "zip without a program", packed({k: v for k, v in records.items() if ".pkl" not in k})
    for kind in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield f"zip with compression {kind}", packed(records, kind)
        yield f"zip bomb {kind}", packed({"x/data.pkl": bytes(1 << 27)}, kind)
    yield "zip of nothing", packed({})
    yield "zip of two", packed({**records, "b/data.pkl": records["archive/data.pkl"]})
    yield "TorchScript", packed({**records, "archive/constants.pkl": b""})
    yield "big-endian", packed({**records, "archive/byteorder": b"big"})
    yield "zip with a table of contents only", packed({f"x/{i}": b"" for i in range(7500)})
    yield "zip with a comment", whole[:-2] + b"\xff\xff" + bytes(65535)
    for i, place in enumerate(range(0, len(whole), len(whole) // 12)):
        broken = bytearray(whole)
        broken[place : place + 64] = bytes(64)
        yield f"zip with zeros {i}", bytes(broken)


def damaged() -> Files:
    state = tiny_state(GHNConfig("ghn3", 4, 1, 1, (1, 1, 1, 1), 1))
    writers = {
        "safetensors": as_safetensors,
        "joblib": as_joblib,
        "torch": as_torch,
        "torch-legacy": as_torch_legacy,
    }
    for layout, write in writers.items():
        whole = write(state)
        for i in range(12):
            yield f"{layout} cut at {i}/12", whole[: len(whole) * i // 12]
        yield f"{layout} and more", whole + b"more"
        yield f"{layout} twice", whole + whole
        yield f"{layout} behind a line", b"\n" + whole
        yield f"{layout} of zeros", bytes(len(whole))
    yield from {
        "web page": b"<!DOCTYPE html><html>",
        "git-LFS pointer": b"version https://git-lfs.github.com/spec/v1\n",
        "gzip": b"\x1f\x8b" + bytes(100),
        "text": b"hello",
        "all bytes": bytes(range(256)) * 16,
        "ones": b"\xff" * LARGEST,
    }.items()


# Running


def refused(path: Path) -> str:
    """What is wrong with how a file is answered; empty if nothing is."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        load_ghn(path)
        answer = "it was loaded"
    except GHNInitError as error:
        answer = "" if len(str(error)) < 2000 else "an endless message"
    except BaseException as error:
        answer = f"{type(error).__name__}: {str(error)[:200]}"
    seconds = time.process_time() - began
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    slow = f"{seconds:.1f} s " if seconds > SECONDS else ""
    large = f"{megabytes:.0f} MB" if megabytes > MEGABYTES else ""
    return f"{answer} {slow}{large}".strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", metavar="DIR", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.write or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["GHN_INIT_CACHE"] = str(Path(temporary) / "cache")
        files = corpus()
        paths = {name: folder / f"{i:04}" for i, name in enumerate(files)}
        for name, path in paths.items():
            path.write_bytes(files[name])
        if options.write:
            return
        del files
        failures = {name: wrong for name, path in paths.items() if (wrong := refused(path))}
    for name, wrong in failures.items():
        print(f"{name}: {wrong}")
    print(f"{len(paths)} files, {len(failures)} not refused as they should be")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
