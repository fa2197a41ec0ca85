"""Short runs, as commands and in this process, and what is left of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from ghn_init import load_ghn
from ghn_init.train.config import Schedule, TrainConfig
from ghn_init.train.distributed import World

ALONE = World(0, 1, torch.device("cpu"))
OFTEN = Schedule(save_every=1, log_every=1, quiet=True)


def metrics(folder: Path, count: int | None = None) -> list[dict[str, Any]]:
    """The first lines of a run's metrics, without what depends on the machine."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()[:count]
    volatile = ("seconds", "steps_per_second", "shares")
    return [{k: v for k, v in json.loads(line).items() if k not in volatile} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_ghn(folder / "ghn.safetensors").state_dict()


def same(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return metrics(a) == metrics(b) and all(torch.equal(one[name], two[name]) for name in two)


def command(config: TrainConfig, out: Path, *more: str) -> list[str]:
    """The arguments of `ghn-init train run` for a configuration."""
    widths = config.widths
    return [
        *("run", "--data", config.data, "--out", str(out)),
        *(("--nets", config.nets) if config.nets is not None else ()),
        *(("--models", config.models) if config.models is not None else ()),
        *("--max-steps", str(config.steps), "--hidden-size", str(config.hidden_size)),
        *("--layers", str(config.layers), "--meta-batch", str(config.meta_batch)),
        *("--batch-size", str(config.batch_size), "--warmup", str(config.warmup)),
        *("--dropout", str(config.dropout), "--max-params", str(widths.max_params)),
        *("--channels", *map(str, widths.channels), "--fc-dims", *map(str, widths.fc_dims)),
        *("--seed", str(config.seed), "--device", "cpu", "--log-every", "1"),
        *("--save-every", "1", *more),
    ]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def on_two_processes(arguments: list[str]) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", "2", "-m", "ghn_init.train", *arguments]
    done = subprocess.run(launcher, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def ranks_of(agent: int) -> dict[int, int]:
    """The process of each rank that a torchrun agent has started."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            status = (folder / "status").read_text()
            if f"PPid:\t{agent}\n" in status:
                environment = (folder / "environ").read_text().split("\0")
                rank = next(e for e in environment if e.startswith("RANK="))
                found[int(rank[5:])] = int(folder.name)
        except (OSError, StopIteration):
            continue
    return found
