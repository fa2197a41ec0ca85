"""Which parameter of a trained relative each parameter of a model corresponds to.

Within a family (ViT-Ti and ViT-S, ResNet-18 and ResNet-34) the names say it: that is how weight
selection (https://arxiv.org/abs/2311.18823) and FRONT do it. Across architectures the order of the
layers in the two graphs says it, see `alignment`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ghn_init.errors import GHNInitError
from ghn_init.methods.alignment import aligned
from ghn_init.methods.method import Job
from ghn_init.methods.source import Source

_RELATED = 0.25
"""Share of the weights that must be found, by name or by graph, in a source that is a relative."""

_ALIKE = 0.9
"""Share of those found by name whose kernels must have the same size."""

Shape = tuple[int, ...]
Fits = Callable[[Shape, Shape], bool]
"""Whether a tensor of the second shape can be made into one of the first."""

_HEAD = "the classification layer is not taken: it is for the classes of the source"


@dataclass(frozen=True)
class Matching:
    """The parameters that correspond.

    Arguments:
        names: by the model's parameter the source's.
        left: parameters that nothing corresponds to, with the reason.
        by_graph: whether the graphs say so, and not the names.
        deeper: parameters of blocks that the source would have if it were deeper.
    """

    names: Mapping[str, str]
    left: Mapping[str, str]
    by_graph: bool = False
    deeper: tuple[str, ...] = ()


def match(job: Job, source: Source, fits: Fits, deeper: bool = False) -> Matching:
    """Match a model's parameters with a source's.

    Arguments:
        job: the model. Its last layers are not matched, nor what may not be written.
        source: the trained relative.
        fits: what the method can make of a tensor.
        deeper: whether the model may have more layers than a source of its family.

    Raises:
        GHNInitError: the source is smaller than the model, or is no relative.
    """
    head = job.graph.head_parameters
    wanted = {n: s for n, s in job.graph.shapes.items() if n in job.writable and n not in head}
    shapes = {name: tuple(tensor.shape) for name, tensor in source.tensors.items()}
    found = _renamed(wanted, shapes)
    weights = [name for name in job.layers if name in wanted]
    named = [name for name in weights if name in found]
    left = dict.fromkeys(head, _HEAD)
    if len(named) >= _RELATED * max(1, len(weights)) and _is_family(wanted, shapes, found, named):
        return _by_name(wanted, shapes, found, source, fits, deeper, left)
    names: dict[str, str] = {}
    if source.model is not None:
        names = aligned(job.graph, source.graph(job.example_inputs), wanted, fits)
    matched = [name for name in weights if name in names]
    if len(matched) < _RELATED * max(1, len(weights)):
        raise GHNInitError(_no_relative(source, len(named), len(matched), len(weights)))
    nothing = f"nothing in {source.name} corresponds to it, or what does is smaller"
    left |= {name: nothing for name in wanted if name not in names}
    return Matching(names, left, by_graph=True)


def _by_name(
    wanted: Mapping[str, Shape],
    shapes: Mapping[str, Shape],
    found: Mapping[str, str],
    source: Source,
    fits: Fits,
    deeper: bool,
    left: Mapping[str, str],
) -> Matching:
    """Match by name; a method that only makes tensors smaller needs a source that is larger."""
    names, kept, roles = {}, dict(left), {role(name) for name in found}
    more = []
    for name, shape in wanted.items():
        other = found.get(name)
        if other is None and role(name) in roles:
            more.append(name)
            if not deeper:
                raise GHNInitError(
                    f"source {source.name} has fewer layers than the model: no {name}. Give one "
                    "that is at least as deep."
                )
        elif other is None:
            kept[name] = f"{source.name} has no parameter of this name"
        elif len(shapes[other]) != len(shape):
            kept[name] = f"it has the shape {shapes[other]} in {source.name}"
        elif fits(shape, shapes[other]):
            names[name] = other
        else:
            raise GHNInitError(
                f"source {source.name} is smaller than the model: its {other} is {shapes[other]}, "
                f"and the model's is {shape}. Give a larger one of the family."
            )
    return Matching(names, kept, deeper=tuple(more))


def _is_family(
    wanted: Mapping[str, Shape],
    shapes: Mapping[str, Shape],
    found: Mapping[str, str],
    named: Sequence[str],
) -> bool:
    """Whether the same names stand for the same layers: kernels agree, and numbers run alike.

    Where either model has a layer of the kind that the other has not, as in two VGGs, whose
    convolutions are numbered together with activations, a number does not name a layer.
    """
    alike = [name for name in named if _same_kernel(wanted[name], shapes[found[name]])]
    taken = set(found.values())
    only_here = {role(n) for n, shape in wanted.items() if n not in found and len(shape) > 1}
    only_there = {role(n) for n, shape in shapes.items() if n not in taken and len(shape) > 1}
    return len(alike) >= _ALIKE * len(named) and not only_here & only_there


def _no_relative(source: Source, named: int, matched: int, weights: int) -> str:
    if source.model is None:
        return (
            f"source {source.name} is no relative of the model: {named} of {weights} weights "
            "have the name of one in the file, or their kernels differ. Give a larger model of the "
            "same family, or a model in place of a file, which is matched by its graph too."
        )
    return (
        f"source {source.name} is no relative of the model: {named} of {weights} weights have "
        f"the name of one of its own, and {matched} correspond by the graphs to one that fits. "
        "Give a larger model of the same family."
    )


# -- names


def role(name: str) -> str:
    """A parameter's name without the numbers of its blocks: `blocks.*.attn.qkv.weight`."""
    return re.sub(r"(?<![^._])\d+(?=\.|$)", "*", name)


def numbered(name: str) -> list[tuple[str, int]]:
    """For each number of a block in a name, the name without it, and the number."""
    found = re.finditer(r"(?<![^._])\d+(?=\.)", name)
    return [(f"{name[: m.start()]}*{name[m.end() :]}", int(m.group())) for m in found]


def _renamed(wanted: Collection[str], names: Collection[str]) -> dict[str, str]:
    """By name the source's name: the same, or behind another prefix (`module.`, `vit.`)."""
    best: dict[str, str] = {}
    for strip in _prefixes(names):
        for add in _prefixes(wanted):
            found = {add + n[len(strip) :]: n for n in names if n.startswith(strip)}
            pairs = {name: found[name] for name in wanted if name in found}
            if len(pairs) > len(best):
                best = pairs
    return best


def _prefixes(names: Iterable[str]) -> list[str]:
    """No prefix, and those that a wrapper may have put before names."""
    return ["", *dict.fromkeys(f"{n.partition('.')[0]}." for n in names if n.count(".") > 1)]


def _same_kernel(shape: Shape, other: Shape) -> bool:
    return len(shape) == len(other) and shape[2:] == other[2:]
