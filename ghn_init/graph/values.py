"""What is known of one tensor while the recorded operators are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from ghn_init.graph.graph import NO_PASSAGE, Passage


@dataclass(frozen=True)
class Value:
    """What is known of one tensor.

    Arguments:
        sources: graph nodes that its data comes from; empty for what is independent of the input.
        params: names of the parameters that an input-independent tensor is made of.
        altered: those of them that are not used as they are, each with the operator that changed
            its values (`("layer.weight", "exp")`).
        factor: the constant that such a tensor is multiplied by; None if it is not known. Of data,
            what it has just been multiplied by, with nothing but views since.
        transposed: for a matrix made of a parameter, whether rows and columns are exchanged.
        table: made of entries picked out of a parameter (a relative-position table).
        attention: comes from a softmax, with nothing but constants applied since.
        open_weight: the graph node of a weight whose bias may still be added.
        statistic: comes from a (reciprocal) square root, as a norm's denominator; of parameters:
            a norm, a mean, or another number about them.
        mask: a comparison of parameters.
        normalized: has been divided by such a statistic, or left a norm without parameters.
        open_norm: the graph node of a norm's weight whose bias may still be added.
        passage: what it went through since its source.
    """

    sources: tuple[int, ...] = ()
    params: tuple[str, ...] = ()
    altered: tuple[tuple[str, str], ...] = ()
    factor: float | None = 1.0
    transposed: bool = False
    table: bool = False
    attention: bool = False
    open_weight: int | None = None
    statistic: bool = False
    mask: bool = False
    normalized: bool = False
    open_norm: int | None = None
    passage: Passage = NO_PASSAGE

    def but(self, **changes: Any) -> Value:
        """The value with other attributes: `dataclasses.replace`, in a fifth of the time."""
        changed = object.__new__(Value)
        changed.__dict__.update(self.__dict__, **changes)
        return changed

    def through(self, **passed: Any) -> Value:
        """The value behind something that is noted about its passage."""
        return self.but(passage=replace(self.passage, **passed))

    @property
    def is_data(self) -> bool:
        """Whether it depends on the model's input."""
        return bool(self.sources)

    @property
    def is_whole(self) -> bool:
        """Whether it is made of whole parameters, and not of statistics or masks of them."""
        return bool(self.params) and not self.statistic and not self.mask

    @property
    def unaltered(self) -> tuple[str, ...]:
        """The parameters that are used as they are."""
        altered = {name for name, _ in self.altered}
        return tuple(name for name in self.params if name not in altered)


NOTHING = Value()

# Operators that keep the numbers and rearrange or cast them: a bias may still follow.
REARRANGE = frozenset(
    {
        "aten::_reshape_alias",
        "aten::_to_copy",
        "aten::_unsafe_view",
        "aten::alias",
        "aten::clone",
        "aten::detach",
        "aten::expand",
        "aten::lift_fresh",
        "aten::permute",
        "aten::squeeze",
        "aten::t",
        "aten::transpose",
        "aten::unsqueeze",
        "aten::view",
    }
)
STATISTIC = frozenset({"aten::rsqrt", "aten::sqrt", "aten::std"})
RELU = frozenset({"aten::relu", "aten::relu_", "aten::leaky_relu", "aten::leaky_relu_"})
INNER_ACTIVATIONS = frozenset(
    f"aten::{name}{in_place}"
    for name in ("gelu", "silu", "hardswish", "elu", "celu", "mish", "prelu", "_prelu_kernel")
    for in_place in ("", "_")
)
"""Activations that stand inside of networks, never at their output."""
BOUNDED = frozenset(
    f"aten::{name}{in_place}"
    for name in ("cos", "erf", "hardsigmoid", "hardtanh", "sigmoid", "sin", "softsign", "tanh")
    for in_place in ("", "_")
)
"""Functions whose values stay in a fixed range, whatever the size of what they are applied to."""


def union(values: Iterable[Value]) -> tuple[int, ...]:
    """The sources of several values."""
    return tuple(sorted({s for v in values for s in v.sources}))
