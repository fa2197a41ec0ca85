"""Property prediction of the GHN-2 paper: what an architecture will be like, from its embedding.

    pip install scikit-learn
    python examples/reproduce/properties.py --data cifar10 --out runs/reproduce

Each network is trained from its own initialization, and four properties of it are measured:

- accuracy: on test images, in percent;
- robustness: the same on images with noise;
- convergence: the mean of its accuracies along the training (the area under its curve);
- speed: images a second, of the processor's time.

Support vector regression learns to predict each of them from the hypernetwork's embedding (the mean
of the features of the nodes, `ghn_init.analysis.embed`). The figure is Kendall's tau between true
values and those predicted for networks that the regression has not seen; beside it stands the tau
of the number of parameters. `--embeddings` takes other vectors, such as
`ghn-init embed --embeddings FILE` writes.

Small scale: 26 networks, two of each of thirteen families, trained on CIFAR-10 for 100 steps;
what is predicted comes from a fivefold cross-validation. Paper scale: learned on the 500 networks
of the split val of DeepNets-1M, whose folder is `--nets`, and tested on the 500 of test.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from experiment import finish, hypernetworks, parser, remember
from networks import Builders, LazyNetworks, small_networks
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from ghn_init.analysis import Result, embed, kendall_tau, new_figure, text_table
from ghn_init.compare import FineTuning, Point, Split, fine_tune, load_split
from ghn_init.images import top1
from ghn_init.train import Architecture, Network, load_nets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROPERTIES = ("accuracy", "robustness", "convergence", "speed")

NOISE = 0.3
"""Standard deviation of the noise on normalized images: 0.07 of the range of a pixel."""

GRID = {"svr__C": [1, 10, 100], "svr__gamma": ["scale", 0.01], "svr__epsilon": [0.1]}
"""Of the regression; the best of them in a fivefold cross-validation on what it learns from."""

Values = Mapping[str, float]
"""By network."""


@dataclass(frozen=True)
class Protocol:
    """How networks are trained.

    Arguments:
        images: training images and test images; 0: all.
        steps, batch_size, lr: of the training, with SGD.
        count: networks that are learned from, and tested on; the latter 0: by cross-validation.
    """

    images: tuple[int, int]
    steps: int
    batch_size: int
    lr: float
    count: tuple[int, int]


PROTOCOLS = {
    "small": Protocol((3200, 500), 100, 32, 0.02, (26, 0)),
    "paper": Protocol((0, 0), 50 * 390, 128, 0.025, (500, 500)),
}


@dataclass(frozen=True)
class Prediction(Result):
    """True and predicted properties of networks that the regression has not seen.

    Arguments:
        truth: by property.
        predicted: by hypernetwork, then by property.
        parameters: of the networks.
        learned: how many networks each regression has learned from, about.
    """

    truth: Mapping[str, Values]
    predicted: Mapping[str, Mapping[str, Values]]
    parameters: Values
    learned: int

    def tau(self, source: str, name: str) -> float | None:
        """Of a hypernetwork's predictions; or, for `"parameters"`, of the number of parameters."""
        found = self.parameters if source == "parameters" else self.predicted[source][name]
        return kendall_tau(self.truth[name], found)

    def table(self) -> str:
        """Kendall's tau by property, and how far apart the networks are."""
        sources = [*self.predicted, "parameters"]
        rows = []
        for name in PROPERTIES:
            values = list(self.truth[name].values())
            spread = f"{min(values):.4g} to {max(values):.4g}"
            rows.append((name, *(_two_digits(self.tau(s, name)) for s in sources), spread))
        about = f"Kendall's tau over {len(self.parameters)} networks, learned from {self.learned}"
        return f"{about}\n{text_table(('property', *sources, 'true values'), rows)}"

    def plot(self) -> Figure:
        """Predicted over true values, of the last hypernetwork."""
        source = list(self.predicted)[-1]
        figure = new_figure(12, 3.4)
        for axes, name in zip(figure.subplots(1, len(PROPERTIES)), PROPERTIES, strict=True):
            found = self.predicted[source][name]
            axes.scatter([self.truth[name][n] for n in found], list(found.values()), s=14)
            axes.set_title(f"{name}: tau {_two_digits(self.tau(source, name))}", fontsize=9)
            axes.set_xlabel("true")
        figure.axes[0].set_ylabel(f"predicted from {source}")
        return figure

    def content(self) -> dict[str, Any]:
        """Values, and taus by hypernetwork and property."""
        sources = (*self.predicted, "parameters")
        taus = {s: {name: self.tau(s, name) for name in PROPERTIES} for s in sources}
        return {**vars(self), "tau": taus}


