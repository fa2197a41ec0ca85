"""What is public: every name of every package is there, and importing one is free."""

from __future__ import annotations

import ast
import configparser
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import ghn_init

ROOT = Path(ghn_init.__file__).parent
PACKAGES = sorted(
    ".".join(("ghn_init", *stub.parent.relative_to(ROOT).parts))
    for stub in ROOT.rglob("__init__.pyi")
)
HEAVY = "{'torch', 'timm', 'torchvision', 'numpy', 'matplotlib', 'PIL', 'tqdm'} & set(sys.modules)"


def run(code: str) -> str:
    command = [sys.executable, "-c", f"import sys\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_there_are_packages() -> None:
    assert {"ghn_init", "ghn_init.analysis", "ghn_init.compare", "ghn_init.train"} <= {*PACKAGES}


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_there(name: str) -> None:
    package = importlib.import_module(name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert package.__all__
    for public in package.__all__:
        value = getattr(package, public)
        assert value is not None
        # Importing a module replaces a function of the same name in its package.
        assert isinstance(value, ModuleType) == (public in modules), public
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError):
        _ = package.nonsense


def imports(file: Path) -> Iterator[tuple[str, str]]:
    """What a script imports from us: `(package, name)`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ghn_init"):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            yield from ((name, "__doc__") for name in names if name.startswith("ghn_init."))


def test_examples_use_public_names_only() -> None:
    examples = ROOT.parent / "examples"
    if not examples.is_dir():
        pytest.skip("not a source tree")
    found = {(file.name, *found) for file in examples.rglob("*.py") for found in imports(file)}
    assert len(found) > 20
    hidden = [
        (file, package, name)
        for file, package, name in found
        if package not in PACKAGES or name not in importlib.import_module(package).__all__
    ]
    assert not hidden


def test_importing_is_free() -> None:
    packages = ", ".join(PACKAGES)
    assert run(f"import {packages}, ghn_init.cli.main; print({HEAVY})") == "set()\n"


@pytest.mark.parametrize("command", ["", "export", "compare", "diagnose", "train run"])
def test_help_is_light(command: str) -> None:
    printed = run(
        "from ghn_init.cli.main import main\n"
        f"try: main({[*command.split(), '--help']})\nexcept SystemExit: pass\nprint({HEAVY})"
    )
    assert printed.startswith("usage: ghn-init")
    assert printed.endswith("set()\n")


def test_stubs_and_packages_are_installed() -> None:
    """A package without its stub cannot be imported."""
    setup = configparser.ConfigParser()
    if not setup.read(ROOT.parent / "setup.cfg"):
        pytest.skip("not a source tree")
    packages = setup["options"]["packages"].split()
    assert {".".join(("ghn_init", *p.parent.relative_to(ROOT).parts))
            for p in ROOT.rglob("__init__.py")} <= {*packages}  # fmt: skip
    assert setup["options.package_data"]["*"].split() == ["*.pyi"]
