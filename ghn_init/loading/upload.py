"""A folder as one commit on the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghn_init.errors import GHNInitError
from ghn_init.loading.hub import LIBRARY
from ghn_init.loading.hub_errors import explain, status_of
from ghn_init.loading.locate import parse_hub_place
from ghn_init.loading.patience import within
from ghn_init.progress import notice

_CARD = "README.md"


@dataclass(frozen=True)
class Upload:
    """Where to, and how.

    Arguments:
        repository: `"organization/name"`; it is made if it is not there.
        license: of what is uploaded, as the Hub names it. None: the card names none.
        private: whether a repository that is made is private.
        revision: branch, made if it is not there. None: main.
        message: of the commit.
        token: of a user who may write there. None: that of `hf auth login`, or `HF_TOKEN`.
        new_card: replace a `README.md` that is there already, which is left otherwise.
    """

    repository: str
    license: str | None = None
    private: bool = False
    revision: str | None = None
    message: str = "Upload"
    token: str | None = None
    new_card: bool = False


def repository_name(text: str) -> str:
    """`"organization/name"`, also with `hf-hub:` in front.

    Raises:
        GHNInitError: it is no such name.
    """
    repository, file = parse_hub_place(f"hf-hub:{text.removeprefix('hf-hub:')}")
    if file or repository.revision:
        raise GHNInitError(f"{text!r} is no repository on the Hub: give ORGANIZATION/NAME.")
    return repository.name


def upload(folder: Path, how: Upload) -> str:
    """Upload the files of a folder.

    Arguments:
        folder: with files only.
        how: see there.

    Returns: `"hf-hub:organization/name@<commit>"`.

    Raises:
        GHNInitError: the Hub cannot be reached, or refuses.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise GHNInitError("huggingface_hub is not installed: pip install it.") from error
    name, version = LIBRARY["library_name"], LIBRARY["library_version"]
    api = huggingface_hub.HfApi(token=how.token, library_name=name, library_version=version)
    try:
        return f"hf-hub:{how.repository}@{_upload(api, folder, how)}"
    except Exception as error:  # its exceptions have no common class, and differ by version
        raise GHNInitError(f"cannot upload to {how.repository}: {_cause(error, how)}.") from error


def _upload(api: Any, folder: Path, how: Upload) -> str:
    """The commit that was made."""
    from huggingface_hub import constants

    # The first request has a bound, so that a network that swallows packets shows.
    seconds = float(constants.HF_HUB_ETAG_TIMEOUT)
    with notice(f"ghn_init: waiting for {api.endpoint} to answer, {seconds:g} s at most"):
        within(
            seconds,
            lambda: api.create_repo(how.repository, private=how.private, exist_ok=True),
        )
    if how.revision is not None:
        api.create_branch(how.repository, branch=how.revision, exist_ok=True)
    stays = not how.new_card and api.file_exists(how.repository, _CARD, revision=how.revision)
    size = sum(path.stat().st_size for path in folder.iterdir())
    with notice(f"ghn_init: uploading {size:,} bytes to {api.endpoint}/{how.repository}"):
        commit = api.upload_folder(
            repo_id=how.repository,
            folder_path=folder,
            revision=how.revision,
            commit_message=how.message,
            ignore_patterns=[_CARD] if stays else None,
        )
    return str(commit.oid)


def _cause(error: Exception, how: Upload) -> str:
    status = status_of(error)
    if status in (401, 403):
        return (
            f"the Hub does not let you write there (HTTP {status}). Run `hf auth login`, or set "
            "HF_TOKEN to a token that may"
        )
    return explain(error, how.repository, "", how.revision)
