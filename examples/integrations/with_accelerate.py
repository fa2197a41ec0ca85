"""A training loop on accelerate."""

from __future__ import annotations

import timm
import torch
import torch.nn.functional as F
from _data import arguments, for_steps, loader
from accelerate import Accelerator

import ghn_init


def main() -> None:
    options = arguments(__doc__)
    accelerator = Accelerator()
    batches = loader(options)
    classes = len(batches.dataset.classes)  # type: ignore[attr-defined]

    model = timm.create_model("resnet18", num_classes=classes)
    model = ghn_init.apply(model, ghn=options.ghn)  # before prepare
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)

    loss = torch.zeros(())
    for images, labels in for_steps(batches, options.steps):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
    accelerator.print(f"step {options.steps}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
