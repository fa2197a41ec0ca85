"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ghn_init.errors import GHNInitError

_STALE = 86_400  # seconds after which a temporary file is taken for left behind by a kill
NO_SPACE = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux, see rename(2)

_OTHER_FORMATS = {".pt", ".pth", ".bin", ".pkl", ".ckpt", ".tar", ".joblib", ".npz", ".h5"}


def check_safetensors_name(path: str | os.PathLike[str]) -> None:
    """Refuse a name that says another format than safetensors.

    Raises:
        GHNInitError: it ends as the files of another format do.
    """
    suffix = Path(path).suffix.lower()
    if suffix in _OTHER_FORMATS:
        raise GHNInitError(
            f"cannot write {os.fspath(path)!r}: the file would be safetensors, not what {suffix} "
            "says. Give a name that ends in .safetensors."
        )


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives an empty temporary file beside `path`, to be written in the `with` block.

    When the block ends normally the file is flushed to the disk and takes the place of `path` in
    one step: at any moment, also after a kill or a power cut, `path` is either what it was before
    or the complete new file. When the block raises, the temporary file is deleted and `path` is
    left as it was. A symbolic link is followed, the permissions of a replaced file are kept.

    Raises:
        GHNInitError: before the block, where `path` is a directory or a device, or its folder does
            not exist or cannot be written to; after it, for any `OSError` in the block, which is
            taken for a failure to write (a full disk, for example).
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise _cannot_write(path, error, "file") from error


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], whole: bool = False) -> Iterator[Path]:
    """Gives an empty temporary folder, whose files are in the folder `path` once the block ends.

    A folder that was not there appears in one step. When the block raises, nothing has changed.
    What a kill leaves beside it is deleted by a later write, from a day on.

    Arguments:
        path: of the folder.
        whole: what happens to a folder that was there. False: each file takes the place of the one
            of its name, after all of them have been written and flushed; others stay. True: the new
            folder takes its place in one step, so that at any moment, also after a kill or a power
            cut, it has the old files or the new ones. (Where the system or the disk cannot exchange
            two folders in a step, which Linux can on its own file systems, there is a moment in
            which `path` is missing; both folders are then beside it, under temporary names.)

    Raises:
        GHNInitError: where `path` is a file or cannot be made; and for any `OSError` in the block,
            which is taken for a failure to write.
    """
    target = Path(os.path.realpath(path) if whole else os.path.abspath(path))
    temporary = _temporary(target)
    try:
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file")
        sweep(target.parent, glob.escape(_short(target)))
        temporary.mkdir()
        yield temporary
        files = sorted(temporary.iterdir())
        for file in files:
            _flush(file)
        if not target.exists():
            os.replace(temporary, target)
        elif whole:
            shutil.copymode(target, temporary)
            _exchange(temporary, target)
        else:
            for file in files:
                os.replace(file, target / file.name)
        _flush_folder(target.parent)
    except OSError as error:
        raise _cannot_write(path, error, "folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(one: Path, other: Path) -> None:
    """Let two folders have each other's name."""
    with contextlib.suppress(AttributeError):  # another system, or a C library before 2018
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        names = os.fsencode(one), os.fsencode(other)
        if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return
    third = _temporary(other)
    os.replace(other, third)
    try:
        os.replace(one, other)
    except OSError:
        os.replace(third, other)
        raise
    os.replace(third, one)


def _temporary(target: Path) -> Path:
    """A new name beside `target`."""
    # Random, so that two processes that write the same do not share it; cut, so that it stays
    # within the 255 bytes that file systems allow.
    return target.with_name(f".{_short(target)}.{secrets.token_hex(8)}.tmp")


def _cannot_write(path: str | os.PathLike[str], error: OSError, what: str) -> GHNInitError:
    reason = error.strerror or str(error)
    hint = "Free some space there, or write to another disk" if is_no_space(error) else ""
    hint = hint or f"Give the name of a {what} in an existing folder that you can write to"
    return GHNInitError(f"cannot write {os.fspath(path)!r}: {reason}. {hint}.")


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str],
    unless: Callable[[], bool] = lambda: False,
    follow_links: bool = True,
) -> Iterator[Path]:
    """As `atomic_path`, but every failure to write is an `OSError`.

    Arguments:
        path: the file.
        unless: asked once the new file is complete; if it says True, `path` is left as it is.
        follow_links: whether a link is followed, or replaced itself.
    """
    target = _real_target(path) if follow_links else Path(os.path.abspath(path))
    sweep(target.parent, glob.escape(_short(target)))
    temporary = _create_beside(target)
    try:
        yield temporary
        _flush(temporary)
        if unless():
            temporary.unlink()
            return
        if target.exists() and follow_links:
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(target.parent)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create a folder, and keep other processes that ask for this too out of it in the block.

    Raises:
        GHNInitError: another process has locked it, or it cannot be written to.
    """
    import filelock  # here: importing it takes longer than this module does

    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise GHNInitError(
            f"another process writes to {folder}. Wait for its end, or give another folder."
        ) from error
    except OSError as error:
        raise GHNInitError(f"cannot use the folder {folder}: {error.strerror}.") from error
    try:
        yield
    finally:
        lock.release()


def sweep(folder: Path, name: str = "*") -> None:
    """Deletes the temporary files and folders of processes that were killed long ago.

    Arguments:
        folder: where they are, if it exists.
        name: of what was to be written, a glob pattern.
    """
    for path in folder.glob(f".{name}.{'[0-9a-f]' * 16}.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_no_space(error: OSError) -> bool:
    """Whether the disk, or the user's share of it, is full."""
    return error.errno in NO_SPACE


def _real_target(path: str | os.PathLike[str]) -> Path:
    """The file behind `path`; refuses what a file must not take the place of."""
    try:
        target = Path(os.path.realpath(path))
        kind = target.stat().st_mode
    except FileNotFoundError:
        return target
    except ValueError as error:  # a null character in the name
        raise OSError(errno.EINVAL, str(error)) from error
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, "it is a directory")
    if not stat.S_ISREG(kind):
        raise OSError(errno.EINVAL, "it is a device or pipe, not a file")
    return target


def _create_beside(target: Path) -> Path:
    """An empty new file in the folder of `target`."""
    temporary = _temporary(target)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


def _short(target: Path) -> str:
    return target.name.encode()[:100].decode(errors="ignore")


def _flush(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable, where the system can (Windows cannot open folders)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
