"""Comparisons: what they are made of, and how they go on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghn_init import GHN, GHNConfig, GHNInitError, apply
from ghn_init.compare import Comparison, FineTuning, Outcome, Point, Split, load_split
from ghn_init.compare import run as run_module
from ghn_init.compare.finetune import evaluate, fine_tune, runnable_format
from ghn_init.images import Images
from ghn_init.methods import Variant

Run = Callable[..., Comparison]
Build = Callable[..., Callable[[int], nn.Module]]


def hypernetwork(classes: int = 1000, seed: int = 0) -> GHN:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = GHNConfig("ghn3", 16, 2, 8, (16, 16, 11, 11), classes)
        return GHN(config, f"seeded {classes} {seed}").eval()


def curves(result: Comparison) -> dict[str, list[tuple[Any, ...]]]:
    """What is the same on every machine."""
    return {row.method: [(o.curve, o.diverged_at) for o in row.outcomes] for row in result.rows}


def without_times(result: Comparison) -> Comparison:
    rows = (
        replace(row, outcomes=tuple(replace(o, initializing=0.0) for o in row.outcomes))
        for row in result.rows
    )
    return replace(result, rows=tuple(rows))


def test_the_same_arguments_give_the_same_results(run: Run) -> None:
    state = torch.get_rng_state()
    first = run("rand,orth,ghn3-orth", ghn=hypernetwork())
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    second = run("ghn3-orth,orth,rand", ghn=hypernetwork())
    assert curves(first) == curves(second)
    assert len({str(found) for found in curves(first).values()}) == 3
    for row in first.rows:
        assert row.outcomes[0].curve != row.outcomes[1].curve
        assert [step for step, _ in row.outcomes[0].curve] == [2, 4]


def test_all_methods_of_a_seed_see_the_same_images(run: Run, build: Build) -> None:
    """In the same order, cropped and mirrored alike; and start with the same classifier."""
    seen: list[list[torch.Tensor]] = []
    heads: list[torch.Tensor] = []

    def recording(seed: int) -> nn.Module:
        model = build()(seed)
        batches: list[torch.Tensor] = []

        def hook(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            if module.training and inputs[0].device.type == "cpu" and len(inputs[0]) == 8:
                if not batches:
                    seen.append(batches)
                    heads.append(module.get_parameter("9.weight").detach().clone())
                batches.append(inputs[0].clone())

        model.register_forward_pre_hook(hook)
        return model

    run("rand,orth,ghn3", recording, ghn=hypernetwork(2))
    assert [len(batches) for batches in seen] == [4] * 6
    for seed in (0, 3):  # three methods each
        for other in (seed + 1, seed + 2):
            assert all(torch.equal(a, b) for a, b in zip(seen[seed], seen[other], strict=True))
            assert torch.equal(heads[seed], heads[other])
    assert not torch.equal(seen[0][0], seen[3][0])
    assert not torch.equal(heads[0], heads[3])


def test_a_classifier_may_be_predicted(run: Run) -> None:
    kept, predicted = (run("ghn3", ghn=hypernetwork(2), how={"head": h}) for h in ("keep", "auto"))
    assert kept.rows[0].outcomes[0].predicted < predicted.rows[0].outcomes[0].predicted == 1
    with pytest.raises(GHNInitError, match="unknown head 'sometimes'"):
        run("ghn3", ghn=hypernetwork(2), how={"head": "sometimes"})


def test_training_learns(run: Run) -> None:
    """Bright and dark images are told apart in the end, and not in the beginning."""
    how = {"steps": 60, "batch_size": 16, "eval_every": 1}
    (row,) = run("rand", how=how, seeds=1, points=[Point(0.02)]).rows
    assert row.outcomes[0].curve[0][1] < 80
    assert row.outcomes[0].accuracy is not None
    assert row.outcomes[0].accuracy > 90


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_is_the_plain_recipe(optimizer: str, build: Build, data: Split) -> None:
    """Written out: the schedule, the clipped gradient, the optimizer's weight decay."""
    how, point = FineTuning(6, 8, optimizer, clip=0.1), Point(0.05, 0.3)
    model, other = build("Views")(0), build("Views")(0)
    fine_tune(model, data.train, data.test, how, point, 7, (6,), lambda step, loss: None)
    parameters = list(other.parameters())
    steps = (
        torch.optim.AdamW(parameters, weight_decay=0.3)
        if optimizer == "adamw"
        else torch.optim.SGD(parameters, momentum=0.9, weight_decay=0.3)
    )
    for step, (images, labels) in enumerate(data.train.train_batches(8, 7, 0, 6)):
        steps.param_groups[0]["lr"] = how.learning_rate(0.05, step)
        steps.zero_grad()
        F.cross_entropy(other(images.contiguous()), labels).backward()
        norm = nn.utils.clip_grad_norm_(parameters, 0.1)
        assert norm > 0.1
        steps.step()
    for a, b in zip(model.parameters(), parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_methods_are_applied_with_their_settings(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    applied = []

    def recording(model: nn.Module, method: Variant, **keywords: Any) -> Any:
        applied.append((method.label, *[keywords[name] for name in ("seed", "head", "ghn")]))
        return apply(model, method, **keywords)

    monkeypatch.setattr(run_module, "apply", recording)
    ghn = hypernetwork()
    method = "ghn3-orth:noise=0,orth_start=2,norms=keep"
    run(f"orth,{method}", ghn=ghn, points=[Point(1e-2), Point(1e-3)])
    seeds = (0, -1, -1, 0, 1)
    orth = [("orth", seed, "keep", None) for seed in seeds]
    ghn3 = [(method, seed, "keep", ghn) for seed in seeds]
    assert [call for call in applied if call[0] == "orth"] == orth
    assert [call for call in applied if call[0] != "orth"] == ghn3


def test_evaluation_uses_running_statistics_and_changes_nothing(build: Build, data: Split) -> None:
    model = build()(0).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = []
    hook = model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    how = FineTuning(1, 8)
    assert evaluate(model, data.test, how) == evaluate(model, data.test, replace(how, batch_size=3))
    assert modes == [False] * (2 + 6)
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    hook.remove()
    fine_tune(model, data.train, data.test, how, Point(1e-3), 0, (1,), lambda step, loss: None)
    assert not torch.equal(model.get_buffer("1.running_mean"), before["1.running_mean"])


# -- the file


def test_an_interrupted_comparison_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"points": [Point(1e-2), Point(1e-3)]}
    whole = run(**arguments)
    made = 0

    def counting(*args: Any) -> Outcome:
        nonlocal made
        if made == limit:
            raise KeyboardInterrupt
        made += 1
        return fine_tune(*args)

    monkeypatch.setattr(run_module, "fine_tune", counting)
    file = tmp_path / "results.json"
    for limit in (3, 6):  # in the choice, and behind it
        with pytest.raises(KeyboardInterrupt):
            run(results=file, **arguments)
        assert len(json.loads(file.read_text())["runs"]) == limit
    limit = 100
    resumed = run(results=file, **arguments)
    assert made == 8
    assert curves(resumed) == curves(whole)
    assert without_times(resumed).table() == without_times(whole).table()
    assert run(results=file, **arguments).table() == resumed.table()
    assert made == 8


def test_methods_and_seeds_can_be_added(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "results.json"
    run("rand", results=file, seeds=1)
    run("orth,ghn3", results=file, seeds=2, ghn=hypernetwork())
    monkeypatch.setattr(run_module, "fine_tune", lambda *args: pytest.fail("it was there already"))
    found = run("ghn3,orth", results=file, seeds=2, ghn=hypernetwork())
    assert [row.method for row in found.rows] == ["ghn3", "orth"]
    assert len(run("rand", results=file, seeds=1).rows[0].outcomes) == 1
    methods = [entry["method"] for entry in json.loads(file.read_text())["runs"]]
    assert sorted(methods) == ["ghn3", "ghn3", "orth", "orth", "rand"]


def test_other_settings_are_refused_by_name(run: Run, tmp_path: Path, data: Split) -> None:
    file = tmp_path / "results.json"
    run("rand,ghn3", results=file, seeds=1, ghn=hypernetwork())
    run("orth", results=file, seeds=1)  # it leaves the checkpoint of the others in the file
    before = file.read_bytes()
    for changes, message in (
        ({"how": {"steps": 6}}, r"other settings: steps \(4 then, 6 now\)\. Give"),
        ({"how": {"clip": 1.0}}, r"clip \(5\.0 then, 1\.0 now\)"),
        ({"how": {"eval_every": 1}}, "eval_every"),
        ({"name": "another"}, r"model \(model then, another now\)"),
        ({"model": "depthwise"}, "parameters"),
        ({"data": replace(data, test=data.train)}, "test images"),
        ({"data": replace(data, train=data.test)}, "training images"),
    ):
        with pytest.raises(GHNInitError, match=message):
            run("rand", results=file, **changes)
    with pytest.raises(GHNInitError, match=r"ghn3 checkpoint \(seeded 1000 0 then, seeded 10"):
        run("ghn3", results=file, ghn=hypernetwork(seed=1))
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"settings": {}, "runs": [{}]}', '{"settings": 1, "runs": []}']
)
def test_a_damaged_file(text: str, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(GHNInitError, match="does not hold such results"):
        run("rand", results=file)
    assert file.read_text() == text


def test_a_folder_that_is_not_there_is_noticed_before_the_first_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "fine_tune", lambda *args: pytest.fail("too late"))
    with pytest.raises(GHNInitError, match="cannot write"):
        run("rand", results=tmp_path / "missing" / "results.json")


