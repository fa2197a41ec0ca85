"""The commands `ghn-init list`, `convert`, `push` and `verify`."""

from __future__ import annotations

import argparse

from ghn_init.cli.arguments import Commands, add_upload, layer, upload_options


def add_parsers(commands: Commands) -> None:
    """Add the commands to `ghn-init`."""
    _add_list(commands)
    _add_convert(commands)
    _add_push(commands)
    _add_verify(commands)


def _add_list(commands: Commands) -> None:
    parser = commands.add_parser("list", help="show the methods and the checkpoints")
    parser.add_argument("place", nargs="?", metavar="hf-hub:ORG/NAME",
                        help="show the checkpoints in a repository on the Hub")  # fmt: skip
    parser.add_argument("--cached", action="store_true", help="checkpoints on this machine only")
    parser.set_defaults(run=_list)


def _list(options: argparse.Namespace) -> None:
    from ghn_init.loading import DEFAULTS, EMBEDDED, KNOWN, checkpoints_on_hub, list_cached
    from ghn_init.loading.hub import REPOSITORY
    from ghn_init.methods.registry import METHODS

    if options.place:
        print("\n".join(checkpoints_on_hub(options.place)))
        return
    cached = list_cached()
    if options.cached:
        for checkpoint in cached:
            origin = checkpoint.origin
            revision = f"@{origin.revision}" if origin.revision else ""
            print(f"{checkpoint.name:<12} {origin.sha256}  {origin.source}{revision}")
        return
    names = {checkpoint.name for checkpoint in cached}
    print("methods:", ", ".join(METHODS))
    print("checkpoints:")
    for name in KNOWN:
        remarks = [f"default of {arch}" for arch, default in DEFAULTS.items() if default == name]
        remarks += ["cached"] if name in names else []
        print(f"  {name:<12}{', '.join(remarks)}".rstrip())
    print(f"  {EMBEDDED:<12}part of this package; default of ghn3 where there is no network")
    print("  hf-hub:ORGANIZATION/NAME[/FILE][@REVISION], local-dir:FOLDER, or the path of a file")
    print(f"  `ghn-init list hf-hub:{REPOSITORY}` shows what else the authors have published")


def _add_convert(commands: Commands) -> None:
    parser = commands.add_parser("convert", help="rewrite a checkpoint as safetensors")
    parser.add_argument("source", metavar="SRC", help="name or path, any known layout")
    parser.add_argument("destination", metavar="DST", help="safetensors file to write")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"),
                        help="to store the weights in; default: as they are")  # fmt: skip
    parser.add_argument("--orth-start", type=layer, metavar="L",
                        help="what `apply` takes by default; default: as before")  # fmt: skip
    parser.add_argument("--norms", type=_norms, metavar="bn,ln|none",
                        help="norms that `apply` takes by default; default: as before")  # fmt: skip
    parser.set_defaults(run=_convert)


def _norms(text: str) -> list[str]:
    return [] if text == "none" else text.split(",")


def _convert(options: argparse.Namespace) -> None:
    from ghn_init.loading import convert

    convert(
        options.source,
        options.destination,
        dtype=options.dtype,
        orth_start=options.orth_start,
        norms=options.norms,
    )
    print(f"written to {options.destination}")


def _add_push(commands: Commands) -> None:
    parser = commands.add_parser(
        "push", help="upload a hypernetwork and its model card to the Hugging Face Hub"
    )
    parser.add_argument("source", metavar="FILE", help="name or path, any known layout")
    parser.add_argument("repository", metavar="ORG/NAME", help="made if it is not there")
    parser.add_argument("--run", dest="folder", metavar="FOLDER",
                        help="of the training run; default: where FILE lies")  # fmt: skip
    add_upload(parser)
    parser.set_defaults(run=_push)


def _push(options: argparse.Namespace) -> None:
    from ghn_init.loading import push_to_hub

    place = push_to_hub(
        options.source, options.repository, run=options.folder, **upload_options(options)
    )
    print(f"uploaded: {place}")


def _add_verify(commands: Commands) -> None:
    parser = commands.add_parser(
        "verify", help="compare a checkpoint's predictions with the published norms"
    )
    parser.add_argument("checkpoint", nargs="?", default="ghn3xlm16", metavar="CHECKPOINT")
    parser.add_argument("--table", metavar="FILE", help="JSON of norms by torchvision model")
    parser.add_argument("--models", metavar="A,B,...", help="default: all in the table")
    parser.add_argument("--example", metavar="FILE", help="a ResNet-50 predicted elsewhere")
    parser.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> int:
    from ghn_init.loading import load_ghn
    from ghn_init.progress import Progress
    from ghn_init.verify import (
        Check,
        published_name,
        published_norms,
        read_table,
        verify,
        verify_example,
    )

    norms = read_table(options.table) if options.table else published_norms(options.checkpoint)
    models = options.models.split(",") if options.models else list(norms)
    ghn = load_ghn(options.checkpoint)
    print(f"{'model':<22}{'expected':>14}{'found':>14}")
    with Progress(len(models), "model") as progress:

        def show(check: Check) -> None:
            progress.write(str(check))
            progress.step()

        checks = verify(ghn, norms, models, show)
    if options.example or published_name(options.checkpoint) == "ghn3xlm16":
        checks.append(verify_example(ghn, options.example))
        print(checks[-1])
    failed = sum(not check.ok for check in checks)
    print(f"{len(checks) - failed} of {len(checks)} checks agree")
    return 1 if failed else 0
