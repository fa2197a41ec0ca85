"""Transfer to a data set that no hypernetwork here has seen, with a thousand labels.

    apt-get install dataset-fashion-mnist
    python examples/transfer.py --ghn embedded --out runs/transfer

The protocol of the papers' transfer experiments (Knyazev, 2022, Table 1; GHN-3, Table 7): a model
is initialized by each method, its classification layer anew, and fine-tuned on 1000 labeled
images; the learning rate is chosen for each method among the same ones, on 1000 further training
images. The data is Fashion-MNIST: 28x28, padded to 32x32, three equal channels, normalized as
CIFAR-10, moved and mirrored in training. Models are as in the libraries: ResNet-50 keeps its stem
for large images, so its last stage sees 1x1. RegNetY-200MF also goes through the ablations of the
first paper: without noise, without the orthogonal step (`ghn3`), and without both.

Methods without settings are as `ghn_init.apply` takes them, with what suits the checkpoint: the
embedded one makes all layers orthogonal and leaves layer norms alone. What the papers do, from L =
68.5% of the depth on and with all norms predicted, is run beside it where it differs.

It takes about two hours on one core, `--quick` two minutes. What is finished is kept in
`--out`: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import gzip
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ghn_init import GHNInitError, create_model, load_ghn
from ghn_init.compare import Comparison, FineTuning, Point, compare
from ghn_init.images import SmallImages, Split, split_images
from ghn_init.methods import parse_methods

CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip

METHODS = "rand,orth,ghn3,ghn3-orth"
PAPERS_DEPTH = "ghn3-orth:orth_start=0.685"
PAPERS_NORMS = f"ghn3:norms=predict,{PAPERS_DEPTH},norms=predict"
ABLATIONS = "ghn3:noise=0,ghn3-orth:noise=0,ghn3-orth:norms=keep"


@dataclass(frozen=True)
class Protocol:
    """What is done with one model.

    Arguments:
        library: that it is from.
        steps: of batches of 64. They are chosen for about the same time of all models.
        methods: initializations.
        rates: learning rates to choose from.
        reach: accuracies to count the steps to.
    """

    library: str
    steps: int
    methods: str = f"{METHODS},{PAPERS_DEPTH}"
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    reach: tuple[float, ...] = (50, 60, 70)


MODELS = {
    "resnet50": Protocol("torchvision", 100),
    "convnext_atto": Protocol("timm", 300, f"{METHODS},{PAPERS_NORMS}"),
    "regnety_002": Protocol("timm", 300, f"{METHODS},{PAPERS_DEPTH},{ABLATIONS}"),
}


def main() -> None:
    """Run the protocol, or what is left of it; print a table for each model."""
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    data = fashion_mnist(options.data, *((100, 200) if options.quick else (1000, 2000)))
    ghn = load_ghn(options.ghn)
    results = {}
    for name in options.models.split(","):
        protocol = quick(MODELS[name]) if options.quick else MODELS[name]
        result = compare(
            builder(name, protocol.library),
            parse_methods(protocol.methods),
            data,
            FineTuning(protocol.steps, eval_every=max(1, protocol.steps // 5)),
            [Point(rate) for rate in protocol.rates],
            seeds=1 if options.quick else options.seeds,
            ghn=ghn,
            reach=protocol.reach,
            results=options.out / f"{name}.json",
            name=name,
            progress=True,
        )
        print(result.table(), end="\n\n", flush=True)
        save_picture(result, options.out / f"{name}.png")
        results[name] = json.loads(result.to_json())
        (options.out / "transfer.json").write_text(json.dumps(results, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ghn", default="embedded", metavar="CHECKPOINT", help="name or path")
    parser.add_argument("--models", default=",".join(MODELS), help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--data", type=Path, default="/usr/share/datasets/fashion-mnist",
                        help="folder of the four idx files; default: %(default)s")  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder; default: runs/transfer[-quick]")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    options = parser.parse_args()
    options.out = options.out or Path("runs", "transfer-quick" if options.quick else "transfer")
    unknown = set(options.models.split(",")) - set(MODELS)
    if unknown:
        parser.error(f"unknown model {min(unknown)}: choose among {', '.join(MODELS)}.")
    return options


def builder(name: str, library: str) -> Callable[[int], nn.Module]:
    """The model for a seed."""
    return lambda seed: create_model(name, library, len(CLASSES), seed)[0]


def quick(protocol: Protocol) -> Protocol:
    """To see that everything works; the accuracies mean nothing."""
    return replace(protocol, steps=max(2, protocol.steps // 60), rates=protocol.rates[:2])


def fashion_mnist(folder: Path, validation: int, test_images: int) -> Split:
    """1000 labeled images, so many to choose on, and so many to test on."""
    images = [
        SmallImages(
            as_pixels(read_idx(folder / f"{part}-images-idx3-ubyte.gz")),
            torch.from_numpy(read_idx(folder / f"{part}-labels-idx1-ubyte.gz")).long(),
            CLASSES,
        )
        for part in ("train", "t10k")
    ]
    return split_images(images[0], images[1], 1000, validation, test_images)


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes in the format of MNIST."""
    if not path.exists():
        raise SystemExit(f"there is no {path}: apt-get install dataset-fashion-mnist, or --data.")
    content = gzip.decompress(path.read_bytes())
    dimensions = content[3]
    shape: Sequence[int] = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    pixels = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    return np.array(pixels.reshape(shape))


def as_pixels(grey: np.ndarray) -> torch.Tensor:
    """`(N, 28, 28)` -> `(N, 32, 32, 3)`."""
    padded = np.pad(grey, ((0, 0), (2, 2), (2, 2)))
    return torch.from_numpy(padded)[..., None].expand(-1, -1, -1, 3)


def save_picture(result: Comparison, path: Path) -> None:
    try:
        result.save(path)
    except GHNInitError as error:
        print(f"no picture: {error}")


if __name__ == "__main__":
    main()
