"""A MONAI bundle: our preparation, network, windows and way back as MONAI's own transforms, written as data.

Bundles are code: MONAI evaluates every string that begins with ``$``. Ours are few (folders, the device, loading the weights, the
threshold of the foreground); whoever runs a bundle of somebody else should read them first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctfoundry import __version__, files
from ctfoundry.errors import UsageError
from ctfoundry.preparation import Preparation, air_value
from ctfoundry.segmenter import Segmenter
from ctfoundry.volume import AIR
from ctfoundry.zoo.export import Model, Options, about, shape_of, tensors, write_card

VERIFIED = "monai 1.6.1, pytorch-ignite 0.5.5"
AUTO3DSEG = "auto3dseg/model.pt"


def preprocessing(preparation: Preparation) -> list[dict[str, Any]]:
    """MONAI's transforms for our preparation; raises UsageError for one that has no equal there."""
    settings, sizing, intensity = preparation.resampling, preparation.sizing, preparation.intensity
    plain = intensity.norm == "unit" and not intensity.windows and intensity.stack == "none"
    sized = sizing.minimum is None and sizing.crop is None and sizing.at == "centre" and sizing.pad in ("air", 0.0)
    if not plain or not sized or settings.rule != "monai" or settings.outside != AIR or preparation.accepts != ("hu",):
        raise UsageError(f"preparation {preparation.name!r} is not written as MONAI's transforms here")
    low, high = intensity.clip
    steps = [
        _step("LoadImaged", reader="NibabelReader", image_only=True, ensure_channel_first=True),
        # what scanners write outside their field of view is air and no foreground
        _step("ThresholdIntensityd", threshold=AIR, above=True, cval=AIR),
    ]
    if settings.orientation is not None:
        steps.append(_step("Orientationd", axcodes=settings.orientation, labels=None))
    if settings.foreground is not None:
        found = f"$lambda x: x > {float(settings.foreground.above)!r}"
        steps.append(
            _step(
                "CropForegroundd",
                source_key="image",
                select_fn=found,
                margin=settings.foreground.margin,
                allow_smaller=True,
            )
        )
    if any(mm is not None for mm in settings.spacing):
        if any(mm is None for mm in settings.spacing):
            raise UsageError(f"preparation {preparation.name!r} resamples some axes only")
        steps.append(_step("Spacingd", pixdim=list(settings.spacing), mode="bilinear"))
    steps.append(_step("ScaleIntensityRanged", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True))
    if sizing.multiple != (1, 1, 1):
        steps.append(_step("DivisiblePadd", k=list(sizing.multiple), value=air_value(intensity)))
    steps.append(_step("EnsureTyped"))
    return steps


def _step(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": name, "keys": "image", **arguments}


def network(model: Model) -> dict[str, Any]:
    """MONAI's class and its arguments."""
    channels, filters, blocks, up, depth = shape_of(model)
    shared = {
        "spatial_dims": 3,
        "in_channels": channels,
        "init_filters": filters,
        "blocks_down": blocks,
        "norm": "batch",
    }
    if not isinstance(model, Segmenter):
        return {"_target_": "monai.networks.nets.segresnet_ds.SegResEncoder", **shared}
    return {
        "_target_": "SegResNetDS",
        **shared,
        "out_channels": len(model.names),
        "blocks_up": up,
        "dsdepth": depth,
    }


def inference(model: Model) -> dict[str, Any]:
    """``configs/inference.json``."""
    parts: dict[str, Any] = {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/input'",
        "output_dir": "$@bundle_root + '/output'",
        "data": "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/*.nii.gz'))]",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": network(model),
        "network": "$@network_def.to(@device).eval()",
        "weights": (
            "$@network_def.load_state_dict("
            "torch.load(@bundle_root + '/models/model.pt', map_location=@device, weights_only=True), strict=True)"
        ),
        "preprocessing": {"_target_": "Compose", "transforms": preprocessing(model.preparation)},
        "dataset": {"_target_": "Dataset", "data": "@data", "transform": "@preprocessing"},
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": _inferer(model),
    }
    if not isinstance(model, Segmenter):
        pooled = "{os.path.basename(item['image'].meta['filename_or_obj']): @network(item['image'].as_tensor()[None].to(@device))[-1].mean((2, 3, 4))[0].cpu()"
        return parts | {
            "embeddings": f"${pooled} for item in @dataset}}",
            "run": [
                "$@weights",
                "$torch.set_grad_enabled(False)",
                "$os.makedirs(@output_dir, exist_ok=True)",
                "$torch.save(@embeddings, @output_dir + '/embeddings.pt')",
            ],
        }
    return parts | {
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "seg",
                    "output_dtype": "uint16",
                    "separate_folder": False,
                    "resample": False,
                },
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@weights", "$@evaluator.run()"],
    }


