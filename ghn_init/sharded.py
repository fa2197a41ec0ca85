"""`apply` on a model that is spread over processes: FSDP2, FSDP1, tensor parallel.

Every process works on a twin of the model in which all parameters are whole. Their values come from
all processes when they are read, and are forgotten again. From the seed, each process computes the
new values layer by layer, as an export does, and keeps its part of them. Once all processes have
all of their parts, each writes its own.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ghn_init.errors import GHNInitError
from ghn_init.graph.isolation import plain_modes
from ghn_init.graph.tracing import check_traceable
from ghn_init.methods.values import new_values
from ghn_init.methods.variants import Variant
from ghn_init.preparation import Options, prepare
from ghn_init.report import Report, untouched_report
from ghn_init.weights.assignment import check_writable
from ghn_init.weights.recomputing import Recomputing
from ghn_init.weights.sharding import BEFORE, parts_of, process_groups, twin_of
from ghn_init.weights.spectral import has_spectral_norms
from ghn_init.weights.tiling import repeated


def apply_sharded(model: nn.Module, method: str | Variant, options: Options) -> Report:
    """Initialize this process's part of a model; all processes of the model have to call it.

    The numbers are those that one process gives the whole model. A process has in memory, beside
    its part of the model, its part of the new values, the prediction as it is decoded, and about
    one whole layer for each thread. (As in an export, new values are in memory together for other
    methods than hypernetworks, and where no norms keep activations at one size.)

    Arguments:
        model: under FSDP2, FSDP1 with `use_orig_params=True`, or tensor parallel.
        method, options: as of `apply`.

    Returns: the report that one process would give.

    Raises:
        GHNInitError: as `apply`; or the whole model is needed at once, or the processes differ in
            what they were given or computed. If one process fails, all do, and nothing is written.
    """
    with plain_modes(), _Ranks(process_groups(model)) as ranks:
        variant = options.variant(method)
        options = replace(options, progress=options.progress and dist.get_rank() == 0)
        shards = _Shards(model, ranks)
        twin = shards.twin
        _check_possible(variant, twin)
        if variant.method.values is None:
            report = untouched_report(twin, variant, options.seed, ())
        else:
            report = _computed(shards, variant, options)
        shards.write(report)
    return report


def _check_possible(variant: Variant, twin: nn.Module) -> None:
    check_traceable(twin)
    reason = ""
    if variant.refines or variant.uses:
        reason = f"method {variant.name!r} needs"
    elif has_spectral_norms(twin):
        reason = "spectral norms need"
    if reason:
        raise GHNInitError(f"the model is sharded, and {reason} all of it at once: {BEFORE}.")


def _computed(shards: _Shards, variant: Variant, options: Options) -> Report:
    """Compute the new values, of which the parts are kept."""
    with shards.memory:
        prepared, own = prepare(shards.twin, variant, options)
        shapes = prepared.job.graph.shapes
        shards.make_room(prepared.job.writable)

        def store(name: str, tensor: Tensor) -> None:
            shards.keep(name, repeated(tensor, shapes[name]))

        values = new_values(prepared.job, variant, prepared.processing, own.parameters, store)
        for name, tensor in values.tensors.items():
            store(name, tensor)
    return prepared.report(values, ())


class _Ranks:
    """The processes that a model is spread over. In a `with` block, if one fails, all do."""

    def __init__(self, groups: Iterable[dist.ProcessGroup]) -> None:
        self._groups = groups
        self._is_over = False

    def __enter__(self) -> _Ranks:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and not self._is_over:
            with contextlib.suppress(GHNInitError):
                self.agree("", failure=str(error) or type(error).__name__)

    def agree(self, doing: Any, failure: str = "", last: bool = False) -> None:
        """Wait until all processes do the same.

        Arguments:
            doing: what that is.
            failure: why this process does not go on.
            last: whether a failure behind it is this process's own affair.

        Raises:
            GHNInitError: in all processes, if one has failed, or does something else.
        """
        said: list[tuple[int, str, Any]] = [(dist.get_rank(), failure, doing)]
        self._is_over = True  # if the others cannot be told now, they cannot later
        for group in self._groups:  # in a grid, what a row has said is said in the columns
            heard: list[Any] = [None] * group.size()
            try:
                dist.all_gather_object(heard, said, group)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise GHNInitError(
                    f"another process has ended, or cannot be reached ({reason:.120}). Nothing is "
                    "written."
                ) from error
            said = sorted(itertools.chain(*heard), key=lambda one: one[0])
        for rank, failed, _ in said:
            if failed:
                raise GHNInitError(f"process {rank} failed, and nothing is written: {failed}")
        for rank, _, other in said:
            if other != said[0][2]:
                raise GHNInitError(
                    f"processes {said[0][0]} and {rank} have come to different values, and nothing "
                    "is written: give all of them the same model, arguments, versions and number "
                    "of threads."
                )
        self._is_over = last


class _Shards:
    """A twin of a model with whole parameters, and this process's part of each.

    Arguments:
        model: the model.
        ranks: its processes.
    """

    def __init__(self, model: nn.Module, ranks: _Ranks) -> None:
        parts = parts_of(model)
        largest = max(math.prod(p.shape) * p.held.element_size() for p in parts.values())
        self.memory = Recomputing(largest)
        self.memory.made()
        self._ranks = ranks
        twins: dict[int, Tensor] = {}
        for number, tensor in enumerate((*model.parameters(), *model.buffers())):
            part = parts[id(tensor)]
            if part.gather is None:
                whole = part.held.cpu()
            else:
                fill = functools.partial(self._gather, number, part.gather)
                whole = self.memory.given(part.shape, part.held.dtype, fill)
            if isinstance(tensor, nn.Parameter):
                whole = nn.Parameter(whole, tensor.requires_grad)
            twins[id(tensor)] = whole
        self.twin = twin_of(model, twins)
        of_twins = {id(twin): parts[key] for key, twin in twins.items()}
        self._parts = {name: of_twins[id(p)] for name, p in self.twin.named_parameters()}
        self._room: dict[str, Tensor] = {}
        self._kept: dict[str, int] = {}

    def _gather(self, number: int, gather: Callable[[], Tensor], whole: Tensor) -> None:
        self._ranks.agree(number)
        with torch.no_grad():
            whole.copy_(gather())

    def make_room(self, names: Iterable[str]) -> None:
        """For new values: all of it at once, as there would be gaps between layers otherwise."""
        self._room = {n: torch.empty_like(self._parts[n].held, device="cpu") for n in names}

    def keep(self, name: str, whole: Tensor) -> None:
        """Keep this process's part of a parameter's new value, until it is written.

        Arguments:
            name: of the parameter.
            whole: its value, in float32.
        """
        part = self._parts[name]
        check_writable(name, part.held)
        self._room[name].copy_(part.cut(whole))
        self._kept[name] = int(whole.contiguous().view(torch.int32).sum(dtype=torch.int64))

    def write(self, report: Report) -> None:
        """Write what is kept, if all processes have kept parts of the same."""
        self._ranks.agree((str(report), self._kept), last=True)
        with torch.no_grad():
            for name in self._kept:
                self._parts[name].held.copy_(self._room[name])
