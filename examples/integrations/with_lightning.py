# mypy: allow-subclassing-any
"""PyTorch Lightning: apply in configure_model, which runs once on every process."""

from __future__ import annotations

import lightning
import timm
import torch
import torch.nn.functional as F
from _data import arguments, loader
from torch import Tensor, nn

import ghn_init


class Classifier(lightning.LightningModule):
    """A ResNet-18 that is initialized where Lightning builds models."""

    def __init__(self, classes: int, ghn: str) -> None:
        super().__init__()
        self.classes, self.ghn = classes, ghn
        self.model: nn.Module | None = None

    def configure_model(self) -> None:
        if self.model is None:
            model = timm.create_model("resnet18", num_classes=self.classes)
            self.model = ghn_init.apply(model, ghn=self.ghn)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        assert self.model is not None
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.1)


def main() -> None:
    options = arguments(__doc__)
    batches = loader(options)
    classes = len(batches.dataset.classes)  # type: ignore[attr-defined]
    trainer = lightning.Trainer(
        max_steps=options.steps,
        max_epochs=-1,
        accelerator="auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(Classifier(classes, options.ghn), batches)
    print(f"step {trainer.global_step}: done")


if __name__ == "__main__":
    main()
