"""What happens before any value is computed: arguments, the graph, what is kept and why."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghn_init.devices import usable_device
from ghn_init.errors import GHNInitError
from ghn_init.graph.tracing import trace
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.loading.load import load_default, load_ghn
from ghn_init.methods.kept import HEADS, kept_parameters
from ghn_init.methods.method import Job, Method
from ghn_init.methods.registry import METHODS
from ghn_init.methods.running import check_images, image_inputs
from ghn_init.methods.values import NewValues, post_processing
from ghn_init.methods.variants import Variant, parse_method
from ghn_init.report import Report, report_of
from ghn_init.weights.equalized import with_equalized
from ghn_init.weights.meta import OwnValues, own_values
from ghn_init.weights.postprocess import PostProcessing

Checkpoint = str | os.PathLike[str] | GHN
"""A hypernetwork, its name or its path."""


@dataclass(frozen=True)
class Options:
    """The arguments of `apply` behind the model and the method; see there."""

    ghn: Checkpoint | None = None
    device: str | torch.device | None = None
    head: str = "auto"
    norms: str | None = None
    noise: float | None = None
    orth_start: int | float | None = None
    steps: int | None = None
    images: Tensor | None = None
    labels: Tensor | None = None
    source: Any = None
    state: str | os.PathLike[str] | None = None
    progress: bool = False
    seed: int = 0
    example_inputs: Any = None
    include_frozen: bool = False
    include_deliberate: bool = False

    def variant(self, method: str | Variant) -> Variant:
        """The method with its settings.

        Raises:
            GHNInitError: there is no such method, or an argument does not suit it.
        """
        variant = parse_method(
            method,
            noise=self.noise,
            orth_start=self.orth_start,
            norms=self.norms,
            steps=self.steps,
        )
        _check_arguments(variant, self.ghn, self.head, self.seed, self.given)
        check_images(self.images, self.labels)
        return variant

    @property
    def given(self) -> dict[str, Any]:
        """What methods may need besides a model."""
        return {"images": self.images, "labels": self.labels, "source": self.source}


@dataclass(frozen=True)
class Prepared:
    """A model of which all is known but the new values.

    Arguments:
        job: what the method is run on.
        variant: the method.
        processing: what is to be done to its values.
        kept: parameters that are not to be written, with the reason.
        warnings: notes for the report.
    """

    job: Job
    variant: Variant
    processing: PostProcessing
    kept: Mapping[str, str]
    warnings: tuple[str, ...]

    def report(self, values: NewValues, buffers: tuple[str, ...], *notes: str) -> Report:
        """The account of what was written."""
        notes = (*self.warnings, *notes)
        return report_of(self.job, self.variant, self.processing, self.kept, values, buffers, notes)


def prepare(model: nn.Module, variant: Variant, options: Options) -> tuple[Prepared, OwnValues]:
    """Load the hypernetwork, trace the model, and decide what is kept. The model is not touched.

    Returns: that, and the model's own values.

    Raises:
        GHNInitError: on any bad model, input or checkpoint.
    """
    hypernetwork, warning = _hypernetwork(variant.method, options.ghn, options.device)
    images, example_inputs = options.images, options.example_inputs
    if example_inputs is None and images is not None:
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype)
        example_inputs = image_inputs(model, images[:2].to("meta", dtype))
    graph = trace(model, example_inputs)
    own = own_values(model, options.seed)
    graph = with_equalized(graph, own.parameters)
    choices = (options.head, options.include_frozen, options.include_deliberate)
    kept = kept_parameters(model, graph, hypernetwork, variant, *choices, own.parameters)
    job = Job(
        model,
        graph,
        {name: None for name in graph.shapes if name not in kept}.keys(),
        torch.Generator().manual_seed(options.seed),
        options.seed,
        hypernetwork,
        **options.given,
        state=None if options.state is None else Path(options.state),
        silent=not options.progress,
        example_inputs=example_inputs,
    )
    processing = post_processing(variant, hypernetwork)
    return Prepared(job, variant, processing, kept, (warning,) if warning else ()), own


def _check_arguments(
    variant: Variant,
    ghn: Checkpoint | None,
    head: str,
    seed: int,
    given: Mapping[str, object],
) -> None:
    check_head(head)
    if not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise GHNInitError(f"seed is {seed!r}: give an integer of at most 64 bits.")
    if ghn is not None and variant.method.hypernetwork is None:
        raise GHNInitError(f"method {variant.name!r} uses no checkpoint: leave ghn out.")
    for name, value in given.items():
        if value is None and name in variant.needs:
            raise GHNInitError(f"method {variant.name!r} needs {name}: give {name}=.")
        if value is not None and name not in variant.uses:
            raise GHNInitError(f"method {variant.name!r} uses no {name}: leave {name} out.")


def check_head(head: str) -> None:
    """Refuse what `head` cannot be.

    Raises:
        GHNInitError: it is none of `HEADS`.
    """
    if head not in HEADS:
        raise GHNInitError(f"unknown head {head!r}: choose one of {', '.join(HEADS)}.")


def _hypernetwork(
    method: Method, ghn: Checkpoint | None, device: str | torch.device | None
) -> tuple[GHN | None, str]:
    """The hypernetwork that a method needs, and a warning where it is not the usual one."""
    if method.hypernetwork is None:
        return None, ""
    device = None if device is None else usable_device(device)
    warning = ""
    if ghn is None:
        loaded, warning = load_default(method.hypernetwork, device or "cpu")
    elif isinstance(ghn, GHN):
        loaded = ghn if device in (None, ghn.device) else copy.deepcopy(ghn).to(device)
    else:
        loaded = load_ghn(ghn, device or "cpu")
    if (arch := loaded.config.arch) != method.hypernetwork:
        fitting = [
            repr(other.name)
            for other in METHODS.values()
            if other.hypernetwork == arch and other.orthogonal == method.orthogonal
        ]
        raise GHNInitError(
            f"method {method.name!r} needs a {method.hypernetwork} checkpoint, and {loaded.name} "
            f"is a {arch}: use method={' or '.join(fitting) or 'another'}."
        )
    return loaded, warning
