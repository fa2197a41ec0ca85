"""The methods that need nothing but the model."""

from __future__ import annotations

import torch

from ghn_init.methods.method import Job, Method, Values


def normal(job: Job) -> Values:
    """Every weight but the classifier's from N(0, 1): the orthogonal step makes the rest of it."""
    shapes = job.graph.shapes
    return {
        name: torch.randn(shapes[name], generator=job.generator, dtype=torch.float32)
        for name in job.layers
    }


BASELINES = (
    Method(
        name="orth",
        values=normal,
        summary="orthogonal convolution and linear weights; needs no checkpoint",
        paper="Saxe et al., 2013, https://arxiv.org/abs/1312.6120",
        orthogonal=True,
    ),
    Method(name="rand", values=None, summary="the model's own initialization, left as it is"),
)
