"""Does it help? Eight models, fine-tuned from several initializations, with confidence intervals.

    apt-get install dataset-fashion-mnist
    python examples/transfer.py --out runs/transfer                   # a thousand new images
    python examples/transfer.py --protocol source --data cifar10 --out runs/source

`--protocol transfer` is that of the papers' transfer experiments (Knyazev, 2022, Table 1; GHN-3,
Table 7): a model is initialized by each method, its classification layer anew, and fine-tuned on
1,000 labeled images of a data set that no hypernetwork here has seen, for 100, 300 and 1,000 steps
of 64 images. The data is Fashion-MNIST: 28x28, padded to 32x32, three equal channels, normalized as
CIFAR-10, moved and mirrored in training.

`--protocol source` is that of GHN-3's Table 2, on the data set of the embedded checkpoint: all
training images of CIFAR-10, for a tenth of an epoch and for one; classification layers are
predicted too.

Of each method, the learning rate is chosen on training images that are held out, from one grid that
goes on where an end of it is best. Runs of one seed see the same images, so that methods are
compared by their paired differences. What is finished is kept in `--out`: the same command goes on
where it was stopped, and `--report` only prints what is there.

A step of ResNet-50 takes 7 seconds of one core, one of ConvNeXt-Atto 0.2: the whole takes a GPU
some hours, and two cores some days. `--quick` shows in two minutes that everything works.
"""

from __future__ import annotations

import argparse
import gzip
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from small_models import MODELS

from ghn_init import GHNInitError, create_model, load_ghn
from ghn_init.compare import Comparison, Difference, FineTuning, Point, compare
from ghn_init.images import SmallImages, Split, load_split, split_images
from ghn_init.methods import parse_methods

CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip

BASELINES = ("rand", "orth")
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Protocol:
    """What is done with every model.

    Arguments:
        how: of each budget; its `head` says what happens to the classification layer.
        rates: learning rates to begin the choice with.
        reach: accuracies, in percent, to count the steps to.
    """

    how: tuple[FineTuning, ...]
    rates: tuple[float, ...]
    reach: tuple[float, ...]


