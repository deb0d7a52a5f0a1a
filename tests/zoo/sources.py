"""Checkpoints as their authors write them, of networks that are made here: small where the format allows it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

State = dict[str, Tensor]


def worn(network: nn.Module, seed: int = 0) -> nn.Module:
    """A network as after training: every weight moved by a tenth of its layer's deviation, every norm and statistic elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.named_parameters():
            scale = 0.1 if value.ndim < 2 else 0.3 * float(value.std()) + 1e-4
            value += scale * torch.randn(value.shape, generator=generator)
            assert value.isfinite().all(), name
        for name, value in network.named_buffers():
            if name.endswith("running_mean"):
                value += 0.05 * torch.randn(value.shape, generator=generator)
            elif name.endswith("running_var"):
                value *= 0.5 + torch.rand(value.shape, generator=generator)
            elif name.endswith("num_batches_tracked"):
                value += 7
    return network.eval()


def state_of(network: nn.Module) -> State:
    """A network's state by name, each tensor its own."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def behind(prefix: str, state: Mapping[str, Tensor]) -> State:
    """The state with something before every key."""
    return {prefix + name: value for name, value in state.items()}


def hub_folder(folder: Path, state: State, **config: Any) -> Path:
    """A hub folder as `PyTorchModelHubMixin` writes it, with the files that repositories have beside."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("# a model\n")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    return folder


def saved(path: Path, content: Any) -> Path:
    """What `torch.save` writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


class Payload:
    """An object whose pickle, when followed, runs a command."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call
