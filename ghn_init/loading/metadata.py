"""What a file says of its hypernetwork besides the weights: its configuration and defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ghn_init.errors import GHNInitError
from ghn_init.hypernetwork.config import Defaults, GHNConfig
from ghn_init.version import __version__

# Keys in the metadata of our own safetensors files. Values are JSON.
CONFIG_KEY = "ghn_init.config"
DEFAULTS_KEY = "ghn_init.defaults"
TRAINING_KEY = "ghn_init.training"  # the configuration of the run that made it
STEP_KEY = "ghn_init.step"  # of that run
DATA_KEY = "ghn_init.data"  # how many images, classes and architectures it had

HISTORY_KEYS = (TRAINING_KEY, STEP_KEY, DATA_KEY)

LIBRARY_NAME = "ghn_init"
"""Of which `config.json` beside the weights says that it is ours; others are not looked into."""

_MOST = 1 << 20
"""Bytes of a `config.json`."""


def own_metadata(config: GHNConfig, defaults: Defaults) -> dict[str, str]:
    """What the metadata of our own files say of a hypernetwork."""
    return {CONFIG_KEY: _config_text(config), DEFAULTS_KEY: json.dumps(_plain(defaults))}


def folder_config(config: GHNConfig, defaults: Defaults) -> dict[str, Any]:
    """What `config.json` beside the weights says of a hypernetwork."""
    return {
        "library_name": LIBRARY_NAME,
        "library_version": __version__,
        "config": asdict(config),
        "defaults": _plain(defaults),
    }


def defaults_beside(path: Path | None, config: GHNConfig, otherwise: Defaults) -> Defaults:
    """The defaults that a `config.json` has, which come before those in the weights' own file.

    Arguments:
        path: of `config.json`. None: there is none.
        config: of the weights.
        otherwise: defaults of the weights' file, where `path` says none.

    Raises:
        GHNInitError: it is damaged, or its configuration is another.
    """
    content = {} if path is None else read_folder_config(path)
    if content.get("library_name") != LIBRARY_NAME:
        return otherwise
    try:
        check_config({CONFIG_KEY: json.dumps(content.get("config", {}))}, config)
        if "defaults" not in content:
            return otherwise
        return read_defaults({DEFAULTS_KEY: json.dumps(content["defaults"])})
    except GHNInitError as error:
        raise GHNInitError(f"{path} beside the weights is of no use: {error}.") from error


def read_folder_config(path: Path) -> dict[str, Any]:
    """The content of a `config.json`.

    Raises:
        GHNInitError: it cannot be read, or is no JSON object.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(_MOST + 1)
        content = json.loads(text) if len(text) <= _MOST else None
    except (OSError, ValueError, RecursionError) as error:
        raise GHNInitError(f"{path} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise GHNInitError(f"{path} is no JSON object of at most {_MOST:,} bytes.")
    return content


def _plain(defaults: Defaults) -> dict[str, Any]:
    return {"norms": sorted(defaults.norms), "orth_start": defaults.orth_start}


def _config_text(config: GHNConfig) -> str:
    return json.dumps(asdict(config), sort_keys=True)


def read_defaults(metadata: Mapping[str, str]) -> Defaults:
    """The defaults in the metadata of a file, the published ones where it says none."""
    text = metadata.get(DEFAULTS_KEY, "{}")
    try:
        found = json.loads(text)
        if isinstance(found, dict) and "norms" in found:
            found["norms"] = frozenset(found["norms"])
        return Defaults(**found)
    except GHNInitError as error:
        raise GHNInitError(f"damaged: its metadata make no sense: {error}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise GHNInitError(f"damaged: the defaults in its metadata are {text[:200]!r}") from error


def said_config(metadata: Mapping[str, str], extras: Mapping[str, object]) -> Mapping[str, Any]:
    """The configuration that a file says, ours or the authors' trainer's. It may be nonsense.

    Arguments:
        metadata: of a safetensors file.
        extras: what a file of `torch.save` holds beside the tensors.
    """
    found = _own_config(metadata) if CONFIG_KEY in metadata else extras.get("config")
    return found if isinstance(found, dict) else {}


def _own_config(metadata: Mapping[str, str]) -> object:
    try:
        return json.loads(metadata.get(CONFIG_KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise GHNInitError("damaged: the configuration in its metadata is not JSON") from error


def check_config(metadata: Mapping[str, str], config: GHNConfig) -> None:
    """Our own files say their configuration; it must be the one that the tensors have."""
    found = _own_config(metadata)
    actual = json.loads(_config_text(config))
    if not isinstance(found, dict) or not found.items() <= actual.items():
        raise GHNInitError(
            f"the configuration in its metadata ({metadata[CONFIG_KEY][:200]}) is not that of its "
            f"tensors ({_config_text(config)})"
        )


def check_released_config(found: object, config: GHNConfig) -> None:
    """The GHN-2 release and the authors' trainer store a configuration; it must not contradict."""
    if not isinstance(found, dict):
        return
    known: dict[str, object] = {
        "hid": config.hidden_size,
        "num_classes": config.num_classes,
        "layernorm": config.final_layernorm,
        "max_shape": config.max_shape,
        "weight_norm": True,
    }
    if config.rank:
        known |= {"lora_r": config.rank, "max_ck_lora": config.rows}
    if config.arch == "ghn2":
        known["ve"] = config.virtual_edges
    else:
        known["heads"] = config.heads
    for name, value in known.items():
        said = found.get(name)
        if type(said) is type(value) and said != value:
            # Tuples in tuples can be endless to write down.
            plain = not isinstance(said, tuple) or all(type(n) is int for n in said)
            raise GHNInitError(
                f"the configuration in it says {name} = {f'{said}'[:80] if plain else '(nonsense)'}"
                f", and its tensors (or what is supported) {value}"
            )
