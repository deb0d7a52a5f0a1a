"""What a public weight file holds: which network, under which prefix, and what else lies beside it.

The keys decide. A network is recognised by one key that no other has; what stands before that key is the wrapper that a training
framework put around it. Everything else in the file must be something known, which is then dropped by name and count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctfoundry import files
from ctfoundry.errors import UsageError, WeightsError
from ctfoundry.zoo.headers import check_size, inside, read_json, read_safetensors
from ctfoundry.zoo.pickles import read_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    State = dict[str, Tensor]

ANCHORS = {
    "segresnet-encoder": "conv_init.weight",
    "flexible-vit": "patch_embed_3D.proj.weight",
    "suprem-unet": "down_tr64.ops.0.conv1.weight",
    "suprem-segresnet": "convInit.conv.weight",
}
"""One key of each architecture that no other has."""

WRAPPERS = frozenset({"model", "module", "_orig_mod", "backbone", "trunk", "encoder", "vision_model"})
"""Names that frameworks put before a network's own keys (DataParallel, torch.compile, Lightning, the wrapper classes)."""

CONTAINERS = ("state_dict", "net", "teacher", "model")
"""Entries of a checkpoint that hold weights, as Lightning, SuPreM and FlexiCT name them."""

BESIDE = {
    "segresnet-encoder": {
        "up_layers": "decoder",
        "projection_head": "projection head",
        "prediction_head": "predictor",
        "predictor": "predictor",
        "head": "head",
    },
    "flexible-vit": {
        "dino_head": "DINO head",
        "ibot_head": "iBOT head",
        "text_model": "text tower",
        "logit_scale": "similarity scale",
        "vlm_vision_projection": "projection to text",
    },
    "suprem-unet": {
        "up_tr256": "decoder", "up_tr128": "decoder", "up_tr64": "decoder", "out_tr": "decoder",
        "organ_embedding": "text-driven head", "precls_conv": "text-driven head", "GAP": "text-driven head",
        "controller": "text-driven head", "text_to_vision": "text-driven head",
    },
    "suprem-segresnet": {
        "up_layers": "decoder", "up_samples": "decoder", "conv_final": "decoder",
        "organ_embedding": "text-driven head", "precls_conv": "text-driven head", "GAP": "text-driven head",
        "controller": "text-driven head", "text_to_vision": "text-driven head",
    },
}  # fmt: skip
"""What may lie beside an encoder in a file, by the first name after the wrappers. It is dropped, and said."""

CONFIG = {
    "spatial_dims": (3,),
    "in_channels": (),
    "out_channels": (),
    "init_filters": (),
    "blocks_down": (),
    "blocks_up": (None, [1, 1, 1, 1]),
    "dsdepth": (1, 2, 3, 4),
    "act": ("relu", ["relu", {"inplace": True}], ["relu", {}]),
    "norm": ("batch", ["batch", {}], ["batch"]),
    "preprocess": (None,),
    "upsample_mode": ("deconv",),
    "resolution": (None,),
    "anisotropic_scales": (None,),
    "head_module": (None,),
}
"""Keys of a CT-FM hub ``config.json`` (the arguments of MONAI's classes) and the values that our network is equal to; no values:
compared with the weights."""


@dataclass(frozen=True)
class Raw:
    """The tensors of a source as they stand in it.

    Attributes
    ----------
    state : tensors by name.
    container : the entry of the checkpoint they stand in; empty for none.
    others : entries of the checkpoint that are no weights.
    config : ``config.json``, where there is one.
    path : of the weight file.
    hashes : SHA-256 of each file read, by its name.
    """

    state: State
    container: str
    others: tuple[str, ...]
    config: Mapping[str, Any] | None
    path: Path
    hashes: Mapping[str, str]


@dataclass(frozen=True)
class Found:
    """The network in a source.

    Attributes
    ----------
    architecture : a name of `ctfoundry.zoo.models.ARCHITECTURES`.
    arguments : of it, as far as keys and shapes tell.
    state : its tensors under their own names.
    beside : tensors that are none of the encoder's, by their names in the source; all of them known.
    dropped : their count by prefix and what it is.
    """

    architecture: str
    arguments: Mapping[str, Any]
    state: State
    beside: State
    dropped: Mapping[str, int]


