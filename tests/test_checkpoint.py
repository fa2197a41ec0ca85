"""Opening, converting, saving checkpoints: the right numbers, or an error and nothing changed."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from checkpoint_files import (
    GHN2,
    GHN3,
    LAYOUTS,
    State,
    as_joblib,
    as_release,
    as_safetensors,
    as_torch,
    published,
    raw_safetensors,
    same,
    tiny_state,
)
from safetensors import safe_open

from ghn_init.cli.main import main
from ghn_init.errors import GHNInitError
from ghn_init.files import atomic_path
from ghn_init.hypernetwork.config import Defaults, GHNConfig
from ghn_init.loading import (
    KNOWN,
    checkpoint,
    conversion,
    convert,
    list_cached,
    load_ghn,
    open_checkpoint,
    read_state_dict,
    read_tensors,
    save_checkpoint,
)
from ghn_init.loading import cache as cache_module
from ghn_init.loading.layouts import expected_shapes
from ghn_init.loading.metadata import CONFIG_KEY

pytestmark = pytest.mark.usefixtures("cache")
ROOT = Path(__file__).resolve().parents[1]


def written(folder: Path, data: bytes, name: str = "ghn.pt") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def message(path: object, **options: str) -> str:
    with pytest.raises(GHNInitError) as caught:
        open_checkpoint(path, **options)  # type: ignore[arg-type]
    return str(caught.value)


# What must load.


@pytest.mark.parametrize("config", [GHN3, GHN2], ids=["ghn3", "ghn2"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_to_the_same_numbers(
    layout: str, config: GHNConfig, tmp_path: Path
) -> None:
    state = tiny_state(config)
    data = LAYOUTS[layout](state)
    for _ in range(2):  # converted, then from the cache
        checkpoint = open_checkpoint(written(tmp_path, data))
        assert checkpoint.config == config
        assert checkpoint.origin.sha256 == hashlib.sha256(data).hexdigest()
        assert checkpoint.origin.source == str(tmp_path / "ghn.pt")
        assert checkpoint.origin.revision is None
        assert same(read_tensors(checkpoint), state)


GOLDEN = {
    "ghn3_seeded.safetensors": GHNConfig("ghn3", 32, 3, 8, (32, 32, 16, 16), 1000),
    "ghn3_seeded.joblib.pt": GHNConfig("ghn3", 32, 3, 8, (32, 32, 16, 16), 1000),
    "ghn2_seeded.safetensors": GHNConfig("ghn2", 32, 1, 1, (64, 64, 16, 16), 1000),
    "ghn2_seeded.ppuda.pt": GHNConfig("ghn2", 32, 1, 1, (64, 64, 16, 16), 1000),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_published_layouts(name: str, shared: Path) -> None:
    checkpoint = open_checkpoint(shared / "golden" / name)
    plain = safetensors.torch.load_file(shared / "golden" / f"{name.partition('.')[0]}.safetensors")
    moved = ("centrality", "input_dist")
    wanted = {
        n.removeprefix("gnn.0.") if n.removeprefix("gnn.0.").startswith(moved) else n: t
        for n, t in plain.items()
    }
    assert checkpoint.config == GOLDEN[name]
    assert same(published(read_tensors(checkpoint)), wanted)


def test_names_of_other_training_code(tmp_path: Path) -> None:
    state = tiny_state()
    moved = {
        f"gnn.0.{name}" if name.startswith(("centrality", "input_dist")) else name: tensor
        for name, tensor in state.items()
    }
    wrapped = {f"module.{name}": tensor for name, tensor in moved.items()}
    for variant in (moved, wrapped):
        checkpoint = open_checkpoint(written(tmp_path, as_torch({"state_dict": variant})))
        assert same(read_tensors(checkpoint), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", ["safetensors", "joblib"])
def test_floating_types_are_kept(layout: str, dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: tensor.to(dtype) for name, tensor in tiny_state().items()}
    state["ln.bias"] = state["ln.bias"].float()  # mixed: alignment matters
    checkpoint = open_checkpoint(written(tmp_path, LAYOUTS[layout](state)))
    assert same(read_tensors(checkpoint), state)


CONFIGS = {
    "T": GHNConfig("ghn3", 64, 3, 8, (64, 64, 11, 11), 10),
    "CIFAR kernels": GHNConfig("ghn3", 16, 1, 8, (16, 16, 11, 11), 10),
    "many heads": GHNConfig("ghn3", 16, 1, 4, (16, 16, 3, 3), 7, final_layernorm=False),
    "no virtual edges": GHNConfig("ghn2", 16, 1, 1, (32, 32, 5, 5), 10, virtual_edges=False),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_configuration_follows_from_the_sizes(config: GHNConfig, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, tiny_state(config), config)
    assert open_checkpoint(path).config == config


def test_release_configuration_must_agree(tmp_path: Path) -> None:
    state = tiny_state(GHN2)
    good = {"hid": 8, "num_classes": 10, "max_shape": (16, 16, 11, 11), "ve": True}
    assert open_checkpoint(written(tmp_path, as_release(state, **good))).config == GHN2
    for name, value in {"num_classes": 11, "ve": False, "weight_norm": False, "hid": 9}.items():
        bad = {**good, name: value}
        assert f"{name} = {value}" in message(written(tmp_path, as_release(state, **bad)))


def test_defaults_are_kept(tmp_path: Path) -> None:
    """By every way from a file of ours to another: conversion, rounding, the cache."""
    mine = Defaults(3, frozenset())
    a, b, c = (tmp_path / f"{name}.safetensors" for name in "abc")
    save_checkpoint(a, tiny_state(), GHN3, defaults=mine)
    assert open_checkpoint(a).defaults == load_ghn(a).defaults == mine
    convert(a, b)
    assert open_checkpoint(b).defaults == mine
    convert(a, b, norms=["ln"])
    assert open_checkpoint(b).defaults == Defaults(3, {"ln"})
    assert main(["convert", str(b), str(c), "--orth-start", "0.5", "--dtype", "float16"]) == 0
    assert open_checkpoint(c).defaults == Defaults(0.5, {"ln"})
    assert main(["convert", str(b), str(c), "--norms", "none"]) == 0
    assert open_checkpoint(c).defaults == mine
    with safe_open(a, framework="pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file(published(tiny_state()), b, metadata)  # as older versions did
    for _ in range(2):  # converted to the cache, and from it
        assert open_checkpoint(b).path != b
        assert open_checkpoint(b).defaults == mine


def test_defaults_of_files_without_any_are_the_published_ones(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(written(tmp_path, as_safetensors(tiny_state())))
    assert checkpoint.defaults == Defaults() == Defaults(0.685, {"bn", "ln"})


@pytest.mark.parametrize(
    "text",
    [
        "1",
        "{",
        "[]",
        '{"orth_start": -1}',
        '{"orth_start": 1.5}',
        '{"orth_start": NaN}',
        '{"orth_start": true}',
        '{"orth_start": "1"}',
        '{"orth_start": null}',
        '{"norms": "bn"}',
        '{"norms": ["bn", "xn"]}',
        '{"norms": [["bn"]]}',
        '{"norms": 1}',
        '{"more": 1}',
        "[" * 100_000,
    ],
)
def test_defaults_that_make_no_sense(text: str, tmp_path: Path) -> None:
    data = safetensors.torch.save(tiny_state(), {"ghn_init.defaults": text})
    assert "default" in message(written(tmp_path, data))


def test_convert_refuses_defaults_that_make_no_sense(tmp_path: Path) -> None:
    for options in ({"orth_start": -1}, {"orth_start": 1.5}, {"norms": "bn"}, {"norms": ["x"]}):
        with pytest.raises(GHNInitError, match="default"):
            convert("embedded", tmp_path / "x", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


def test_own_files_are_used_in_place(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    state = tiny_state()
    save_checkpoint(path, state, GHN3, {"note": "mine"})
    checkpoint = open_checkpoint(path)
    assert checkpoint.path == path
    assert same(read_tensors(checkpoint), state)
    with safetensors.safe_open(path, "pt") as file:
        assert json.loads(file.metadata()[CONFIG_KEY])["hidden_size"] == 8
        assert file.metadata()["note"] == "mine"


def test_unaligned_files_are_converted(tmp_path: Path) -> None:
    data = as_safetensors(tiny_state())
    size = int.from_bytes(data[:8], "little")
    shifted = (size + 1).to_bytes(8, "little") + data[8 : 8 + size] + b" " + data[8 + size :]
    checkpoint = open_checkpoint(written(tmp_path, shifted))
    assert checkpoint.path != tmp_path / "ghn.pt"
    assert same(read_tensors(checkpoint), tiny_state())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_tensors_are_memory_mapped(tmp_path: Path) -> None:
    config = dataclasses.replace(GHN3, hidden_size=64, max_shape=(64, 64, 32, 32))
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, tiny_state(config), config)
    checkpoint = open_checkpoint(path)
    before = private_memory()
    tensors = read_tensors(checkpoint)
    for tensor in tensors.values():
        tensor.sum()
    assert path.stat().st_size > 60e6
    assert private_memory() - before < 20e6


def private_memory() -> int:
    """Bytes of memory that are not a view of a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


