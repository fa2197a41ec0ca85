"""Files of architectures: our JSON lines, and the official DeepNets-1M files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ghn_init.errors import GHNInitError
from ghn_init.graph.graph import PRIMITIVES, Graph, Node
from ghn_init.train.networks.genotypes import Architecture, from_json

_FORMAT = "ghn_init.nets"
_EVALUATION = "eval"
"""The official files keep all evaluation splits in one pair of files."""


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


def load_nets(folder: Path, split: str, count: int | None = None) -> list[Architecture]:
    """The architectures of a split.

    Arguments:
        folder: with `<split>.jsonl` as `make_nets` writes it, or the official
            `deepnets1m_train_meta.json` and `deepnets1m_eval_meta.json`.
        split: train, val, test, wide, deep, dense or bnfree.
        count: only the first so many.

    Raises:
        GHNInitError: there is no such file, it is damaged, or has fewer architectures.
    """
    official = folder / f"deepnets1m_{_official_name(split)}_meta.json"
    try:
        if nets_path(folder, split).exists():
            nets = list(_read_lines(nets_path(folder, split), split, count))
        elif official.exists():
            nets = [from_json(entry) for entry in _read_meta(official, split)["nets"][:count]]
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


def load_official_graph(folder: Path, split: str, index: int) -> Graph:
    """A graph of an official HDF5 file as it is, without shapes.

    Training does not need these files: a graph follows from its genotype. The published generator
    has left out most `msa` and `cse` nodes (`_recorded` has the rule). It has also written the
    nodes cell by cell, and the adjacency in its own order, where cells overlap: the edges of a
    file therefore join other nodes than those of the network. `recorded_graph` has the right ones.

    Arguments:
        folder: with `deepnets1m_<train or eval>.hdf5` and the meta file.
        split: name of the split.
        index: number of the architecture.

    Raises:
        GHNInitError: h5py is missing, or there is no such graph.
    """
    try:
        import h5py
    except ImportError as error:
        raise GHNInitError(
            "reading HDF5 files needs h5py: pip install 'ghn-init[train]'."
        ) from error
    name = _official_name(split)
    meta = _read_meta(folder / f"deepnets1m_{name}_meta.json", split)["meta"]
    try:
        with h5py.File(folder / f"deepnets1m_{name}.hdf5") as file:
            group = file[split][str(index)]
            adjacency, rows = torch.from_numpy(group["adj"][()]), group["nodes"][()]
    except (OSError, KeyError) as error:
        raise GHNInitError(f"there is no graph {index} of {split} in {folder}.") from error
    nodes = tuple(
        Node(_official_op(meta["primitives_ext"][str(op)]), meta["unique_op_names"][str(param)])
        for op, _, param in rows.tolist()
    )
    return Graph(nodes, [(i, j) for i, j in (adjacency == 1).nonzero().tolist()])


def _read_lines(path: Path, split: str, count: int | None) -> Iterator[Architecture]:
    with open(path, encoding="utf-8") as file:
        check_header(path, file.readline(), split)
        for number, line in enumerate(file):
            if number == count or not line.endswith("\n"):
                return  # a line without an end is still being written
            try:
                yield from_json(json.loads(line))
            except (ValueError, GHNInitError) as error:
                raise GHNInitError(f"{path}, line {number + 2}: {error}") from error


def _read_meta(path: Path, split: str) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = json.loads(path.read_bytes())[split]
    except (OSError, ValueError, KeyError) as error:
        raise GHNInitError(f"{path} is no DeepNets-1M meta file with {split} in it.") from error
    return entry


def _official_name(split: str) -> str:
    return "train" if split == "train" else _EVALUATION


def _official_op(name: str) -> str:
    """The primitive: official names of convolutions and pools may have a kernel size behind."""
    name = "bias" if name == "fc-b" else name
    for op in (name, name.rpartition("_")[0]):
        if op in PRIMITIVES:
            return op
    raise GHNInitError(f"unknown primitive {name!r} in the official files.")
