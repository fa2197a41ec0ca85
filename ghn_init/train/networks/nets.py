"""Files of architectures: our JSON lines, and the official DeepNets-1M meta files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ghn_init.errors import GHNInitError
from ghn_init.train.networks.built import BuiltNetwork
from ghn_init.train.networks.genotypes import Architecture, from_json
from ghn_init.train.networks.library import LibraryNet, kept
from ghn_init.train.networks.network import Network
from ghn_init.train.networks.zoo import ZooNet, zoo_from_json

Net = Architecture | ZooNet | LibraryNet
"""What a network is stored as: cells of DeepNets-1M, a family and its arguments, or a name."""

TargetNetwork = Network | BuiltNetwork
"""What a hypernetwork reads as a graph, and predicts the parameters of."""

_FORMAT = "ghn_init.nets"


def build_network(
    net: Net, num_classes: int, image_size: int, dropout: float = 0.0
) -> TargetNetwork:
    """The target network that is stored as `net`; only those of DeepNets-1M have dropout."""
    if isinstance(net, Architecture):
        return Network(net, num_classes, image_size, dropout)
    if isinstance(net, LibraryNet):
        return kept(net, num_classes, image_size)
    return BuiltNetwork(net, num_classes, image_size)


def nets_path(folder: Path, split: str) -> Path:
    """Our file of a split: a header, and one architecture a line."""
    return folder / f"{split}.jsonl"


def header(split: str, seed: int) -> dict[str, Any]:
    """The first line of our files."""
    return {"format": _FORMAT, "version": 1, "split": split, "seed": seed}


def check_header(path: Path, line: str, split: str, seed: int | None = None) -> None:
    """Raises `GHNInitError` where the first line is not that of the split (and the seed)."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != _FORMAT or found.get("version") != 1:
        raise GHNInitError(f"{path} is no file of architectures made by `ghn-init train`.")
    if found.get("split") != split:
        raise GHNInitError(f"{path} holds the split {found.get('split')!r}, not {split!r}.")
    if seed is not None and found.get("seed") != seed:
        raise GHNInitError(
            f"{path} was made with seed {found.get('seed')}; give --seed {found.get('seed')} to "
            "continue it, or another folder."
        )


def load_nets(folder: Path, split: str, count: int | None = None) -> list[Net]:
    """The architectures of a split.

    Arguments:
        folder: with `<split>.jsonl` as `make_nets` writes it, or the official
            `deepnets1m_train_meta.json`, `..._eval_meta.json` and `..._search_meta.json`.
        split: train, val, test, wide, deep, dense, bnfree or search; or a name of `ZOO_SPLITS`.
        count: only the first so many.

    Raises:
        GHNInitError: there is no such file, it is damaged, or has fewer architectures.
    """
    if count is not None and count < 1:
        raise GHNInitError(f"{count} architectures are none: give 1 or more.")
    part = split if split in ("train", "search") else "eval"
    official = folder / f"deepnets1m_{part}_meta.json"
    try:
        if nets_path(folder, split).exists():
            nets: list[Net] = list(_read_lines(nets_path(folder, split), split, count))
        elif official.exists():
            nets = [*_read_official(official, split, count)]
        else:
            raise GHNInitError(
                f"there are no {split} architectures in {folder}. Make some with `ghn-init train "
                f"make-nets --split {split} --count N -o {folder}`."
            )
    except OSError as error:
        raise GHNInitError(f"cannot read the architectures in {folder}: {error}.") from error
    if not nets or (count is not None and len(nets) < count):
        raise GHNInitError(f"there are only {len(nets)} {split} architectures in {folder}.")
    return nets


def _read_lines(path: Path, split: str, count: int | None) -> Iterator[Net]:
    with open(path, encoding="utf-8") as file:
        check_header(path, file.readline(), split)
        for number, line in enumerate(file):
            if number == count or not line.endswith("\n"):
                return  # a line without an end is still being written
            try:
                entry = json.loads(line)
                yield zoo_from_json(entry) if "family" in entry else from_json(entry)
            except (ValueError, GHNInitError) as error:
                raise GHNInitError(f"{path}, line {number + 2}: {error}") from error


def _read_official(path: Path, split: str, count: int | None) -> list[Architecture]:
    try:
        entries = json.loads(path.read_bytes())[split]["nets"]
    except (ValueError, KeyError, TypeError) as error:
        raise GHNInitError(f"{path} is no DeepNets-1M meta file with {split} in it.") from error
    return [from_json(entry) for entry in entries[:count]]
