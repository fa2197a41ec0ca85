"""Architecture -> target network: one list of layers, read as shapes, as a graph, or computed.

A `Network` is compiled once. Its graph comes out of the same list that the forward pass runs
through, so the two cannot disagree, and building both takes milliseconds where tracing takes a
good part of a second (the tests compare them with the tracer's). Parameters are not allocated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from ghn_init.errors import GHNInitError
from ghn_init.graph.graph import Graph, Node
from ghn_init.train.networks.compiler import Compiler, Step
from ghn_init.train.networks.genotypes import Architecture
from ghn_init.train.networks.layers import Params, Shape


class Network:
    """A target network without parameters.

    Arguments:
        architecture: what to build.
        num_classes: outputs.
        image_size: height and width of the images.
        dropout: probability, between the linear layers of the classifier, in training.

    Raises:
        GHNInitError: no path leads from the input to the output, as `none` may cut them all.
    """

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int = 10,
        image_size: int = 32,
        dropout: float = 0.0,
    ) -> None:
        compiler = Compiler(architecture, num_classes, image_size, dropout)
        output = compiler.network()
        if output is None:
            raise GHNInitError("no path leads from the input of this network to its output.")
        self.architecture, self.num_classes, self.image_size = architecture, num_classes, image_size
        self.shapes: dict[str, Shape] = compiler.shapes
        """Every parameter, also of layers that no path to the output goes through."""
        self.steps = _live(compiler.steps, output)
        """Each layer with the values that it reads, behind the value that it computes."""

    @property
    def num_params(self) -> int:
        """Scalars in all parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def macs(self) -> float:
        """Multiplications for one image."""
        positions, found = {0: float(self.image_size**2)}, 0.0
        for value, (layer, inputs) in self.steps:
            here = max(1.0, positions[inputs[0]] / layer.reduction) if inputs else 0.0
            found += layer.macs(here)
            positions[value] = here
        return found

    @cached_property
    def graph(self) -> Graph:
        """What the hypernetwork reads: the graph that tracing `module()` gives."""
        nodes: list[Node] = [Node("input")]
        edges: list[tuple[int, int]] = []
        sources: dict[int, tuple[int, ...]] = {0: (0,)}
        for value, (layer, inputs) in self.steps:
            found = tuple(sorted({s for i in inputs for s in sources[i]}))
            if not layer.joins or len(found) > 1:
                for node in layer.nodes():
                    edges += [(i, len(nodes)) for i in found]
                    found = (len(nodes),)
                    nodes.append(node)
            sources[value] = found
        carried = {name for node in nodes for name in (node.param, node.norm_bias)}
        left = {n: "not used by the forward pass" for n in self.shapes if n not in carried}
        return Graph(tuple(nodes), sorted(edges), left, self.shapes)

    def __call__(self, images: Tensor, params: Params) -> Tensor:
        """Forward pass.

        Arguments:
            images: `(B, 3, image_size, image_size)`.
            params: the parameters that the output depends on, by name.

        Returns: logits, `(B, num_classes)`.
        """
        values: dict[int, Tensor] = {0: images}
        for (value, (layer, inputs)), dead in zip(self.steps, self._last_uses, strict=True):
            values[value] = layer(params, *[values[i] for i in inputs])
            for i in dead:
                del values[i]
        return values[value]

    def random_params(self, generator: torch.Generator) -> dict[str, Tensor]:
        """PyTorch's default initialization: the control that predictions are compared with.

        Weights and biases are uniform within 1 / sqrt(fan-in), norms are the identity,
        positional embeddings normal.
        """
        params: dict[str, Tensor] = {}
        bound = 0.0
        for node in self.graph.nodes:
            if node.param is None or node.shape is None:
                continue
            if node.op in ("bn", "ln"):
                params[node.param] = torch.ones(node.shape)
                params[f"{node.norm_bias}"] = torch.zeros(node.shape)
            elif node.op == "pos_enc":
                params[node.param] = torch.randn(node.shape, generator=generator)
            else:  # a bias comes behind its weight, and takes the weight's bound
                if node.op != "bias":
                    bound = math.prod(node.shape[1:]) ** -0.5
                drawn = torch.rand(node.shape, generator=generator)
                params[node.param] = (2 * drawn - 1) * bound
        return params

    def module(self, device: str | torch.device = "meta") -> NetworkModule:
        """The network as an `nn.Module`, with uninitialized parameters on a device."""
        return NetworkModule(self, torch.device(device))

    @cached_property
    def _last_uses(self) -> list[list[int]]:
        """For each step, the values that nothing behind it needs."""
        last = {i: n for n, (_, (_, inputs)) in enumerate(self.steps) for i in inputs}
        uses: list[list[int]] = [[] for _ in self.steps]
        for i, n in last.items():
            uses[n].append(i)
        return uses


class NetworkModule(nn.Module):
    """A target network that owns its parameters: to be traced, fine-tuned or exported."""

    def __init__(self, network: Network, device: torch.device) -> None:
        super().__init__()
        self.network = network
        for name, shape in network.shapes.items():
            *path, last = name.split(".")
            owner: nn.Module = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.register_parameter(last, nn.Parameter(torch.empty(shape, device=device)))

    def forward(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` -> logits `(B, num_classes)`."""
        return self.network(images, dict(self.named_parameters()))


def _live(steps: Sequence[Step], output: int) -> list[tuple[int, Step]]:
    """The steps that the output depends on, each with the value that it computes."""
    needed = {output}
    live = []
    for value in range(len(steps), 0, -1):
        if value in needed:
            needed.update(steps[value - 1][1])
            live.append((value, steps[value - 1]))
    return live[::-1]
