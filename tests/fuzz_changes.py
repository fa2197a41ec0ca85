"""Changes checkpoint files while they are loaded: a load gives one of the two files, or an error.

    python tests/fuzz_changes.py --rounds 500

In every round a thread changes the file at a random moment of the load. What is loaded must be all
of the first or all of the second file, with its checksum; where a checksum is demanded, the file
that has it. Afterwards the first file must load from the cache as it was.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from checkpoint_files import LAYOUTS, State, same, tiny_state

from ghn_init import GHNConfig, GHNInitError, load_ghn

LAYOUT_NAMES = ("safetensors", "joblib", "torch", "torch-legacy", "published names")
CONFIG = GHNConfig("ghn3", 32, 2, 8, (32, 32, 7, 7), 10)  # files of 1 MB: loads take some 10 ms


def in_place(path: Path, other: bytes) -> None:
    """One write over the whole file: after several, there would be whole files between them."""
    with open(path, "r+b", buffering=0) as file:
        file.write(other)


def rename(path: Path, other: bytes) -> None:
    beside = path.with_suffix(".new")
    beside.write_bytes(other)
    os.replace(beside, path)


def grow(path: Path, other: bytes) -> None:
    with open(path, "ab", buffering=0) as file:
        file.write(other[:5000])


def shrink(path: Path, other: bytes) -> None:
    os.truncate(path, len(other) // 2)


CHANGES: dict[str, Callable[[Path, bytes], None]] = {
    "in place": in_place,
    "rename": rename,
    "grow": grow,
    "shrink": shrink,
}


def plus_one(state: State) -> State:
    """Another state of the same size, no number of which is the same."""
    return {name: tensor + 1 for name, tensor in state.items()}


def fuzz(layout: str, change: str, rounds: int, seed: int = 0) -> Counter[str]:
    """How often each outcome came. Raises `AssertionError` on the first mixture."""
    torch.set_num_threads(1)
    rng = random.Random(f"{layout} {change} {seed}")
    first = tiny_state(CONFIG)
    second = plus_one(first)
    files = LAYOUTS[layout](first), LAYOUTS[layout](second)
    digests = [hashlib.sha256(data).hexdigest() for data in files]
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ghn.pt"
        longest = 0.1
        for i in range(rounds):
            if i % 10 == 0:  # else the conversion of the first file is in the cache
                os.environ["GHN_INIT_CACHE"] = str(Path(folder) / f"cache{i}")
            path.write_bytes(files[0])
            demanded = rng.choice((None, digests[0]))
            thread = threading.Thread(
                target=_later, args=(rng.uniform(0, longest), CHANGES[change], path, files[1])
            )
            thread.start()
            began = time.perf_counter()
            try:
                ghn = load_ghn(path, sha256=demanded)
                found = {name: tensor.clone() for name, tensor in ghn.state_dict().items()}
            except GHNInitError as error:
                outcomes[_kind(str(error))] += 1
            else:
                which = [same(found, state) for state in (first, second)]
                assert any(which), f"round {i}: a mixture of {layout} files ({change})"
                assert digests[which.index(True)] == ghn.origin.sha256, f"round {i}: checksum"
                assert demanded in (None, ghn.origin.sha256), f"round {i}: not the demanded file"
                outcomes["the first" if which[0] else "the second"] += 1
            longest = 0.9 * longest + 0.1 * 1.5 * (time.perf_counter() - began)
            thread.join()
            path.write_bytes(files[0])
            again = load_ghn(path, sha256=digests[0]).state_dict()
            assert same(again, first), f"round {i}: a mixture of {layout} in the cache"
    return outcomes


def _later(seconds: float, change: Callable[[Path, bytes], None], path: Path, data: bytes) -> None:
    time.sleep(seconds)
    change(path, data)


def _kind(message: str) -> str:
    for word in ("was changed", "truncated", "behind the end", "sha256", "damaged", "zip"):
        if word in message:
            return word
    return message[-60:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=500, help="for each layout and change")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=4)
    options = parser.parse_args()
    cases = [(layout, change) for layout in LAYOUT_NAMES for change in CHANGES]
    with ProcessPoolExecutor(options.processes) as pool:
        jobs = {case: pool.submit(fuzz, *case, options.rounds, options.seed) for case in cases}
        for (layout, change), job in jobs.items():
            outcomes = ", ".join(f"{what} {n}" for what, n in job.result().most_common())
            print(f"{layout:<16}{change:<10}{outcomes}")
            sys.stdout.flush()
    print(f"{options.rounds} rounds each: no mixture, no cache that keeps one")


if __name__ == "__main__":
    main()
