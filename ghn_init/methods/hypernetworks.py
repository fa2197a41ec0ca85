"""The methods that predict parameters with a graph hypernetwork."""

from __future__ import annotations

from ghn_init.hypernetwork.prediction import predict_graphs
from ghn_init.methods.method import Job, Method, Values

_GHN3 = "GHN-3: Knyazev et al., 2023, https://arxiv.org/abs/2303.04143"
_GHN2 = "GHN-2: Knyazev et al., 2021, https://arxiv.org/abs/2110.13100"
_ORTH = "noise and orthogonal step: Knyazev, 2022, https://arxiv.org/abs/2207.10049"


def predicted(job: Job) -> Values:
    """What the hypernetwork predicts for the parameters that may be written."""
    assert job.hypernetwork is not None
    (found,) = predict_graphs([job.graph], job.hypernetwork, [job.writable], job.seed)
    return found


def _method(arch: str, paper: str, orthogonal: bool) -> Method:
    steps = "noise and the orthogonal step from layer L on" if orthogonal else "a little noise"
    return Method(
        name=f"{arch}-orth" if orthogonal else arch,
        values=predicted,
        summary=f"predicted by a {arch} hypernetwork; {steps}",
        paper=f"{paper}; {_ORTH}",
        hypernetwork=arch,
        noise=3e-5 if orthogonal else 1e-5,
        orthogonal=orthogonal,
        orth_start=None if orthogonal else 1,
    )


HYPERNETWORKS = tuple(
    _method(arch, paper, orthogonal)
    for arch, paper in (("ghn3", _GHN3), ("ghn2", _GHN2))
    for orthogonal in (True, False)
)
