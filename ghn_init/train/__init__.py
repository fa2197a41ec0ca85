"""Train graph hypernetworks: architectures, images, a trainer, an evaluation (extra `[train]`).

`ghn-init train make-nets`, `run` and `eval` do all of it from the command line. The parts, each
usable alone: `make_nets` and `load_nets` (architectures of the DeepNets-1M space), `Network` (an
architecture as a graph and as a function of predicted tensors), `load_images`, `train`,
`evaluate`. Each is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ghn_init.lazy import lazy

if TYPE_CHECKING:
    from ghn_init.images.data import load_images
    from ghn_init.train.config import TrainConfig
    from ghn_init.train.distributed import World, start
    from ghn_init.train.evaluation import Accuracies, Evaluation, evaluate
    from ghn_init.train.loop import Schedule, train
    from ghn_init.train.networks.generate import SPLITS, make_nets
    from ghn_init.train.networks.genotypes import Architecture, Cell
    from ghn_init.train.networks.nets import load_nets
    from ghn_init.train.networks.network import Network
    from ghn_init.train.sampling import Widths

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
    "make_nets",
    "start",
    "train",
]

_HOME = {
    "SPLITS": "ghn_init.train.networks.generate",
    "Accuracies": "ghn_init.train.evaluation",
    "Architecture": "ghn_init.train.networks.genotypes",
    "Cell": "ghn_init.train.networks.genotypes",
    "Evaluation": "ghn_init.train.evaluation",
    "Network": "ghn_init.train.networks.network",
    "Schedule": "ghn_init.train.loop",
    "TrainConfig": "ghn_init.train.config",
    "Widths": "ghn_init.train.sampling",
    "World": "ghn_init.train.distributed",
    "evaluate": "ghn_init.train.evaluation",
    "load_images": "ghn_init.images.data",
    "load_nets": "ghn_init.train.networks.nets",
    "make_nets": "ghn_init.train.networks.generate",
    "start": "ghn_init.train.distributed",
    "train": "ghn_init.train.loop",
}

__getattr__, __dir__ = lazy(__name__, _HOME)
