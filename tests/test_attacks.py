"""What others do to checkpoint files and to the cache while we use them."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from checkpoint_files import (
    GHN3,
    LAYOUTS,
    as_joblib,
    as_release,
    as_safetensors,
    published,
    same,
    tiny_state,
)

from ghn_init import GHNInitError, load_ghn
from ghn_init.loading import (
    cache,
    checkpoint,
    conversion,
    convert,
    open_checkpoint,
    read_state_dict,
    read_tensors,
    save_checkpoint,
)
from ghn_init.loading.readers.unchanging import Unchanging

pytestmark = pytest.mark.usefixtures("cache")
ROOT = Path(__file__).resolve().parents[1]
FIRST, SECOND = tiny_state(), tiny_state(seed=1)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def run(script: str, *arguments: str, seconds: int) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / script), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Files


def test_hostile_files() -> None:
    """In a process of its own, whose memory is measured."""
    found = re.search(r"(\d+) files, 0 not refused", run("hostile_files.py", seconds=900))
    assert found, "not all are refused"
    assert int(found[1]) >= 300


@pytest.mark.parametrize("shape", [[10**18, 0], [2**31, 2**31, 4, 0], [2**61, 0]])
def test_a_damaged_header_is_refused_before_torch_is_imported(
    shape: list[int], tmp_path: Path
) -> None:
    """Which takes some 500 MB, more than any file of that size may."""
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    header = json.dumps({"decoder.fc.0.weight": entry}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    code = (
        "import sys, ghn_init\n"
        f"try: ghn_init.load_ghn({str(path)!r})\n"
        "except ghn_init.GHNInitError as error: print(error)\n"
        "print('torch' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert re.search("a tensor claims the shape .*0", printed[0])
    assert printed[1:] == ["False"]


def test_changes_while_loading() -> None:
    assert "no mixture" in run("fuzz_changes.py", "--rounds", "3", seconds=300)


@pytest.mark.slow
def test_many_changes_while_loading() -> None:
    assert "no mixture" in run("fuzz_changes.py", "--rounds", "500", seconds=7200)


@pytest.mark.parametrize("layout", ["joblib", "torch", "torch-legacy", "published names"])
def test_a_file_overwritten_while_it_is_converted(
    layout: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a program that sets the times back: bytes are compared, not only times."""
    data, other = LAYOUTS[layout](FIRST), LAYOUTS[layout](SECOND)
    path = written(tmp_path / "ghn.pt", data)
    copy = conversion.copy

    def overwrite(*arguments: object) -> None:
        path.write_bytes(other)
        copy(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(conversion, "copy", overwrite)
    monkeypatch.setattr(checkpoint, "expect_unchanged", lambda *_: None)
    with pytest.raises(GHNInitError, match="changed while it was read"):
        open_checkpoint(path)
    assert not [file for file in cache.rglob("*") if file.is_file()]
    monkeypatch.setattr(conversion, "copy", copy)
    path.write_bytes(data)
    assert same(read_tensors(open_checkpoint(path)), FIRST)


def test_a_file_overwritten_while_convert_copies_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "ghn.pt", as_joblib(published(FIRST)))
    target = written(tmp_path / "out", b"old")
    copy = conversion.copy

    def overwrite(*arguments: object) -> None:
        path.write_bytes(as_joblib(published(SECOND)))
        copy(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(conversion, "copy", overwrite)
    with pytest.raises(GHNInitError, match="changed while it was read"):
        convert(path, target)
    assert target.read_bytes() == b"old"


def test_own_file_overwritten_while_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ghn.safetensors"
    save_checkpoint(path, FIRST, GHN3)
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, SECOND, GHN3)
    converted = checkpoint._converted

    def overwrite(*arguments: object) -> torch.Tensor:
        path.write_bytes(other.read_bytes())
        return converted(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "_converted", overwrite)
    with pytest.raises(GHNInitError, match="was changed"):
        load_ghn(path)


def test_small_own_file_overwritten_while_it_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "ghn.safetensors"
    save_checkpoint(path, FIRST, GHN3)
    ghn = load_ghn(path)
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.write(bytes(size))
    assert same(ghn.state_dict(), FIRST)


@pytest.mark.parametrize("places", [[0], [5], [2**14 - 1], [2**14], [2**14, 40_000], [99_999]])
def test_every_changed_byte_is_noticed(places: list[int], tmp_path: Path) -> None:
    data = bytearray(os.urandom(100_000))
    path = written(tmp_path / "x", bytes(data))
    with open(path, "rb") as original:
        file = Unchanging(original)
        file.seek(-50_000, 2)
        assert file.read() == data[50_000:]
        file.seek(10)
        assert (file.read(20), file.tell()) == (data[10:30], 30)
        for place in places:
            data[place] ^= 1
        path.write_bytes(bytes(data))
        for place in places:
            file.seek(60_000 if place < 50_000 else 0)
            file.read(1)  # another block: what was read last is remembered
            file.seek(place)
            with pytest.raises(GHNInitError, match="changed while it was read"):
                file.read(1)


