"""A folder in the layout of CT-FM's public hub repositories (reference, 3.7): ``config.json``, ``model.safetensors``, a model card.

It is a model folder of ours at the same time (``model.json``), and what ``zoo convert`` reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ctfoundry import files
from ctfoundry.segmenter import Segmenter
from ctfoundry.zoo.export import Model, Options, about, shape_of, tensors, write_card


def config(model: Model) -> dict[str, Any]:
    """The arguments of MONAI's class, as ``config.json`` of the public repositories has them."""
    channels, filters, blocks, up, depth = shape_of(model)
    data: dict[str, Any] = {
        "spatial_dims": 3,
        "in_channels": channels,
        "init_filters": filters,
        "blocks_down": blocks,
    }
    if isinstance(model, Segmenter):
        data |= {"out_channels": len(model.names), "dsdepth": depth}
        if any(count != 1 for count in up):
            data["blocks_up"] = up
    return data


def write(model: Model, folder: Path, options: Options) -> Sequence[str]:
    """Fill `folder`; returns notes for the user."""
    from safetensors.torch import save_file

    save_file(tensors(model), folder / "model.safetensors")
    files.write_json(folder / "config.json", config(model))
    card = replace(model.card, sha256=files.sha256(folder / "model.safetensors"))
    write_card(replace(model, card=card), folder, "model.json")
    files.write_text(folder / "README.md", _readme(model))
    return []


def _readme(model: Model) -> str:
    kind = "SegResNet" if isinstance(model, Segmenter) else "SegResEncoder"
    task = "image-segmentation" if isinstance(model, Segmenter) else "image-feature-extraction"
    head = {
        "library_name": "project-lighter",
        "pipeline_tag": task,
        "tags": ["lighter", "ctfoundry", "computed-tomography", "medical-imaging"],
    }
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())
    names = ""
    if isinstance(model, Segmenter):
        names = "\n## Outputs\n" + "\n".join(f"{i}. {name}" for i, name in enumerate(model.names, 0)) + "\n"
    network = "SegResNetDS" if kind == "SegResNet" else kind
    options = f"**{json.dumps(config(model))}"
    note = (
        ""
        if kind == "SegResNet"
        else "The network returns five maps, strides 1 to 16; their last one is the feature map.\n"
    )
    return f"""---
{front}
---
# {model.card.name}

{about(model)}
The licence is that of the weights above; set `license:` at the head of this file before you publish the folder, if you may.

## Use
```python
import ctfoundry as ct
model = ct.{"load_segmenter" if kind == "SegResNet" else "load_encoder"}("THIS_FOLDER")   # with the right preparation

from lighter_zoo import {kind}                       # the library of the public repositories
model = {kind}.from_pretrained("THIS_FOLDER")        # loads without strictness: check that no key was left out

from monai.networks.nets import {network}
from safetensors.torch import load_file
model = {network}({options})
model.load_state_dict(load_file("model.safetensors"))      # strict
```
{note}Only ctfoundry applies the preparation of the table (`model.json`); with the others it is yours to do.
{names}"""