def _inferer(model: Model) -> dict[str, Any]:
    extent = model.card.extent
    if extent.mode == "whole":
        return {"_target_": "SimpleInferer"}
    if extent.mode != "windows" or extent.size is None:
        raise UsageError(f"{model.card.name} sees {extent.mode!r}, which a MONAI bundle does not say")
    return {
        "_target_": "SlidingWindowInferer",
        "roi_size": list(extent.size),
        "sw_batch_size": 1,
        "overlap": extent.overlap,
        "mode": "gaussian" if extent.blend == "gaussian" else "constant",
        "cval": air_value(model.preparation.intensity),
    }


def metadata(model: Model) -> dict[str, Any]:
    """``configs/metadata.json``."""
    import numpy as np
    import torch

    channels, _, blocks, _, _ = shape_of(model)
    card, multiple = model.card, 2 ** (len(blocks) - 1)
    image = {
        "type": "image",
        "format": "hounsfield",
        "modality": "CT",
        "num_channels": channels,
        "spatial_shape": [f"{multiple}*n"] * 3,
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": card.extent.mode == "windows",
        "channel_def": {"0": "image"},
    }
    output = image | {
        "format": "segmentation" if isinstance(model, Segmenter) else "features",
        "num_channels": len(model.names) if isinstance(model, Segmenter) else card.arguments["filters"] * multiple,
        "value_range": [],
        "channel_def": {str(i): name for i, name in enumerate(model.names)} if isinstance(model, Segmenter) else {},
    }
    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by ctfoundry {__version__}"},
        "monai_version": "1.6.1",
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": "5.4.2", "pytorch-ignite": "0.5.5"},
        "name": card.name,
        "task": f"CT {'segmentation' if isinstance(model, Segmenter) else 'embedding'}",
        "description": f"{card.name}: {card.kind} of ctfoundry; see docs/README.md",
        "authors": card.origin or "not stated",
        "copyright": "see LICENSE",
        "intended_use": "research; not a medical device",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": output}},
    }


def write(model: Model, folder: Path, options: Options) -> Sequence[str]:
    """Fill `folder`; returns notes for the user."""
    import torch

    config, state = inference(model), tensors(model)
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir()
    files.write_json(folder / "configs" / "inference.json", config)
    files.write_json(folder / "configs" / "metadata.json", metadata(model))
    torch.save(state, folder / "models" / "model.pt")
    if isinstance(model, Segmenter):
        (folder / AUTO3DSEG).parent.mkdir()
        torch.save({"state_dict": state}, folder / AUTO3DSEG)
    licence = model.card.licence or "not stated in the card: ask whoever gave the weights to you"
    files.write_text(folder / "LICENSE", f"Licence of the weights: {licence}\n")
    text = _readme(model)
    files.write_text(folder / "docs" / "README.md", text)
    files.write_text(folder / "README.md", text)
    write_card(model, folder)
    return ["MONAI runs the strings of configs/*.json that begin with $: bundles are code"]


def _readme(model: Model) -> str:
    segments = isinstance(model, Segmenter)
    made = (
        "label maps on the grids of the scans, `CASE_seg.nii.gz`"
        if segments
        else "`embeddings.pt`: {file name: vector}, the mean of the deepest map"
    )
    network_arguments = network(model)
    auto = f"""
## Auto3DSeg
`{AUTO3DSEG}` has these weights under `state_dict`, as the SegResNet algorithm of Auto3DSeg wants a pretrained checkpoint. Its network must be the same:
in the algorithm's `hyper_parameters.yaml` set `pretrained_ckpt_name` to that file and under `network`: `norm: BATCH`,
`init_filters: {network_arguments["init_filters"]}`, `blocks_down: {network_arguments["blocks_down"]}`, `dsdepth: {network_arguments.get("dsdepth")}`; there are {network_arguments.get("out_channels")} outputs; `orientation: SPL`
and the spacing and intensity range of the table. Verified: MONAI's SegResNetDS with these arguments loads the file strictly. Not tested:
Auto3DSeg itself, which fetches its templates from the network.
"""
    return f"""# {model.card.name}: a MONAI bundle

{about(model)}
Verified with {VERIFIED} on the CPU. Bundles are code: MONAI runs the strings of `configs/inference.json` that begin with `$`.

## Use
```sh
pip install "monai[nibabel,ignite,fire]"
python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir IMAGES --output_dir OUT
```
IMAGES is a folder of CT scans (`*.nii.gz`, HU, any orientation); OUT gets {made}.

The transforms are ctfoundry's preparation. {"Logits go back to the scan's grid before the largest is taken, all of them at once in MONAI: a scan of 512 x 512 x 300 voxels takes 1.2 GB a class. `ctfoundry segment` needs a small part of that." if segments else ""}
{auto if segments else ""}"""
