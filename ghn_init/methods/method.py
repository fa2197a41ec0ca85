"""What an initialization method declares, and what it is given to work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghn_init.graph.graph import Graph
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.settings import fields_of
from ghn_init.weights.postprocess import hidden_layers


@dataclass(frozen=True)
class Job:
    """One model to initialize, as a method sees it.

    Arguments:
        model: to read from. `apply` writes to it, not the method.
        graph: the model's graph.
        writable: names of the parameters that may be written. All others are left as they are,
            whatever the method gives for them.
        generator: a CPU generator with the caller's seed, for all random values.
        seed: the caller's seed.
        hypernetwork: for a method that needs one, else None.
        images: `(B, C, H, W)`, for a method that needs them, else None.
        labels: `(B,)`, likewise.
        source: what the values are taken from, likewise.
        options: the method's settings: an object of its `Method.options`.
        tensors: the values that `refine` starts from. What is not among them has the model's own.
        state: a file in which a method that takes minutes keeps how far it is; None: none.
        silent: show no progress.
        example_inputs: what the model was traced with; None: what `trace` tries.
    """

    model: nn.Module
    graph: Graph
    writable: Set[str]
    generator: torch.Generator
    seed: int
    hypernetwork: GHN | None = None
    images: Tensor | None = None
    labels: Tensor | None = None
    source: Any = None
    options: Any = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    state: Path | None = None
    silent: bool = True
    example_inputs: Any = None

    @property
    def layers(self) -> list[str]:
        """Convolution and linear weights but the classifier's, in the order of the graph."""
        return hidden_layers(self.graph)


Values = Mapping[str, Tensor]
"""New values by parameter name. A tensor that is smaller than its parameter is repeated along the
first two axes (GHN-2 paper, Section 4.1)."""


NEEDS = ("images", "labels", "source")
"""The arguments of `apply` that a method can ask for."""


@dataclass(frozen=True)
class Given:
    """Values, and what the report is to say of them.

    Arguments:
        tensors: the new values; of `refine` whole parameters, and only those that changed.
        left: parameters that the method leaves, with the reason, where it has one of its own.
        taken: for values from another model, where each is taken from.
        notes: whatever else is out of the ordinary.
        buffers: new values of buffers that belong to the new values, as running statistics do.
    """

    tensors: Values
    left: Mapping[str, str] = field(default_factory=dict)
    taken: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    buffers: Values = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """An initialization, declared once: what it needs, what it does, and where it is from.

    It gives values, or refines those that are there, or does one after the other.

    Arguments:
        name: what `apply(model, name)` and the command line call it: letters, digits, `-` and `_`.
        values: gives the new values for a job: a mapping, which is post-processed, or a `Given`,
            which is written as it is. None leaves the model's own initialization.
        summary: one line for `ghn-init list`.
        paper: the source.
        hypernetwork: the architecture of the hypernetwork that it needs: `"ghn3"` or `"ghn2"`.
        images, labels, source: whether it needs the argument of that name of `apply`.
        optional: those of `NEEDS` that it uses where they are given.
        noise: beta of the noise that is added to convolution and linear weights (second paper,
            Eq. 1), where the user does not give another. None: it adds none, and takes none.
        orthogonal: whether these weights are then made orthogonal (second paper, Eq. 2).
        orth_start: the layer L from which both happen, counted from 1 (int) or as a share of the
            depth (float). None: as suits the hypernetwork's checkpoint.
        refine: changes values that are there (`Job.tensors`, else the model's own). A method that
            has it can stand behind another: `ghn3-orth+lsuv`.
        options: a settings dataclass (see `ghn_init.settings`) for settings of the method's own.
    """

    name: str
    values: Callable[[Job], Values | Given] | None
    summary: str = ""
    paper: str = ""
    hypernetwork: str | None = None
    images: bool = False
    labels: bool = False
    source: bool = False
    optional: tuple[str, ...] = ()
    noise: float | None = None
    orthogonal: bool = False
    orth_start: int | float | None = 1
    refine: Callable[[Job], Given] | None = None
    options: type[Any] | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The arguments of `apply` that it cannot do without: of `NEEDS`."""
        return tuple(name for name in NEEDS if getattr(self, name))

    @property
    def settings(self) -> tuple[str, ...]:
        """What a user may set: of `noise`, `orth_start` and `norms`, and options of its own."""
        takes = {
            "noise": self.noise is not None,
            "orth_start": self.orthogonal,
            "norms": self.hypernetwork is not None,
        }
        own = () if self.options is None else (f.name for f in fields_of(self.options))
        return (*(name for name, taken in takes.items() if taken), *own)
