"""What is known of one tensor while the recorded operators are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Value:
    """What is known of one tensor.

    Arguments:
        sources: graph nodes that its data comes from; empty for what is independent of the input.
        params: names of the parameters that an input-independent tensor is made of.
        transposed: for a matrix made of a parameter, whether rows and columns are exchanged.
        table: made of entries picked out of a parameter (a relative-position table).
        attention: comes from a softmax, with nothing but constants applied since.
        open_weight: the graph node of a weight whose bias may still be added.
        statistic: comes from a (reciprocal) square root, as a norm's denominator.
        normalised: has been divided by such a statistic, or left a norm without parameters.
        open_norm: the graph node of a norm's weight whose bias may still be added.
    """

    sources: tuple[int, ...] = ()
    params: tuple[str, ...] = ()
    transposed: bool = False
    table: bool = False
    attention: bool = False
    open_weight: int | None = None
    statistic: bool = False
    normalised: bool = False
    open_norm: int | None = None

    @property
    def is_data(self) -> bool:
        return bool(self.sources)


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
TRANSPOSE = frozenset({"aten::t", "aten::transpose", "aten::permute", "aten::numpy_T"})
PICK = frozenset({"aten::index", "aten::index_select", "aten::gather", "aten::embedding"})
# Operators that take only the size, dtype and device of their operand.
CREATE = frozenset(
    {
        "aten::empty_like",
        "aten::full_like",
        "aten::new_empty",
        "aten::new_empty_strided",
        "aten::new_full",
        "aten::new_ones",
        "aten::new_zeros",
        "aten::ones_like",
        "aten::rand_like",
        "aten::randint_like",
        "aten::randn_like",
        "aten::zeros_like",
    }
)
STATISTIC = frozenset({"aten::rsqrt", "aten::sqrt", "aten::std"})


def union(values: Iterable[Value]) -> tuple[int, ...]:
    return tuple(sorted({s for v in values for s in v.sources}))
