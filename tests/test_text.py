"""Names in reports."""

from __future__ import annotations

from ghn_init.names import abridged, grouped_by_reason


def test_only_numbers_that_differ_become_stars() -> None:
    names = [f"convnextv2.stages.{i}.norm{k}.weight" for i in (0, 1, 12) for k in (1, 2)]
    assert abridged(names) == "convnextv2.stages.*.norm*.weight (6)"
    assert abridged(names[:2]) == "convnextv2.stages.0.norm*.weight (2)"
    assert abridged([*names[:1], "fc.weight"]) == "convnextv2.stages.0.norm1.weight, fc.weight"
    assert abridged([]) == ""


def test_names_of_one_reason_stand_together() -> None:
    reasons = {"a.0": "x", "b": "y", "a.1": "x"}
    assert grouped_by_reason(reasons) == [("a.* (2)", "x"), ("b", "y")]
