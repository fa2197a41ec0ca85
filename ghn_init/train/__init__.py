"""Train graph hypernetworks: architectures, images, a trainer, an evaluation (extra `[train]`).

`ghn-init train make-nets`, `run` and `eval` do all of it from the command line. The parts, each
usable alone: `make_nets` and `load_nets` (architectures of the DeepNets-1M space), `Network` (an
architecture as a graph and as a function of predicted tensors), `load_images`, `train`,
`evaluate`. Each is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy

if TYPE_CHECKING:
    from ._config import TrainConfig
    from ._data import load_images
    from ._distributed import World, start
    from ._evaluate import Accuracies, Evaluation, evaluate
    from ._generate import SPLITS, make_nets
    from ._genotypes import Architecture, Cell
    from ._loop import Schedule, train
    from ._nets import load_nets, load_official_graph
    from ._networks import Network
    from ._recorded import recorded_graph
    from ._sampling import Widths

__all__ = [
    "SPLITS",
    "Accuracies",
    "Architecture",
    "Cell",
    "Evaluation",
    "Network",
    "Schedule",
    "TrainConfig",
    "Widths",
    "World",
    "evaluate",
    "load_images",
    "load_nets",
    "load_official_graph",
    "make_nets",
    "recorded_graph",
    "start",
    "train",
]

_HOME = {
    "SPLITS": "_generate",
    "Accuracies": "_evaluate",
    "Architecture": "_genotypes",
    "Cell": "_genotypes",
    "Evaluation": "_evaluate",
    "Network": "_networks",
    "Schedule": "_loop",
    "TrainConfig": "_config",
    "Widths": "_sampling",
    "World": "_distributed",
    "evaluate": "_evaluate",
    "load_images": "_data",
    "load_nets": "_nets",
    "load_official_graph": "_nets",
    "make_nets": "_generate",
    "recorded_graph": "_recorded",
    "start": "_distributed",
    "train": "_loop",
}

__getattr__, __dir__ = lazy(__name__, _HOME)
