"""What an initialization did, as an object that prints itself."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from ghn_init.hypernetwork.encoding import class_tokens
from ghn_init.methods.method import Job
from ghn_init.methods.values import NewValues
from ghn_init.methods.variants import Variant
from ghn_init.names import abridged, grouped_by_reason
from ghn_init.version import __version__
from ghn_init.weights.postprocess import PostProcessing, weight_layers


@dataclass(frozen=True)
class Report:
    """The account of one `apply`.

    Every parameter is either in `written` or in `left`.

    Arguments:
        model: class name of the model.
        method: `"ghn3-orth"` and so on, with its second steps.
        seed: of the noise and of the class tokens' rows.
        shapes: every parameter's shape.
        checkpoint: name or path of the checkpoint; None for a method without a hypernetwork.
        checkpoint_sha256: of the checkpoint file; empty if it did not come from a file.
        checkpoint_source: repository and file, or path, of the checkpoint; empty likewise.
        checkpoint_revision: commit of the Hub repository; None for a local file.
        noise: beta of Eq. 1 of the second paper; None where none was added.
        orth_start: L of the second paper, counted from 1; None without orthogonal step.
        written: parameters that got a new value.
        buffers: buffers that follow the new values, as spectral norm's u and v.
        taken: for values from another model, which of its parameters each is taken from.
        postprocessed: those of the parameters written that got noise, the orthogonal step, or both.
        left: parameters that kept their own initialization, with the reason.
        rank_deficient: parameters that lacked full rank before the orthogonal step, which then
            chose the missing directions.
        notes: whatever else is out of the ordinary.
    """

    model: str
    method: str
    seed: int
    shapes: Mapping[str, tuple[int, ...]]
    checkpoint: str | None = None
    checkpoint_sha256: str = ""
    checkpoint_source: str = ""
    checkpoint_revision: str | None = None
    noise: float | None = None
    orth_start: int | None = None
    written: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    taken: Mapping[str, str] = field(default_factory=dict)
    postprocessed: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    rank_deficient: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def predicted(self) -> tuple[str, ...]:
        """Parameters that a hypernetwork predicted; none where the method has no hypernetwork."""
        return self.written if self.checkpoint is not None else ()

    @property
    def coverage(self) -> float:
        """Share of scalar parameters that were predicted."""
        return self._count(self.predicted) / max(1, self._count(self.shapes))

    @property
    def metadata(self) -> dict[str, str]:
        """What a file of the initialized model says of its initialization."""
        return {
            "method": self.method,
            "checkpoint": self.checkpoint or "",
            "checkpoint_sha256": self.checkpoint_sha256,
            "checkpoint_source": self.checkpoint_source,
            "checkpoint_revision": self.checkpoint_revision or "",
            "seed": str(self.seed),
            "ghn_init_version": __version__,
        }

    def _count(self, names: Iterable[str]) -> int:
        return sum(math.prod(self.shapes[name]) for name in names)

    def _row(self, label: str, names: Collection[str]) -> str:
        count, total = self._count(names), max(1, self._count(self.shapes))
        return f"{label:<15}{len(names):>8,}{count:>16,}{100 * count / total:>9.2f}%"

    def __str__(self) -> str:
        checkpoint = self.checkpoint or "none"
        if self.checkpoint_sha256:
            revision = f"revision {self.checkpoint_revision}, " if self.checkpoint_revision else ""
            checkpoint += f" ({revision}sha256 {self.checkpoint_sha256[:12]})"
        lines = [
            f"{self.model}: {self.method}, checkpoint {checkpoint}, seed {self.seed}",
            f"{'':<15}{'tensors':>8}{'parameters':>16}{'share':>10}",
            self._row("initialized" if self.checkpoint is None else "predicted", self.written),
            self._row("post-processed", self.postprocessed),
            self._row("left", self.left),
        ]
        settings = []
        if self.noise is not None:
            settings.append(f"noise beta {self.noise:g}")
        if self.orth_start is not None:
            settings.append(f"orthogonal from layer {self.orth_start}")
        if settings:
            lines.insert(1, ", ".join(settings))
        lines += [f"  left: {names}: {reason}" for names, reason in grouped_by_reason(self.left)]
        lines += [f"  {name} <- {other}" for name, other in self.taken.items() if name != other]
        if self.buffers:
            lines.append(f"  written too: {abridged(self.buffers)}: follow the new weights")
        if self.rank_deficient:
            names = abridged(self.rank_deficient)
            lines.append(f"  note: {names}: lacked full rank before the orthogonal step")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def untouched_report(
    model: nn.Module, variant: Variant, seed: int, notes: tuple[str, ...]
) -> Report:
    """Of a method that leaves the model's own initialization."""
    reason = f"method {variant.name} leaves the model's own initialization"
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    left = dict.fromkeys(shapes, reason)
    return Report(type(model).__name__, variant.name, seed, shapes, left=left, notes=notes)


def report_of(
    job: Job,
    variant: Variant,
    processing: PostProcessing,
    kept: Mapping[str, str],
    values: NewValues,
    buffers: tuple[str, ...],
    notes: tuple[str, ...],
) -> Report:
    """Of a method that was run.

    Arguments:
        job: what it was run on.
        variant: the method.
        processing: what was done to its values.
        kept: parameters that were not to be written, with the reason.
        values: what was written.
        buffers: what was written besides.
        notes: to stand before those of the graph and of the values.
    """
    graph, ghn, written = job.graph, job.hypernetwork, values.written
    otherwise = f"kept by method {variant.name}"
    first = processing.first_layer(len(weight_layers(graph))) if processing.orth else None
    return Report(
        model=type(job.model).__name__,
        method=variant.name,
        seed=job.seed,
        shapes=graph.shapes,
        checkpoint=ghn.name if ghn is not None else None,
        checkpoint_sha256=ghn.origin.sha256 if ghn is not None else "",
        checkpoint_source=ghn.origin.source if ghn is not None else "",
        checkpoint_revision=ghn.origin.revision if ghn is not None else None,
        noise=processing.noise or None,
        orth_start=first,
        written=tuple(name for name in graph.shapes if name in written),
        buffers=buffers,
        postprocessed=values.postprocessed,
        taken=values.taken,
        left={
            name: kept.get(name) or values.left.get(name, otherwise)
            for name in graph.shapes
            if name not in written
        },
        rank_deficient=values.rank_deficient,
        notes=(*notes, *graph.notes, *_token_notes(job, written), *values.notes),
    )


def _token_notes(job: Job, written: Collection[str]) -> tuple[str, ...]:
    """Which rows of predicted positional embeddings are drawn at random."""
    return tuple(
        f"{node.param}: rows for class tokens drawn from N(0, 0.02), the others predicted"
        for node in job.graph.nodes
        if job.hypernetwork is not None
        and node.op == "pos_enc"
        and node.param in written
        and class_tokens(node.shape or ())
    )
