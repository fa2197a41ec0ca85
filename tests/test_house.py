"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import ghn_init

PACKAGE = Path(ghn_init.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def lines_without_docstring(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    first = function.body[0]
    docstring = 0
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        assert first.end_lineno is not None
        docstring = first.end_lineno - first.lineno + 1
    return function.end_lineno - function.lineno + 1 - docstring


def test_modules_and_functions_fit_on_screens() -> None:
    assert len(MODULES) > 80
    long = []
    for path in MODULES:
        text = path.read_text()
        if text.count("\n") > 400:
            long.append(f"{path.name}: {text.count(chr(10))} lines")
        for function in functions(ast.parse(text)):
            if lines_without_docstring(function) > 60:
                long.append(f"{path.name}: {function.name} has {lines_without_docstring(function)}")
    assert not long


def test_no_code_looks_into_the_name_of_a_method() -> None:
    """Only the registry, in `methods/`, knows what a method is."""
    parses = re.compile(r"""["']-?orth["']\s*\)|startswith\(["']ghn|endswith\(["']-?orth"""
                        r"""|["']ghn["'] in |\.split\(["']-["']\)""")  # fmt: skip
    found = [
        f"{path.relative_to(PACKAGE)}: {match.group()}"
        for path in MODULES
        if "methods" not in path.parts
        for match in parses.finditer(path.read_text())
    ]
    assert not found


def test_no_submodule_hides_a_name_of_its_package() -> None:
    """Importing `package.name` would put the module in the place of the function `name`."""
    hidden = []
    for stub in PACKAGE.rglob("__init__.pyi"):
        text = stub.read_text()
        names = set(re.findall(r"^from \.[\w.]+ import (\w+) as", text, re.MULTILINE))
        hidden += [f"{stub.parent.name}.{path.stem}" for path in stub.parent.glob("*.py")
                   if path.stem in names]  # fmt: skip
    assert not hidden
