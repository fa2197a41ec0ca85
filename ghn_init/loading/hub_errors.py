"""What went wrong between us and the Hub, in a sentence.

huggingface_hub's exceptions have no common class, and differ by version: it has changed from one
HTTP library to another. The names of the classes have stayed, so they are told apart by name.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from ghn_init.errors import GHNInitError


class NotAvailable(GHNInitError):
    """A file is neither in the cache nor can it be fetched.

    Arguments:
        message: for the user.
        cause: what went wrong, as a part of a sentence.
    """

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        self.cause = cause


class SilentStorage(TimeoutError):
    """The Hub answers, and the storage behind it does not."""


def explain(error: Exception, repository: str, file: str, revision: str | None) -> str:
    """What went wrong with a file of a repository, as a part of a sentence."""
    names, status = _names(error), status_of(error)
    if "OfflineModeIsEnabled" in names:
        return "HF_HUB_OFFLINE is set; unset it to ask the Hub"
    if "RevisionNotFoundError" in names:
        return f"{repository} has no revision {revision!r}; leave it out for the newest"
    if is_missing(error):
        return f"{repository} has no file {file} (HTTP 404), at least not in this revision"
    if status in (401, 403, 404):
        return (
            f"the Hub refuses access to {repository} (HTTP {status}): there is no such repository, "
            "or it needs a login. Check the name, run `hf auth login` or set HF_TOKEN"
        )
    if status == 429:
        return "the Hub has had too many requests from here (HTTP 429); wait some minutes"
    if status is not None and status >= 500:
        return f"the Hub has trouble (HTTP {status}); try again later"
    return _explain_network(error, names)


def _explain_network(error: Exception, names: set[str]) -> str:
    if "ProxyError" in names:
        return "the proxy refuses the connection; check HTTPS_PROXY and NO_PROXY"
    if "FileMetadataError" in names:
        return (
            "the answer did not come from a Hub (perhaps a login page of the network); check "
            "HF_ENDPOINT, or open a web page to log in"
        )
    if "SilentStorage" in names:
        return (
            "the Hub answers, but its storage (Xet) does not; try again, or set "
            "HF_HUB_DISABLE_XET=1 to download without it"
        )
    if "Stalled" in names:
        return "the download has stalled; try again, or set HF_HUB_DOWNLOAD_TIMEOUT higher"
    if is_timeout(error):
        return "the Hub did not answer in time; try again, or set HF_HUB_ETAG_TIMEOUT higher"
    if names & {"RemoteProtocolError", "ReadError", "ChunkedEncodingError"}:
        return "the connection broke off in the middle; try again"
    if names & {"ConnectError", "ConnectionError", "NetworkError"}:
        return "the Hub cannot be reached; check the connection"
    if any(getattr(cause, "errno", None) == errno.ENOSPC for cause in _causes(error)):
        return "the disk with the Hub's cache is full; free some space, or set HF_HOME to another"
    return f"{type(error).__name__}: {(str(error) or 'no details').splitlines()[0][:300]}"


def is_missing(error: Exception) -> bool:
    """Whether the Hub says that a repository has no such file."""
    names = _names(error)
    known = "EntryNotFoundError" in names and status_of(error) == 404
    return "RemoteEntryNotFoundError" in names or known


def is_timeout(error: Exception) -> bool:
    """Whether nobody has answered; a connection that is refused is none, whatever it is called."""
    names = _names(error)
    refused = "NewConnectionError" in names  # in old urllib3 it is a timeout, too
    return not refused and bool(names & {"TimeoutException", "Timeout", "TimeoutError"})


def _names(error: Exception) -> set[str]:
    """Names of the classes of an exception and of its causes."""
    return {cls.__name__ for cause in _causes(error) for cls in type(cause).__mro__}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def status_of(error: Exception) -> int | None:
    """The HTTP status in an exception or its causes."""
    for cause in _causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None
