"""Recording of ATen operators -> graph of the fifteen primitives.

One pass in execution order. Every call gets a `Value`: which graph nodes its data comes from,
or, for a tensor that does not depend on the input, which parameters it is made of. Operators that
are a primitive add a node; all others hand on the sources of their operands, so that edges pass
through whatever has no primitive.
"""

from __future__ import annotations

from torch import nn

from ghn_init.graph.attention import find_attentions
from ghn_init.graph.elementwise import ELEMENTWISE
from ghn_init.graph.graph import Graph
from ghn_init.graph.heads import last_layers
from ghn_init.graph.inputs import Inputs
from ghn_init.graph.isolation import without_gc
from ghn_init.graph.layers import LAYERS, fused_attention
from ghn_init.graph.passes import Pass, record
from ghn_init.graph.reading import Reading
from ghn_init.graph.recording import ITEM, Call, Recording
from ghn_init.graph.squeeze_excitation import find_squeeze_excitation
from ghn_init.graph.surroundings import Surroundings
from ghn_init.graph.values import NOTHING, Value

_READERS = LAYERS | ELEMENTWISE


def trace_graph(
    model: nn.Module,
    inputs: Inputs,
    how: Pass = Pass(),  # noqa: B008
    surroundings: Surroundings | None = None,
) -> Graph:
    """Trace a model to its graph of primitives.

    Arguments:
        model: the model; it is left as it was.
        inputs: example inputs.
        how: how to run the model.
        surroundings: as in `record`.

    Raises:
        NeedsNumbers: if the model cannot run without numbers.
        GHNInitError: if the model does not run on the inputs.
    """
    with without_gc():
        return build_graph(model, record(model, inputs, how, surroundings))


def build_graph(model: nn.Module, recorded: Recording) -> Graph:
    """The graph of primitives of a model's recorded operators."""
    live = recorded.live()
    read = Reading(model, *find_squeeze_excitation(live))
    for call in live:
        read.values[call] = _value(read, call)
    heads = last_layers(read, recorded.outputs, getattr(model, "num_classes", None))
    read.note_passages(map(read.get, recorded.outputs), len(read.nodes))
    _pool_before_classifier(read)
    edges = sorted((i, j) for j, before in enumerate(read.predecessors) for i in before)
    return Graph(
        tuple(read.nodes),
        edges,
        read.left(),
        read.shapes,
        heads=heads,
        factors=read.factors,
        input_factors={
            n: f.pop() for n, f in read.input_factors.items() if len(f) == 1 and f != {1}
        },
        normalized=frozenset(read.normalized),
        passages=read.passages,
        attentions=find_attentions(read, live),
    )


def _value(read: Reading, call: Call) -> Value:
    if not call.name:
        if call.is_input:
            return NOTHING.but(sources=(0,))
        return NOTHING.but(params=(call.param,)) if call.param else NOTHING
    if call.name == ITEM:
        return read.values[call.args[0]]
    if call.name.startswith("aten::_scaled_dot_product"):
        return fused_attention(read, call)
    reader = _READERS.get(call.name)
    return reader(read, call) if reader else read.pass_through(call)


def _pool_before_classifier(read: Reading) -> None:
    """Where a global pool ends the model behind a 1x1 convolution, it goes in front of it.

    Averaging and a 1x1 convolution commute, and the classifier has to come last (SqueezeNet).
    """
    nodes, predecessors = read.nodes, read.predecessors
    end = len(nodes) - 1
    if nodes[end].op != "glob_avg" or predecessors[end] != (end - 1,):
        return
    weight = end - 2 if nodes[end - 1].op == "bias" else end - 1
    node = nodes[weight]
    if node.op != "conv" or node.shape is None or node.shape[2:] not in ((1, 1), ()):
        return
    predecessors.pop()
    nodes.insert(weight, nodes.pop())
    predecessors[weight + 1 :] = [tuple(p + 1 for p in b) for b in predecessors[weight + 1 :]]
    predecessors.insert(weight + 1, (weight,))
    # What stood in front of the pool (SqueezeNet's ReLU) stands in front of the output now.
    moved = {(i, end + 1 if j == end else j): passage for (i, j), passage in read.passages.items()}
    read.passages = {
        (i + (i >= weight), j + (weight < j < end)): passage
        for (i, j), passage in moved.items()
        if i != end
    }
