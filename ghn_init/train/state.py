"""The folder of a run: what it takes to go on, the metrics, and the hypernetwork itself.

- `config.json`: the run's configuration.
- `state.pt`: weights, optimizer, step and counters. Schedule, samplers and random numbers are
  functions of the step, so nothing of them needs storing.
- `metrics.jsonl`: one JSON object for every logged step.
- `ghn.safetensors`: the hypernetwork, for `load_ghn`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ghn_init.errors import GHNInitError
from ghn_init.files import atomic_path
from ghn_init.hypernetwork.config import GHNConfig
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.loading.checkpoint import save_checkpoint
from ghn_init.train.config import TrainConfig, differences, from_json

MAY_CHANGE = {"nets", "data", "patience", "precision"}
"""Fields in which a resumed run may differ: paths, and what is no part of the recipe."""


@dataclass
class State:
    """Where a run is.

    Arguments:
        step: steps that have been made.
        skipped: how many of them changed nothing, as their loss was not finite.
        failures: skipped steps in a row, the last ones.
        seconds: time spent in all stretches of the run.
    """

    step: int = 0
    skipped: int = 0
    failures: int = 0
    seconds: float = 0.0


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

    def open(self) -> None:
        """Create the folder, or check that the run in it is this one.

        Raises:
            GHNInitError: it holds another run, or cannot be written.
        """
        file = self.path / "config.json"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if file.exists() and self.state_file.exists():
                self._check(from_json(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise GHNInitError(f"cannot use the folder {self.path}: {error.strerror}.") from error
        with atomic_path(file) as temporary:
            temporary.write_text(self.config.to_json() + "\n", encoding="utf-8")

    def save(
        self, state: State, ghn: GHN, optimizer: torch.optim.Optimizer, config: GHNConfig
    ) -> None:
        """Write state and hypernetwork, each whole or not at all."""
        weights = ghn.state_dict()
        content = {**vars(state), "ghn": weights, "optimizer": optimizer.state_dict()}
        with atomic_path(self.state_file) as temporary:
            torch.save(content, temporary)
        about = {"ghn_init.training": self.config.to_json(), "ghn_init.step": str(state.step)}
        weights = {name: t.detach().cpu() for name, t in weights.items()}
        save_checkpoint(self.ghn_file, weights, config, about, defaults=ghn.defaults)

    def load(self, ghn: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> State:
        """The state of the run, loaded into hypernetwork and optimizer; a new one if there is none.

        Raises:
            GHNInitError: the state is damaged or of another hypernetwork.
        """
        if not self.state_file.exists():
            return State()
        try:
            content = torch.load(self.state_file, map_location=device, weights_only=True)
            ghn.load_state_dict(content.pop("ghn"))
            optimizer.load_state_dict(content.pop("optimizer"))
            return State(**content)
        except Exception as error:  # whatever a damaged file leads to
            raise GHNInitError(
                f"{self.state_file} cannot be read ({type(error).__name__}). Delete it to start "
                "the run anew."
            ) from error

    def cut_metrics(self, step: int) -> None:
        """Forget the metrics of steps that were made after the state was saved."""
        if not self.metrics_file.exists():
            return
        lines = self.metrics_file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        with atomic_path(self.metrics_file) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append a line of metrics."""
        try:
            with open(self.metrics_file, "a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise GHNInitError(f"cannot write {self.metrics_file}: {error.strerror}.") from error

    def _check(self, old: TrainConfig) -> None:
        allowed = MAY_CHANGE
        if old.cooldown and self.config.cooldown:  # nothing before the cooldown depends on these
            allowed = MAY_CHANGE | {"steps", "cooldown"}
        changed = [name for name in differences(old, self.config) if name not in allowed]
        if changed:
            names = ", ".join(
                f"{name} ({getattr(old, name)} then, {getattr(self.config, name)} now)"
                for name in changed
            )
            raise GHNInitError(
                f"{self.path} holds a run with another {names}. Give the same arguments to resume "
                "it, or another --out."
            )
