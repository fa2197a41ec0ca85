"""The folder of a run: what it takes to go on, the metrics, and the hypernetwork itself.

- `config.json`: the run's configuration.
- `state.pt`: weights, optimizer, step and counters. Schedule, samplers and random numbers are
  functions of the step, so nothing of them needs storing.
- `metrics.jsonl`: one JSON object for every logged step.
- `ghn.safetensors`: the hypernetwork, for `load_ghn`.
- `.lock`: held by the process that writes the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ghn_init.errors import GHNInitError
from ghn_init.files import atomic_path, locked
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.images.batches import Images
from ghn_init.loading.checkpoint import save_checkpoint
from ghn_init.loading.metadata import DATA_KEY, STEP_KEY, TRAINING_KEY
from ghn_init.loading.runs import without_folders
from ghn_init.train.config import TrainConfig, differences, from_json
from ghn_init.train.evaluation import images_key
from ghn_init.train.networks.nets import Net

MAY_CHANGE = {"nets", "data", "patience", "precision"}
"""Fields in which a resumed run may differ: paths, and what is no part of the recipe."""

_COUNTS = ("classes", "images", "architectures")
_OTHER = "Give the same arguments to resume it, or another --out"


@dataclass
class State:
    """Where a run is.

    Arguments:
        step: steps that have been made.
        skipped: how many of them changed nothing, as their loss was not finite.
        failures: skipped steps in a row, the last ones.
        seconds: time spent in all stretches of the run.
        threads: of the main process; 0: not chosen.
    """

    step: int = 0
    skipped: int = 0
    failures: int = 0
    seconds: float = 0.0
    threads: int = 0


def trained_on(images: Images, nets: Sequence[Net]) -> dict[str, Any]:
    """By which data is told apart: a run that is resumed must have the same."""
    return {
        **images_key(images),
        "classes": len(images.classes),
        "names": list(images.classes),
        "architectures": len(nets),
        "nodes": sum(net.num_nodes or 0 for net in nets),
    }


class RunFolder:
    """Reads and writes the folder of a run.

    Arguments:
        path: the folder.
        config: of the run.
    """

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path, self.config = path, config
        self.state_file = path / "state.pt"
        self.metrics_file = path / "metrics.jsonl"
        self.ghn_file = path / "ghn.safetensors"

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Create the folder, or check that the run in it is this one; lock it in the block.

        Raises:
            GHNInitError: it holds another run, is in use, or cannot be written.
        """
        with locked(self.path):
            self.check_config()
            with atomic_path(self.path / "config.json") as temporary:
                temporary.write_text(self.config.to_json() + "\n", encoding="utf-8")
            yield

    def save(
        self,
        state: State,
        ghn: GHN,
        optimizer: torch.optim.Optimizer,
        data: Mapping[str, Any],
    ) -> None:
        """Write hypernetwork and state, each whole or not at all.

        The state comes last: what is resumed after a kill between the two makes both again.

        Arguments:
            state, ghn, optimizer: of the run.
            data: see `trained_on`.
        """
        self.save_ghn(state, ghn, data)
        content = {
            **vars(state),
            "ghn": ghn.state_dict(),
            "optimizer": optimizer.state_dict(),
            "config": self.config.to_json(),
            "data": dict(data),
        }
        with atomic_path(self.state_file) as temporary:
            torch.save(content, temporary)

    def save_ghn(self, state: State, ghn: GHN, data: Mapping[str, Any], name: str = "ghn") -> None:
        """Write the hypernetwork, and how it was made: model cards are written from that."""
        about = {
            TRAINING_KEY: json.dumps(without_folders(dataclasses.asdict(self.config))),
            STEP_KEY: str(state.step),
            DATA_KEY: json.dumps({name: data[name] for name in _COUNTS}),
        }
        weights = {name: t.detach().cpu() for name, t in ghn.state_dict().items()}
        save_checkpoint(
            self.path / f"{name}.safetensors", weights, ghn.config, about, defaults=ghn.defaults
        )

    def load(
        self,
        ghn: GHN,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        data: Mapping[str, Any],
    ) -> State:
        """The state of the run, loaded into hypernetwork and optimizer; a new one if there is none.

        Arguments:
            ghn, optimizer: of the run.
            device: where they are.
            data: see `trained_on`.

        Raises:
            GHNInitError: the state is damaged, or was trained on other data.
        """
        if not self.state_file.exists():
            return State()
        content = self._read_state(device)
        self._check_data(content.get("data", data), data)
        try:
            ghn.load_state_dict(content["ghn"])
            optimizer.load_state_dict(content["optimizer"])
            known = {field.name for field in fields(State)}
            return State(**{name: content[name] for name in known & set(content)})
        except Exception as error:  # whatever is not as `save` writes it
            reason = str(error).splitlines()[-1].strip()
            raise GHNInitError(
                f"{self.state_file} does not fit this run: {reason} {_OTHER}."
            ) from error

    def publish(self, state: State, ghn: GHN, data: Mapping[str, Any]) -> None:
        """Write the hypernetwork again where its file is not that of the state."""
        try:
            with safe_open(self.ghn_file, "pt") as file:
                step = (file.metadata() or {}).get(STEP_KEY)
        except (OSError, SafetensorError):
            step = None
        if state.step and step != str(state.step):
            self.save_ghn(state, ghn, data)

    def cut_metrics(self, step: int) -> int:
        """Forget the metrics of steps that were made after the state was saved; their number."""
        if not self.metrics_file.exists():
            return 0
        text = self.metrics_file.read_text(encoding="utf-8", errors="replace")
        lines = text.splitlines(keepends=True)
        kept = [line for line in lines if _step_of(line) <= step]
        if len(kept) < len(lines):
            with atomic_path(self.metrics_file) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")
        return len(lines) - len(kept)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append a line of metrics."""
        try:
            with open(self.metrics_file, "a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise GHNInitError(f"cannot write {self.metrics_file}: {error.strerror}.") from error

    def _read_state(self, device: torch.device | str, mmap: bool = False) -> dict[str, Any]:
        try:
            content = torch.load(self.state_file, map_location=device, weights_only=True, mmap=mmap)
            return dict(content)
        except Exception as error:  # whatever a damaged file leads to
            raise GHNInitError(
                f"{self.state_file} cannot be read ({type(error).__name__}). If there is a copy, "
                "put it back; else give another --out to start anew."
            ) from error

    def check_config(self) -> None:
        """Raises `GHNInitError` where the folder holds another run; changes nothing."""
        if not self.state_file.exists():
            return
        file = self.path / "config.json"
        try:
            if file.exists():
                old = from_json(file.read_text(encoding="utf-8"))
            else:
                old = from_json(self._read_state("cpu", mmap=True).get("config", ""))
        except (GHNInitError, UnicodeDecodeError) as error:
            raise GHNInitError(
                f"{file} is missing or damaged, so that the run in {self.path} cannot be told "
                "from others. Put it back, or give another --out."
            ) from error
        allowed = MAY_CHANGE
        if old.cooldown and self.config.cooldown:  # nothing before the cooldown depends on these
            allowed = MAY_CHANGE | {"steps", "cooldown"}
        changed = [name for name in differences(old, self.config) if name not in allowed]
        if changed:
            names = ", ".join(
                f"{name} ({getattr(old, name)} then, {getattr(self.config, name)} now)"
                for name in changed
            )
            raise GHNInitError(f"{self.path} holds a run with another {names}. {_OTHER}.")

    def _check_data(self, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Refuse to go on with other images or architectures."""
        if then == now:
            return
        if then.get("teacher") != now.get("teacher"):
            raise GHNInitError(
                f"the teacher's weights are not those of the run in {self.path}: give the same "
                "--teacher-weights to resume it, or another --out."
            )
        counts = [f"{then[n]} {n} then, {now[n]} now" for n in _COUNTS if then[n] != now[n]]
        what = "; ".join(counts) or "as many images, classes and architectures, but others"
        raise GHNInitError(
            f"--data or --nets are not those of the run in {self.path}: {what}. Give the same "
            "ones to resume it, or another --out."
        )


def _step_of(line: str) -> float:
    """The step of a line of metrics; infinite if the line is not whole."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
