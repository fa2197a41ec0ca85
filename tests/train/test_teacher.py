"""Soft labels of a teacher: the loss, its gradient, resuming, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import ALONE, OFTEN, same
from safetensors.torch import save_file
from torch import Tensor, nn

from ghn_init import GHNInitError
from ghn_init.images import load_images
from ghn_init.train.config import TrainConfig
from ghn_init.train.init import initialize
from ghn_init.train.loop import train
from ghn_init.train.networks.nets import load_nets
from ghn_init.train.sampling import MetaBatches
from ghn_init.train.step import Timer, gradients
from ghn_init.train.teacher import Teacher, load_teacher

MakeConfig = Callable[..., TrainConfig]

FACTORY = """
from torch import nn

def mean_color(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))

def deaf(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes + 1))
"""


@pytest.fixture
def teacher(tmp_path: Path) -> dict[str, str]:
    """Fields of a configuration: a teacher that knows bright images from dark ones."""
    (tmp_path / "teachers.py").write_text(FACTORY)
    weights = {"2.weight": torch.tensor([[1.0] * 3, [-1.0] * 3]), "2.bias": torch.zeros(2)}
    save_file(weights, tmp_path / "teacher.safetensors")
    return {
        "teacher": f"{tmp_path / 'teachers.py'}:mean_color",
        "teacher_weights": str(tmp_path / "teacher.safetensors"),
    }


def test_the_loss_is_that_of_hinton_et_al() -> None:
    """Computed here by probabilities, one image at a time."""
    torch.manual_seed(0)
    logits, taught = torch.randn(4, 3), torch.randn(4, 3)
    teacher = Teacher(nn.Identity(), 0.3, 2.5, {})
    apart = []
    for mine, others in zip(logits, taught, strict=True):
        p, q = ((x / 2.5).exp() / (x / 2.5).exp().sum() for x in (others, mine))
        apart.append(sum(a * (a / b).log() for a, b in zip(p, q, strict=True)))
    expected = 0.7 * 1.25 + 0.3 * 2.5**2 * sum(apart) / 4
    found = teacher.mixed(torch.tensor(1.25), logits, teacher.soft_labels(taught))
    assert found.item() == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("own_images", [False, True])
def test_every_network_learns_the_soft_labels_of_its_own_images(
    config: MakeConfig, teacher: dict[str, str], own_images: bool
) -> None:
    """With a share of 1, labels do not matter, and what the teacher says does."""
    run = config(dropout=0.0, own_images=own_images, teacher_share=1.0, **teacher)
    images = load_images(run.data)
    batch = next(images.train_batches(run.images_per_step, 0, 0, 1))
    networks = MetaBatches(
        load_nets(Path(run.nets), "train"), run.meta_batch, run.widths, run.seed, 2, 32
    )[0]

    def gradient(labels: Tensor, taught_by: Teacher | None) -> Tensor:
        ghn = initialize(run, 2)
        gradients(ghn, networks, replace(batch, labels=labels), run, 0, timer, taught_by)
        return torch.cat([p.grad.flatten() for p in ghn.parameters() if p.grad is not None])

    timer = Timer(ALONE.device)
    found = load_teacher(run, images)
    assert found is not None
    says = gradient(batch.labels, found)
    assert torch.equal(says, gradient(1 - batch.labels, found))
    assert "teacher" in timer.shares()
    sure = replace(found, model=nn.Sequential(found.model, Sure()), temperature=1.0)
    hard = found.model(batch.images).argmax(1)
    torch.testing.assert_close(
        gradient(batch.labels, sure), gradient(hard, None), rtol=1e-3, atol=1e-4
    )


class Sure(nn.Module):
    """Makes soft labels hard."""

    def forward(self, logits: Tensor) -> Tensor:
        return 1e4 * logits


def test_a_run_with_a_teacher_resumes_as_if_it_had_not_been_stopped(
    config: MakeConfig, teacher: dict[str, str], tmp_path: Path
) -> None:
    run = config(cooldown=1, **teacher)
    train(run, tmp_path / "whole", ALONE, OFTEN)
    train(replace(run, steps=2), tmp_path / "parts", ALONE, OFTEN)
    train(run, tmp_path / "parts", ALONE, OFTEN)
    assert same(tmp_path / "parts", tmp_path / "whole")
    with pytest.raises(GHNInitError, match="another temperature"):
        train(replace(run, temperature=3.0), tmp_path / "whole", ALONE, OFTEN)
    without = replace(run, teacher=None, teacher_weights=None)
    train(without, tmp_path / "without", ALONE, OFTEN)
    assert not same(tmp_path / "without", tmp_path / "whole")


def test_another_teacher_is_not_gone_on_with(
    config: MakeConfig, teacher: dict[str, str], tmp_path: Path
) -> None:
    run = config(cooldown=1, **teacher)
    train(replace(run, steps=2), tmp_path / "run", ALONE, OFTEN)
    weights = {"2.weight": torch.zeros(2, 3), "2.bias": torch.zeros(2)}
    save_file(weights, teacher["teacher_weights"])
    with pytest.raises(GHNInitError, match="teacher"):
        train(run, tmp_path / "run", ALONE, OFTEN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_weights": None}, "no weights: give --teacher-weights"),
        ({"teacher": "resnet18"}, "weights of another model"),
        ({"teacher": "resnet0"}, "no model 'resnet0'"),
        ({"teacher_weights": "nowhere.safetensors"}, r"weights: .*nowhere\.safetensors"),
        ({"teacher_weights": __file__}, "weights: .*no known checkpoint layout"),
    ],
)
def test_bad_teachers(
    config: MakeConfig, teacher: dict[str, str], changes: dict[str, str], message: str
) -> None:
    run = config(**{**teacher, **changes})
    with pytest.raises(GHNInitError, match=message):
        load_teacher(run, load_images(run.data))


def test_a_teacher_of_other_classes_is_refused(
    config: MakeConfig, teacher: dict[str, str], tmp_path: Path
) -> None:
    save_file({"2.weight": torch.zeros(3, 3), "2.bias": torch.zeros(3)}, tmp_path / "three")
    deaf = teacher["teacher"].replace("mean_color", "deaf")
    run = config(teacher=deaf, teacher_weights=str(tmp_path / "three"))
    with pytest.raises(GHNInitError, match=r"must be \(2, 2\)"):
        load_teacher(run, load_images(run.data))
