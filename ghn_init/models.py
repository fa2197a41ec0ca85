"""Models by name, from timm, torchvision or transformers, or from a Python file."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from ghn_init.errors import GHNInitError
from ghn_init.graph.isolation import isolated_rng

LIBRARIES = ("timm", "torchvision", "transformers")

_SIZE = {"timm": "img_size", "torchvision": "image_size"}
"""What a library's models call the size of their images, where they take one."""

_TIMM_PLACES = ("hf-hub:", "hf_hub:", "local-dir:")
"""What begins a name that tells timm where a model's configuration is."""

_FILE = "ghn_init_model_file_"
"""What the names of modules begin with that are model files."""

_NEIGHBORS: dict[str, str] = {}
"""Modules that model files have imported from their own folder, and the folder."""


def create_model(
    name: str,
    library: str | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    pretrained: bool = False,
) -> tuple[nn.Module, str]:
    """Build a model by name.

    Arguments:
        name: one of these:
            - a name of timm or torchvision, as their `list_models()` have it, also with a tag
              (`"resnet18.a1_in1k"`); one that both have is taken from timm;
            - `"hf-hub:org/name"` or `"local-dir:path"`, as in `timm.create_model`;
            - a model of transformers on the Hub, such as `"microsoft/resnet-18"`, or `"./folder"`:
              an image classifier by its configuration;
            - `"path/to/file.py:factory"`, a function or class in a Python file that gives a model
              when it is called. The file is run, and may import the files beside it: use only
              what you trust.
        library: one of `LIBRARIES`, to ask only that one; not for a file.
        num_classes: outputs of the classification layer; given to a factory as `num_classes=`.
            Default: the library's (1000 mostly) or the factory's.
        seed: of the model's own initialization. The global RNG is left as it is.
        pretrained: with the published weights, which are downloaded unless cached.

    Returns: the model and the library (or file) that it came from.

    Raises:
        GHNInitError: no such model, file or factory, no such weights, or building it fails.
    """
    build, source = model_builder(name, library, num_classes, seed, pretrained)
    return build(), source


def model_builder(
    name: str,
    library: str | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    pretrained: bool = False,
    image_size: int | None = None,
) -> tuple[Callable[[], nn.Module], str]:
    """A function that builds a model by name, the same each time it is called.

    Other arguments, second value and errors are those of `create_model`; what goes wrong in the
    building is raised by the function.

    Arguments:
        image_size: of a model of timm or torchvision, where it takes one. Default: its own.
    """
    if not isinstance(name, str):
        raise GHNInitError(f"a model is given by name, not as {type(name).__name__}.")
    if library is not None and library not in LIBRARIES:
        raise GHNInitError(f"unknown library {library!r}: choose one of {', '.join(LIBRARIES)}.")
    if num_classes is not None and not (isinstance(num_classes, int) and num_classes > 0):
        raise GHNInitError(f"num_classes is {num_classes!r}: give an integer from 1 up.")
    if not isinstance(seed, int):
        raise GHNInitError(f"seed is {seed!r}: give an integer.")
    keywords: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if is_in_file(name):
        if pretrained:
            raise GHNInitError(f"{name!r} has no pretrained weights that are known here.")
        path, _, factory = name.rpartition(":")
        make = functools.partial(_from_file, path, factory, keywords)
        return functools.partial(_build, make, f"model {name!r}", seed), path
    source, build = _find(name, library)
    what = f"{source} model {name!r}" + " with pretrained weights" * pretrained
    make = functools.partial(build, name, pretrained, **keywords)
    if image_size is not None and source in _SIZE:
        make = functools.partial(_sized, make, {_SIZE[source]: image_size})
    return functools.partial(_build, make, what, seed), source


def _find(name: str, library: str | None) -> tuple[str, Callable[..., nn.Module]]:
    """The library that has a model, and its builder."""
    if name.endswith(".py"):
        raise GHNInitError(f"{name!r} is a file: say what gives the model, as in {name}:factory.")
    if name.startswith(_TIMM_PLACES):
        _check_place(name)
        asked: tuple[str, ...] = ("timm",)
    else:
        asked = ("transformers",) if "/" in name else ("timm", "torchvision")
    known: list[str] = []
    for candidate in asked if library is None else (library,):
        names, build = _open(candidate)
        known += names
        plain = name.partition(".")[0] if candidate == "timm" else name  # without its tag
        if candidate in asked and ("/" in name or ":" in name or plain in names):
            return candidate, build
    close = difflib.get_close_matches(name, set(known), n=3)
    hint = f" Did you mean {', '.join(close)}?" if close else ""
    where = library or "timm nor torchvision"
    raise GHNInitError(f"no model {name!r} in {where}.{hint}")


