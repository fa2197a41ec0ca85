"""What is remembered between runs: checksums of files, and checkpoints that were converted.

Converted checkpoints are named by the sha256 of the file that they come from, so a name never
stands for two contents, and processes that convert the same file at once end with the same result.
A note beside them remembers, for each source file, its checksum and by which marks of the file
(inode, size, times) it is recognized as unchanged.

huggingface_hub's cache holds downloads only. diskcache keeps small values, in a database and as
pickles, and throws old ones away; what lies here are files to be mapped into memory.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import stat
import tempfile
import warnings
from atexit import register
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ghn_init.errors import GHNInitError
from ghn_init.files import is_no_space, replacing, sweep
from ghn_init.loading.locate import Found
from ghn_init.loading.readers.unchanging import Stamp, stamp_of

_FORMAT = "v1"  # of everything in the cache; another number leaves old files alone
_temporary: Path | None = None  # stands in for a cache that cannot be written to


@dataclass(frozen=True)
class Note:
    """What is known of a source file: it has this checksum and was found sound."""

    found: Found
    stamp: Stamp
    sha256: str
    in_place: bool  # in the canonical layout, so that nothing needs to be converted


def folder() -> Path:
    """`$GHN_INIT_CACHE`, or else `ghn_init` in `$XDG_CACHE_HOME` or `~/.cache`.

    If others can write to it, or there is no such home, it is a folder that is deleted when this
    process ends, and a warning says so, once.
    """
    chosen = os.environ.get("GHN_INIT_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "ghn_init")
    try:
        base = Path(chosen or base).expanduser()
    except RuntimeError as error:
        return _instead_of(str(chosen or base), str(error))
    for path in (base, *(base / _FORMAT / part for part in (".", "converted", "notes"))):
        if reason := _not_private(path):
            return _instead_of(str(path), reason)
    return base / _FORMAT


@functools.cache
def _instead_of(folder: str, reason: str) -> Path:
    warnings.warn(
        f"ghn_init: the cache folder {folder} is not used: {reason}. Converted checkpoints are "
        "kept in a temporary folder and converted anew in every process. Set GHN_INIT_CACHE to a "
        "folder of your own.",
        stacklevel=2,
    )
    return _temporary_folder()


def _not_private(path: Path) -> str:
    """Why others might have put something into a folder; empty if they cannot, or it is not there.

    What lies in the cache is taken for what it is named after: nobody else may write to it.
    """
    try:
        status = os.stat(path)
    except OSError:
        return ""
    if hasattr(os, "geteuid") and status.st_uid not in (os.geteuid(), 0):
        return "it belongs to another user"
    return "all users can write to it" if status.st_mode & stat.S_IWOTH and os.name != "nt" else ""


def recall(path: Path, marks: Stamp) -> Note | None:
    """The note on the file with this real path, if the file is still the same."""
    for base in _folders():
        sweep(base / "converted")  # of conversions that were killed
        note = _read_note(_note_path(base, path))
        if note is not None and (note.found.path, note.stamp) == (path, marks):
            return note
    return None


def remember(note: Note) -> None:
    """Stores a note. Where that fails, the file is looked through again next time: no error."""
    for base in _folders():
        with contextlib.suppress(OSError):
            path = _note_path(base, note.found.path)
            _make_folder(path.parent)
            with replacing(path, follow_links=False) as temporary:
                temporary.write_text(json.dumps(asdict(note), default=os.fspath))
            return


def notes() -> Iterator[Note]:
    """All notes on files that are unchanged since."""
    for base in _folders():
        for path in sorted(base.glob("notes/*.json")):
            note = _read_note(path)
            with contextlib.suppress(OSError):
                if note is not None and stamp_of(os.stat(note.found.path)) == note.stamp:
                    yield note


def find_converted(sha256: str) -> Path | None:
    """The converted form of the file with this checksum, if there is one."""
    for base in _folders():
        path = _converted_path(base, sha256)
        if path.is_file() and not path.is_symlink():
            return path
    return None


def store_converted(
    sha256: str, size: int, write: Callable[[Path], None], is_sound: Callable[[Path], bool]
) -> Path:
    """Has `write` fill a file in the cache and returns its path.

    Where the cache cannot be written to or is full, the file is put into a folder that is deleted
    when this process ends, and a warning says so.

    Arguments:
        size: bytes that will be needed.
        is_sound: whether a file that another process has put there meanwhile is as good. It may be
            in use, and is then left.

    Raises:
        GHNInitError: there is no room in either place; or what `write` raises.
    """
    base = folder()
    try:
        return _store(base, sha256, write, is_sound)
    except OSError as error:
        if base.exists() and (found := find_converted(sha256)):
            return found  # Windows: another process was faster, and its file is in use
        reason = error.strerror or str(error)
        warnings.warn(
            f"ghn_init: the cache folder {base.parent} cannot be used ({reason}); the converted "
            "checkpoint is kept in a temporary folder and converted anew in every process. Set "
            "GHN_INIT_CACHE to a folder with room that you can write to.",
            stacklevel=2,
        )
    try:
        return _store(_temporary_folder(), sha256, write, is_sound)
    except OSError as error:
        full = is_no_space(error)
        raise GHNInitError(
            f"there is no room for the converted checkpoint ({size:,} bytes), neither in the cache "
            f"{base.parent} nor in the temporary folder ({error.strerror or error}). "
            + ("Free some space, or set" if full else "Set")
            + " GHN_INIT_CACHE to a folder with room that you can write to"
        ) from error


def _store(
    base: Path, sha256: str, write: Callable[[Path], None], is_sound: Callable[[Path], bool]
) -> Path:
    path = _converted_path(base, sha256)
    _make_folder(path.parent)

    def is_there() -> bool:
        return not path.is_symlink() and is_sound(path)

    with replacing(path, unless=is_there, follow_links=False) as temporary:
        write(temporary)
    return path


def _make_folder(path: Path) -> None:
    """Makes a folder of the cache, for this user alone, and deletes what kills have left in it."""
    for missing in reversed([p for p in (path, *path.parents) if not p.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    sweep(path)


def _folders() -> list[Path]:
    base = folder()
    return [base] if _temporary in (None, base) else [base, _temporary]


def _temporary_folder() -> Path:
    global _temporary
    if _temporary is None:
        _temporary = Path(tempfile.mkdtemp(prefix="ghn_init-"))
        register(shutil.rmtree, _temporary, ignore_errors=True)
    return _temporary


def _converted_path(base: Path, sha256: str) -> Path:
    return base / "converted" / f"{sha256}.safetensors"


def _note_path(base: Path, path: Path) -> Path:
    return base / "notes" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"


def _read_note(path: Path) -> Note | None:
    """The note in a file; None where there is none, or none that makes sense."""
    try:
        fields = json.loads(path.read_bytes())
        found = _found(fields["found"])
        note = Note(found, tuple(fields["stamp"]), fields["sha256"], fields["in_place"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    whole = isinstance(note.sha256, str) and len(note.sha256) == 64 and len(note.stamp) == 4
    return note if whole else None


def _found(fields: dict[str, Any]) -> Found:
    beside = fields.get("config_path")
    paths = {"path": Path(fields["path"]), "config_path": Path(beside) if beside else None}
    return Found(**{**fields, **paths})
