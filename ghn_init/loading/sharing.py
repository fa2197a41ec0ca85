"""Hypernetworks for others: a folder with weights, `config.json` and a card, and the Hub."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ghn_init.errors import GHNInitError
from ghn_init.files import atomic_folder
from ghn_init.hypernetwork.config import Origin
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.loading.card import Content, card
from ghn_init.loading.checkpoint import (
    Checkpoint,
    list_cached,
    open_checkpoint,
    read_tensors,
    save_checkpoint,
)
from ghn_init.loading.locate import CONFIG_FILE, WEIGHTS_FILE
from ghn_init.loading.metadata import LIBRARY_NAME, folder_config, read_folder_config
from ghn_init.loading.runs import read_run
from ghn_init.loading.upload import Upload, repository_name, upload

CARD_FILE = "README.md"


def save(
    ghn: GHN | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    run: str | os.PathLike[str] | None = None,
    license: str | None = None,
) -> None:
    """Write a hypernetwork to a folder, for others and for `load_ghn("local-dir:...")`.

    The folder then has `model.safetensors`, `config.json` (sizes and defaults, which `load_ghn`
    reads) and `README.md`, a model card that says what is known of the training: from the metadata
    of the hypernetwork's file, and from the folder of the training run. Paths of this machine are
    cut to their last part. All three are written, or none.

    Arguments:
        ghn: a hypernetwork, in the dtype that it has; or its name or path as in `load_ghn`, in the
            dtype that it is stored in.
        folder: it is made if it is not there; its parent must be. Files of these names in it are
            replaced if the folder is one of ours.
        run: folder of the training run (`ghn-init train run --out`). Default: the one that the
            hypernetwork's file lies in, if it does.
        license: of the weights, as the Hub names it, such as `"mit"`. Default: the card names none.

    Raises:
        GHNInitError: as `load_ghn`; a weight is not finite; `run` is no run; or the folder holds
            something else or cannot be written. Nothing has been changed then.
    """
    target = Path(folder)
    _check_ours(target)
    content = _content(ghn, run, license)
    with atomic_folder(target) as temporary:
        _write(content, temporary, f"local-dir:{target.resolve().name}")


def push_to_hub(
    ghn: GHN | str | os.PathLike[str],
    repository: str,
    *,
    run: str | os.PathLike[str] | None = None,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload hypernetwork",
    token: str | None = None,
    new_card: bool = False,
) -> str:
    """Upload a hypernetwork to the Hugging Face Hub: what `save` writes, in one commit.

    `HF_ENDPOINT`, `HF_TOKEN` and the other settings of `huggingface_hub` apply.

    Arguments:
        ghn, run, license: as in `save`.
        repository: `"organization/name"`; it is made if it is not there.
        private: whether a repository that is made is private.
        revision: branch, made if it is not there. Default: main.
        message: of the commit.
        token: of a user who may write there. Default: that of `hf auth login`, or `HF_TOKEN`.
        new_card: replace a `README.md` that is there already, which is left otherwise.

    Returns: its name with the commit, `"hf-hub:organization/name@<commit>"`, for `load_ghn`.

    Raises:
        GHNInitError: as `save`; or the Hub cannot be reached, or refuses.
    """
    name = repository_name(repository)
    how = Upload(name, license, private, revision, message, token, new_card)
    content = _content(ghn, run, license)
    try:
        with tempfile.TemporaryDirectory(prefix="ghn_init-") as temporary:
            _write(content, Path(temporary), f"hf-hub:{how.repository}")
            return upload(Path(temporary), how)
    except OSError as error:
        raise GHNInitError(
            f"there is no room to prepare the upload in {tempfile.gettempdir()}: "
            f"{error.strerror or error}. Free some space, or set TMPDIR to another folder."
        ) from error


def _check_ours(folder: Path) -> None:
    """Refuse to replace the files of something else."""
    config = folder / CONFIG_FILE
    others = [name for name in (WEIGHTS_FILE, CARD_FILE) if (folder / name).exists()]
    if config.exists():
        if read_folder_config(config).get("library_name") == LIBRARY_NAME:
            return
        others.append(CONFIG_FILE)
    if others:
        raise GHNInitError(
            f"{folder} holds {' and '.join(sorted(others))} of something else. Give another folder."
        )


def _content(
    ghn: GHN | str | os.PathLike[str], run: str | os.PathLike[str] | None, license: str | None
) -> Content:
    if isinstance(ghn, GHN):
        tensors = {name: t.detach().cpu() for name, t in ghn.state_dict().items()}
        file = _file_of(ghn, tensors)
        config, defaults = ghn.config, ghn.defaults
        origin = ghn.origin if file else Origin()
    else:
        file = open_checkpoint(ghn)
        tensors = read_tensors(file)
        config, defaults, origin = file.config, file.defaults, file.origin
    known = read_run(_metadata(file), origin, run, tensors)
    return Content(tensors, config, defaults, origin, known, license)


def _file_of(ghn: GHN, tensors: Mapping[str, Tensor]) -> Checkpoint | None:
    """The file that a hypernetwork was loaded from, if nothing was changed since."""
    for file in list_cached() if ghn.origin.sha256 else []:
        if file.origin.sha256 == ghn.origin.sha256:
            stored = read_tensors(file)
            unchanged = stored.keys() == tensors.keys() and all(
                torch.equal(stored[name].to(tensor.dtype), tensor)
                for name, tensor in tensors.items()
            )
            return file if unchanged else None
    return None


def _metadata(file: Checkpoint | None) -> dict[str, str]:
    if file is None:
        return {}
    with safe_open(file.path, framework="pt") as content:
        return dict(content.metadata() or {})


def _write(content: Content, folder: Path, place: str) -> None:
    metadata = content.run.metadata()
    if content.origin.sha256:
        metadata["ghn_init.source_sha256"] = content.origin.sha256
    weights = folder / WEIGHTS_FILE
    save_checkpoint(weights, content.tensors, content.config, metadata, defaults=content.defaults)
    config = folder_config(content.config, content.defaults) | content.run.settings()
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    (folder / CARD_FILE).write_text(card(content, place), encoding="utf-8")
