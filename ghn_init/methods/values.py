"""A method's values for one model, checked and post-processed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ghn_init.errors import GHNInitError
from ghn_init.graph.graph import Graph
from ghn_init.graph.isolation import plain_modes
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.methods.method import Given, Job, Method, Values
from ghn_init.methods.variants import Variant
from ghn_init.weights.branches import Stabilized, is_kept_at_one_size, stabilize
from ghn_init.weights.postprocess import PostProcessing, Store, post_process, without_factors
from ghn_init.weights.tiling import repeated_all


def post_processing(variant: Variant, ghn: GHN | None) -> PostProcessing:
    """The post-processing that a method does, or the user wants."""
    method = variant.method
    noise = method.noise if variant.noise is None else variant.noise
    suited = ghn.defaults.orth_start if ghn is not None else 1
    start = next(s for s in (variant.orth_start, method.orth_start, suited) if s is not None)
    return PostProcessing(noise or 0.0, method.orthogonal, start)


@dataclass(frozen=True)
class NewValues:
    """What is to be written.

    Arguments:
        tensors: by parameter name, as `weights.assign` takes them.
        stored: names of those that are written already.
        postprocessed: names of those that got noise, the orthogonal step, or both.
        rank_deficient: names of those that lacked full rank before the orthogonal step.
        notes: for the report.
        left, taken, buffers: of the method, see `Given`.
    """

    tensors: dict[str, Tensor]
    stored: tuple[str, ...] = ()
    postprocessed: tuple[str, ...] = ()
    rank_deficient: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    taken: Mapping[str, str] = field(default_factory=dict)
    buffers: Values = field(default_factory=dict)

    @property
    def written(self) -> frozenset[str]:
        """Names of all parameters that get a new value."""
        return frozenset((*self.tensors, *self.stored))


def new_values(
    job: Job,
    variant: Variant,
    steps: PostProcessing,
    own: Mapping[str, Tensor],
    store: Store | None = None,
) -> NewValues:
    """What the method gives for the parameters that may be written, post-processed and refined.

    Arguments:
        job: the model.
        variant: the method.
        steps: the post-processing.
        own: the model's own values by name.
        store: takes post-processed weights as soon as they are done, as a large model's do not fit
            into memory together; the others are small. Not where the method has second steps.
            Default: all values are returned.
    """
    # Whatever default device the caller has set, what is drawn is drawn on the CPU.
    with plain_modes(), torch.no_grad(), torch.device("cpu"):
        found = _first_values(job, variant, steps, own, store)
        if not variant.refines:
            return found
        refining = [step for step in variant.steps if step.method.refine]
        first = refining[0].method.name
        found = replace(
            found,
            tensors=repeated_all(found.tensors, job.graph.shapes),
            notes=tuple(f"before {first}: {note}" for note in found.notes),
        )
        for step in refining:
            assert step.method.refine is not None
            state = job.state
            if state is not None and len(refining) > 1:  # each has one of its own
                state = state.with_name(f"{state.name}.{step.method.name}")
            given = replace(job, options=step.own, tensors=found.tensors, state=state)
            refined = _whole_values(step.method.refine(given), job, step.method)
            found = _followed_by(found, refined)
        return found


def _first_values(
    job: Job,
    variant: Variant,
    steps: PostProcessing,
    own: Mapping[str, Tensor],
    store: Store | None,
) -> NewValues:
    """What the method itself gives, post-processed; nothing if it leaves the model's own."""
    method = variant.method
    if method.values is None:
        return NewValues({})
    found = method.values(job)
    if isinstance(found, Given):
        return _whole_values(found, job, method)
    given = found
    _check_shapes(given, job.graph)
    values = {name: given[name].float() for name in job.writable if name in given}
    _check_finite(values, job, method)
    if store is not None and not is_kept_at_one_size(job.graph):
        store = None  # what stabilizes the model looks at all of the weights

    def put(name: str, tensor: Tensor) -> None:
        assert store is not None
        store(name, without_factors({name: tensor}, job.graph)[name])

    processed = post_process(job.graph, values, steps, job.generator, store and put, job.silent)
    stored = processed.names if store else ()
    tensors = {n: t for n, t in (values | processed.tensors).items() if n not in stored}
    scale = job.hypernetwork is not None
    stable = Stabilized({}, ())
    if scale or not variant.refines:  # what only warns of sizes would warn too early
        stable = stabilize(job.graph, tensors, own, scale)
    tensors = without_factors(tensors | dict(stable.tensors), job.graph)
    return NewValues(tensors, stored, processed.names, processed.rank_deficient, stable.notes)


def _whole_values(found: Given, job: Job, method: Method) -> NewValues:
    """Of a method that gives whole parameters as they are to be, and says what becomes of each."""
    _check_shapes(found.tensors, job.graph)
    tensors = {name: found.tensors[name].float() for name in job.writable if name in found.tensors}
    _check_finite(tensors, job, method)
    taken = {name: found.taken[name] for name in tensors if name in found.taken}
    return NewValues(
        tensors, notes=found.notes, left=found.left, taken=taken, buffers=found.buffers
    )


def _followed_by(before: NewValues, after: NewValues) -> NewValues:
    return replace(
        before,
        tensors={**before.tensors, **after.tensors},
        notes=(*before.notes, *after.notes),
        left={**before.left, **after.left},
        taken={**before.taken, **after.taken},
        buffers={**before.buffers, **after.buffers},
    )


def _check_shapes(values: Mapping[str, Tensor], graph: Graph) -> None:
    """Refuse what cannot be written: a method of a third party may give anything."""
    for name, tensor in values.items():
        shape = graph.shapes.get(name)
        if shape is None:
            raise GHNInitError(f"the method gives a value for {name}, and the model has none.")
        found, free = tuple(tensor.shape), min(2, len(shape))  # axes that a block is repeated along
        fits = len(found) == len(shape) and found[free:] == shape[free:]
        if not fits or any(not 0 < size <= s for size, s in zip(found, shape, strict=True)):
            raise GHNInitError(f"the method gives {name} the shape {found}, and it has {shape}.")


def _check_finite(values: Mapping[str, Tensor], job: Job, method: Method) -> None:
    if not values:
        return
    finite = torch.stack([torch.isfinite(tensor).all() for tensor in values.values()])
    for name, is_finite in zip(values, finite.tolist(), strict=True):  # a GPU is waited for once
        if not is_finite:
            predicted = method.hypernetwork is not None
            raise GHNInitError(
                f"{'the checkpoint predicts' if predicted else f'{method.name} gives'} values for "
                f"{name} that are not finite: it does not suit this model. "
                f"Use another {'checkpoint' if predicted else 'method'}."
            )