def weight_file(source: Path) -> tuple[Path, Path | None]:
    """The weight file of a source, and ``config.json`` beside it: a file itself, or ``model.safetensors`` of a hub folder.

    Other files of the folder are left alone. Raises WeightsError or UsageError.
    """
    if not source.is_dir():
        if not source.exists():
            raise UsageError(f"{source}: no such file or folder")
        return source, None
    config = inside(source, "config.json")
    weights = inside(source, "model.safetensors")
    if weights is not None:
        return weights, config
    if inside(source, "model.safetensors.index.json") is not None:
        raise WeightsError(
            "its weights are split over several files", where=source, do="join them into model.safetensors"
        )
    near = sorted(
        p.name for p in source.iterdir() if p.suffix in (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".torch")
    )
    listed = f"; there are {', '.join(near[:5])}" if near else ""
    raise WeightsError(f"has no model.safetensors{listed}", where=source, do="give the weight file itself")


def read(source: Path) -> Raw:
    """All tensors of a source, safely; see `ctfoundry.zoo.headers` and `ctfoundry.zoo.pickles` for what is refused."""
    path, config_path = weight_file(source)
    check_size(path)
    config = None if config_path is None else read_json(config_path)
    hashes = {path.name: files.sha256(path)}
    if config_path is not None:
        hashes["config.json"] = files.sha256(config_path)
    with open(path, "rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return Raw(read_safetensors(path), "", (), config, path, hashes)
    state, container, others = _tensors(read_checkpoint(path), path)
    return Raw(state, container, others, config, path, hashes)


def _tensors(content: Any, path: Path) -> tuple[State, str, tuple[str, ...]]:
    import torch

    if not isinstance(content, dict):
        raise WeightsError(f"holds no table of weights but a {type(content).__name__}", where=path)
    held = [name for name in CONTAINERS if isinstance(content.get(name), dict)]
    if held:
        table, container = content[held[0]], held[0]
        others = tuple(sorted(str(name) for name in content if name != container))
    else:
        table, container, others = content, "", ()
    odd = [
        str(name) for name, value in table.items() if not isinstance(value, torch.Tensor) or not isinstance(name, str)
    ]
    if odd or not table:
        what = f"{len(odd)} entries are no tensors: {', '.join(odd[:3])}" if odd else "it is empty"
        raise WeightsError(
            f"holds no table of weights; {what}", where=path, do=f"it is looked for in {', '.join(CONTAINERS)}"
        )
    strange = [
        name
        for name, value in table.items()
        if value.layout != torch.strided or value.is_quantized or value.is_complex()
    ]
    if strange:
        raise WeightsError(
            f"{len(strange)} tensors are sparse, quantised or complex: {', '.join(strange[:3])}", where=path
        )
    return {name: value.detach() for name, value in table.items()}, container, others


def find(raw: Raw) -> Found:
    """The network of a source; raises WeightsError when there is none, several, or something unknown beside it."""
    places = [
        (kind, key.removesuffix(anchor))
        for kind, anchor in ANCHORS.items()
        for key in raw.state
        if (key == anchor or key.endswith("." + anchor)) and set(_parts(key.removesuffix(anchor))) <= WRAPPERS
    ]
    if not places:
        names = ", ".join(list(raw.state)[:3])
        raise WeightsError(
            f"holds no network that is known here; its {len(raw.state)} tensors begin with {names}",
            where=raw.path,
            do="known are CT-FM's SegResNet, FlexiCT's vision transformer, SuPreM's U-Net and SegResNet",
        )
    if len(places) > 1:
        listed = ", ".join(f"{kind} behind {prefix or 'nothing'!r}" for kind, prefix in places)
        raise WeightsError(f"holds {len(places)} networks: {listed}", where=raw.path, do="save one of them alone")
    (kind, prefix), known = places[0], BESIDE[places[0][0]]
    state: State = {}
    beside: State = {}
    dropped: Counter[str] = Counter()
    for key, value in raw.state.items():
        own = key.removeprefix(prefix) if key.startswith(prefix) else None
        rest = own if own is not None else ".".join(_unwrapped(key))
        first = rest.split(".")[0]
        if first in known:
            beside[key] = value
            at = key.index(first) + len(first)
            dropped[f"{key[:at]} ({known[first]})"] += 1
        elif own is not None:
            state[own] = value
        else:
            state[key] = value  # nothing known: the comparison with the network will list it
    return Found(kind, _arguments(kind, state), state, beside, dict(dropped))


def _parts(prefix: str) -> list[str]:
    return [part for part in prefix.split(".") if part]


def _unwrapped(key: str) -> list[str]:
    parts = key.split(".")
    while len(parts) > 1 and parts[0] in WRAPPERS:
        parts = parts[1:]
    return parts


def _arguments(kind: str, state: State) -> dict[str, Any]:
    first = state[ANCHORS[kind]]
    if first.ndim != 5:
        return {}
    if kind == "flexible-vit":
        blocks = {key.split(".")[1] for key in state if key.startswith("blocks.")}
        return {"width": first.shape[0], "blocks": len(blocks), "in_channels": first.shape[1]}
    made: dict[str, Any] = {"in_channels": first.shape[1], "filters": first.shape[0]}
    if kind in ("segresnet-encoder", "suprem-segresnet"):
        within = "layers.{}.blocks.{}." if kind == "segresnet-encoder" else "down_layers.{}.{}.norm"
        first_block = 0 if kind == "segresnet-encoder" else 1
        blocks_down: list[int] = []
        while len(blocks_down) < 16:
            count = 0
            while any(key.startswith(within.format(len(blocks_down), count + first_block)) for key in state):
                count += 1
            if not count:
                break
            blocks_down.append(count)
        made["blocks"] = blocks_down
    return made


def classes(found: Found) -> int | None:
    """Output classes of the decoder beside an encoder, or None where there is no decoder with a head."""
    heads = [v for key, v in found.beside.items() if key.endswith("head.weight") and "up_layers" in key and v.ndim == 5]
    return int(heads[-1].shape[0]) if heads else None


PAIR = ("text_model", "logit_scale", "vlm_vision_projection")
"""What stands beside the trunk in FlexiCT's report stage."""


def with_text(found: Found) -> Found:
    """Trunk, text tower, projection and scale of FlexiCT's report stage, under `ImageText`'s names."""
    pair = {key: ".".join(_unwrapped(key)) for key in found.beside}
    kept = {key: name for key, name in pair.items() if name.split(".")[0] in PAIR}
    state = {f"vision_model.{name}": value for name, value in found.state.items()}
    state |= {name: found.beside[key] for key, name in kept.items()}
    beside = {key: value for key, value in found.beside.items() if key not in kept}
    dropped = {what: count for what, count in found.dropped.items() if not any(part in what for part in PAIR)}
    return Found("flexict-vlm", found.arguments, state, beside, dropped)


def with_decoder(found: Found, where: Path) -> State:
    """Encoder and decoder of a CT-FM segmentation model under `SegResNetDS`'s names, or of SuPreM's U-Net under its own; raises
    WeightsError where there is no decoder."""
    if found.architecture == "suprem-unet" and found.beside:
        own = {".".join(_unwrapped(key)): value for key, value in found.beside.items()}
        decoder = {name: value for name, value in own.items() if name.split(".")[0].startswith(("up_tr", "out_tr"))}
        if decoder:
            return {**found.state, **decoder}
    if found.architecture != "segresnet-encoder" or classes(found) is None:
        raise WeightsError("has no decoder: it is an encoder alone", where=where, do="give a segmentation model")
    decoder = {key[key.index("up_layers.") :]: value for key, value in found.beside.items() if "up_layers." in key}
    return {f"encoder.{name}": value for name, value in found.state.items()} | decoder


def check_config(config: Mapping[str, Any], found: Found, where: Path) -> None:
    """Raise WeightsError where a hub ``config.json`` says something else than the weights, or something unknown."""
    if found.architecture != "segresnet-encoder":
        raise WeightsError(
            "config.json beside weights of another family", where=where, do="give the weight file itself"
        )
    unknown = sorted(set(config) - set(CONFIG))
    if unknown:
        raise WeightsError(
            f"config.json has {len(unknown)} unknown keys: {', '.join(map(str, unknown[:3]))}", where=where
        )
    held = {
        "in_channels": found.arguments.get("in_channels"),
        "init_filters": found.arguments.get("filters"),
        "blocks_down": found.arguments.get("blocks"),
        "out_channels": classes(found) if found.beside else config.get("out_channels"),
    }
    for key, value in config.items():
        if key in held and value != held[key] and held[key] is not None:
            raise WeightsError(f"config.json says {key} {value}, the weights have {held[key]}", where=where)
        if CONFIG[key] and value not in CONFIG[key]:
            raise WeightsError(f"config.json says {key} {value!r}, which this network has not", where=where)
