"""Methods with settings, as they are written."""

from __future__ import annotations

from typing import Any

import pytest

from ghn_init import METHODS, GHNInitError
from ghn_init.methods import Variant, find_method, parse_method, parse_methods


def variant(name: str, *args: Any, **settings: Any) -> Variant:
    return Variant(find_method(name), *args, **settings)


def test_lists() -> None:
    assert parse_methods(",".join(METHODS)) == tuple(map(variant, METHODS))
    assert parse_methods("rand, ghn3:noise=0 ,ghn3-orth:noise=1e-4,orth_start=20,orth") == (
        variant("rand"),
        variant("ghn3", noise=0.0),
        variant("ghn3-orth", noise=1e-4, orth_start=20),
        variant("orth"),
    )


def test_a_label_is_read_as_the_same_method() -> None:
    methods = [
        variant("ghn3-orth", 0.0, 1),
        variant("ghn3-orth", 0, 1.0),
        variant("ghn2-orth", orth_start=0.685),
        variant("ghn3", 1e-5 / 3),
        variant("rand"),
        variant("ghn3", 0, norms="keep"),
    ]
    labels = [method.label for method in methods]
    assert labels[:3] == [
        "ghn3-orth:noise=0,orth_start=1",
        "ghn3-orth:noise=0,orth_start=1.0",
        "ghn2-orth:orth_start=0.685",
    ]
    assert labels[-1] == "ghn3:noise=0,norms=keep"
    for method, label in zip(methods, labels, strict=True):
        (again,) = parse_methods(label)
        assert again == method
        assert type(again.orth_start) is type(method.orth_start)
    assert parse_methods(",".join(labels)) == tuple(methods)


def test_the_briefest_takes_one_step_of_each() -> None:
    assert parse_method("gradinit:steps=50,batch=8+lsuv").briefest == parse_method(
        "gradinit:steps=1,batch=8+lsuv:steps=1"
    )
    assert parse_method("ghn3-orth:noise=0").briefest == parse_method("ghn3-orth:noise=0")


def test_settings_for_all_methods_that_have_them() -> None:
    methods = parse_methods("rand,orth,ghn3,ghn3-orth:noise=0", noise=1e-3, orth_start=5)
    assert [method.label for method in methods] == [
        "rand",
        "orth",
        "ghn3:noise=0.001",
        "ghn3-orth:noise=0,orth_start=5",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magic", "unknown method 'magic': choose one of ghn3-orth, ghn3"),
        ("", "unknown method ''"),
        ("rand,rand", "one or more different ones"),
        ("ghn3,ghn3-orth,ghn3", "one or more different ones"),
        ("rand:noise=0", "method 'rand' adds no noise"),
        ("rand:orth_start=3", "method 'rand' has no orthogonal step"),
        ("ghn3:orth_start=3", "method 'ghn3' has no orthogonal step"),
        ("ghn3:noise=loud", "'noise=loud' in method 'ghn3:noise=loud': give a number"),
        ("ghn3:noise=nan", "noise: it is nan. Give a number from 0 up"),
        ("ghn3:noise=-1", "from 0 up"),
        ("ghn3-orth:orth_start=1.5", "share of the depth, at most 1"),
        ("ghn3-orth:noise=0,noise=1", "once each"),
        ("ghn3-orth:volume=0", "give one of noise, orth_start, norms"),
        ("orth:norms=keep", "method 'orth' does not write norm"),
        ("ghn3:norms=forget", "unknown norms 'forget': choose one of auto, predict, keep"),
        ("noise=0", "unknown method 'noise=0'"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(GHNInitError, match=message):
        parse_methods(text)