TRANSFER = Protocol(
    tuple(FineTuning(steps, eval_every=steps // 10) for steps in (100, 300, 1000)),
    (3e-4, 1e-3, 3e-3),
    (60, 70, 80),
)
SOURCE = Protocol(
    tuple(FineTuning(steps, eval_every=steps // 5, head="predict") for steps in (70, 700)),
    (3e-4, 1e-3, 3e-3),
    (30, 40, 50, 60),
)
PROTOCOLS = {"transfer": TRANSFER, "source": SOURCE}


def main() -> None:
    """Run the protocol, or what is left of it; print a table for each model, and one of all."""
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    protocol = PROTOCOLS[options.protocol]
    if options.quick:
        protocol = replace(protocol, how=(replace(protocol.how[0], steps=4, eval_every=2),))
    found: list[Comparison] = []
    for name, how in plan(options, protocol):
        result = run(name, how, protocol, options)
        print(result.table(), end="\n\n", flush=True)
        save_picture(result, options.out / f"{name}-{how.steps}.png")
        found.append(result)
        summary = {
            "protocol": options.protocol,
            "results": [json.loads(r.to_json()) for r in found],
        }
        (options.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(report(found, protocol.reach))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--protocol", choices=PROTOCOLS, default="transfer")
    parser.add_argument("--ghn", default="embedded", metavar="CHECKPOINT", help="name or path")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="NAME",
                        help="of examples/small_models.py; default: all")  # fmt: skip
    parser.add_argument("--methods", default="rand,orth,ghn3,ghn3-orth", help="as ghn-init compare")
    parser.add_argument("--budgets", type=int, nargs="+", metavar="STEPS", help="default: all")
    parser.add_argument("--seeds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist",
                        help="folder of Fashion-MNIST's four idx files; or, for --protocol source, "
                        "of images in train/<class>/ and test/<class>/")  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--report", action="store_true", help="print what is finished")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    options = parser.parse_args()
    if options.quick:
        options.seeds = 2
    return options


def plan(options: argparse.Namespace, protocol: Protocol) -> Iterator[tuple[str, FineTuning]]:
    """Models and budgets, the short ones of all models first."""
    for how in protocol.how:
        for name in options.models:
            wanted = options.budgets is None or how.steps in options.budgets
            if wanted and (not options.report or results_file(name, how, options).exists()):
                yield name, how


def results_file(name: str, how: FineTuning, options: argparse.Namespace) -> Path:
    out: Path = options.out
    return out / f"{name}-{how.steps}.json"


def run(name: str, how: FineTuning, protocol: Protocol, options: argparse.Namespace) -> Comparison:
    """One model and budget."""
    return compare(
        lambda seed: create_model(f"{HERE / 'small_models.py'}:{name}", None, 10, seed)[0],
        parse_methods(options.methods),
        data(options),
        how,
        [Point(rate) for rate in protocol.rates],
        seeds=options.seeds,
        ghn=load_ghn(options.ghn),
        reach=protocol.reach,
        results=results_file(name, how, options),
        name=name,
        progress=True,
        widen=True,
    )


# -- data


def data(options: argparse.Namespace) -> Split:
    """Images to train on, to choose on and to test on."""
    few = 200 if options.quick else None
    if options.protocol == "source":
        return load_split(options.data, 32, few or 0, 1000, few or 2000, device=options.device)
    labels, validation, test = (100, 200, 200) if few else (1000, 1000, 2000)
    train, held_out = (fashion_mnist(Path(options.data), part) for part in ("train", "t10k"))
    split = split_images(train, held_out, labels, validation, test)
    assert split.validation is not None
    parts = (split.train, split.validation, split.test)
    return Split(*(on_device(part, options.device) for part in parts))


def on_device(images: object, device: str) -> SmallImages:
    assert isinstance(images, SmallImages)
    return SmallImages(images.pixels.to(device), images.labels.to(device), images.classes)


def fashion_mnist(folder: Path, part: str) -> SmallImages:
    """The training or the test part."""
    grey = read_idx(folder / f"{part}-images-idx3-ubyte.gz")  # (N, 28, 28)
    padded = torch.from_numpy(np.pad(grey, ((0, 0), (2, 2), (2, 2))))
    labels = torch.from_numpy(read_idx(folder / f"{part}-labels-idx1-ubyte.gz")).long()
    return SmallImages(padded[..., None].expand(-1, -1, -1, 3), labels, CLASSES)


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes in the format of MNIST."""
    if not path.exists():
        raise SystemExit(f"there is no {path}: apt-get install dataset-fashion-mnist, or --data.")
    content = gzip.decompress(path.read_bytes())
    dimensions = content[3]
    shape: Sequence[int] = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    pixels = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    return np.array(pixels.reshape(shape))


# -- what came out


def report(found: Sequence[Comparison], reach: Sequence[float]) -> str:
    """Each method against the better of the baselines, by budget, and how often it wins."""
    lines: list[str] = []
    for steps in dict.fromkeys(result.how.steps for result in found):
        results = [result for result in found if result.how.steps == steps]
        lines.append(f"{steps} steps: points above the better of {' and '.join(BASELINES)}")
        for method in [row.method for row in results[0].rows if row.method not in BASELINES]:
            against = [(r, difference(r, method)) for r in results if better(r) is not None]
            lines += [f"  {r.name:20} {d}{sooner(r, d, reach)}" for r, d in against]
            means = [d.mean for _, d in against if d.mean is not None]
            ahead = sum(d.is_clear and (d.mean or 0) > 0 for _, d in against)
            behind = sum(d.is_clear and (d.mean or 0) < 0 for _, d in against)
            lines.append(
                f"  {method}: +3 or more on {sum(m >= 3 for m in means)} of {len(means)} models, "
                f"-1 or less on {sum(m <= -1 for m in means)}; clearly better on {ahead}, clearly "
                f"worse on {behind}"
            )
    return "\n".join(lines)


def better(result: Comparison) -> str | None:
    """The baseline with the higher mean accuracy on test images, which favors the baselines."""
    means = {row.method: row.mean for row in result.rows if row.method in BASELINES}
    ended = {method: mean for method, mean in means.items() if mean is not None}
    return max(ended, key=lambda method: ended[method]) if ended else None


def difference(result: Comparison, method: str) -> Difference:
    return next(d for d in result.differences(better(result)) if d.method == method)


def sooner(result: Comparison, found: Difference, reach: Sequence[float]) -> str:
    """Median steps to the highest accuracy that both reach: `; to 60%: 40 for 80`."""
    rows = {row.method: row for row in result.rows}
    for accuracy in sorted(reach, reverse=True):
        mine, other = (rows[m].steps_to(accuracy) for m in (found.method, found.baseline))
        if mine is not None and other is not None:
            return f"; to {accuracy:g}%: {mine:g} steps for {other:g}"
    return ""


def save_picture(result: Comparison, path: Path) -> None:
    try:
        result.save(path)
    except GHNInitError as error:
        print(f"no picture: {error}")


if __name__ == "__main__":
    main()
