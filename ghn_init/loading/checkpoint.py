"""Opening checkpoints by name or path: found, checked, converted once, then memory-mapped."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from ghn_init.errors import GHNInitError
from ghn_init.files import atomic_path
from ghn_init.hypernetwork.config import Defaults, GHNConfig, Origin
from ghn_init.loading import cache
from ghn_init.loading.embedded import EMBEDDED, embedded_path
from ghn_init.loading.hub import DEFAULTS, KNOWN, REPOSITORY, download
from ghn_init.loading.layouts import (
    Weights,
    check_state,
    own_metadata,
    read_contents,
    read_weights,
)
from ghn_init.loading.readers import safetensors_files
from ghn_init.loading.readers.stored import CHUNK, StoredTensor

__all__ = [
    "DEFAULTS",
    "KNOWN",
    "Checkpoint",
    "convert",
    "list_cached",
    "open_checkpoint",
    "read_state_dict",
    "read_tensors",
    "save_checkpoint",
]

_STORED_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_SUFFIXES = (".safetensors", ".pt", ".pth", ".pkl", ".joblib", ".bin", ".ckpt")


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


@dataclass(frozen=True)
class _Found:
    """The original file of a checkpoint."""

    name: str
    path: Path  # real path of the original file
    source: str
    revision: str | None


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
    origin = _locate(name_or_path)
    with _opened(origin) as file:
        marks = cache.stamp(file)
        cache.settle(marks)
        note = cache.recall(origin.path, marks)
        digest = note.sha256 if note else _hash(file)
        _check_digest(digest, sha256, origin)
        if note is not None and (ready := _ready(origin, note)):
            return ready
        weights = read_weights(file)
        if weights.in_place:
            _check_finite(weights, file)
        else:
            _convert_to_cache(weights, file, digest)
        # The checksum and the weights must be of one and the same file.
        if cache.stamp(file) != marks:
            raise GHNInitError("it was changed while it was read. Try again")
        note = cache.Note(
            str(origin.path),
            marks,
            digest,
            weights.in_place,
            origin.name,
            origin.source,
            origin.revision,
        )
        cache.remember(note)
        checkpoint = _ready(origin, note)
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
        if not safetensors_files.is_finite(tensor):
            raise GHNInitError(f"tensor {name!r} contains NaN or infinite numbers; not saved.")
    metadata = {**(extra_metadata or {}), **own_metadata(config, defaults)}
    safetensors_files.save(path, tensors, metadata)


def convert(
    name_or_path: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    orth_start: int | float | None = None,
    norms: Collection[str] | None = None,
) -> None:
    """Writes a checkpoint of any known layout as a safetensors file, whole or not at all.

    The weights are copied a few MB at a time, never held in memory. The metadata of the result
    have the configuration and the name, revision and sha256 of the original.

    Arguments:
        name_or_path: as in `open_checkpoint`.
        destination: a file in an existing folder; it is replaced if it is there.
        dtype: what the weights are rounded to: `"float32"`, `"float16"` or `"bfloat16"`. None: as
            they are.
        orth_start, norms: what `apply` does with the result by default, see `Defaults`. None: as
            with the original.

    Raises:
        GHNInitError: as `open_checkpoint`; or a default is none, `destination` cannot be written,
            or a weight is too large for `dtype`.
    """
    if dtype is not None and dtype not in _STORED_DTYPES:
        raise GHNInitError(f"unknown dtype {dtype!r}: choose one of {', '.join(_STORED_DTYPES)}.")
    rounded = None if dtype is None else _STORED_DTYPES[dtype]
    chosen: dict[str, Any] = {} if orth_start is None else {"orth_start": orth_start}
    chosen |= {} if norms is None else {"norms": frozenset(norms)}
    Defaults(**chosen)  # refuses nonsense before anything is read
    origin = _locate(name_or_path)
    with _opened(origin) as file:
        marks = cache.stamp(file)
        digest = _hash(file)
        _check_digest(digest, None, origin)
        with atomic_path(destination) as temporary:
            weights = read_weights(file)
            weights = replace(weights, defaults=replace(weights.defaults, **chosen))
            metadata = _metadata(weights, digest)
            if origin.revision is not None:
                metadata |= {"ghn_init.source": origin.source, "ghn_init.revision": origin.revision}
            safetensors_files.stream(temporary, weights.tensors, file, metadata, rounded)
            if cache.stamp(file) != marks:
                raise GHNInitError("it was changed while it was read. Try again")


def list_cached() -> list[Checkpoint]:
    """The checkpoints that have been opened before and can be opened again without a download."""
    found = []
    for note in cache.notes():
        origin = _Found(note.name, Path(note.path), note.source, note.revision)
        checkpoint = _ready(origin, note)
        if checkpoint is not None:
            found.append(checkpoint)
    return found


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a file in any known layout, in memory; not necessarily of a hypernetwork.

    Raises:
        GHNInitError: the file cannot be read, is damaged or malicious.
    """
    origin = _locate(Path(path))
    with _opened(origin) as file:
        return {name: tensor.read(file) for name, tensor in read_contents(file).tensors.items()}


# Finding the file.


