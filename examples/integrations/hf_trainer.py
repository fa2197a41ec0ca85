"""Hugging Face Trainer with an image classification model."""

from __future__ import annotations

import torch
from _data import arguments, image_folder
from transformers import (
    AutoModelForImageClassification,
    ResNetConfig,
    Trainer,
    TrainingArguments,
)

import ghn_init


def main() -> None:
    options = arguments(__doc__)
    data = image_folder(options)
    config = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64, 64],
        depths=[1, 1, 1, 1],
        layer_type="basic",
    )
    config.num_labels = len(data.classes)
    model = AutoModelForImageClassification.from_config(config)  # type: ignore[no-untyped-call]

    trainer = Trainer(
        model=ghn_init.apply(model, ghn=options.ghn),
        args=TrainingArguments(
            output_dir="runs/hf_trainer",
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            save_strategy="no",
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=data,
        data_collator=collate,
    )
    result = trainer.train()
    print(f"step {options.steps}: loss {result.training_loss:.3f}")


def collate(items: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    """Images and labels under the names that the model takes."""
    images, labels = zip(*items, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


if __name__ == "__main__":
    main()
