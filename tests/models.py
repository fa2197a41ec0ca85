"""Small models that the tests share, and builders of the recorded ones."""

from __future__ import annotations

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

# They build their blocks with tensor arithmetic on real numbers, or fill weights slowly.
_SLOW_INIT = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}


def torchvision_model(name: str, **keywords: object) -> nn.Module:
    """A torchvision model without memory behind its parameters, where the builder allows it."""
    device = "cpu" if name.startswith("regnet") else "meta"
    with torch.device(device):
        return torchvision.models.get_model(
            name, weights=None, **_SLOW_INIT.get(name, {}), **keywords
        )


def timm_model(name: str) -> nn.Module:
    """The same of timm; older versions compute while they build."""
    try:
        with torch.device("meta"):
            return timm.create_model(name)
    except (NotImplementedError, RuntimeError):
        return timm.create_model(name)


class ConvNet(nn.Module):
    """Convolutions, batch norm, pooling, a residual sum, a gate and a classifier."""

    def __init__(self, classes: int = 10, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.squeeze = nn.Conv2d(width, 2, 1)
        self.excite = nn.Conv2d(2, width, 1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 2)
        y = self.depthwise(x)
        gate = self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True))))
        x = x + y * torch.sigmoid(gate)
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """One attention block, with torch's fused kernel or spelled out."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.embed = nn.Linear(12, 16)
        self.qkv = nn.Linear(16, 48)
        self.proj = nn.Linear(16, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q @ k.transpose(-2, -1)) * (d // 2) ** -0.5).softmax(dim=-1) @ v
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, d))
        return self.head(x.mean(dim=1))
