"""Arguments that several commands take, and how their text is read."""

from __future__ import annotations

import argparse
from typing import Any, TypeAlias

from ghn_init.cli.deferred import DeferredParser

Parser = argparse.ArgumentParser
Commands: TypeAlias = "argparse._SubParsersAction[DeferredParser]"
"""What `ArgumentParser.add_subparsers` gives: a command is added to it."""

_MODEL = (
    "a name of timm or torchvision, hf-hub:ORG/NAME of timm, ORG/NAME of transformers, or "
    "path/to/file.py:factory (runs the file)"
)


def add_model(parser: Parser, several: bool = False) -> None:
    """MODEL (or MODEL...), and the library that it is from."""
    if several:
        parser.add_argument("models", metavar="MODEL", nargs="+", help=_MODEL)
    else:
        parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.add_argument("--library", choices=("timm", "torchvision", "transformers"),
                        help="default: timm first")  # fmt: skip


def add_num_classes(parser: Parser, default: str = "the model's own") -> None:
    """The number of outputs that a model is built with."""
    parser.add_argument("--num-classes", type=int, metavar="N", help=f"default: {default}")


def add_input_shape(parser: Parser) -> None:
    """The shape of one image."""
    parser.add_argument(
        "--input-shape", type=shape, metavar="3xHxW", help="default: what the model takes"
    )


def add_ghn(parser: Parser) -> None:
    """The checkpoint of a single hypernetwork."""
    parser.add_argument(
        "--ghn", metavar="CHECKPOINT",
        help="name, hf-hub:ORG/NAME, local-dir:FOLDER or path; see `ghn-init list`",
    )  # fmt: skip


def add_ghns(parser: Parser) -> None:
    """Checkpoints of hypernetworks of different architectures."""
    parser.add_argument(
        "--ghn", action="append", metavar="CHECKPOINT",
        help="name, hf-hub:ORG/NAME, local-dir:FOLDER or path, once for ghn3 and once for ghn2; "
        "see `ghn-init list`",
    )  # fmt: skip


def add_head(parser: Parser) -> None:
    """What happens to the classification layer."""
    parser.add_argument("--head", default="auto", help="auto (default), predict or keep")


def add_noise(parser: Parser) -> None:
    """The settings of the post-processing."""
    parser.add_argument("--noise", type=float, metavar="BETA", help="default: as published")
    parser.add_argument(
        "--orth-start", type=layer, metavar="L", help="of the ghn*-orth methods: the first layer "
        "to make orthogonal, such as 12, or its share of the depth, such as 0.685",
    )  # fmt: skip


def add_source(parser: Parser) -> None:
    """What a method takes values from that needs a source."""
    parser.add_argument(
        "--source", metavar="MODEL", help="for methods that take values from a trained model: its "
        "name in a library, or the file of its state dict",
    )  # fmt: skip


def add_seed(parser: Parser) -> None:
    """The seed of whatever is random."""
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")


def add_upload(parser: Parser) -> None:
    """How something is uploaded to the Hub."""
    parser.add_argument("--license", help="of the weights, such as mit; default: none is named")
    parser.add_argument("--private", action="store_true", help="if the repository is made")
    parser.add_argument("--revision", metavar="BRANCH", help="default: main")
    parser.add_argument("--message", default="Upload with ghn_init", help="of the commit")
    parser.add_argument("--new-card", action="store_true", help="replace a README.md that is there")


def upload_options(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_upload` declares, as the keyword arguments of `push_to_hub` and `Upload`."""
    names = ("license", "private", "revision", "message", "new_card")
    return {name: getattr(options, name) for name in names}


def add_json(parser: Parser) -> None:
    """Whether to print for programs."""
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")


def shape(text: str) -> tuple[int, ...]:
    """`"64x3x7x7"` -> `(64, 3, 7, 7)`."""
    try:
        return tuple(int(size) for size in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no shape: give sizes such as 3x224x224"
        ) from None


def layer(text: str) -> int | float:
    """`"12"` -> `12`, `"0.685"` -> `0.685`."""
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no layer: give a number such as 12, or a share of the depth such as 0.685"
        ) from None


def names(text: str) -> list[str]:
    """`"a, b"` -> `["a", "b"]`."""
    return [name.strip() for name in text.split(",")]
