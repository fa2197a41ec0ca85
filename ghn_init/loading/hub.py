"""The published checkpoints: their names, and their download from the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ghn_init.errors import GHNInitError

REPOSITORY = "SamsungSAILMontreal/ghn3"
KNOWN = {
    name: f"{name}.pt" for name in ("ghn3xlm16", "ghn3lm8", "ghn3sm8", "ghn3tm8", "ghn2")
}  # name -> file in the repository
EXAMPLE = "resnet50_ghn3xlm16_init"  # what the authors got for ResNet-50 with ghn3xlm16
DEFAULTS = {"ghn3": "ghn3xlm16", "ghn2": "ghn2"}  # architecture -> name

_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,127}", re.ASCII)


class NotAvailable(GHNInitError):
    """A published checkpoint is neither in the cache nor can it be fetched.

    Arguments:
        message: for the user.
        cause: what went wrong, as a part of a sentence.
    """

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        self.cause = cause


def check_reachable(name: str) -> None:
    """Whether it is worth trying to download a checkpoint: it is cached, or the Hub answers.

    `download` tries five times, for almost half a minute. That is right for a checkpoint that was
    asked for by name, and too long for a default.

    Raises:
        NotAvailable: it is not cached, and the Hub does not answer.
    """
    try:
        from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
        from huggingface_hub.utils import get_session  # type: ignore[attr-defined]
    except ImportError as error:
        raise _not_available(name, "huggingface_hub is not installed") from error
    if isinstance(try_to_load_from_cache(REPOSITORY, KNOWN[name]), str):
        return
    try:
        url = hf_hub_url(REPOSITORY, KNOWN[name])
        get_session().head(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:
        raise _not_available(name, _explain(error, KNOWN[name], None)) from error


def download(name: str, revision: str | None) -> tuple[Path, str]:
    """The file of that name in the Hub's cache, fetched if need be, and its commit.

    `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_HOME` and the other settings of `huggingface_hub` apply.

    Raises:
        NotAvailable: the file is neither in the cache nor can it be fetched.
        GHNInitError: `revision` is none.
    """
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise GHNInitError(
            f"{revision[:80]!r} is no revision. Give a commit, branch or tag of {REPOSITORY}, "
            f"for example {name}@main."
        )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise _not_available(name, "huggingface_hub is not installed") from error
    try:
        path = Path(hf_hub_download(REPOSITORY, f"{name}.pt", revision=revision))
    except Exception as error:  # its exceptions have no common class, and differ by version
        raise _not_available(name, _explain(error, f"{name}.pt", revision)) from error
    return path, path.parent.name  # .../snapshots/<commit>/<file>


def _not_available(name: str, cause: str) -> NotAvailable:
    return NotAvailable(
        f"checkpoint {name!r} is not in the cache and could not be downloaded: {cause}. Else "
        f"download {name}.pt on any machine from huggingface.co/{REPOSITORY}, put it anywhere "
        "and give its path instead of the name; or set HF_ENDPOINT to a mirror of the Hub; or "
        "take the small checkpoint that is part of this package, ghn='embedded'.",
        cause,
    )


def _explain(error: Exception, file: str, revision: str | None) -> str:
    """What went wrong, in a sentence; `error` and its causes are told apart by class name.

    The names have stayed the same while the classes behind them moved between modules and from
    one HTTP library to another.
    """
    names = {cls.__name__ for cause in _causes(error) for cls in type(cause).__mro__}
    status = _status(error)
    if "OfflineModeIsEnabled" in names:
        return "HF_HUB_OFFLINE is set; unset it to allow the download"
    if "RevisionNotFoundError" in names:
        return f"{REPOSITORY} has no revision {revision!r}; leave it out for the newest"
    if "RemoteEntryNotFoundError" in names or ("EntryNotFoundError" in names and status == 404):
        return f"{REPOSITORY} has no file {file} (HTTP 404), at least not in this revision"
    if status in (401, 403, 404):
        return (
            f"the Hub refuses access to {REPOSITORY} (HTTP {status}); if your mirror needs a "
            "login, run `hf auth login` or set HF_TOKEN"
        )
    if status == 429:
        return "the Hub has had too many requests from here (HTTP 429); wait some minutes"
    if status is not None and status >= 500:
        return f"the Hub has trouble (HTTP {status}); try again later"
    if "ProxyError" in names:
        return "the proxy refuses the connection; check HTTPS_PROXY and NO_PROXY"
    if "FileMetadataError" in names:
        return (
            "the answer did not come from a Hub (perhaps a login page of the network); check "
            "HF_ENDPOINT, or open a web page to log in"
        )
    if names & {"TimeoutException", "Timeout", "TimeoutError"}:
        return "the Hub did not answer in time; try again, or set HF_HUB_DOWNLOAD_TIMEOUT higher"
    if names & {"RemoteProtocolError", "ReadError", "ChunkedEncodingError"}:
        return "the connection broke off in the middle; try again"
    if names & {"ConnectError", "ConnectionError", "NetworkError"}:
        return "the Hub cannot be reached; check the connection"
    return f"{type(error).__name__}: {(str(error) or 'no details').splitlines()[0][:300]}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _status(error: Exception) -> int | None:
    """The HTTP status in an exception or its causes."""
    for cause in _causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None
