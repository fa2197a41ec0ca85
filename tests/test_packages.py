"""What users install: an sdist and a wheel, complete, and working where the source tree is not."""

from __future__ import annotations

import ast
import configparser
import email
import re
import shlex
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import ghn_init

PACKAGE = Path(ghn_init.__file__).parent
ROOT = PACKAGE.parent

DISTRIBUTIONS = {"PIL": "pillow"}
"""Names of modules that differ from those of their distributions."""

OPTIONAL = {"matplotlib", "scipy", "transformers"}
"""Imported by the functions that need them, which say so where they are missing."""


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    if not parser.read(ROOT / "setup.cfg"):
        pytest.skip("not a source tree")
    return parser


def requirements(text: str) -> dict[str, str]:
    """Distribution -> its minimum."""
    parts = (re.fullmatch(r"([\w-]+)(?:>=([\d.]+))?", line) for line in text.split())
    return {part[1].lower(): part[2] for part in parts if part}


def imported() -> set[str]:
    """The distributions that the package imports from."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module or "")
    names = {name.partition(".")[0] for name in found} - {"ghn_init"} - sys.stdlib_module_names
    return {DISTRIBUTIONS.get(name, name) for name in names}


def test_what_is_imported_is_required(setup: configparser.ConfigParser) -> None:
    required = requirements(setup["options"]["install_requires"])
    assert len(required) > 8
    assert all(required.values()), "without a minimum"
    assert imported() - OPTIONAL == set(required)


def test_extras_have_nothing_that_is_required_anyway(setup: configparser.ConfigParser) -> None:
    required = requirements(setup["options"]["install_requires"])
    assert {"plot", "train", "dev"} <= {*setup["options.extras_require"]}
    for extra, text in setup["options.extras_require"].items():
        assert not set(requirements(text)) & set(required), extra


def test_oldest_corner_is_the_minimums(setup: configparser.ConfigParser) -> None:
    lines = (ROOT / ".ci" / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.lower().split("==") for line in lines if "==" in line)
    for part in (setup["options"]["install_requires"], setup["options.extras_require"]["plot"]):
        for name, minimum in requirements(part).items():
            assert f"{pinned[name]}.0".startswith(f"{minimum}."), name
    newest = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").lower()
    assert set(requirements(setup["options"]["install_requires"])) <= {
        line.partition("==")[0] for line in newest.splitlines()
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist of what git knows, and the wheel that is made from it."""
    pytest.importorskip("build")
    pytest.importorskip("setuptools", "70.1", reason="no setuptools that builds a wheel by itself")
    folder = tmp_path_factory.mktemp("packages")
    tree = folder / "tree"
    tree.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a checkout of git")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "-o", str(folder), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


def test_packages_are_complete(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"README.md", "LICENSE", "setup.py", "checkpoints/ghn3-cifar10.safetensors"} <= inside
    for place in (inside, names):
        assert not [name for name in place if name.startswith("tests")]
    assert {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")} <= names
    assert {"py.typed", "__init__.pyi", "published_norms.json"} <= {Path(n).name for n in names}
    assert {f"ghn_init/checkpoints/ghn3-cifar10.{s}" for s in ("md", "safetensors")} <= names


def test_description_stands_alone(built: Path) -> None:
    """An index page has no source tree that a link or a picture could be in."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    description = str(metadata.get_payload())
    assert "ghn_init.apply(model" in description
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert not re.findall(r"\]\((?!https?://)[^)]*\)", description)
    pytest.importorskip("twine")
    check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.glob("*.*"))]
    done = subprocess.run([c for c in check if not c.endswith("tree")], capture_output=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_wheel_works_in_an_environment_of_its_own(built: Path, tmp_path: Path) -> None:
    """The first commands of the README, from another folder; torch and the rest are lent."""
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    bin_folder = Path(sysconfig.get_path("scripts", "venv", {"base": str(tmp_path / "venv")}))
    python = bin_folder / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(tmp_path / "venv")}))
    lent = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    (own / "lent.pth").write_text("\n".join(dict.fromkeys(lent)), encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^\$ (ghn-init export .*)", readme, re.MULTILINE)
    program, *arguments = shlex.split(command)
    done = subprocess.run(
        [bin_folder / program, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "written to w.safetensors" in done.stdout
    first = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)[1]
    code = f"{first}\nprint(ghn_init.__file__, sum(p.numel() for p in model.parameters()))"
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([python, "-W", "ignore", "-c", code], cwd=tmp_path, env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    where, count = done.stdout.split()
    assert Path(where).is_relative_to(own)
    assert int(count) == 23_528_522
