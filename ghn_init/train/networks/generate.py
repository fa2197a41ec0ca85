"""Random architectures: the splits of DeepNets-1M (GHN-2 paper, Section 4 and Appendix A).

The n-th architecture of a split is a function of the seed, the split and n alone. Generation can
therefore be cut into pieces for any number of processes, and go on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from ghn_init.errors import GHNInitError
from ghn_init.files import locked
from ghn_init.progress import Progress
from ghn_init.train.networks.genotypes import (
    PARAMETER_FREE,
    PRIMITIVES,
    Architecture,
    Cell,
    to_json,
)
from ghn_init.train.networks.nets import check_header, header, nets_path
from ghn_init.train.networks.network import Network
from ghn_init.train.networks.zoo import ZOO_SPLITS, sample_zoo, zoo_to_json

_CHUNK = 64
"""Architectures that a process makes at a time."""

_DENSE_KERNELS = ("conv_5x5", "conv_7x7")
_CONVOLUTIONS = tuple(primitive for primitive in PRIMITIVES if "conv" in primitive)


@dataclass(frozen=True)
class Split:
    """What the architectures of a split are like.

    Arguments:
        cells: fewest and most cells.
        states: most states of a cell with few cells, and with many.
        min_states: fewest states of a cell.
        deep: numbers of cells beyond which a network counts as deep; one is drawn.
        max_params: parameters, on CIFAR-10 and on ImageNet.
        norm: False for networks without batch normalization.
        bare: chance of a small shallow network to have no batch normalization.
        direct: chance of a network without attention to have no `preproc`, where it may.
        widen: factors on the channels, for small and for large images.
        like: name of the split whose architectures these are (the seed of the draw).
    """

    cells: tuple[int, int] = (4, 18)
    states: tuple[int, int] = (4, 2)
    min_states: int = 1
    deep: tuple[int, ...] = (7, 8, 9, 10)
    max_params: int = 10**7
    norm: bool = True
    bare: float = 0.5
    direct: float = 0.0
    widen: tuple[int, int] = (1, 1)
    like: str = ""


SPLITS = {
    "train": Split(),
    "val": Split(),
    "test": Split(),
    "wide": Split(widen=(4, 2), like="test"),
    "deep": Split(cells=(10, 36), deep=(18,), max_params=10**8),
    "dense": Split(states=(10, 6), min_states=2, max_params=10**8),
    "bnfree": Split(norm=False),
    "search": Split(cells=(6, 20), states=(6, 3), deep=(10,), bare=0.0, direct=0.2),
}
"""In distribution: train, val, test. Out of distribution: wide, deep, dense, bnfree. Somewhat
larger, to look for good ones among them: search."""


def make_nets(
    split: str, count: int, folder: Path, seed: int = 0, workers: int | None = None
) -> Path:
    """Writes the first `count` architectures of a split to `folder/<split>.jsonl`.

    A file that is there is continued, if it was made with the same seed.

    Arguments:
        split: a name of `SPLITS` or of `ZOO_SPLITS`.
        count: how many architectures the file shall hold.
        folder: is created if necessary.
        seed: of the draw. Architectures of training and evaluation splits never coincide,
            whatever their seeds.
        workers: processes; None for one a core.

    Raises:
        GHNInitError: the split is unknown, the file holds something else, another process writes
            to the folder, or it cannot be written.
    """
    if split not in SPLITS and split not in ZOO_SPLITS:
        known = ", ".join((*SPLITS, *ZOO_SPLITS))
        raise GHNInitError(f"unknown split {split!r}; known are {known}.")
    if count < 1:
        raise GHNInitError(f"count is {count}: give 1 or more.")
    path = nets_path(folder, split)
    workers = workers or os.cpu_count() or 1
    with locked(folder):
        try:
            done = _resume(path, split, seed)
            with open(path, "a", encoding="utf-8") as file:
                _extend(file, split, seed, range(done, count), workers)
        except OSError as error:
            raise GHNInitError(f"cannot write {path}: {error.strerror}.") from error
    return path


def _extend(file: IO[str], split: str, seed: int, indices: range, workers: int) -> None:
    """Write architectures to the end of a file."""
    with Progress(indices.stop, "network", indices.start) as shown:
        for lines in _chunks(split, seed, indices.start, indices.stop, workers):
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            shown.step(len(lines), split=split)


def splits_of(space: str, split: str) -> list[str]:
    """The splits that a name stands for: one, or with `"eval"` all of a space to evaluate on.

    Arguments:
        space: `"deepnets"`, `"zoo"` or `"vits"`.
        split: with or without the prefix `zoo-` or `vits-`.

    Raises:
        GHNInitError: there is no such space.
    """
    prefixes = {"deepnets": "", "zoo": "zoo-", "vits": "vits-"}
    if space not in prefixes:
        raise GHNInitError(f"unknown --space {space!r}: {', '.join(prefixes)}.")
    prefix = prefixes[space]
    if split == "eval":
        known = ZOO_SPLITS if prefix else SPLITS
        others = (f"{prefix}train", "search")
        return [name for name in known if name.startswith(prefix) and name not in others]
    return [prefix + split.removeprefix(prefix)]


def sample(split: str, index: int, seed: int = 0) -> Architecture:
    """The architecture number `index` of a split, with its recorded nodes and parameters."""
    rules = SPLITS[split]
    rng = random.Random(f"{seed} {rules.like or split} {index}")
    while True:
        architecture = _draw(rng, rules)
        if architecture is None or not _belongs(architecture, split):
            continue
        recorded = _record(architecture, rules)
        if recorded is not None:
            return recorded


def _chunks(split: str, seed: int, start: int, stop: int, workers: int) -> Iterator[list[str]]:
    """JSON lines of the architectures from `start` to `stop`, in order."""
    starts = range(start, stop, _CHUNK)
    jobs = [(split, seed, first, min(first + _CHUNK, stop)) for first in starts]
    if workers < 2 or len(jobs) < 2:
        yield from map(_chunk, jobs)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(_chunk, jobs)


def _chunk(job: tuple[str, int, int, int]) -> list[str]:
    split, seed, start, stop = job
    indices = range(start, stop)
    if split in ZOO_SPLITS:
        entries = [zoo_to_json(sample_zoo(split, index, seed)) for index in indices]
    else:
        entries = [to_json(sample(split, index, seed)) for index in indices]
    return [json.dumps(entry, separators=(",", ":")) for entry in entries]


def _resume(path: Path, split: str, seed: int) -> int:
    """Starts a file, or cuts one that is there to whole lines; how many networks it has."""
    start = json.dumps(header(split, seed)) + "\n"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    whole = content[: content.rfind(b"\n") + 1]
    if not whole:
        path.write_text(start, encoding="utf-8")
        return 0
    check_header(path, whole.partition(b"\n")[0].decode(errors="replace"), split, seed)
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return whole.count(b"\n") - 1


# -- the draw


def _draw(rng: random.Random, rules: Split) -> Architecture | None:
    """One draw; None for cells that are hard to train or use too much memory."""
    cells = rng.randint(*rules.cells)
    deep = cells > rng.choice(rules.deep)
    few, many = rules.states
    states = rng.randint(rules.min_states, many if deep else few)
    allowed = PRIMITIVES if states > 1 else PRIMITIVES[1:]  # a single state cannot be cut off
    reduction = PARAMETER_FREE if rng.random() > 0.5 else PRIMITIVES
    concat = _draw_concat(rng, states)
    normal = Cell(_draw_edges(rng, states, allowed), concat)
    reduce = Cell(_draw_edges(rng, states, [p for p in reduction if p in allowed]), concat)
    if not _is_trainable(normal, reduce):
        return None
    attention = normal.count("msa") + reduce.count("msa") > 0
    multiply = rng.choice((1, 2))
    shallow = cells <= rules.cells[0] + 1 and states <= many
    stem = rng.choice((0, 1))
    return Architecture(
        normal=normal,
        reduce=reduce,
        n_cells=cells,
        channel_mult=multiply,
        stem_type=stem,
        stem_pool=stem == 0 and rng.random() > 0.5,
        stem_kernel=rng.choice((3, 5, 7)),
        norm=rules.norm and not (shallow and rng.random() < rules.bare),
        preproc=states > 1 or multiply > 1 or _has_preproc(rng, rules, attention),
        glob_avg=attention or deep or rng.random() > 0.1,
        fc_layers=rng.choice((1, 2)),
    )


def _has_preproc(rng: random.Random, rules: Split, attention: bool) -> bool:
    if attention:
        return rng.random() > 0.8
    return not rules.direct or rng.random() > rules.direct


def _draw_edges(
    rng: random.Random, states: int, primitives: tuple[str, ...] | list[str]
) -> tuple[tuple[str, int], ...]:
    """Two different predecessors for each state, and a primitive for each of these edges.

    The distribution is that of DARTS's discretization of random continuous architectures.
    """
    edges: list[tuple[str, int]] = []
    for state in range(2, 2 + states):
        edges += [(rng.choice(primitives), source) for source in rng.sample(range(state), 2)]
    return tuple(edges)


def _draw_concat(rng: random.Random, states: int) -> tuple[int, ...]:
    """States in the output: all, or in half of the cells the last and each other one by a coin."""
    drop = states > 1 and rng.random() > 0.5
    last = 1 + states
    return tuple(s for s in range(2, last + 1) if not drop or s == last or rng.random() > 0.5)


def _is_trainable(normal: Cell, reduce: Cell) -> bool:
    convolutions = normal.count(*_CONVOLUTIONS) + reduce.count(*_CONVOLUTIONS)
    attention = normal.count("msa") + reduce.count("msa")
    gates = max(normal.count("cse"), reduce.count("cse"))
    dense = max(normal.count(*_DENSE_KERNELS), reduce.count(*_DENSE_KERNELS))
    if gates > 1 or dense > 1:
        return False
    return convolutions > 0 if gates else convolutions + attention > 0


def _belongs(architecture: Architecture, split: str) -> bool:
    """Whether it lies on the split's side: a fixed sixteenth of the space is for evaluation.

    Validation and test share that sixteenth by halves.
    """
    text = json.dumps(to_json(replace(architecture, channels=0)), sort_keys=True)
    side = hashlib.sha256(text.encode()).digest()[0] % 32
    if split == "train":
        return side > 1
    return side == (0 if split == "val" else 1)


def _record(architecture: Architecture, rules: Split) -> Architecture | None:
    """With its number of nodes and parameters; None if it is too large, or in two pieces."""
    try:
        small, large = Network(architecture, 10, 32), Network(architecture, 10, 224)
    except GHNInitError:
        return None
    if max(small.num_params, large.num_params) > rules.max_params:
        return None
    return replace(
        architecture,
        channels=architecture.channels * rules.widen[0],
        num_nodes=len(small.graph),
        num_params={"cifar10": small.num_params, "imagenet": large.num_params},
    )
