"""From the name or path of a checkpoint to its original file."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ghn_init.errors import GHNInitError
from ghn_init.loading.embedded import EMBEDDED, embedded_path
from ghn_init.loading.hub import KNOWN, REPOSITORY, download

_SUFFIXES = (".safetensors", ".pt", ".pth", ".pkl", ".joblib", ".bin", ".ckpt")


@dataclass(frozen=True)
class Found:
    """The original file of a checkpoint.

    Arguments:
        name: what the user asked for.
        path: its real path.
        source: where it comes from, as in `Origin`.
        revision: commit of the Hub repository; None for a local file.
    """

    name: str
    path: Path
    source: str
    revision: str | None


def locate(name_or_path: str | os.PathLike[str]) -> Found:
    """Finds a checkpoint, on the Hub if need be. It is not opened yet.

    Raises:
        GHNInitError: the name is not known, there is no such file, or it cannot be fetched.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        kind = type(name_or_path).__name__
        raise GHNInitError(f"a checkpoint is given by name or path, not as {kind}.")
    asked = os.fsdecode(name_or_path)
    if name_or_path == EMBEDDED:
        return Found(EMBEDDED, _regular(str(embedded_path())), EMBEDDED, None)
    name, at, revision = asked.partition("@")
    if isinstance(name_or_path, str) and name in KNOWN:
        path, commit = download(name, revision if at else None)
        source = f"hub:{REPOSITORY}/{KNOWN[name]}"
        return Found(asked, Path(os.path.realpath(path)), source, commit)
    is_path = not isinstance(name_or_path, str) or _looks_like_path(asked)
    if not is_path and not os.path.lexists(asked):
        raise GHNInitError(
            f"unknown checkpoint {asked[:200]!r}. Known are {EMBEDDED} and, each optionally with "
            f"@<commit>, {', '.join(KNOWN)}; or give the path of a file."
        )
    return Found(asked, _regular(asked), os.path.abspath(asked), None)


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
def opened(found: Found) -> Iterator[BinaryIO]:
    """Opens the original file; errors in the block get its name in front."""
    try:
        # Not blocking: should the file have become a pipe meanwhile, opening it must not hang.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(found.path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise GHNInitError("it is not a regular file")
            yield file
    except OSError as error:
        reason = error.strerror or str(error)
        raise GHNInitError(f"cannot read {found.path}: {reason}.") from error
    except GHNInitError as error:
        message = str(error).removesuffix(".")
        raise GHNInitError(f"checkpoint {found.name!r} ({found.path}): {message}.") from error


def check_checksum(digest: str, demanded: str | None, found: Found) -> None:
    """Raises unless the sha256 of a file is the demanded one, and the one that the Hub announces.

    Raises:
        GHNInitError: it is another.
    """
    if demanded is not None and digest != demanded.lower():
        raise GHNInitError(f"its sha256 is {digest}, not {demanded.lower()} as demanded")
    # The Hub's cache names large files by their sha256, but only their size is ever compared.
    stored_as = found.path.name
    is_hub = found.revision is not None and re.fullmatch("[0-9a-f]{64}", stored_as)
    if is_hub and digest != stored_as:
        raise GHNInitError(
            "it is not the file that the Hub has announced: damaged on the way or since. Delete it "
            "and try again"
        )