def main() -> None:
    options = arguments()
    regression()  # that scikit-learn is missing is better known before the first run
    protocol = PROTOCOLS[options.scale]
    protocol = replace(
        protocol, **{n: v for n in ("steps", "batch_size", "images", "count")
                     if (v := getattr(options, n)) is not None}
    )  # fmt: skip
    data = load_split(
        options.data, 32, protocol.images[0], 0, protocol.images[1],
        device=options.device, progress=True,
    )  # fmt: skip
    builders = networks(options, protocol, len(data.train.classes))
    measured = {
        name: remember(
            options.out / "properties" / f"{name}.json",
            {**asdict(replace(protocol, count=(0, 0))), **data.digests()},
            partial(properties, name, build, data, protocol),
        )
        for name, build in builders.items()
    }
    result = predict(measured, embeddings(builders, options), protocol)
    finish(result, options, "properties", last_line(result))


def arguments() -> argparse.Namespace:
    found = parser(__doc__, "CIFAR-10, as a folder of train/<class>/ and test/<class>/ or "
                   "torchvision:CIFAR10:PATH")  # fmt: skip
    found.add_argument(
        "--nets",
        type=Path,
        metavar="DIR",
        help="paper: folder of DeepNets-1M's "
        "deepnets1m_eval_meta.json, or of what ghn-init train make-nets writes",
    )
    found.add_argument("--embeddings", type=Path, nargs="+", default=[], metavar="FILE",
                       help="safetensors, in place of --ghn: of each network a vector with its "
                       "name, such as vit-8")  # fmt: skip
    found.add_argument("--steps", type=int, help="of a training")
    found.add_argument("--batch-size", type=int, metavar="B", help="images in a step")
    found.add_argument("--images", type=int, nargs=2, metavar=("TRAIN", "TEST"),
                       help="numbers of images; 0: all")  # fmt: skip
    found.add_argument("--count", type=int, nargs=2, metavar=("LEARN", "TEST"),
                       help="networks to learn from and to test on")  # fmt: skip
    return found.parse_args()


# -- networks and their properties


def networks(options: argparse.Namespace, protocol: Protocol, classes: int) -> Builders:
    """Those to learn from, then those to test on."""
    if options.scale == "small":
        return small_networks(options.out / "nets", classes, protocol.count[0])
    if options.nets is None:
        raise SystemExit("--scale paper needs --nets, the folder of DeepNets-1M's splits.")
    return {
        f"{split}-{i}": partial(deepnet, net, classes)
        for split, count in zip(("val", "test"), protocol.count, strict=True)
        for i, net in enumerate(load_nets(options.nets, split, count))
        if isinstance(net, Architecture)
    }