# -- choosing


def test_hyperparameters_are_chosen_on_images_that_were_held_out(
    run: Run, data: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is best on the test images, or for another method, has no say."""
    points = [Point(lr, decay) for lr in (1e-3, 1e-2) for decay in (0.0, 0.1)]
    trials: dict[Point, float] = dict(zip(points, (50.0, 70.0, 70.0, 60.0), strict=True))
    looked: list[tuple[Images, Point, int]] = []

    def fake(
        model: nn.Module, train: Images, evaluation: Images, how: FineTuning, point: Point,
        seed: int, *rest: Any,
    ) -> Outcome:  # fmt: skip
        looked.append((evaluation, point, seed))
        is_orth = bool(torch.linalg.norm(model.get_parameter("3.weight")) > 2.5)
        if evaluation is data.validation:
            accuracy = trials[point] if not is_orth else 100 - trials[point]
        else:
            accuracy = 100 - trials[point]
        return Outcome(((how.steps, accuracy),))

    monkeypatch.setattr(run_module, "fine_tune", fake)
    rand, orth = run(points=points).rows
    assert rand.point == points[1]  # the first of two equals
    assert rand.choice == trials
    assert orth.point == points[0]
    assert [row.mean for row in (rand, orth)] == [30, 50]
    assert [images is data.validation for images, _, _ in looked] == [True] * 8 + [False] * 4
    assert all(images is data.test for images, _, _ in looked[8:])
    assert not {seed for _, _, seed in looked[:8]} & {seed for _, _, seed in looked[8:]}


def test_a_grid_is_widened_where_an_end_is_best(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each method goes on in its own direction, in the grid's ratio, three times at most."""
    tried: list[tuple[bool, float]] = []

    def fake(
        model: nn.Module, train: Images, evaluation: Images, how: FineTuning, point: Point,
        seed: int, *rest: Any,
    ) -> Outcome:  # fmt: skip
        is_orth = bool(torch.linalg.norm(model.get_parameter("3.weight")) > 2.5)
        tried.append((is_orth, point.lr))
        far = math.log10(point.lr / (1e-9 if is_orth else 2e-2))
        return Outcome(((how.steps, 90 - abs(far)),))

    monkeypatch.setattr(run_module, "fine_tune", fake)
    points = [Point(1e-3), Point(1e-2)]
    rand, orth = run(points=points, widen=True, seeds=1).rows
    assert [point.lr for point in rand.choice] == [1e-3, 1e-2, 1e-1]
    assert rand.point.lr == 1e-2
    assert [point.lr for point in orth.choice] == [1e-3, 1e-2, 1e-4, 1e-5, 1e-6]
    assert orth.point.lr == 1e-6
    tried.clear()
    assert run(points=points, seeds=1).rows[0].point.lr == 1e-2
    assert sorted({lr for _, lr in tried}) == [1e-3, 1e-2]


def test_one_point_needs_no_choice(run: Run, data: Split) -> None:
    (row,) = run("rand", data=replace(data, validation=None)).rows
    assert row.choice == {}
    with pytest.raises(GHNInitError, match="2 pairs of learning rate and weight decay"):
        run("rand", data=replace(data, validation=None), points=[Point(1.0), Point(2.0)])


# -- divergence


def test_a_run_that_diverges_ends_and_is_shown(run: Run) -> None:
    how = {"steps": 12, "eval_every": 5, "optimizer": "sgd", "clip": 0.0}
    (row,) = (result := run("rand", how=how, points=[Point(1e30)])).rows
    assert row.diverged == 2
    assert row.mean is None
    for outcome in row.outcomes:
        assert outcome.diverged_at is not None
        assert outcome.diverged_at < 5
        assert all(step < outcome.diverged_at for step, _ in outcome.curve)
    last = result.table().splitlines()[-1]
    assert last.split()[-7:-4] == ["0.01", "diverged", "-"]
    assert last.split()[-3:] == ["2", "of", "2"]


def test_what_diverges_is_not_chosen(run: Run) -> None:
    how = {"optimizer": "sgd", "clip": 0.0, "steps": 8}
    (row,) = run("rand", how=how, points=[Point(1e30), Point(1e-2), Point(1e29)]).rows
    assert row.point == Point(1e-2)
    assert [accuracy is None for accuracy in row.choice.values()] == [True, False, True]
    assert row.diverged == 0


def test_outputs_that_are_not_finite_after_the_last_step(build: Build, data: Split) -> None:
    """No loss shows them, and the accuracy would look like one."""
    model = build()(0)

    def spoil(step: int, loss: float) -> None:
        if step == 2:
            nn.init.constant_(model.get_parameter("9.bias"), float("nan"))

    how = FineTuning(2, 8)
    found = fine_tune(model, data.train, data.test, how, Point(1e-3), 0, how.evaluations(), spoil)
    assert found.diverged_at == 2
    assert [step for step, _ in found.curve] == [1]
    assert found.accuracy is None


# -- models and arguments


def test_memory_formats(build: Build, data: Split, run: Run) -> None:
    how = FineTuning(1, 8)
    for name, expected in (("small", torch.channels_last), ("Views", torch.contiguous_format)):
        build_one = build(name)
        assert (
            runnable_format(lambda build_one=build_one: build_one(0), data.train, how) == expected
        )
    assert run("rand", "Views").rows[0].diverged == 0


def test_large_images_stay_on_the_disk(run: Run, image_folder: Path) -> None:
    large = load_split(str(image_folder), 96, labels=16, test_images=4)
    results = [run("rand", data=large, how={"steps": 2}, seeds=1) for _ in range(2)]
    assert curves(results[0]) == curves(results[1])
    assert results[0].images == (16, 0, 4)


def test_bfloat16_on_a_cpu(run: Run) -> None:
    (row,) = run("rand", how={"precision": "bf16"}).rows
    assert row.diverged == 0
    assert row.outcomes[0].accuracy is not None
    with pytest.raises(GHNInitError, match=r"depthwise .* \(3\.weight\) are wrong or slow"):
        run("rand", "depthwise", how={"precision": "bf16"})
    run("rand", "depthwise", seeds=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "three_outputs"}, r"is \(2, 3\), and the data has 2 classes"),
        ({"model": "large"}, "does not run on images of 3x16x16: .*Kernel size"),
        ({"how": {"batch_size": 33}}, "32 images do not fill a batch of 33"),
        ({"how": {"steps": 0}}, "steps is 0: give 1 or more"),
        ({"how": {"optimizer": "adam"}}, "optimizer is 'adam': give adamw or sgd"),
        ({"how": {"precision": "fp16"}}, "precision is 'fp16'"),
        ({"how": {"clip": float("nan")}}, "clip is nan"),
        ({"seeds": 0}, "seeds is 0"),
        ({"points": []}, "no learning rate"),
        ({"ghn": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"methods": "ghn3", "ghn": "nowhere.safetensors"}, "nowhere.safetensors"),
    ],
)
def test_errors_come_before_any_run(
    arguments: dict[str, Any], message: str, run: Run, tmp_path: Path, cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(run_module, "fine_tune", lambda *args: pytest.fail("too late"))
    with pytest.raises(GHNInitError, match=message):
        run(results=tmp_path / "results.json", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_method_that_fails_does_so_before_any_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "fine_tune", lambda *args: pytest.fail("too late"))
    ghn = hypernetwork()
    for parameter in ghn.parameters():
        nn.init.constant_(parameter, float("nan"))
    with pytest.raises(GHNInitError, match="are not finite"):
        run("rand,ghn3", ghn=ghn, results=tmp_path / "results.json")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_no_method_needs(run: Run) -> None:
    with pytest.raises(GHNInitError, match="is a ghn3, and no method needs one"):
        run("rand,ghn2", ghn=hypernetwork())


@pytest.mark.parametrize(("lr", "decay"), [(0, 0), (-1, 0), (float("inf"), 0), (1, -1)])
def test_impossible_rates(lr: float, decay: float) -> None:
    with pytest.raises(GHNInitError, match=r"give (more than 0|0 or more)"):
        Point(lr, decay)


def test_pretrained_and_relatives(
    run: Run, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pretrained` takes the same model, the others the source; the file says which."""
    trained, other = build()(7), build()(8)
    taken: dict[str, object] = {}

    def watched(model: nn.Module, method: Variant, **keywords: Any) -> Any:
        taken[method.label] = keywords.get("source")
        return apply(model, method, **keywords)

    monkeypatch.setattr(run_module, "apply", watched)
    run(
        "rand,select,pretrained", seeds=1, source=other, pretrained=trained,
        results=tmp_path / "runs.json",
    )  # fmt: skip
    assert taken == {"rand": None, "select": other, "pretrained": trained}
    runs = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert {entry["method"] for entry in runs} == {"rand", "select <- Small", "pretrained <- Small"}
    run("pretrained", seeds=1, source=trained)
    assert taken["pretrained"] is trained


def test_pretrained_is_the_same_model(run: Run) -> None:
    larger = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(16, 2),
    )  # fmt: skip
    with pytest.raises(GHNInitError, match=r"another model: its 0\.weight is"):
        run("pretrained", pretrained=larger)
