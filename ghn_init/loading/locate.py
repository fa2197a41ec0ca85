"""From the name or path of a checkpoint to its original file."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ghn_init.errors import GHNInitError
from ghn_init.loading.embedded import EMBEDDED, embedded_path
from ghn_init.loading.hub import KNOWN, REPOSITORY, HubRepository
from ghn_init.loading.readers.headers import is_safetensors, read_entries

HUB_PLACES = ("hf-hub:", "hf_hub:")
FOLDER = "local-dir:"
"""What begins the name of a place, as in timm."""

WEIGHTS_FILE = "model.safetensors"
"""The weights in a folder of ours."""

CONFIG_FILE = "config.json"
"""What stands beside the weights in a folder."""

_SUFFIXES = (".safetensors", ".pt", ".pth", ".pkl", ".joblib", ".bin", ".ckpt")
_PART = re.compile(r"(?!\.\.?$)[\w.-]{1,96}", re.ASCII)


@dataclass(frozen=True)
class Found:
    """The original file of a checkpoint.

    Arguments:
        name: what the user asked for.
        path: its real path.
        source: where it comes from, as in `Origin`.
        revision: commit of the Hub repository; None for a local file.
        config_path: the `config.json` beside it, where the folder or repository was asked for.
    """

    name: str
    path: Path
    source: str
    revision: str | None
    config_path: Path | None = None


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
    if isinstance(name_or_path, str):
        if asked.startswith(HUB_PLACES):
            return _on_hub(asked)
        if asked.startswith(FOLDER):
            return _in_folder(asked)
        name, at, revision = asked.partition("@")
        if name in KNOWN:
            repository = HubRepository(REPOSITORY, revision if at else None, asked)
            return _downloaded(repository, KNOWN[name], asked)
    is_path = not isinstance(name_or_path, str) or _looks_like_path(asked)
    if not is_path and not os.path.lexists(asked):
        raise GHNInitError(
            f"unknown checkpoint {asked[:200]!r}. Known are {EMBEDDED} and, each optionally with "
            f"@<commit>, {', '.join(KNOWN)}; or give hf-hub:ORGANIZATION/NAME, local-dir:FOLDER "
            "or the path of a file."
        )
    return Found(asked, _regular(asked), os.path.abspath(asked), None)


def parse_hub_place(place: str) -> tuple[HubRepository, str]:
    """`hf-hub:organization/name[/path/file][@revision]` -> the repository, and the file or "".

    Raises:
        GHNInitError: it is no such text.
    """
    path, at, revision = place.partition(":")[2].partition("@")
    parts = path.split("/")
    if len(parts) < 2 or not all(_PART.fullmatch(part) for part in parts):
        raise GHNInitError(
            f"{place[:200]!r} is no place on the Hub. Give hf-hub:ORGANIZATION/NAME, with /FILE "
            "for one file of several, and with @REVISION for a commit, branch or tag."
        )
    repository = HubRepository("/".join(parts[:2]), revision if at else None, place)
    return repository, "/".join(parts[2:])


def _on_hub(place: str) -> Found:
    repository, file = parse_hub_place(place)
    file = file or _weights_among(repository.files(), place, f"hf-hub:{repository.name}/")
    return _downloaded(repository, file, place, with_config=True)


def _downloaded(
    repository: HubRepository, file: str, asked: str, with_config: bool = False
) -> Found:
    before = repository.cached(file) if with_config else None
    path, commit = repository.download(file)
    beside = None
    if with_config:
        config_file = str(PurePosixPath(file).with_name(CONFIG_FILE))
        beside = repository.at(commit).download_if_there(config_file, lenient=path == before)
    source = f"hub:{repository.name}/{file}"
    return Found(asked, Path(os.path.realpath(path)), source, commit, beside)


def _in_folder(place: str) -> Found:
    folder = Path(place.removeprefix(FOLDER))
    try:
        files = [entry.name for entry in os.scandir(folder) if entry.is_file()]
    except OSError as error:
        hint = " Leave local-dir: out for a file." if folder.is_file() else ""
        raise GHNInitError(f"cannot read the folder {folder}: {error.strerror}.{hint}") from error
    path = folder / _weights_among(files, place, f"{folder}{os.sep}")
    beside = _regular(str(folder / CONFIG_FILE)) if CONFIG_FILE in files else None
    return Found(place, _regular(str(path)), os.path.abspath(path), None, beside)


def checkpoints_on_hub(place: str) -> list[str]:
    """The files in a repository that may be checkpoints, by their names.

    Arguments:
        place: `"hf-hub:organization/name[/folder][@revision]"`.

    Returns: a place for each, as `load_ghn` takes it.

    Raises:
        GHNInitError: `place` is none, or the Hub cannot be asked.
    """
    if not place.startswith(HUB_PLACES):
        raise GHNInitError(
            f"{place[:200]!r} is no place on the Hub: give hf-hub:ORGANIZATION/NAME."
        )
    repository, folder = parse_hub_place(place)
    files = [file for file in repository.files() if file.startswith(folder and f"{folder}/")]
    at = f"@{repository.revision}" if repository.revision else ""
    return [f"hf-hub:{repository.name}/{file}{at}" for file in _checkpoints_among(files)]


def _checkpoints_among(files: Iterable[str]) -> list[str]:
    return sorted(file for file in files if file.lower().endswith(_SUFFIXES))


def _weights_among(files: Iterable[str], place: str, prefix: str) -> str:
    """The weights in a folder: `model.safetensors`, or the only safetensors file, or checkpoint.

    Raises:
        GHNInitError: there is none, or it is not clear which.
    """
    found = _checkpoints_among(files)
    top = [file for file in found if "/" not in file]
    safe = [file for file in top if file.endswith(".safetensors")]
    if WEIGHTS_FILE in safe:
        return WEIGHTS_FILE
    if len(chosen := safe or top) == 1:
        return chosen[0]
    if not found:
        raise GHNInitError(f"{place} holds no checkpoint: no file that ends as one does.")
    names = ", ".join(prefix + file for file in found)
    raise GHNInitError(f"{place} holds several checkpoints. Give one of them: {names}.")


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
        raise GHNInitError(
            f"{path} is a directory. Give the checkpoint file in it, or local-dir:{path}."
        )
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
        place = "" if found.name == str(found.path) else f" ({found.path})"
        raise GHNInitError(f"checkpoint {found.name!r}{place}: {message}.") from error


def refuse_damaged(name_or_path: str | os.PathLike[str]) -> None:
    """Refuse a local safetensors file whose header is damaged. That needs no torch.

    Raises:
        GHNInitError: the header is no valid one, or the file cannot be read.
    """
    if isinstance(name_or_path, str):
        is_path = _looks_like_path(name_or_path)
    else:
        is_path = isinstance(name_or_path, os.PathLike)
    if not is_path or not os.path.isfile(name_or_path):
        return
    with opened(locate(name_or_path)) as file:
        if is_safetensors(file.read(16)):
            read_entries(file)


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
