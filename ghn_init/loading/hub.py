"""The Hugging Face Hub: the published checkpoints by name, and the files of any repository."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from ghn_init.errors import GHNInitError
from ghn_init.loading.hub_errors import (
    NotAvailable,
    SilentStorage,
    explain,
    is_missing,
    is_timeout,
)
from ghn_init.loading.patience import cut_when_stalled, within
from ghn_init.progress import notice
from ghn_init.version import __version__

REPOSITORY = "SamsungSAILMontreal/ghn3"
KNOWN = {
    name: f"{name}.pt" for name in ("ghn3xlm16", "ghn3lm8", "ghn3sm8", "ghn3tm8", "ghn2")
}  # name -> file in the repository
EXAMPLE = "resnet50_ghn3xlm16_init.pt"  # what the authors got for ResNet-50 with ghn3xlm16
DEFAULTS = {"ghn3": "ghn3xlm16", "ghn2": "ghn2"}  # architecture -> name

LIBRARY = {"library_name": "ghn_init", "library_version": __version__}
"""Who asks, for the Hub's statistics."""

_IMPATIENT = 4.0
"""Seconds that the Hub is waited for where something else will do."""

_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,127}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubRepository:
    """A repository on the Hub, or what the cache has of it where the Hub does not answer.

    `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_HOME` and the other settings of `huggingface_hub` apply.

    Arguments:
        name: `"organization/name"`.
        revision: commit, branch or tag. None: the newest commit.
        asked: what the user has asked for, for messages.

    Raises:
        GHNInitError: `name` or `revision` is none.
    """

    def __init__(self, name: str, revision: str | None = None, asked: str = "") -> None:
        self.name, self.revision, self._asked = name, revision, asked or name
        self._silence: Exception | None = None  # what happened when the Hub did not answer
        if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
            raise GHNInitError(
                f"{revision[:80]!r} is no revision. Give a commit, branch or tag of {name}, for "
                f"example {self._asked.partition('@')[0]}@main."
            )

    def download(self, file: str) -> tuple[Path, str]:
        """A file in the Hub's cache, fetched if need be, and its commit.

        A Hub that does not answer is waited for 10 seconds (`HF_HUB_ETAG_TIMEOUT`), or less where
        the file is in the cache; a download that stalls, 20.

        Raises:
            NotAvailable: the file is neither in the cache nor can it be fetched.
        """
        hub = self._import(file)
        self._wait_for(file)
        options: dict[str, Any] = {"revision": self.revision, **LIBRARY}
        if self._silence is not None:
            options["local_files_only"] = True
        text = f"ghn_init: downloading {file} of {self.name} from {hub.constants.ENDPOINT}"
        try:
            with notice(text), cut_when_stalled():
                path = Path(hub.hf_hub_download(self.name, file, **options))
        except Exception as error:  # its exceptions have no common class, and differ by version
            raise self._not_available(file, self._silence or error) from error
        return path, path.parts[-1 - len(PurePosixPath(file).parts)]  # snapshots/<commit>/<file>

    def at(self, commit: str) -> HubRepository:
        """The same repository, pinned."""
        pinned = HubRepository(self.name, commit, self._asked)
        pinned._silence = self._silence
        return pinned

    def download_if_there(self, file: str, lenient: bool) -> Path | None:
        """As `download`, but None for a file that the repository does not have.

        Arguments:
            file: its path.
            lenient: whether None is right, too, where the Hub cannot say it: what the cache has is
                all that there is then.

        Raises:
            NotAvailable: the Hub cannot say it.
        """
        found = self._cached(file)
        if isinstance(found, str):
            return Path(found)
        if found is not None:  # the cache knows that it is not there
            return None
        try:
            return self.download(file)[0]
        except NotAvailable as error:
            cause = error.__cause__
            if not lenient and not (isinstance(cause, Exception) and is_missing(cause)):
                raise
            return None

    def cached(self, file: str) -> Path | None:
        """A file in the Hub's cache."""
        found = self._cached(file)
        return Path(found) if isinstance(found, str) else None

    def files(self) -> list[str]:
        """Paths of all files; those in the cache where the Hub cannot be asked.

        Raises:
            NotAvailable: the Hub cannot be asked, and nothing is in the cache.
        """
        hub = self._import("")
        cached = self._snapshot(hub)
        seconds = _seconds(hub, bool(cached))
        try:
            info = self._ask(
                lambda: hub.HfApi(**LIBRARY).model_info(
                    self.name, revision=self.revision, timeout=seconds
                ),
                seconds,
            )
        except Exception as error:
            if is_timeout(error):
                self._silence = error
            if not cached:
                raise self._not_available("", error) from error
            return cached
        return [sibling.rfilename for sibling in info.siblings or ()]

    def check_reachable(self, file: str) -> None:
        """Whether it is worth trying to download a file: it is cached, or the Hub answers at once.

        Raises:
            NotAvailable: it is not cached, and the Hub does not answer.
        """
        hub = self._import(file)
        if self.cached(file):
            return
        try:
            self._head(hub, file, _seconds(hub, True))
        except Exception as error:
            raise self._not_available(file, error) from error

    def _wait_for(self, file: str) -> None:
        """Find out whether the Hub answers; other errors show when the file is fetched."""
        hub = self._import(file)
        cached = self.cached(file) is not None
        pinned = self.revision is not None and _COMMIT.fullmatch(self.revision)
        if self._silence is not None or (cached and pinned):
            return
        seconds = _seconds(hub, cached)
        try:
            about = self._head(hub, file, seconds)
            storage = None if cached else self._ask(lambda: _storage(about), seconds)
            if storage:  # on another host; hf_xet waits for it without end
                self._knock(storage, seconds)
        except Exception as error:
            if is_timeout(error):
                self._silence = error

    def _head(self, hub: Any, file: str, seconds: float) -> Any:
        url = hub.hf_hub_url(self.name, file, revision=self.revision)
        return self._ask(lambda: hub.get_hf_file_metadata(url, timeout=seconds, **LIBRARY), seconds)

    def _knock(self, storage: str, seconds: float) -> None:
        """Any answer is one; only that there is none matters."""
        try:
            self._ask(
                lambda: _http().get_session().head(storage, timeout=seconds), seconds, storage
            )
        except Exception as error:
            if is_timeout(error):
                raise SilentStorage(f"{storage} does not answer") from error

    def _ask(self, call: Callable[[], Any], seconds: float, whom: str = "") -> Any:
        """What the Hub, or somebody else, answers."""
        whom = whom or self._import("").constants.ENDPOINT
        with notice(
            f"ghn_init: waiting for {whom} to answer (checkpoint {self._asked}), "
            f"{seconds:g} s at most"
        ):
            return within(seconds, call)

    def _cached(self, file: str) -> object:
        """The path of a file in the cache, None, or a mark that the repository has no such file."""
        hub = self._import(file)
        return hub.try_to_load_from_cache(self.name, file, revision=self.revision)

    def _snapshot(self, hub: Any) -> list[str]:
        """The files that the cache has of this revision."""
        try:
            folder = Path(
                hub.snapshot_download(self.name, revision=self.revision, local_files_only=True)
            )
        except Exception:  # it has none; the class of this one has changed, too
            return []
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

    def _import(self, file: str) -> Any:
        try:
            import huggingface_hub.constants
        except ImportError as error:
            cause = "huggingface_hub is not installed"
            raise self._not_available(file, error, cause) from error
        return huggingface_hub

    def _not_available(self, file: str, error: Exception, cause: str = "") -> NotAvailable:
        cause = cause or explain(error, self.name, file, self.revision)
        return NotAvailable(
            f"checkpoint {self._asked!r} is not in the cache and could not be downloaded: {cause}. "
            f"Else download {file or 'its file'} on any machine from huggingface.co/{self.name}, "
            "put it anywhere and give its path instead of the name; or set HF_ENDPOINT to a mirror "
            "of the Hub; or take the small checkpoint that is part of this package, "
            "ghn='embedded'.",
            cause,
        )


def _http() -> Any:
    return importlib.import_module("huggingface_hub.utils")


def _storage(about: Any) -> str | None:
    """The address of the storage behind the Hub (Xet), where it will be used for a file."""
    from huggingface_hub import file_download

    route = getattr(getattr(about, "xet_file_data", None), "refresh_route", None)
    is_used = getattr(file_download, "is_xet_available", None)  # not in old huggingface_hub
    if route is None or is_used is None or not is_used():
        return None
    answer = _http().get_session().get(route, headers=_http().build_hf_headers(**LIBRARY))
    address: str | None = answer.headers.get("X-Xet-Cas-Url")
    return address


def _seconds(hub: Any, impatient: bool) -> float:
    """How long the Hub is waited for."""
    usual = float(hub.constants.HF_HUB_ETAG_TIMEOUT)
    return min(usual, _IMPATIENT) if impatient else usual
