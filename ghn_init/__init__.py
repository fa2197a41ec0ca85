"""Drop-in initialization of PyTorch vision models by graph hypernetworks.

    import ghn_init
    model = ghn_init.apply(model, method="ghn3-orth")

The names below are loaded when they are first used, so that importing the package is free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ghn_init import timm_hook
from ghn_init.lazy import lazy

if TYPE_CHECKING:
    from ghn_init.api import METHODS, apply, predict
    from ghn_init.errors import GHNInitError
    from ghn_init.graph.graph import PRIMITIVES, Graph, Node
    from ghn_init.graph.tracing import trace
    from ghn_init.hypernetwork.config import GHNConfig
    from ghn_init.hypernetwork.ghn import GHN
    from ghn_init.loading.load import load_ghn
    from ghn_init.report import Report

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
    "GHN": "ghn_init.hypernetwork.ghn",
    "GHNConfig": "ghn_init.hypernetwork.config",
    "GHNInitError": "ghn_init.errors",
    "Graph": "ghn_init.graph.graph",
    "METHODS": "ghn_init.api",
    "Node": "ghn_init.graph.graph",
    "PRIMITIVES": "ghn_init.graph.graph",
    "Report": "ghn_init.report",
    "apply": "ghn_init.api",
    "load_ghn": "ghn_init.loading.load",
    "predict": "ghn_init.api",
    "trace": "ghn_init.graph.tracing",
}

timm_hook.enable_or_warn()

__getattr__, __dir__ = lazy(__name__, _HOME)