def _locate(name_or_path: str | os.PathLike[str]) -> _Found:
    if not isinstance(name_or_path, str | os.PathLike):
        kind = type(name_or_path).__name__
        raise GHNInitError(f"a checkpoint is given by name or path, not as {kind}.")
    asked = os.fsdecode(name_or_path)
    if name_or_path == EMBEDDED:
        return _Found(EMBEDDED, _regular(str(embedded_path())), EMBEDDED, None)
    name, at, revision = asked.partition("@")
    if isinstance(name_or_path, str) and name in KNOWN:
        path, commit = download(name, revision if at else None)
        source = f"hub:{REPOSITORY}/{KNOWN[name]}"
        return _Found(asked, Path(os.path.realpath(path)), source, commit)
    is_path = not isinstance(name_or_path, str) or _looks_like_path(asked)
    if not is_path and not os.path.lexists(asked):
        raise GHNInitError(
            f"unknown checkpoint {asked[:200]!r}. Known are {EMBEDDED} and, each optionally with "
            f"@<commit>, {', '.join(KNOWN)}; or give the path of a file."
        )
    return _Found(asked, _regular(asked), os.path.abspath(asked), None)


def _looks_like_path(text: str) -> bool:
    separators = {os.sep, os.altsep or os.sep}
    return any(mark in text for mark in separators) or text.lower().endswith(_SUFFIXES)


def _regular(path: str) -> Path:
    """The real path of a regular file; says what else it is."""
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError as error:
        if os.path.islink(path):
            where = os.readlink(path)
            raise GHNInitError(f"{path} is a link to {where}, which does not exist.") from error
        raise GHNInitError(f"there is no file {path}.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise GHNInitError(f"cannot read {path!r}: {reason}.") from error
    if stat.S_ISDIR(kind):
        raise GHNInitError(f"{path} is a directory. Give the checkpoint file in it.")
    if not stat.S_ISREG(kind):
        raise GHNInitError(f"{path} is a device or pipe, not a checkpoint file.")
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def _opened(origin: _Found) -> Iterator[BinaryIO]:
    """Opens the original file; errors in the block get its name in front."""
    try:
        # Not blocking: should the file have become a pipe meanwhile, opening it must not hang.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(origin.path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise GHNInitError("it is not a regular file")
            yield file
    except OSError as error:
        reason = error.strerror or str(error)
        raise GHNInitError(f"cannot read {origin.path}: {reason}.") from error
    except GHNInitError as error:
        message = str(error).removesuffix(".")
        raise GHNInitError(f"checkpoint {origin.name!r} ({origin.path}): {message}.") from error


# Checking and converting it.


def _hash(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while piece := file.read(CHUNK):
        digest.update(piece)
    return digest.hexdigest()


def _check_digest(digest: str, demanded: str | None, origin: _Found) -> None:
    if demanded is not None and digest != demanded.lower():
        raise GHNInitError(f"its sha256 is {digest}, not {demanded.lower()} as demanded")
    # The Hub's cache names large files by their sha256, but only their size is ever compared.
    stored_as = origin.path.name
    is_hub = origin.revision is not None and re.fullmatch("[0-9a-f]{64}", stored_as)
    if is_hub and digest != stored_as:
        raise GHNInitError(
            "it is not the file that the Hub has announced: damaged on the way or since. Delete it "
            "and try again"
        )


def _check_finite(weights: Weights, file: BinaryIO) -> None:
    for name, tensor in weights.tensors.items():
        if not all(map(safetensors_files.is_finite, tensor.pieces(file))):
            raise safetensors_files.not_finite(name)


def _convert_to_cache(weights: Weights, file: BinaryIO, digest: str) -> None:
    """Writes the canonical form to the cache, unless a sound one is there."""
    present = cache.find_converted(digest)
    if present is not None and _is_canonical(present):
        return

    def write(path: Path) -> None:
        safetensors_files.stream(path, weights.tensors, file, _metadata(weights, digest))

    cache.store_converted(digest, _total(weights.tensors), write, _is_canonical)


def _metadata(weights: Weights, digest: str) -> dict[str, str]:
    return {
        **own_metadata(weights.config, weights.defaults),
        "ghn_init.source_sha256": digest,
        "ghn_init.source_layout": weights.layout,
    }


def _total(tensors: Mapping[str, StoredTensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _ready(found: _Found, note: cache.Note) -> Checkpoint | None:
    """The checkpoint, if its canonical file is there and sound."""
    path = found.path if note.in_place else cache.find_converted(note.sha256)
    opened = None if path is None else _canonical(path)
    if path is None or opened is None:
        return None
    weights, marks = opened
    if note.in_place and marks != note.stamp:
        return None
    origin = Origin(note.sha256, found.source, found.revision)
    return Checkpoint(found.name, path, weights.config, weights.defaults, origin, marks)


def _is_canonical(path: Path) -> bool:
    return _canonical(path) is not None


def _canonical(path: Path) -> tuple[Weights, cache.Stamp] | None:
    """What a canonical file holds, and its marks; None if it is not a whole one."""
    try:
        with open(path, "rb") as file:
            weights = read_weights(file)
            return (weights, cache.stamp(file)) if weights.in_place else None
    except (OSError, GHNInitError):
        return None
