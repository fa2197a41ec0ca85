"""`verify`: the authors' own check of a checkpoint, on torchvision's classifiers.

They published, for 74 models, the norm over all parameters after prediction. Parameters that are
not predicted keep their own initialization and enter that norm: where there are some (class
tokens, layer scale, relative-position tables) part of it is random, and the comparison is
approximate; everywhere else it is exact.
"""

from __future__ import annotations

import importlib.resources
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ghn_init.api import predict
from ghn_init.errors import GHNInitError
from ghn_init.graph.tracing import trace
from ghn_init.hypernetwork.encoding import class_tokens
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.loading.checkpoint import read_state_dict
from ghn_init.loading.hub import EXAMPLE, REPOSITORY, HubRepository
from ghn_init.models import create_model

TOLERANCE = 1e-2
"""Largest difference between a norm and the published one, which has four decimals."""

EXAMPLE_TOLERANCE = 1e-6
"""Largest difference between a value and the authors', relative to its tensor's norm."""


@dataclass(frozen=True)
class Check:
    """The check of one model.

    Arguments:
        model: torchvision's name.
        expected: the published norm over all parameters.
        found: ours.
        exact: whether every parameter is predicted, so that nothing of it is random.
        tolerance: largest difference that counts as agreement.
    """

    model: str
    expected: float
    found: float
    exact: bool
    tolerance: float = TOLERANCE

    @property
    def ok(self) -> bool:
        """Whether the two norms agree."""
        return abs(self.found - self.expected) <= self.tolerance

    def __str__(self) -> str:
        kind = "exact" if self.exact else "approximate"
        verdict = "ok" if self.ok else "MISMATCH"
        digits = 4 if self.tolerance == TOLERANCE else 9
        numbers = f"{self.expected:>14.{digits}f}{self.found:>14.{digits}f}"
        return f"{self.model:<22}{numbers}  {kind:<13}{verdict}"


def published_norms(checkpoint: str) -> dict[str, float]:
    """The authors' norms for a published checkpoint, by torchvision model.

    Raises:
        GHNInitError: they published none for it.
    """
    text = importlib.resources.files("ghn_init").joinpath("published_norms.json").read_text()
    tables: dict[str, dict[str, float]] = json.loads(text)
    name = published_name(checkpoint)
    if name not in tables:
        raise GHNInitError(
            f"there are no published norms for {checkpoint!r}, only for {', '.join(tables)}: "
            "give a table of your own (--table)."
        )
    return tables[name]


def published_name(checkpoint: str) -> str:
    """The short name of a published checkpoint, however it was asked for; others as they are."""
    return checkpoint.partition("@")[0].removeprefix(f"hf-hub:{REPOSITORY}/").removesuffix(".pt")


def read_table(path: str | os.PathLike[str]) -> dict[str, float]:
    """A table of norms: a JSON file of `{"model": norm}`.

    Raises:
        GHNInitError: the file cannot be read, or is something else.
    """
    try:
        table = json.loads(Path(path).read_text())
        return {str(model): float(norm) for model, norm in table.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise GHNInitError(
            f"{os.fspath(path)} is no table of norms, a JSON object of numbers by model: {error}."
        ) from error


def verify(
    ghn: GHN,
    norms: Mapping[str, float],
    models: Sequence[str] | None = None,
    progress: Callable[[Check], None] = lambda check: None,
) -> list[Check]:
    """Compare the norm over all parameters with a table, model by model.

    Arguments:
        ghn: the hypernetwork.
        norms: expected norms by torchvision model.
        models: which of them to check. Default: all.
        progress: called after each model.

    Raises:
        GHNInitError: a model is not in the table, or not in torchvision.
    """
    names = list(norms if models is None else models)
    for name in names:
        if name not in norms:
            raise GHNInitError(f"there is no norm for {name!r}. Known are: {', '.join(norms)}.")
    checks = []
    for name in names:
        found, exact = total_norm(name, ghn)
        checks.append(Check(name, norms[name], found, exact))
        progress(checks[-1])
    return checks


def verify_example(ghn: GHN, path: str | os.PathLike[str] | None = None) -> Check:
    """Compare ResNet-50's tensors with those that the authors got from `ghn3xlm16`.

    Arguments:
        ghn: the hypernetwork.
        path: a file of a state dict, in any known layout. Default: `resnet50_ghn3xlm16_init.pt`
            from the Hub, of the hypernetwork's own revision.

    Returns: a check of the largest difference of a value, relative to its tensor's norm.

    Raises:
        GHNInitError: the file cannot be fetched or read, or is not a ResNet-50's.
    """
    if path is None:
        path, _ = HubRepository(REPOSITORY, ghn.origin.revision, EXAMPLE).download(EXAMPLE)
    expected = read_state_dict(path)
    model = _without_memory("resnet50")
    worst = 0.0
    for name, tensor in predict(model, ghn, head="predict").items():
        if name not in expected or expected[name].shape != tensor.shape:
            raise GHNInitError(f"{os.fspath(path)} is no state dict of a ResNet-50: {name}.")
        difference = (tensor - expected[name].to(tensor)).abs().max() / tensor.norm()
        worst = max(worst, float(difference))
    return Check("resnet50's tensors", 0.0, worst, True, tolerance=EXAMPLE_TOLERANCE)


def total_norm(name: str, ghn: GHN) -> tuple[float, bool]:
    """Norm over all parameters of a torchvision model after prediction, and whether it is exact."""
    model = _without_memory(name)
    graph = trace(model)
    predicted = predict(model, ghn, graph, head="predict")
    left = [n for n, _ in model.named_parameters() if n not in predicted]
    kept: dict[str, Tensor] = {}
    if left:
        initialized = dict(create_model(name, "torchvision")[0].named_parameters())
        kept = {n: initialized[n].detach() for n in left}
    # In float32, as the authors did: over a hundred million values that is 1% off, theirs too.
    norms = [
        (predicted[n] if n in predicted else kept[n]).norm() for n, _ in model.named_parameters()
    ]
    drawn = any(class_tokens(node.shape or ()) for node in graph.nodes if node.op == "pos_enc")
    return float(torch.stack(norms).norm()), not left and not drawn


def _without_memory(name: str) -> nn.Module:
    """The model on the meta device; RegNets compute their widths and refuse that."""
    try:
        with torch.device("meta"):
            return create_model(name, "torchvision")[0]
    except GHNInitError:
        return create_model(name, "torchvision")[0]
