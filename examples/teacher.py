"""A teacher for the training of a hypernetwork: a small ResNet, trained on CIFAR-10.

    python examples/teacher.py --data imagefolder:cifar10 --holdout 5000 -o teacher.safetensors
    ghn-init train run ... --teacher examples/teacher.py:small_resnet \\
        --teacher-weights teacher.safetensors

Its soft labels say of every image which classes it resembles, and so tell the target networks more
than one class does (Hinton et al., 2015, https://arxiv.org/abs/1503.02531). It sees the images as
the training of a hypernetwork gives them, and none of those that are held out.

It takes about twenty minutes of one core with AMX.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from ghn_init.images import Images, load_images, top1


def small_resnet(num_classes: int = 10) -> nn.Module:
    """A ResNet-18 of half the width, with a stem for images of 32 x 32."""
    model = timm.create_model("resnet18", channels=(32, 64, 128, 256), num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def train(model: nn.Module, images: Images, steps: int, batch_size: int, lr: float) -> None:
    """SGD with Nesterov momentum and one cycle of the learning rate, in bfloat16."""
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.2)
    batches = images.train_batches(batch_size, 0, 0, steps)
    with tqdm(batches, total=steps, unit="step", mininterval=5) as line:
        for batch in line:
            with torch.autocast(batch.images.device.type, torch.bfloat16):
                logits = model(batch.images.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            line.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="imagefolder:PATH or torchvision:NAME:PATH")
    parser.add_argument("--holdout", type=int, default=0, help="as of the hypernetwork's training")
    parser.add_argument("--epochs", type=int, default=6, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--lr", type=float, default=0.15, help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    images = load_images(options.data, "train", holdout=options.holdout)
    torch.manual_seed(0)
    model = small_resnet(len(images.classes))
    steps = options.epochs * (len(images.labels) // options.batch_size)
    train(model, images, steps, options.batch_size, options.lr)
    if options.holdout:
        held_out = load_images(options.data, "holdout", holdout=options.holdout)
        accuracy, _ = top1(model.eval(), held_out, 250)
        print(f"accuracy on {options.holdout} images held out: {accuracy:.1f}%")
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, options.output)


if __name__ == "__main__":
    main()
