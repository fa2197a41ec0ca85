"""A plain training loop, alone or under torchrun with DistributedDataParallel."""

from __future__ import annotations

import os

import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from _data import arguments, for_steps, loader
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

import ghn_init


def main() -> None:
    options = arguments(__doc__)
    distributed = "RANK" in os.environ
    if distributed:
        dist.init_process_group("gloo")
    batches = loader(options)
    if distributed:
        batches = loader(options, DistributedSampler(batches.dataset))
    classes = len(batches.dataset.classes)  # type: ignore[attr-defined]

    # Apply before wrapping. Every process does it with the same seed, and gets the same tensors.
    # What is left keeps the initialization of its process: seed that, too.
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("resnet18", num_classes=classes)
    model = ghn_init.apply(model, ghn=options.ghn, seed=0)
    if distributed:
        check_that_all_are_equal(model)
        model = DistributedDataParallel(model)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
    for step, (images, labels) in enumerate(for_steps(batches, options.steps), 1):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == options.steps and (not distributed or dist.get_rank() == 0):
            print(f"step {step}: loss {loss.item():.3f}")
    if distributed:
        dist.destroy_process_group()


def check_that_all_are_equal(model: nn.Module) -> None:
    """Stop if a process holds other parameters than process 0."""
    for name, parameter in model.named_parameters():
        first = parameter.detach().clone()
        dist.broadcast(first, src=0)
        if not torch.equal(first, parameter):
            raise RuntimeError(f"process {dist.get_rank()} holds another {name} than process 0")


if __name__ == "__main__":
    main()
