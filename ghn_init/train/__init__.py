"""Train graph hypernetworks: architectures, images, a trainer, an evaluation.

`ghn-init train make-nets`, `run` and `eval` do all of it from the command line. The parts, each
usable alone: `make_nets` and `load_nets` (architectures of the DeepNets-1M space), `Network` (an
architecture as a graph and as a function of predicted tensors), `load_images`, `train`,
`evaluate`. `initialize`, `MetaBatches` and `gradients` are what a step of `train` is made of.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