def test_a_state_dict_is_all_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "x.pt", as_joblib(FIRST))
    read_contents = checkpoint.read_contents

    def overwrite(file: object) -> object:
        contents = read_contents(file)  # type: ignore[arg-type]
        path.write_bytes(as_joblib(SECOND))
        return contents

    monkeypatch.setattr(checkpoint, "read_contents", overwrite)
    with pytest.raises(GHNInitError, match="changed while it was read"):
        read_state_dict(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_that_become_infinite_when_loaded(dtype: torch.dtype, tmp_path: Path) -> None:
    large = 1e300 if dtype == torch.float32 else 3.4e38
    state = {name: tensor.to(torch.float64) for name, tensor in FIRST.items()}
    if dtype == torch.bfloat16:
        state = {name: tensor.float() for name, tensor in state.items()}
    state["ln.bias"][3] = large
    path = written(tmp_path / "x.safetensors", as_safetensors(state))
    with pytest.raises(GHNInitError, match=r"'ln\.bias' has numbers too large for torch"):
        load_ghn(path, dtype=dtype)
    state["ln.bias"][3] = 1
    path.write_bytes(as_safetensors(state))
    load_ghn(path, dtype=dtype)


def test_heads_that_do_not_fit_are_noticed_when_loading(tmp_path: Path) -> None:
    name = "gnn.0.attn.proj_e.2"
    state = {**FIRST, f"{name}.weight": torch.ones(3, 8), f"{name}.bias": torch.ones(3)}
    with pytest.raises(GHNInitError, match="3 heads do not go together"):
        open_checkpoint(written(tmp_path / "x.safetensors", as_safetensors(state)))


def test_a_configuration_of_endless_tuples(tmp_path: Path) -> None:
    doubled: tuple[object, ...] = (1,)
    for _ in range(60):
        doubled = (doubled, doubled)
    data = as_release(tiny_state(GHN3), max_shape=doubled)
    with pytest.raises(GHNInitError, match=r"max_shape = \(nonsense\)"):
        open_checkpoint(written(tmp_path / "x.pt", data))


@pytest.mark.parametrize("revision", ["a/../..", "..", "a/..", "-x", "/etc", "a b", ""])
def test_revisions_that_leave_the_folder(revision: str) -> None:
    with pytest.raises(GHNInitError, match="is no revision"):
        open_checkpoint(f"ghn3tm8@{revision}")


# The cache


def planted(folder: Path, original: Path) -> None:
    """A sound file with other numbers, where the conversion of `original` is looked for."""
    digest = open_checkpoint(original).origin.sha256
    (converted,) = cache.folder().glob(f"converted/{digest}.*")
    other = folder / "other.safetensors"
    save_checkpoint(other, SECOND, GHN3)
    converted.write_bytes(other.read_bytes())


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners of files")
@pytest.mark.parametrize("part", [".", "v1", "v1/converted", "v1/notes"])
def test_a_cache_that_all_can_write_to_is_not_used(part: str, tmp_path: Path, cache: Path) -> None:
    path = written(tmp_path / "ghn.pt", as_joblib(published(FIRST)))
    planted(tmp_path, path)
    assert same(read_tensors(open_checkpoint(path)), SECOND), "the planted file is never looked at"
    (cache / part).chmod(0o777)
    with pytest.warns(UserWarning, match="is not used: all users can write to it") as caught:
        assert same(read_tensors(open_checkpoint(path)), FIRST)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(read_tensors(open_checkpoint(path)), FIRST)  # one line is enough


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root gives files away")
def test_a_cache_of_another_user_is_not_used(tmp_path: Path, cache: Path) -> None:
    path = written(tmp_path / "ghn.pt", as_joblib(published(FIRST)))
    planted(tmp_path, path)
    os.chown(cache, 12345, 12345)
    with pytest.warns(UserWarning, match="is not used: it belongs to another user"):
        assert same(read_tensors(open_checkpoint(path)), FIRST)


def test_the_cache_is_made_for_its_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GHN_INIT_CACHE", str(tmp_path / "deep" / "cache"))
    open_checkpoint(written(tmp_path / "ghn.pt", as_joblib(FIRST)))
    folders = [tmp_path / "deep", *(p for p in (tmp_path / "deep").rglob("*") if p.is_dir())]
    assert len(folders) == 5
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}


def test_planted_links_are_not_followed(tmp_path: Path, cache: Path) -> None:
    path = written(tmp_path / "ghn.pt", as_joblib(published(FIRST)))
    open_checkpoint(path)
    victim = written(tmp_path / "victim", b"precious")
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, SECOND, GHN3)
    for file in [file for file in cache.rglob("*") if file.is_file()]:
        file.unlink()
        file.symlink_to(other if file.suffix == ".safetensors" else victim)
    before = other.read_bytes()
    assert same(read_tensors(open_checkpoint(path)), FIRST)
    assert victim.read_bytes() == b"precious"
    assert other.read_bytes() == before
    assert not [file for file in cache.rglob("*") if file.is_symlink()]


def test_what_killed_conversions_leave_is_swept(tmp_path: Path, cache: Path) -> None:
    path = written(tmp_path / "ghn.pt", as_joblib(FIRST))
    converted = open_checkpoint(path).path
    left = written(converted.with_name(f".{converted.name}.{'0' * 16}.tmp"), b"half")
    open_checkpoint(path)
    assert left.exists(), "its conversion may be running"
    os.utime(left, (0, 0))
    open_checkpoint(path)
    assert not left.exists()


def test_a_home_that_cannot_be_determined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "ghn.pt", as_joblib(FIRST))
    monkeypatch.setenv("GHN_INIT_CACHE", "~nobody-of-that-name/cache")
    with pytest.warns(UserWarning, match="nobody-of-that-name"):
        assert same(read_tensors(open_checkpoint(path)), FIRST)


# What is written


def test_files_have_ordinary_permissions_and_nothing_beside_them(tmp_path: Path) -> None:
    """safetensors' own writer makes files for their owner alone, by way of another file."""
    folder = tmp_path / "out"
    folder.mkdir()
    before = os.umask(0o022)
    try:
        save_checkpoint(folder / "a.safetensors", FIRST, GHN3)
        convert(folder / "a.safetensors", folder / "b.safetensors")
    finally:
        os.umask(before)
    assert sorted(file.name for file in folder.iterdir()) == ["a.safetensors", "b.safetensors"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o644}