def deepnet(net: Architecture, classes: int, seed: int) -> nn.Module:
    """A network of DeepNets-1M with PyTorch's default initialization."""
    network = Network(net, classes, 32)
    module = network.module("cpu")
    drawn = network.random_params(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for name, param in module.named_parameters():
            param.copy_(drawn.get(name, torch.zeros(())))  # what is not drawn is not used
    return module


def properties(
    name: str, build: Callable[[int], nn.Module], data: Split, protocol: Protocol
) -> dict[str, float]:
    """Train a network, and measure what it is like."""
    how = FineTuning(protocol.steps, protocol.batch_size, optimizer="sgd",
                     eval_every=max(1, protocol.steps // 4))  # fmt: skip
    model = build(0).to(data.train.device)
    with tqdm(total=protocol.steps, unit="step", desc=name) as bar:
        outcome = fine_tune(
            model, data.train, data.test, how, Point(protocol.lr, 3e-5), 0, how.evaluations(),
            lambda step, loss: bar.update() and None,
        )  # fmt: skip
    accuracies = [accuracy for _, accuracy in outcome.curve] or [0.0]
    return {
        "accuracy": outcome.accuracy or 0.0,
        "robustness": under_noise(model, data),
        "convergence": statistics.mean(accuracies),
        "speed": speed(model, data),
        "parameters": float(sum(p.numel() for p in model.parameters())),
    }


def under_noise(model: nn.Module, data: Split) -> float:
    """Accuracy on test images with Gaussian noise, in percent."""
    generator = torch.Generator().manual_seed(0)

    def noisy(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=generator).to(x)
        outputs: Tensor = model(x + NOISE * noise)
        return outputs

    model.eval()
    return top1(noisy, data.test, 64)[0]


def speed(model: nn.Module, data: Split) -> float:
    """Images a second: by the processor's time, or, on a GPU, by the clock."""
    on_gpu = data.test.device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    images = next(data.test.test_batches(64)).images
    seconds = []
    with torch.no_grad():
        for _ in range(4):
            start = clock()
            model.eval()(images).sum().item()  # waits for a GPU
            seconds.append(clock() - start)
    return len(images) / statistics.median(seconds[1:])


# -- the regression


def embeddings(builders: Builders, options: argparse.Namespace) -> dict[str, dict[str, Tensor]]:
    """Vectors by hypernetwork, or file, and network."""
    if options.embeddings:
        return {path.stem: load_file(path) for path in options.embeddings}
    models, found = LazyNetworks(builders), {}
    for label, ghn in hypernetworks(options).items():
        result = embed(models, ghn, progress=True)
        result.save_vectors(options.out / f"embeddings-{label}.safetensors")
        found[label] = dict(zip(result.names, result.vectors, strict=True))
    return found


def predict(
    measured: Mapping[str, Values], vectors: Mapping[str, Mapping[str, Tensor]], protocol: Protocol
) -> Prediction:
    """Predictions of networks that their regression has not learned from."""
    names, (learned, tested) = list(measured), protocol.count
    shown = names[learned:] if tested else names
    predicted: dict[str, dict[str, Values]] = {}
    for source, by_name in vectors.items():
        missing = [name for name in names if name not in by_name]
        if missing:
            raise SystemExit(f"{source} has no vector of {missing[0]}.")
        inputs = torch.stack([by_name[name].double() for name in names]).numpy()
        for key in PROPERTIES:
            values = np.array([measured[name][key] for name in names])
            found = unseen(inputs, values, learned if tested else 0)
            predicted.setdefault(source, {})[key] = dict(zip(shown, found.tolist(), strict=True))
    truth = {key: {name: measured[name][key] for name in shown} for key in PROPERTIES}
    sizes = {name: measured[name]["parameters"] for name in shown}
    return Prediction(truth, predicted, sizes, learned if tested else learned * 4 // 5)


def unseen(inputs: np.ndarray, values: np.ndarray, learned: int, seed: int = 0) -> np.ndarray:
    """Predictions for what is not learned from.

    Arguments:
        inputs: `(networks, d)`.
        values: `(networks,)`.
        learned: the first so many are learned from, the rest is predicted; 0: all are predicted,
            each by a regression on the other four fifths.
        seed: of the division into fifths.
    """
    from sklearn.model_selection import KFold, cross_val_predict

    folds = KFold(5, shuffle=True, random_state=seed)
    if not learned:
        predicted: np.ndarray = cross_val_predict(regression(), inputs, values, cv=folds)
        return predicted
    fitted = regression().fit(inputs[:learned], values[:learned])
    return np.asarray(fitted.predict(inputs[learned:]))


def regression() -> Any:
    """Support vector regression with an RBF kernel, as in the GHN-2 paper's repository.

    Inputs and targets are standardized, and `GRID` is searched. It is scikit-learn's: a solver of
    our own would be more to keep up than this import.
    """
    try:
        from sklearn.compose import TransformedTargetRegressor
        from sklearn.model_selection import GridSearchCV, KFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVR
    except ImportError as error:
        raise SystemExit("this needs scikit-learn: pip install scikit-learn.") from error
    pipeline = make_pipeline(StandardScaler(), SVR())
    target = TransformedTargetRegressor(pipeline, transformer=StandardScaler())
    grid = {f"regressor__{name}": values for name, values in GRID.items()}
    return GridSearchCV(target, grid, cv=KFold(5, shuffle=True, random_state=0),
                        scoring="neg_mean_squared_error")  # fmt: skip


def _two_digits(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def last_line(result: Prediction) -> str:
    source = next(iter(result.predicted))
    here = ", ".join(f"{name} {_two_digits(result.tau(source, name))}" for name in PROPERTIES)
    return (
        f"tau here, from {source}: {here}; the paper's figures are in the GHN-2 paper's section "
        "on property prediction, and are not quoted here"
    )


if __name__ == "__main__":
    main()
