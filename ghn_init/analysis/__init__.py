"""Pictures and diagnostics: graphs, predicted parameters and initializations.

    from ghn_init.analysis import diagnose
    result = diagnose(model, ["rand", "ghn3-orth"])
    print(result.table())
    result.save("diagnosis.png")

Every function returns a result with `.table()`, `.plot()`, `.to_json()` and `.save(path)`.
Pictures, Kendall's tau and the Hungarian matching need the extra `[plot]`. The names below are
loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy

if TYPE_CHECKING:
    from ._diagnose import Diagnosis, diagnose
    from ._diversity import Diversity, diversity
    from ._draw import Drawing, draw
    from ._embed import Embedding, embed
    from ._graph_statistics import GraphStatistics, graph_statistics
    from ._images import Batch, folder_batch, random_batch
    from ._models import LazyModels, load_model
    from ._proxies import PROXIES, zero_cost
    from ._rank import Ranking, rank

__all__ = [
    "PROXIES",
    "Batch",
    "Diagnosis",
    "Diversity",
    "Drawing",
    "Embedding",
    "GraphStatistics",
    "LazyModels",
    "Ranking",
    "diagnose",
    "diversity",
    "draw",
    "embed",
    "folder_batch",
    "graph_statistics",
    "load_model",
    "random_batch",
    "rank",
    "zero_cost",
]

_HOME = {
    "Batch": "_images",
    "Diagnosis": "_diagnose",
    "Diversity": "_diversity",
    "Drawing": "_draw",
    "Embedding": "_embed",
    "GraphStatistics": "_graph_statistics",
    "LazyModels": "_models",
    "PROXIES": "_proxies",
    "Ranking": "_rank",
    "diagnose": "_diagnose",
    "diversity": "_diversity",
    "draw": "_draw",
    "embed": "_embed",
    "folder_batch": "_images",
    "graph_statistics": "_graph_statistics",
    "load_model": "_models",
    "random_batch": "_images",
    "rank": "_rank",
    "zero_cost": "_proxies",
}

__getattr__, __dir__ = lazy(__name__, _HOME)
