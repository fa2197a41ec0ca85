"""Drop-in initialization of PyTorch vision models by graph hypernetworks.

    import ghn_init
    model = ghn_init.apply(model, method="ghn3-orth")

The names below are loaded when they are first used, so that importing the package is free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import timm_hook
from ._lazy import lazy

if TYPE_CHECKING:
    from ._apply import METHODS, apply, predict
    from ._config import GHNConfig
    from ._errors import GHNInitError
    from ._ghn import GHN
    from ._graph import PRIMITIVES, Graph, Node
    from ._loading import load_ghn
    from ._report import Report
    from ._tracing import trace

__version__ = "0.1.0"

__all__ = [
    "GHN",
    "METHODS",
    "PRIMITIVES",
    "GHNConfig",
    "GHNInitError",
    "Graph",
    "Node",
    "Report",
    "apply",
    "load_ghn",
    "predict",
    "timm_hook",
    "trace",
]

_HOME = {
    "GHN": "_ghn",
    "GHNConfig": "_config",
    "GHNInitError": "_errors",
    "Graph": "_graph",
    "METHODS": "_apply",
    "Node": "_graph",
    "PRIMITIVES": "_graph",
    "Report": "_report",
    "apply": "_apply",
    "load_ghn": "_loading",
    "predict": "_apply",
    "trace": "_tracing",
}

timm_hook.enable_or_warn()

__getattr__, __dir__ = lazy(__name__, _HOME)
