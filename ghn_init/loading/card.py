"""The model card of a hypernetwork: what it is, how it is used, and how it was trained."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from torch import Tensor

from ghn_init.hypernetwork.config import Defaults, GHNConfig, Origin
from ghn_init.loading.metadata import LIBRARY_NAME
from ghn_init.loading.runs import Evaluated, Run
from ghn_init.version import __version__

_PAPERS = {
    "ghn3": "[GHN-3](https://arxiv.org/abs/2303.04143)",
    "ghn2": "[GHN-2](https://arxiv.org/abs/2110.13100)",
    "mlp": "MLP (the ablation of [GHN-3](https://arxiv.org/abs/2303.04143))",
}


@dataclass(frozen=True)
class Content:
    """What is written of a hypernetwork.

    Arguments:
        tensors, config, defaults, origin: of the hypernetwork.
        run: what is known of its training.
        license: of the weights, as the Hub names it. None: none is named.
    """

    tensors: Mapping[str, Tensor]
    config: GHNConfig
    defaults: Defaults
    origin: Origin
    run: Run
    license: str | None


def card(content: Content, place: str) -> str:
    """The text of a `README.md`, with the metadata that the Hub reads.

    Arguments:
        content: of the hypernetwork.
        place: how it is named in the example.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        library_name=LIBRARY_NAME,
        license=content.license,
        tags=["graph-hypernetwork", "parameter-prediction", "image-classification"],
    )
    sections = [
        f"# {place.partition(':')[2].rpartition('/')[2]}",
        f"A graph hypernetwork, {_PAPERS[content.config.arch]}: it predicts the parameters of "
        f"vision models with {content.config.num_classes} classes, as a start for training them.",
        _usage(place, content.config),
        _table(_about(content)),
        "## Training",
        *_training(content.run),
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"))


def _usage(place: str, config: GHNConfig) -> str:
    method = "ghn2" if config.arch == "ghn2" else "ghn3"
    return (
        "```python\nimport ghn_init, torchvision\n\n"
        f"model = torchvision.models.resnet18(num_classes={config.num_classes})\n"
        f'ghn_init.apply(model, "{method}", ghn="{place}")\n```'
    )


def _about(content: Content) -> Iterator[tuple[str, str]]:
    tensors, config, origin = content.tensors, content.config, content.origin
    channels, kernel = config.channels, config.kernel
    count = sum(tensor.numel() for tensor in tensors.values())
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
    yield (
        "hypernetwork",
        f"{config.arch}: hidden size {config.hidden_size}, {config.layers} layers, {config.heads} "
        f"heads; decodes up to {channels} x {channels} channels and {kernel} x {kernel} positions"
        + (f", as factors of rank {config.rank}" if config.rank else ""),
    )
    yield "parameters", f"{count:,}, {', '.join(dtypes)}"
    yield (
        "defaults",
        f"orthogonal from L = {content.defaults.orth_start} on; predicted norms: "
        f"{', '.join(sorted(content.defaults.norms)) or 'none'}",
    )
    if origin.sha256:
        where = "a file" if PurePath(origin.source).is_absolute() else origin.source
        at = f"@{origin.revision}" if origin.revision else ""
        yield "copied from", f"{where}{at}, sha256 `{origin.sha256}`"
    yield "license", content.license or "not stated"
    yield "written by", f"ghn_init {__version__}"


def _training(run: Run) -> Iterator[str]:
    if not run.training:
        yield "How it was trained is not recorded in its file."
        return
    yield _table(_recipe(run))
    if run.evaluated:
        yield (
            "Top-1 accuracy in percent of networks with predicted parameters, without any training "
            "of them (mean and standard error):"
        )
        yield _evaluations(run.evaluated)
    yield f"```sh\n{run.command()}\n```"


def _recipe(run: Run) -> Iterator[tuple[str, str]]:
    training, data = run.training, run.data
    counts = [f"{data[name]:,} {name}" for name in ("images", "classes") if name in data]
    size = training.get("image_size")
    shape = [f"{size} x {size} pixels"] if size else []
    yield "data", ", ".join([f"`{training.get('data')}`", *counts, *shape])
    count = f"{data['architectures']:,} of " if "architectures" in data else ""
    spaces = f"`{training.get('space')}` (`{training['nets']}`)" if training.get("nets") else ""
    models = f"`{training['models']}`" if training.get("models") else ""
    yield "architectures", count + " and ".join(filter(None, (spaces, models)))
    if training.get("start_from"):
        yield "trained further from", f"`{training['start_from']}`"
    yield "steps", " of ".join(str(n) for n in (run.step, training.get("steps")) if n is not None)
    batch = f"{training.get('meta_batch')} architectures and {training.get('batch_size')} images"
    yield "in a step", batch
    if run.seconds is not None:
        yield "time", f"{run.seconds / 3600:.2f} h"
    if run.accuracy is not None:
        loss = "" if run.loss is None else f", loss {run.loss:.3f}"
        yield "on training images, at the end", f"top-1 {100 * run.accuracy:.1f}%{loss}"


def _evaluations(evaluated: tuple[Evaluated, ...]) -> str:
    head = "| split | networks | test images | predicted | random |\n|---|---|---|---|---|\n"
    return head + "\n".join(
        f"| {one.split} | {len(one.predicted)} | {one.images:,} | {_mean(one.predicted)} | "
        f"{_mean(one.random)} |"
        for one in evaluated
    )


def _mean(values: tuple[float, ...]) -> str:
    if not values:
        return ""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {error:.1f}"


def _table(rows: Iterator[tuple[str, str]]) -> str:
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {text} |" for name, text in rows)
