"""Which parameters are left as they are, and why. It is decided before anything is computed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from ghn_init.graph.graph import NORMS, Graph
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.methods.variants import Variant
from ghn_init.weights.assignment import unfit_parameters
from ghn_init.weights.deliberate import deliberate_values

HEADS = ("auto", "predict", "keep")
"""What can be done with the last layers."""


def kept_parameters(
    model: nn.Module,
    graph: Graph,
    ghn: GHN | None,
    variant: Variant,
    head: str,
    include_frozen: bool,
    include_deliberate: bool = False,
    own: Mapping[str, Tensor] | None = None,
) -> dict[str, str]:
    """Parameters that are left as they are, with the reason. Nothing is computed for them.

    `own` is the model's own values by name. Default: those that it has, which on meta are none.
    """
    kept = unfit_parameters(model)
    if not variant.method.source:  # values of a relative need no primitive, and are trained ones
        for name, reason in graph.left.items():
            _leave(kept, [name], reason)
    if head == "keep":
        _leave(kept, graph.head_parameters, 'last layer kept (head="keep")')
    if ghn is not None:
        _leave(kept, kept_head(graph, ghn, head), _head_reason(graph, ghn))
        _leave(kept, *_kept_norms(graph, ghn, variant.norms or "auto"))
    if not include_frozen:
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        _leave(kept, frozen, "frozen (requires_grad=False); see include_frozen")
    if not include_deliberate and not variant.method.source:
        if own is None:
            own = {name: p for name, p in model.named_parameters() if not p.is_meta}
        kept = {**deliberate_values(model, graph, own), **kept}
    return kept


def _leave(kept: dict[str, str], names: Collection[str], reason: str) -> None:
    """Add names and their reason, but for names that have another reason already."""
    for name in names:
        kept.setdefault(name, reason)


def kept_head(graph: Graph, ghn: GHN, head: str) -> frozenset[str]:
    """Parameters of the last layers, if they are not to be predicted."""
    if head == "predict" or (head == "auto" and graph.num_classes == ghn.config.num_classes):
        return frozenset()
    return graph.head_parameters


def _head_reason(graph: Graph, ghn: GHN) -> str:
    anyway = 'head="predict" predicts it all the same'
    if graph.num_classes is None:
        return f"last layer kept, as it is no classification layer like the checkpoint's ({anyway})"
    return (
        f"classification layer of {graph.num_classes} classes, the checkpoint's has "
        f"{ghn.config.num_classes} ({anyway})"
    )


def _kept_norms(graph: Graph, ghn: GHN, norms: str) -> tuple[frozenset[str], str]:
    """Parameters of normalization layers that are not predicted, and why."""
    if norms == "keep":
        return graph.norm_parameters(), 'normalization layer kept (norms="keep")'
    if norms == "predict":
        return frozenset(), ""
    reason = (
        f"normalization layer kept: checkpoint {ghn.name} has seen too few of its kind "
        '(norms="predict" predicts it)'
    )
    return graph.norm_parameters(NORMS - ghn.defaults.norms), reason
