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

from ghn_init.lazy import lazy

if TYPE_CHECKING:
    from ghn_init.analysis.diagnosis import Diagnosis, diagnose
    from ghn_init.analysis.drawing import Drawing, draw
    from ghn_init.analysis.embedding import Embedding, embed
    from ghn_init.analysis.images import Batch, folder_batch, random_batch
    from ghn_init.analysis.measure.graph_statistics import GraphStatistics, graph_statistics
    from ghn_init.analysis.measure.proxies import PROXIES, zero_cost
    from ghn_init.analysis.models import LazyModels, load_model
    from ghn_init.analysis.ranking import Ranking, rank
    from ghn_init.analysis.tensor_diversity import Diversity, diversity

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
    "Batch": "ghn_init.analysis.images",
    "Diagnosis": "ghn_init.analysis.diagnosis",
    "Diversity": "ghn_init.analysis.tensor_diversity",
    "Drawing": "ghn_init.analysis.drawing",
    "Embedding": "ghn_init.analysis.embedding",
    "GraphStatistics": "ghn_init.analysis.measure.graph_statistics",
    "LazyModels": "ghn_init.analysis.models",
    "PROXIES": "ghn_init.analysis.measure.proxies",
    "Ranking": "ghn_init.analysis.ranking",
    "diagnose": "ghn_init.analysis.diagnosis",
    "diversity": "ghn_init.analysis.tensor_diversity",
    "draw": "ghn_init.analysis.drawing",
    "embed": "ghn_init.analysis.embedding",
    "folder_batch": "ghn_init.analysis.images",
    "graph_statistics": "ghn_init.analysis.measure.graph_statistics",
    "load_model": "ghn_init.analysis.models",
    "random_batch": "ghn_init.analysis.images",
    "rank": "ghn_init.analysis.ranking",
    "zero_cost": "ghn_init.analysis.measure.proxies",
}

__getattr__, __dir__ = lazy(__name__, _HOME)