# Names and paths.


def test_unknown_names_list_the_known_ones() -> None:
    for name in ("ghn4", "", "ghn4@main", "a\0b"):
        found = message(name)
        assert all(known in found for known in KNOWN)


def test_what_is_no_name() -> None:
    for thing in (None, 3, b"ghn3tm8"):
        assert "given by name or path" in message(thing)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "link.pt").symlink_to(tmp_path / "gone.pt")
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    assert "is a directory" in message(tmp_path)
    assert "device or pipe" in message("/dev/zero")
    assert "device or pipe" in message(tmp_path / "pipe.pt")
    assert "gone.pt, which does not exist" in message(tmp_path / "link.pt")
    assert "cannot read" in message(tmp_path / "loop.pt")
    assert "there is no file" in message("nothing.safetensors")
    assert "there is no file" in message(tmp_path / "nothing")
    assert "cannot read" in message(tmp_path / "null\0")
    assert "cannot read" in message(tmp_path / ("long" * 100))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = written(tmp_path, as_joblib(tiny_state()))
    path.chmod(0)
    assert "Permission denied" in message(path)


def test_links_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, as_joblib(tiny_state()))
    (tmp_path / "link").symlink_to("ghn.pt")
    monkeypatch.chdir(tmp_path)
    for path in ("ghn.pt", "link", Path("link")):
        assert same(read_tensors(open_checkpoint(path)), tiny_state())


