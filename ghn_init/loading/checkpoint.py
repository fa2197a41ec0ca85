"""Opening checkpoints by name or path: found, checked, converted once, then memory-mapped."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from ghn_init.errors import GHNInitError
from ghn_init.files import atomic_path
from ghn_init.hypernetwork.config import Defaults, GHNConfig, Origin
from ghn_init.loading import cache
from ghn_init.loading.conversion import convert_to_cache
from ghn_init.loading.layouts import canonical, check_state, read_contents, read_weights
from ghn_init.loading.locate import Found, check_checksum, locate, opened
from ghn_init.loading.metadata import defaults_beside, own_metadata
from ghn_init.loading.readers.unchanging import (
    Stamp,
    Unchanging,
    expect_unchanged,
    settle,
    stamp,
    stamp_of,
)
from ghn_init.loading.writing import check_finite, is_finite, write

_READ_AT_ONCE = 1 << 25
"""Bytes of a file of the user up to which it is read and not mapped: that takes some 10 ms."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found and checked.

    Arguments:
        name: what the user asked for.
        path: safetensors file in the canonical layout, to be memory-mapped.
        config: sizes of the hypernetwork.
        defaults: how it is best used.
        origin: the original file, before any conversion.
        in_place: whether `path` is the original file itself, and not a copy in the cache.
    """

    name: str
    path: Path
    config: GHNConfig
    defaults: Defaults
    origin: Origin
    in_place: bool
    _stamp: Stamp = field(default=(0, 0, 0, 0), repr=False, compare=False)


def open_checkpoint(
    name_or_path: str | os.PathLike[str], *, sha256: str | None = None
) -> Checkpoint:
    """Finds a checkpoint, checks it, and converts it to the canonical layout where necessary.

    Nothing in the file is ever executed. Every number of it is read once and must be finite; the
    result of that, the checksum and the converted file are kept in the cache (`$GHN_INIT_CACHE`,
    default `~/.cache/ghn_init`), so that opening it again takes milliseconds. A cache that cannot
    be written to or is full is replaced by a temporary folder, with a warning.

    Arguments:
        name_or_path: a name of `KNOWN`, fetched from the Hub unless it is in its cache, and
            optionally pinned to a commit, branch or tag (`"ghn3tm8@<commit>"`); `"embedded"`;
            `"hf-hub:organization/name[/path/file][@revision]"`; `"local-dir:folder"`; or the path
            of a file in any layout (safetensors, joblib pickle, `torch.save`).
        sha256: demanded checksum of the original file, 64 hexadecimal digits. None: any.

    Raises:
        GHNInitError: the name is not known, the file cannot be found, fetched or read, is damaged
            or malicious, is not a GHN, has another checksum, or there is no room to convert it.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise GHNInitError(f"{sha256[:80]!r} is no sha256: give its 64 hexadecimal digits.")
    found = locate(name_or_path)
    return _with_config(_opened(found, sha256), found)


def _with_config(checkpoint: Checkpoint, found: Found) -> Checkpoint:
    """With the defaults of the `config.json` beside it."""
    defaults = defaults_beside(found.config_path, checkpoint.config, checkpoint.defaults)
    return replace(checkpoint, defaults=defaults)


def _opened(found: Found, sha256: str | None) -> Checkpoint:
    with opened(found) as original:
        marks = stamp(original)
        settle(marks)
        note = cache.recall(found.path, marks)
        if note is not None:
            check_checksum(note.sha256, sha256, found)
            if ready := _ready(found, note):
                return ready
        file = Unchanging(original)
        check_checksum(file.sha256, sha256, found)
        weights = read_weights(file)
        if weights.in_place:
            check_finite(weights.tensors, file)
        else:
            convert_to_cache(weights, file)
        expect_unchanged(original, marks)
        note = cache.Note(found, marks, file.sha256, weights.in_place)
        cache.remember(note)
        checkpoint = _ready(found, note)
        if checkpoint is None:
            raise GHNInitError("it, or the cache, was changed meanwhile. Try again")
    return checkpoint


