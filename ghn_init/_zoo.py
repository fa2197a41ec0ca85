"""Models by name, from timm or torchvision."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ._errors import GHNInitError

LIBRARIES = ("timm", "torchvision")


def create_model(
    name: str, library: str | None = None, num_classes: int | None = None, seed: int = 0
) -> tuple[nn.Module, str]:
    """Build a model without pretrained weights.

    Arguments:
        name: as in `timm.list_models()` or `torchvision.models.list_models()`; a name that both
            have is taken from timm.
        library: `"timm"` or `"torchvision"`, to ask one of them only.
        num_classes: outputs of the classification layer. Default: the library's, 1000 mostly.
        seed: of the model's own initialization. The global RNG is left as it is.

    Returns: the model and the library that it came from.

    Raises:
        GHNInitError: no such model, or the library is not installed or refuses.
    """
    if library is not None and library not in LIBRARIES:
        raise GHNInitError(f"unknown library {library!r}: choose timm or torchvision.")
    if num_classes is not None and num_classes < 1:
        raise GHNInitError(f"num_classes is {num_classes}: give 1 or more.")
    known: list[str] = []
    for candidate in LIBRARIES if library is None else (library,):
        names, build = _open(candidate)
        known += names
        if name in names:
            keywords = {} if num_classes is None else {"num_classes": num_classes}
            make = functools.partial(build, name, **keywords)
            return _build(make, f"{candidate} model {name!r}", seed), candidate
    close = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {', '.join(close)}?" if close else ""
    where = library or "timm nor torchvision"
    raise GHNInitError(f"no model {name!r} in {where}.{hint}")


def _open(library: str) -> tuple[list[str], Callable[..., nn.Module]]:
    """Names and builder of a library."""
    try:
        if library == "timm":
            timm = importlib.import_module("timm")
            return timm.list_models(), timm.create_model
        models = importlib.import_module("torchvision.models")
        return models.list_models(), _torchvision_builder(models)
    except ImportError as error:
        raise GHNInitError(
            f"{library} cannot be imported ({error}): pip install {library}, or name the other "
            "library."
        ) from error


def _torchvision_builder(models: Any) -> Callable[..., nn.Module]:
    def build(name: str, **keywords: Any) -> nn.Module:
        builder = models.get_model_builder(name)
        if "weights_backbone" in inspect.signature(builder).parameters:
            keywords["weights_backbone"] = None  # the default downloads them
        return builder(weights=None, **keywords)

    return build


def _build(build: Callable[[], nn.Module], what: str, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        try:
            return build()
        except Exception as error:  # whatever a library's builder raises
            raise GHNInitError(f"{what} cannot be built: {error}") from error