# Files that are not, or no longer, what they should be.


def changed(**tensors: torch.Tensor | None) -> State:
    state = {**tiny_state(), **{name.replace("__", "."): t for name, t in tensors.items()}}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


WRONG: dict[str, tuple[State, str]] = {
    "missing": (changed(ln__bias=None), r"lacks 1 tensors: 'ln\.bias'"),
    "surplus": (changed(extra=torch.ones(1)), r"1 tensors that a ghn3.*'extra'"),
    "shape": (changed(ln__bias=torch.ones(9)), r"'ln\.bias' has the shape \(9,\).*\(8,\)"),
    "type": (changed(ln__bias=torch.ones(8, dtype=torch.int32)), r"'ln\.bias' is of type.*int32"),
    "NaN": (changed(ln__bias=torch.full((8,), float("nan"))), r"'ln\.bias' contains NaN"),
    "infinite": (changed(ln__bias=torch.full((8,), float("inf"))), r"'ln\.bias' contains NaN or"),
    "layer": (changed(gnn__1__ln1__weight=None), r"lacks 1 tensors: 'gnn\.1\.ln1\.weight'"),
    "no GHN": ({"conv1.weight": torch.ones(3, 3)}, r"no GHN.*'conv1\.weight'"),
    "empty": ({}, "no GHN|no checkpoint"),
}