def read_tensors(
    checkpoint: Checkpoint,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by canonical name.

    On the CPU they are memory-mapped: nothing is read before it is used. Changing them does not
    change the file. A file of the user must not be cut or overwritten while they are in use
    (replacing it by renaming, as every function here does, is safe); small ones are read at once,
    and then it does not matter.

    Arguments:
        checkpoint: as `open_checkpoint` has returned it.
        device: where they are to be.
        dtype: floating type that they are converted to. None: the one that they are stored in.

    Raises:
        GHNInitError: the file has been changed or deleted since the checkpoint was opened, or a
            number in it is too large for `dtype`.
    """
    path, marks = checkpoint.path, checkpoint._stamp
    changed = GHNInitError(f"{path} was changed or deleted since it was opened. Open it again.")
    try:
        with open(path, "rb") as file:
            if stamp(file) != marks:
                raise changed
            stored = _stored_tensors(checkpoint, file)
            found = {n: _converted(checkpoint.name, n, t, device, dtype) for n, t in stored.items()}
            # Of the name, too: `safe_open` has opened it once more.
            if stamp(file) != marks or stamp_of(os.stat(path)) != marks:
                raise changed
    except (OSError, SafetensorError) as error:
        raise changed from error
    return found


def _stored_tensors(checkpoint: Checkpoint, file: BinaryIO) -> dict[str, torch.Tensor]:
    size = os.fstat(file.fileno()).st_size
    if checkpoint.in_place and size <= _READ_AT_ONCE:
        stored, data = read_contents(file).tensors, bytearray(size)
        file.seek(0)
        file.readinto(data)  # type: ignore[attr-defined]
        return {
            name: torch.frombuffer(data, dtype=t.dtype, count=t.numel, offset=t.start).view(t.shape)
            for name, t in stored.items()
        }
    with safe_open(checkpoint.path, framework="pt", device="cpu") as mapped:
        return {name: mapped.get_tensor(name) for name in list(mapped.keys())}


def _converted(
    checkpoint: str,
    name: str,
    tensor: torch.Tensor,
    device: str | torch.device,
    dtype: torch.dtype | None,
) -> torch.Tensor:
    result = tensor.to(device, dtype)
    largest = torch.finfo(result.dtype).max
    if largest < torch.finfo(tensor.dtype).max and not is_finite(result):
        raise GHNInitError(
            f"checkpoint {checkpoint!r}: tensor {name!r} has numbers too large for {dtype}."
        )
    return result


def save_checkpoint(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    config: GHNConfig,
    extra_metadata: Mapping[str, str] | None = None,
    *,
    defaults: Defaults = Defaults(),  # noqa: B008 (frozen)
) -> None:
    """Writes a hypernetwork to a safetensors file in the canonical layout, whole or not at all.

    Arguments:
        path: a file in an existing folder; it is replaced if it is there.
        tensors: the state dict, canonical names (`expected_shapes(config)` lists them).
        config: stored as JSON in the metadata.
        extra_metadata: further metadata, text.
        defaults: how the hypernetwork is best used; stored as JSON in the metadata. Default: as
            the published ones.

    Raises:
        GHNInitError: the tensors are not those of `config` or not finite, or `path` cannot be
            written. The file that was there is unchanged.
    """
    check_state({name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}, config)
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise GHNInitError(f"tensor {name!r} contains NaN or infinite numbers; not saved.")
    metadata = {**(extra_metadata or {}), **own_metadata(config, defaults)}
    with atomic_path(path) as temporary:
        write(temporary, tensors, metadata)


def list_cached() -> list[Checkpoint]:
    """The checkpoints that have been opened before and can be opened again without a download."""
    known = []
    for note in cache.notes():
        checkpoint = _ready(note.found, note)
        if checkpoint is not None:
            with contextlib.suppress(GHNInitError):  # config.json has become useless
                known.append(_with_config(checkpoint, note.found))
    return known


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a file in any known layout, in memory; not necessarily of a hypernetwork.

    Raises:
        GHNInitError: the file cannot be read, is damaged or malicious.
    """
    with opened(locate(Path(path))) as original:
        file = Unchanging(original)
        return {name: tensor.read(file) for name, tensor in read_contents(file).tensors.items()}


def _ready(found: Found, note: cache.Note) -> Checkpoint | None:
    """The checkpoint, if its canonical file is there and sound."""
    path = found.path if note.in_place else cache.find_converted(note.sha256)
    sound = None if path is None else canonical(path)
    if path is None or sound is None:
        return None
    weights, marks = sound
    if note.in_place and marks != note.stamp:
        return None
    origin = Origin(note.sha256, found.source, found.revision)
    config, defaults = weights.config, weights.defaults
    return Checkpoint(found.name, path, config, defaults, origin, note.in_place, marks)
