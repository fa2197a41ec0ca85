"""Opening checkpoints by name or path: found, checked, converted once, then memory-mapped."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ghn_init.errors import GHNInitError
from ghn_init.files import atomic_path
from ghn_init.hypernetwork.config import Defaults, GHNConfig, Origin
from ghn_init.loading import cache
from ghn_init.loading.conversion import convert_to_cache
from ghn_init.loading.layouts import canonical, check_state, read_contents, read_weights
from ghn_init.loading.locate import Found, check_checksum, checksum, locate, opened
from ghn_init.loading.metadata import own_metadata
from ghn_init.loading.writing import finite_pieces, is_finite, write


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found and checked.

    Arguments:
        name: what the user asked for.
        path: safetensors file in the canonical layout, to be memory-mapped.
        config: sizes of the hypernetwork.
        defaults: how it is best used.
        origin: the original file, before any conversion.
    """

    name: str
    path: Path
    config: GHNConfig
    defaults: Defaults
    origin: Origin
    _stamp: cache.Stamp = field(default=(0, 0, 0, 0), repr=False, compare=False)


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
            optionally pinned to a commit, branch or tag (`"ghn3tm8@<commit>"`); `"embedded"`; or
            the path of a file in any layout (safetensors, joblib pickle, `torch.save`).
        sha256: demanded checksum of the original file, 64 hexadecimal digits. None: any.

    Raises:
        GHNInitError: the name is not known, the file cannot be found, fetched or read, is damaged
            or malicious, is not a GHN, has another checksum, or there is no room to convert it.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise GHNInitError(f"{sha256[:80]!r} is no sha256: give its 64 hexadecimal digits.")
    found = locate(name_or_path)
    with opened(found) as file:
        marks = cache.stamp(file)
        cache.settle(marks)
        note = cache.recall(found.path, marks)
        digest = note.sha256 if note else checksum(file)
        check_checksum(digest, sha256, found)
        if note is not None and (ready := _ready(found, note)):
            return ready
        weights = read_weights(file)
        if weights.in_place:
            for tensor_name, tensor in weights.tensors.items():
                for _ in finite_pieces(tensor_name, tensor, file):
                    pass
        else:
            convert_to_cache(weights, file, digest)
        # The checksum and the weights must be of one and the same file.
        if cache.stamp(file) != marks:
            raise GHNInitError("it was changed while it was read. Try again")
        path, name = str(found.path), found.name
        note = cache.Note(path, marks, digest, weights.in_place, name, found.source, found.revision)
        cache.remember(note)
        checkpoint = _ready(found, note)
        if checkpoint is None:
            raise GHNInitError("it, or the cache, was changed meanwhile. Try again")
    return checkpoint


def read_tensors(
    checkpoint: Checkpoint, device: str | torch.device = "cpu"
) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by canonical name, in the floating type that they are stored in.

    On the CPU they are memory-mapped: nothing is read before it is used. Changing them does not
    change the file. The file must not be cut or overwritten while they are in use (replacing it by
    renaming, as every function here does, is safe).

    Raises:
        GHNInitError: the file has been changed or deleted since the checkpoint was opened.
    """
    changed = GHNInitError(
        f"{checkpoint.path} was changed or deleted since it was opened. Open it again."
    )
    try:
        before = cache.stamp_of(os.stat(checkpoint.path))
        with safe_open(checkpoint.path, framework="pt", device="cpu") as file:
            after = cache.stamp_of(os.stat(checkpoint.path))
            if before != after or before != checkpoint._stamp:
                raise changed
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (OSError, SafetensorError) as error:
        raise changed from error
    return {name: tensor.to(device) for name, tensor in tensors.items()}


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
    noted = (
        _ready(Found(note.name, Path(note.path), note.source, note.revision), note)
        for note in cache.notes()
    )
    return [checkpoint for checkpoint in noted if checkpoint is not None]


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a file in any known layout, in memory; not necessarily of a hypernetwork.

    Raises:
        GHNInitError: the file cannot be read, is damaged or malicious.
    """
    with opened(locate(Path(path))) as file:
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
    return Checkpoint(found.name, path, weights.config, weights.defaults, origin, marks)