@pytest.mark.parametrize("layout", ["safetensors", "joblib", "torch"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_tensors(case: str, layout: str, tmp_path: Path, cache: Path) -> None:
    state, pattern = WRONG[case]
    path = written(tmp_path, LAYOUTS[layout](state))
    with pytest.raises(GHNInitError, match=pattern):
        open_checkpoint(path)
    assert not [file for file in cache.rglob("*") if file.is_file()]


def entry(shape: list[int], start: int, end: int, kind: str = "F32") -> dict[str, object]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


HEADERS: dict[str, tuple[bytes, str]] = {
    "overlap": (
        raw_safetensors({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        "overlaps",
    ),
    "same place": (
        raw_safetensors({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8)),
        "overlaps",
    ),
    "gap": (raw_safetensors({"a": entry([2], 4, 12)}, bytes(12)), "gap"),
    "out of range": (raw_safetensors({"a": entry([4], 0, 16)}, bytes(8)), "truncated"),
    "far out of range": (
        raw_safetensors({"a": entry([1 << 60], 0, 1 << 62)}, bytes(8)),
        "makes no sense|truncated",
    ),
    "shape and bytes": (raw_safetensors({"a": entry([3], 0, 8)}, bytes(8)), "does not fit"),
    "negative": (raw_safetensors({"a": entry([-2], 0, -8)}, bytes(8)), "makes no sense"),
    "backwards": (raw_safetensors({"a": entry([0], 8, 0)}, bytes(8)), "does not fit"),
    "true": (raw_safetensors({"a": entry([True], 0, 4)}, bytes(4)), "makes no sense"),
    "type": (raw_safetensors({"a": entry([1], 0, 4, "F33")}, bytes(4)), "makes no sense"),
    "behind the end": (raw_safetensors({"a": entry([1], 0, 4)}, bytes(8)), "behind the end"),
    "twice": (
        raw_safetensors(b'{"a":{},"a":{}}'.ljust(16)),
        "not valid JSON",
    ),
    "no JSON": (raw_safetensors(b"{" + b"x" * 15), "not valid JSON"),
    "deep JSON": (raw_safetensors(b'{"a":' + b"[" * 100_000), "not valid JSON"),
    "huge number": (raw_safetensors(b'{"a":' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "metadata": (raw_safetensors({"__metadata__": {"a": 1}}), "not text"),
    "header is not there": ((1 << 20).to_bytes(8, "little") + b'{"a":', "truncated"),
    "huge header": (((1 << 24) - 1).to_bytes(8, "little") + b"{" + bytes(99), "absurdly large"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_safetensors_headers(case: str, tmp_path: Path) -> None:
    data, pattern = HEADERS[case]
    with pytest.raises(GHNInitError, match=pattern):
        open_checkpoint(written(tmp_path, data))


def test_metadata_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for text in (json.dumps({"heads": 4}), json.dumps({"unknown": 1}), "[]", "{", "[" * 100_000):
        safetensors.torch.save_file(tiny_state(), path, {CONFIG_KEY: text})
        assert "configuration" in message(path)


OTHERS = {
    "empty": (b"", "it is empty"),
    "web page": (b"\n<!DOCTYPE html><html>", "web page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "git lfs pull"),
    "text": (b"hello, world, how are you?", "no known checkpoint layout"),
    "zip of something": (b"PK\x03\x04" + bytes(100), "no whole zip file"),
    "list": (as_torch([torch.ones(1)]), "dictionary of tensors"),
    "dictionary of numbers": (as_torch({"a": 1}), "'a' in it is not a tensor"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_files(case: str, tmp_path: Path) -> None:
    data, pattern = OTHERS[case]
    found = message(written(tmp_path, data))
    assert pattern in found
    assert str(tmp_path / "ghn.pt") in found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_truncated_files(layout: str, tmp_path: Path, cache: Path) -> None:
    whole = LAYOUTS[layout](tiny_state())
    for size in (5, 100, len(whole) // 2, len(whole) - 1):
        message(written(tmp_path, whole[:size]))
    assert not [file for file in cache.rglob("*") if file.is_file()]


def test_demanded_checksum(tmp_path: Path) -> None:
    data = as_joblib(tiny_state())
    path = written(tmp_path, data)
    digest = hashlib.sha256(data).hexdigest()
    for _ in range(2):  # also when it is cached already
        other = digest[::-1]
        assert f"sha256 is {digest}, not {other}" in message(path, sha256=other)
        assert open_checkpoint(path, sha256=digest.upper()).origin.sha256 == digest
    assert "64 hexadecimal digits" in message(path, sha256="abc")


# The cache.


def test_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, as_joblib(tiny_state()))
    first = open_checkpoint(path)
    monkeypatch.setattr(conversion, "copy", None)
    monkeypatch.setattr(checkpoint, "Unchanging", None)
    assert open_checkpoint(path) == first


def test_replaced_file_is_noticed(tmp_path: Path) -> None:
    """Even one of the same size with the times of the old one."""
    path = written(tmp_path, as_joblib(tiny_state()))
    before = path.stat()
    open_checkpoint(path)
    written(tmp_path, as_joblib(tiny_state(seed=1)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert same(read_tensors(open_checkpoint(path)), tiny_state(seed=1))


def test_waits_for_the_clock_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a change right after opening gives the file another time."""
    path = written(tmp_path, as_joblib(tiny_state()))
    written_at = path.stat().st_ctime_ns
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "time_ns", lambda: written_at + 1000)
    open_checkpoint(path)
    assert sum(slept) >= 0.05


def test_change_right_after_opening_is_noticed(tmp_path: Path) -> None:
    for seed in range(5):
        path = written(tmp_path, as_joblib(tiny_state(seed=seed)))
        assert same(read_tensors(open_checkpoint(path)), tiny_state(seed=seed))


@pytest.mark.parametrize("layout", ["safetensors", "joblib"])
def test_change_while_it_is_read(
    layout: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, LAYOUTS[layout](tiny_state()))
    original = checkpoint.Unchanging

    def read_and_change(file: object) -> object:
        whole = original(file)  # type: ignore[arg-type]
        path.write_bytes(LAYOUTS[layout](tiny_state(seed=1)))
        return whole

    monkeypatch.setattr(checkpoint, "Unchanging", read_and_change)
    assert "changed while it was read" in message(path)
    assert not [file for file in cache.rglob("*") if file.is_file()]


def test_file_cut_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, as_joblib(tiny_state()))
    original = checkpoint.read_weights

    def read_and_cut(file: object) -> object:
        weights = original(file)  # type: ignore[arg-type]
        os.truncate(path, path.stat().st_size // 2)
        return weights

    monkeypatch.setattr(checkpoint, "read_weights", read_and_cut)
    assert "changed while it was read" in message(path)


def test_file_replaced_between_opening_and_reading(tmp_path: Path) -> None:
    path = written(tmp_path, as_safetensors(tiny_state()))
    checkpoint = open_checkpoint(path)
    other = written(tmp_path, as_safetensors(tiny_state(seed=1)), "other")
    os.replace(other, path)
    with pytest.raises(GHNInitError, match="was changed or deleted"):
        read_tensors(checkpoint)
    path.unlink()
    with pytest.raises(GHNInitError, match="was changed or deleted"):
        read_tensors(checkpoint)


def test_replacing_a_file_leaves_its_mapped_tensors_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, tiny_state(), GHN3)
    tensors = read_tensors(open_checkpoint(path))
    save_checkpoint(path, tiny_state(seed=1), GHN3)
    assert same(tensors, tiny_state())


def test_changing_mapped_tensors_does_not_change_the_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(written(tmp_path, as_joblib(tiny_state())))
    for tensor in read_tensors(checkpoint).values():
        tensor.zero_()
    assert same(read_tensors(checkpoint), tiny_state())


def test_broken_cache_is_repaired(tmp_path: Path, cache: Path) -> None:
    path = written(tmp_path, as_joblib(tiny_state()))
    checkpoint = open_checkpoint(path)
    os.truncate(checkpoint.path, 1000)
    assert same(read_tensors(open_checkpoint(path)), tiny_state())
    checkpoint.path.unlink()
    assert same(read_tensors(open_checkpoint(path)), tiny_state())
    notes = list(cache.rglob("*.json"))
    assert notes
    for note in notes:
        for text in ("", "{}", "[" * 100_000, '{"stamp": 1}', "\0"):
            note.write_text(text)
            assert same(read_tensors(open_checkpoint(path)), tiny_state())


def unusable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that even root cannot create: it would lie in a file."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GHN_INIT_CACHE", str(tmp_path / "file" / "cache"))


def test_unwritable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, as_joblib(tiny_state()))
    unusable_cache(tmp_path, monkeypatch)
    with pytest.warns(UserWarning, match="GHN_INIT_CACHE"):
        checkpoint = open_checkpoint(path)
    assert same(read_tensors(checkpoint), tiny_state())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough: the second time it is there
        assert open_checkpoint(path) == checkpoint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_cache(tmp_path: Path, cache: Path) -> None:
    path = written(tmp_path, as_joblib(tiny_state()))
    cache.chmod(0o500)
    with pytest.warns(UserWarning, match="Permission denied"):
        assert same(read_tensors(open_checkpoint(path)), tiny_state())


def test_own_files_need_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, as_safetensors(tiny_state()))
    unusable_cache(tmp_path, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(read_tensors(open_checkpoint(path)), tiny_state())


def test_full_cache(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, as_joblib(tiny_state()))
    stream = conversion.copy

    def full(out: Path, *arguments: object) -> None:
        stream(out, *arguments)  # type: ignore[arg-type]
        if cache in out.parents:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(conversion, "copy", full)
    with pytest.warns(UserWarning, match="No space left"):
        assert same(read_tensors(open_checkpoint(path)), tiny_state())
    assert not [file for file in cache.rglob("*.safetensors*")]


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh process."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


OPEN_WITH_LITTLE_ROOM = """
import resource, sys
from ghn_init.loading import open_checkpoint
from ghn_init.errors import GHNInitError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    open_checkpoint(sys.argv[1])
except GHNInitError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_no_room_anywhere(tmp_path: Path, cache: Path) -> None:
    path = written(tmp_path, as_joblib(tiny_state()))
    done = run(OPEN_WITH_LITTLE_ROOM, path)
    assert "there is no room" in done.stdout, done.stderr
    assert "GHN_INIT_CACHE" in done.stdout
    assert not [file for file in cache.rglob("*") if file.is_file()]


OPEN_AT_ONCE = """
import sys, time
from pathlib import Path
from ghn_init.loading import open_checkpoint, read_tensors
Path(sys.argv[2]).touch()
while not Path(sys.argv[3]).exists():
    time.sleep(0.001)
tensors = read_tensors(open_checkpoint(sys.argv[1]))
print(float(sum(t.double().sum() for t in tensors.values())))
"""


def test_processes_that_convert_at_once(tmp_path: Path, cache: Path) -> None:
    path = written(tmp_path, as_joblib(tiny_state()))
    go, ready = tmp_path / "go", [tmp_path / f"ready{i}" for i in range(3)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_AT_ONCE, path, mark, go],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for mark in ready
    ]
    while not all(mark.exists() for mark in ready):
        time.sleep(0.01)
        assert not any(worker.poll() for worker in workers)
    go.touch()
    sums = {worker.communicate(timeout=300)[0] for worker in workers}
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert len(sums) == 1
    assert len(list(cache.rglob("*.safetensors*"))) == 1


def test_what_another_process_has_converted_meanwhile_is_left(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be in use: read_tensors refuses a file that was replaced since it was opened."""
    path = written(tmp_path, as_joblib(tiny_state()))
    stream, others = conversion.copy, []

    def slow(*arguments: object) -> None:
        monkeypatch.setattr(conversion, "copy", stream)
        others.append(open_checkpoint(path))
        stream(*arguments)

    monkeypatch.setattr(conversion, "copy", slow)
    own = open_checkpoint(path)
    assert own.path == others[0].path
    assert same(read_tensors(others[0]), read_tensors(own))
    assert len(list(cache.rglob("*.safetensors*"))) == 1


def test_left_behind_files_are_swept(tmp_path: Path, cache: Path) -> None:
    folder = cache_module.folder() / "converted"
    folder.mkdir(parents=True)
    names = (f".x.{digit * 16}.tmp" for digit in "01")
    old, new = (written(folder, b"", name) for name in names)
    os.utime(old, (0, 0))
    open_checkpoint(written(tmp_path, as_joblib(tiny_state())))
    assert not old.exists()
    assert new.exists()


def test_list_cached(tmp_path: Path) -> None:
    one = open_checkpoint(written(tmp_path, as_joblib(tiny_state()), "one.pt"))
    two = open_checkpoint(written(tmp_path, as_safetensors(tiny_state()), "two.safetensors"))
    gone = open_checkpoint(written(tmp_path, as_joblib(tiny_state(seed=1)), "gone.pt"))
    Path(gone.origin.source).unlink()
    assert sorted(list_cached(), key=lambda c: c.name) == [one, two]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GHN_INIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_module.folder().parent == tmp_path / "ghn_init"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_module.folder().parent == tmp_path / ".cache" / "ghn_init"


# Writing.


@pytest.mark.parametrize("layout", LAYOUTS)
def test_convert(layout: str, tmp_path: Path, cache: Path) -> None:
    data = LAYOUTS[layout](tiny_state(GHN2))
    out = tmp_path / "out.safetensors"
    convert(written(tmp_path, data), out)
    assert same(safetensors.torch.load_file(out), tiny_state(GHN2))
    with safetensors.safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata["ghn_init.source_sha256"] == hashlib.sha256(data).hexdigest()
    assert json.loads(metadata[CONFIG_KEY])["arch"] == "ghn2"
    assert open_checkpoint(out).path == out
    assert not list(cache.rglob("*.safetensors"))


def test_convert_onto_itself(tmp_path: Path) -> None:
    path = written(tmp_path, as_joblib(tiny_state()), "ghn.safetensors")
    convert(path, path)
    assert open_checkpoint(path).path == path


def test_convert_leaves_the_old_file_on_errors(tmp_path: Path) -> None:
    out = written(tmp_path, b"old", "out")
    path = written(tmp_path, as_joblib(changed(ln__bias=torch.full((8,), float("nan")))))
    with pytest.raises(GHNInitError, match="NaN"):
        convert(path, out)
    assert out.read_bytes() == b"old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ghn.pt", "out"]


CONVERT = """
import resource, sys
from ghn_init.loading import convert
def memory(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
convert(sys.argv[3], sys.argv[2])  # imports what it needs
before = memory("VmRSS")
convert(sys.argv[1], sys.argv[2])
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("layout", ["joblib", "torch", "safetensors"])
def test_convert_does_not_hold_the_weights(layout: str, tmp_path: Path) -> None:
    config = dataclasses.replace(GHN3, hidden_size=64, max_shape=(64, 64, 32, 32))
    path = written(tmp_path, LAYOUTS[layout](tiny_state(config)))
    assert path.stat().st_size > 60e6
    small = written(tmp_path, LAYOUTS[layout](tiny_state()), "small")
    done = run(CONVERT, path, tmp_path / "out", small)
    assert int(done.stdout) < 50_000, f"{done.stdout} kB {done.stderr}"


def test_save_checkpoint_refuses_what_could_not_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for case in ("missing", "surplus", "shape", "type", "NaN", "infinite"):
        state, pattern = WRONG[case]
        with pytest.raises(GHNInitError, match=pattern):
            save_checkpoint(path, state, GHN3)
    assert not list(tmp_path.iterdir())


def test_save_checkpoint_takes_views_and_shared_tensors(tmp_path: Path) -> None:
    state = tiny_state()
    shared = torch.randn(2, 8)
    state["ln.weight"] = state["ln.bias"] = shared[0]
    state["embed.weight"] = torch.nn.Parameter(torch.randn(8, 15).T)
    save_checkpoint(tmp_path / "x", state, GHN3)
    assert same(read_tensors(open_checkpoint(tmp_path / "x")), state)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_read_state_dict_of_any_model(layout: str, tmp_path: Path) -> None:
    state = torch.nn.BatchNorm2d(3).state_dict()
    assert same(read_state_dict(written(tmp_path, LAYOUTS[layout](state))), state)


# atomic_path.


def bad_targets(folder: Path) -> dict[str, Path]:
    (folder / "file").write_text("")
    os.mkfifo(folder / "pipe")  # and not /dev/null, which a failing test would replace
    return {
        "directory": folder,
        "no folder": folder / "none" / "x",
        "folder is a file": folder / "file" / "x",
        "pipe": folder / "pipe",
        "null": folder / "a\0b",
        "/proc": Path("/proc/x"),
    }


def test_atomic_path_refuses_bad_targets(tmp_path: Path) -> None:
    for path in bad_targets(tmp_path).values():
        with pytest.raises(GHNInitError, match="cannot write"), atomic_path(path):
            pytest.fail("the block must not run")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "pipe"]
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_atomic_path_keeps_the_old_file(error: type[BaseException], tmp_path: Path) -> None:
    path = written(tmp_path, b"old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half of the ne")
            raise error("no")

    with pytest.raises(GHNInitError if error is OSError else error):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_path_keeps_permissions_and_links(tmp_path: Path) -> None:
    path = written(tmp_path, b"old")
    path.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(path)
    with atomic_path(link) as temporary:
        temporary.write_bytes(b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640


def test_atomic_path_deletes_what_a_kill_left_long_ago(tmp_path: Path) -> None:
    yesterday = time.time() - 100_000
    kept = ["w[1].txt", ".w[1].txt.0123456789abcdef.tmp", ".other.0123456789abcdef.tmp", ".w.tmp"]
    for name in (*kept, ".w[1].txt.00000000ffffffff.tmp"):
        os.utime(written(tmp_path, b"", name), (yesterday, yesterday))
    os.utime(tmp_path / kept[1])  # it may still be written to
    with atomic_path(tmp_path / "w[1].txt") as temporary:
        temporary.write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_atomic_path_says_that_the_disk_is_full(tmp_path: Path) -> None:
    with pytest.raises(GHNInitError, match="Free some space"), atomic_path(tmp_path / "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


OVERWRITE = """
import sys
from ghn_init.files import atomic_path
print("ready", flush=True)
for i in range(10**9):
    with atomic_path(sys.argv[1]) as temporary:
        with open(temporary, "wb") as file:
            for _ in range(100):
                file.write(bytes([i % 256]) * 10_000)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("delay", [0.0, 0.01, 0.05, 0.13, 0.2])
def test_kill_leaves_the_old_or_the_new_file(delay: float, tmp_path: Path) -> None:
    path = written(tmp_path, bytes(1_000_000))
    process = subprocess.Popen(
        [sys.executable, "-c", OVERWRITE, path], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(delay)
    process.kill()
    process.communicate()
    data = path.read_bytes()
    assert len(data) == 1_000_000
    assert len(set(data)) == 1


def test_expected_shapes_are_those_of_the_published_layout(shared: Path) -> None:
    for name, config in GOLDEN.items():
        tensors = read_tensors(open_checkpoint(shared / "golden" / name))
        assert {n: tuple(t.shape) for n, t in tensors.items()} == expected_shapes(config)
