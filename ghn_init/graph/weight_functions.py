"""What becomes of parameters on the way to being a weight.

A hypernetwork predicts the weight that a layer multiplies with. Where a layer computes its weight
from a parameter, the prediction may be written into the parameter only if the two are the same but
for what is listed here: views and casts, masks, normalization, and a constant factor, which is
divided out. What any other operator (`exp`, a matrix exponential, `sign`) was applied to is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ghn_init.graph.recording import FROM_NUMBERS, WRITTEN, Call
from ghn_init.graph.values import NOTHING, REARRANGE, Value

TRANSPOSE = frozenset({"aten::t", "aten::transpose", "aten::permute", "aten::numpy_T"})
PICK = frozenset({"aten::index", "aten::index_select", "aten::gather", "aten::embedding"})
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
"""Operators that take only the size, dtype and device of their operand."""

_KEEP = (
    REARRANGE
    | TRANSPOSE
    | PICK
    | {
        FROM_NUMBERS,
        WRITTEN,
        "aten::_unsafe_index",
        "aten::as_strided",
        "aten::cat",
        "aten::chunk",
        "aten::constant_pad_nd",
        "aten::copy_",
        "aten::flip",
        "aten::index_put_",
        "aten::native_dropout",
        "aten::bernoulli",
        "aten::repeat",
        "aten::roll",
        "aten::rot90",
        "aten::select",
        "aten::slice",
        "aten::split",
        "aten::split_with_sizes",
        "aten::stack",
        "aten::unbind",
        "aten::unfold",
        # masks
        "aten::fill_",
        "aten::zero_",
        "aten::masked_fill",
        "aten::masked_fill_",
        "aten::tril",
        "aten::triu",
        "aten::where",
        # other sizes of a kernel or of a table of positions
        "aten::_adaptive_avg_pool2d",
        "aten::_upsample_bicubic2d_aa",
        "aten::_upsample_bilinear2d_aa",
        "aten::avg_pool2d",
        "aten::upsample_bicubic2d",
        "aten::upsample_bilinear2d",
        "aten::upsample_linear1d",
        "aten::upsample_nearest2d",
        # quantization that is simulated
        "aten::_fused_moving_avg_obs_fq_helper",
        "aten::fake_quantize_per_channel_affine_cachemask",
        "aten::fake_quantize_per_tensor_affine_cachemask",
        "aten::_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    }
)
_NORMALIZE = frozenset(
    {
        "aten::_native_batch_norm_legit",
        "aten::_native_batch_norm_legit_functional",
        "aten::_batch_norm_with_update",
        "aten::_weight_norm_interface",
        "aten::_weight_norm",
        "aten::cudnn_batch_norm",
        "aten::native_batch_norm",
        "aten::native_group_norm",
        "aten::native_layer_norm",
        "aten::renorm",
    }
)
_REDUCE = frozenset(
    {
        "aten::amax",
        "aten::amin",
        "aten::dot",
        "aten::linalg_vector_norm",
        "aten::max",
        "aten::mean",
        "aten::min",
        "aten::mv",
        "aten::norm",
        "aten::std",
        "aten::std_mean",
        "aten::sum",
        "aten::var",
        "aten::var_mean",
        "aten::vdot",
    }
)
_COMPARE = frozenset(f"aten::{name}" for name in ("ge", "gt", "le", "lt", "eq", "ne"))
_MULTIPLY = frozenset({"aten::mul", "aten::mul_"})
_DIVIDE = frozenset({"aten::div", "aten::div_"})
_ADD = frozenset({"aten::add", "aten::add_", "aten::sub", "aten::sub_"})


def function_of_parameters(name: str, call: Call, operands: Sequence[Value]) -> Value:
    """The value of an operator none of whose operands depends on the model's input.

    Arguments:
        name: the operator, `aten::mul`.
        call: its recorded call.
        operands: of `call.inputs`.
    """
    if not any(v.params for v in operands):
        return NOTHING
    merged = _merged(operands)
    if name in _COMPARE:
        return merged.but(mask=True, statistic=False)
    if not any(v.is_whole for v in operands):
        return merged
    if name in _REDUCE and call.numel < max(operand.numel for operand in call.inputs):
        return merged.but(altered=(), statistic=True)
    if name in _MULTIPLY or name in _DIVIDE:
        return _scaled(name, call, operands, merged)
    if name in _ADD:
        return _shifted(name, call, operands, merged)
    if name == "aten::neg":
        return merged.but(factor=_times(merged.factor, -1.0))
    if name in _NORMALIZE:
        return merged.but(normalized=True, factor=1.0)
    if name not in _KEEP or not (call.size is None or call.size.dtype.is_floating_point):
        return _altered(merged, merged.params, name)
    flips = name in TRANSPOSE and len(operands) == 1
    return merged.but(transposed=merged.transposed != flips, table=merged.table or name in PICK)


def _merged(operands: Sequence[Value]) -> Value:
    """What several operands are together; statistics and masks count only if there is no other."""
    whole = [v for v in operands if v.is_whole]
    counting = whole or [v for v in operands if v.params]
    names = tuple(dict.fromkeys(p for v in counting for p in v.params))
    others = {p for v in operands for p in v.params if p not in names}
    altered = {pair for v in counting for pair in v.altered}
    factors = {v.factor for v in counting}
    return Value(
        params=(*names, *sorted(others)),
        altered=tuple(sorted(altered | {(p, "a mask or a norm") for p in others})),
        factor=factors.pop() if len(factors) == 1 else None,
        transposed=any(v.transposed for v in counting),
        table=any(v.table for v in counting),
        statistic=not whole and any(v.statistic for v in counting),
        mask=not whole and all(v.mask for v in counting),
        normalized=any(v.normalized for v in counting),
    )


def _altered(value: Value, params: Sequence[str], name: str) -> Value:
    known = {p for p, _ in value.altered}
    new = {(p, name.removeprefix("aten::")) for p in params if p not in known}
    return value.but(altered=tuple(sorted({*value.altered, *new})))


def _scaled(name: str, call: Call, operands: Sequence[Value], merged: Value) -> Value:
    """A product or quotient: by a constant, a mask, a norm, or another parameter (a gain)."""
    left, right, *_ = call.args
    values = dict(zip(call.inputs, operands, strict=True))
    a, b = (values.get(x, NOTHING) if isinstance(x, Call) else NOTHING for x in (left, right))
    squared = set(a.unaltered) & set(b.unaltered) if a.is_whole and b.is_whole else set()
    if squared or (name in _DIVIDE and b.is_whole):  # w * w, 1 / w
        return _altered(merged, sorted(squared) or b.params, name)
    if a.statistic or b.statistic:
        return merged.but(normalized=True, factor=1.0)
    factor = 1.0 if a.is_whole or a.mask else _number(left)
    by = 1.0 if b.is_whole or b.mask else _number(right)
    if name in _DIVIDE and by is not None:
        by = 1 / by if by else None
    known = [v.factor for v in (a, b) if v.is_whole]
    for other in (factor, by, *known[1:]):
        known[0] = _times(known[0], other)
    return merged.but(factor=known[0])


def _shifted(name: str, call: Call, operands: Sequence[Value], merged: Value) -> Value:
    """A sum: with a mean of the parameter (it is centered), or with what another one is made of."""
    whole = [v for v in operands if v.is_whole]
    if len(whole) > 1:
        twice = {p for v in whole for p in v.params if sum(p in w.params for w in whole) > 1}
        return _altered(merged, sorted(twice), name)
    if any(v.statistic for v in operands):
        return merged
    return _altered(merged, whole[0].params, name)


def _number(operand: Any) -> float | None:
    """The factor that an operand is: 1 for a mask, None for a single number that is not known."""
    if isinstance(operand, (int, float)):
        return float(operand)
    if not isinstance(operand, Call):
        return None
    number = known_number(operand)
    return 1.0 if number is None and operand.numel != 1 else number


def known_number(call: Call) -> float | None:
    """The value of a tensor that is a single number, where it is known."""
    while call.name in REARRANGE:
        call = call.inputs[0]
    return call.number


def _times(a: float | None, b: float | None) -> float | None:
    product = None if a is None or b is None else a * b
    return product if product and math.isfinite(product) else None
