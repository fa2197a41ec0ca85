"""Initialized models on the Hugging Face Hub, as timm loads them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from torch import nn

from ghn_init.errors import GHNInitError
from ghn_init.loading.upload import Upload, upload
from ghn_init.report import Report
from ghn_init.version import __version__

_WEIGHTS = "model.safetensors"


def check_timm(model: nn.Module, name: str) -> None:
    """Refuse a model that timm could not build again.

    Raises:
        GHNInitError: it is none of timm's.
    """
    if not isinstance(getattr(model, "pretrained_cfg", None), dict):
        raise GHNInitError(
            f"{name} is no model of timm's, and what is pushed is for timm.create_model: name one "
            "of timm's models, or write a file (-o) and upload that."
        )


def push_model(model: nn.Module, weights: Path, name: str, report: Report, how: Upload) -> str:
    """Upload an initialized model with timm's `config.json`, for `timm.create_model("hf-hub:...")`.

    Arguments:
        model: one of timm's, which `weights` belongs to.
        weights: what `export` has written.
        name: of the model, for the card.
        report: of the initialization, for the card.
        how: see there.

    Returns: `"hf-hub:organization/name@<commit>"`.

    Raises:
        GHNInitError: the model is none of timm's, there is no room, or the Hub cannot be reached
            or refuses.
    """
    from timm.models import _hub as timm_hub  # old timm exports only some of it

    check_timm(model, name)
    try:
        with tempfile.TemporaryDirectory(prefix="ghn_init-") as temporary:
            folder = Path(temporary)
            timm_hub.save_for_hf(model, str(folder), safe_serialization=True)
            shutil.copyfile(weights, folder / _WEIGHTS)  # ours says how it was made
            (folder / "README.md").write_text(_card(name, report, how), encoding="utf-8")
            return upload(folder, how)
    except OSError as error:
        raise GHNInitError(
            f"there is no room to prepare the upload in {tempfile.gettempdir()}: "
            f"{error.strerror or error}. Free some space, or set TMPDIR to another folder."
        ) from error


def _card(name: str, report: Report, how: Upload) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        library_name="timm",
        license=how.license,
        tags=["image-classification", "timm", "ghn_init", "initialization"],
    )
    text = (
        f"# {how.repository.rpartition('/')[2]}\n\n"
        f"{name}, initialized with ghn_init {__version__}. It has not been trained: it is a start "
        "for training.\n\n"
        f'```python\nimport timm\n\nmodel = timm.create_model("hf-hub:{how.repository}", '
        "pretrained=True)\n```\n\n"
        f"```text\n{report}\n```\n"
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))
