"""The methods that `apply` knows, and how to add one.

import torch, ghn_init
from ghn_init.methods import Job, Method, register

def small(job: Job) -> dict[str, torch.Tensor]:
    shapes, draw = job.graph.shapes, job.generator
    return {n: 0.02 * torch.randn(shapes[n], generator=draw) for n in job.layers}

register(Method("small", small, "convolution and linear weights from N(0, 0.02)"))
ghn_init.apply(model, "small")
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