def _sized(build: Callable[..., nn.Module], size: dict[str, int]) -> nn.Module:
    """A model for images of a size; one that takes none is built without."""
    try:
        return build(**size)
    except TypeError as error:
        if next(iter(size)) not in str(error):
            raise
        return build()


def model_names(library: str) -> list[str]:
    """The names of all models of timm or torchvision.

    Raises:
        GHNInitError: the library is another one, or cannot be imported.
    """
    if library not in _SIZE:
        raise GHNInitError(f"{library!r} has no list of models: give {' or '.join(_SIZE)}.")
    return _open(library)[0]


def _check_place(name: str) -> None:
    """Refuse a place that the installed timm does not know: its own error has no message."""
    _open("timm")  # or say that timm is missing
    timm = importlib.import_module("timm")
    try:
        timm.models.parse_model_name(name)
    except AssertionError as error:
        place = name.partition(":")[0]
        raise GHNInitError(
            f"model {name!r}: timm {timm.__version__} knows no {place}: places. Install a newer "
            "timm, or name the model and load its weights yourself."
        ) from error


def _open(library: str) -> tuple[list[str], Callable[..., nn.Module]]:
    """Names and builder of a library."""
    try:
        if library == "timm":
            timm = importlib.import_module("timm")
            return timm.list_models(), timm.create_model
        if library == "transformers":
            return [], functools.partial(_from_transformers, importlib.import_module(library))
        models = importlib.import_module("torchvision.models")
        return models.list_models(), functools.partial(_from_torchvision, models)
    except ImportError as error:
        raise GHNInitError(
            f"{library} cannot be imported ({error}): pip install {library}, or name another model."
        ) from error


def _from_torchvision(models: Any, name: str, pretrained: bool, **keywords: Any) -> nn.Module:
    builder = models.get_model_builder(name)
    if not pretrained and "weights_backbone" in inspect.signature(builder).parameters:
        keywords["weights_backbone"] = None  # the default downloads them
    model: nn.Module = builder(weights="DEFAULT" if pretrained else None, **keywords)
    return model


def _from_transformers(
    transformers: Any, name: str, pretrained: bool, num_classes: int | None = None
) -> nn.Module:
    labels = {} if num_classes is None else {"num_labels": num_classes}
    config = transformers.AutoConfig.from_pretrained(name, **labels)
    classifier = transformers.AutoModelForImageClassification
    model: nn.Module = (
        classifier.from_pretrained(name, config=config, ignore_mismatched_sizes=bool(labels))
        if pretrained
        else classifier.from_config(config)
    )
    return model


def is_in_file(name: str) -> bool:
    """Whether a model's name is `path/to/file.py:factory`."""
    return name.rpartition(":")[0].endswith(".py")


def short_name(name: str) -> str:
    """For tables and pictures: the factory of a model in a file, the last part of a place."""
    return name.rpartition(":" if is_in_file(name) else "/")[2]


def _from_file(path: str, factory: str, keywords: dict[str, Any]) -> nn.Module:
    with _importing_from(os.path.dirname(os.path.realpath(path))):
        model = getattr(_module(path), factory)(**keywords)
    if not isinstance(model, nn.Module):
        raise TypeError(f"it gives a {type(model).__name__}, and must return a torch.nn.Module")
    return model


@contextlib.contextmanager
def _importing_from(folder: str) -> Iterator[None]:
    """Let a model file import the files beside it, as it could if Python ran it.

    A name that files of another folder have imported before is looked up anew.
    """
    for name in [name for name, origin in _NEIGHBORS.items() if origin != folder]:
        sys.modules.pop(name, None)
        del _NEIGHBORS[name]
    before = set(sys.modules)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the file has removed it
            sys.path.remove(folder)
        for name in sys.modules.keys() - before:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if not name.startswith(_FILE) and os.path.realpath(file).startswith(folder + os.sep):
                _NEIGHBORS[name] = folder


def _module(path: str) -> Any:
    """The Python file as a module; run once."""
    name = f"{_FILE}{abs(hash(Path(path).resolve()))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, for one, look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _build(build: Callable[[], nn.Module], what: str, seed: int) -> nn.Module:
    with isolated_rng(seed):
        try:
            return build()
        except (Exception, SystemExit) as error:  # whatever a library or a user's file raises
            kind = type(error).__name__
            reason = (str(error).splitlines() or [kind])[0]
            reason = f"{kind}: {reason}" if isinstance(error, SystemExit) else reason
            raise GHNInitError(f"{what} cannot be built: {reason}") from error
