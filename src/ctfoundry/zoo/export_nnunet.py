"""Weights and plans that plain nnU-Net v2 fine-tunes; of a segmenter also a folder that it predicts with.

nnU-Net has no SegResNet, and builds its networks as ``cls(input_channels=, num_classes=, ...)``, which MONAI's class is not. But its
plans may name any class that can be imported, so the folder holds one (`export_nnunet_network`, torch alone). The plans say the rest
of our preparation with nnU-Net's own means:

- ``CTNormalization`` clips to two bounds, subtracts a mean and divides by a deviation, all four from the plans: with -1024, 2048, -1024
  and 3072 it is our clip to 0..1.
- ``NibabelIOWithReorient`` brings every NIfTI into one orientation, whose array is (S, A, R); ``transpose_forward`` and flips in the
  network make (S, P, L) of it, so scans need no conversion.
- Resampling is linear, on nnU-Net's grid, which lies up to half a voxel off ours; there is no foreground crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctfoundry import files
from ctfoundry.errors import UsageError
from ctfoundry.geometry import Vec3
from ctfoundry.preparation import Preparation
from ctfoundry.segmenter import Segmenter
from ctfoundry.zoo.export import Model, Options, about, shape_of, tensors, write_card

if TYPE_CHECKING:
    from torch import Tensor

MODULE = "ctfoundry_nnunet"
PLANS = "ctfoundryPlans"
CONFIGURATION = "3d_fullres"
READER = "NibabelIOWithReorient"
WEIGHTS = "pretrained.pth"
TRAINED = "trained"
VERIFIED = "nnunetv2 2.8.1, dynamic-network-architectures 0.4.4, torch 2.13 (CPU)"

_ARRAY = "SAR"
"""Directions in which the axes of that reader's arrays run: RAS, last axis first."""
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


def axes(orientation: str) -> tuple[list[int], list[int]]:
    """(transpose, flip): which axis of nnU-Net's array each axis of `orientation` is, and the axes (after that) to flip.

    >>> axes("SPL"), axes("RAS")
    (([0, 1, 2], [1, 2]), ([2, 1, 0], []))
    """
    transpose = [
        next(i for i, letter in enumerate(_ARRAY) if letter in (code, _OPPOSITE[code])) for code in orientation
    ]
    flip = [i for i, code in enumerate(orientation) if code != _ARRAY[transpose[i]]]
    return transpose, flip


def state(model: Model, options: Options) -> dict[str, Tensor]:
    """The network's tensors under the names of `export_nnunet_network`; what the model does not have is drawn from the seed.

    nnU-Net insists on a value for every tensor outside its segmentation layers, so an encoder comes with a fresh decoder.
    """
    from ctfoundry.keys import Key
    from ctfoundry.models.initialisation import initialise
    from ctfoundry.models.segresnet_ds import SegResNetDS

    channels, filters, blocks, up, _ = shape_of(model)
    classes = len(model.names) if isinstance(model, Segmenter) else 2
    whole = SegResNetDS(classes, channels, filters, blocks, up, depth=len(up))  # nnU-Net supervises every resolution
    initialise(whole, Key.of("export-nnunet", options.seed))
    prefix = "" if isinstance(model, Segmenter) else "encoder."
    found = whole.state_dict() | {prefix + name: value for name, value in tensors(model).items()}
    return {_name(name): value.detach().clone().contiguous() for name, value in found.items()}


def _name(ours: str) -> str:
    if not ours.startswith("up_layers."):
        return ours
    _, step, part, *rest = ours.split(".")
    return ".".join(
        ["decoder", "seg_layers", step, *rest] if part == "head" else ["decoder", "up_layers", step, part, *rest]
    )


def plans(model: Model, options: Options) -> dict[str, Any]:
    """nnU-Net's plans; raises UsageError for a preparation that they cannot say."""
    _, filters, blocks, up, _ = shape_of(model)
    spacing, patch = _spacing(model.preparation, options), _patch(model, options, 2 ** (len(blocks) - 1))
    transpose, flip = axes(_orientation(model.preparation))
    low, high = model.preparation.intensity.clip
    strides = [[1, 1, 1]] + [[2, 2, 2]] * (len(blocks) - 1)
    resample = {"order_z": 0, "force_separate_z": False}
    function = "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": f"{PLANS}_{CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": options.batch,
        "patch_size": list(patch),
        "median_image_size_in_voxels": list(patch),
        "spacing": spacing,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": function,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 1, **resample},
        "resampling_fn_seg": function,
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **resample},
        "resampling_fn_probabilities": function,
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **resample},
        "architecture": {
            "network_class_name": f"{MODULE}.SegResNet",
            "arch_kwargs": {
                "filters": filters,
                "blocks": blocks,
                "blocks_up": up,
                "strides": strides,
                "flip": flip,
            },
            "_kw_requires_import": [],
        },
        "batch_dice": False,
    }
    return {
        "dataset_name": options.dataset,
        "plans_name": PLANS,
        "original_median_spacing_after_transp": spacing,
        "original_median_shape_after_transp": list(patch),
        "image_reader_writer": READER,
        "transpose_forward": transpose,
        "transpose_backward": [transpose.index(i) for i in range(3)],
        "configurations": {CONFIGURATION: configuration},
        "experiment_planner_used": "ctfoundry",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {
                "percentile_00_5": low,
                "percentile_99_5": high,
                "mean": low,
                "std": high - low,
                "min": low,
                "max": high,
                "median": low,
            }
        },
    }


def _orientation(preparation: Preparation) -> str:
    intensity = preparation.intensity
    if intensity.norm != "unit" or intensity.windows:
        raise UsageError(f"nnU-Net's plans cannot say the intensities of preparation {preparation.name!r}")
    if preparation.resampling.orientation is None:
        raise UsageError(f"preparation {preparation.name!r} fixes no orientation; nnU-Net's reader needs one")
    return preparation.resampling.orientation


def _spacing(preparation: Preparation, options: Options) -> list[float]:
    asked = options.spacing or preparation.resampling.spacing
    known = [mm for mm in asked if mm is not None]
    if len(known) != 3:
        raise UsageError(
            f"preparation {preparation.name!r} keeps each scan's own spacing; nnU-Net needs one", do="give --spacing"
        )
    return known


def _patch(model: Model, options: Options, multiple: int) -> Vec3:
    from ctfoundry.zoo.segmenters import PUBLISHED

    patch = options.patch or model.card.extent.size or PUBLISHED.size
    assert patch is not None
    if any(n % multiple or n < 1 for n in patch):
        raise UsageError(f"a patch of {patch} voxels; each size must be a multiple of {multiple}", do="give --patch")
    return patch


def write(model: Model, folder: Path, options: Options) -> Sequence[str]:
    """Fill `folder`; returns notes for the user."""
    import torch

    if not options.dataset.startswith("Dataset") or not options.dataset[7:10].isdecimal():
        raise UsageError(f"{options.dataset!r} is no name of an nnU-Net data set", do="such as Dataset501_Liver")
    made, weights = plans(model, options), state(model, options)
    source = resources.files("ctfoundry.zoo").joinpath("export_nnunet_network.py").read_text()
    files.write_text(folder / f"{MODULE}.py", source)
    files.write_json(folder / f"{PLANS}.json", made)
    notes = []
    if isinstance(model, Segmenter):
        if len(model.names) > 256:
            raise UsageError(f"{len(model.names)} outputs; nnU-Net's reader writes label values up to 255")
        place = folder / TRAINED
        (place / "fold_all").mkdir(parents=True)
        files.write_json(place / "plans.json", made)
        labels = {"background": 0} | {name: value for value, name in enumerate(model.names) if value}
        files.write_json(
            place / "dataset.json",
            {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 0, "file_ending": ".nii.gz"},
        )
        torch.save(
            {
                "network_weights": weights,
                "trainer_name": "nnUNetTrainer",
                "init_args": {"configuration": CONFIGURATION},
                "inference_allowed_mirroring_axes": None,
            },
            place / "fold_all" / "checkpoint_final.pth",
        )
        if _depth(model) < len(made["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"]["blocks_up"]):
            notes.append(f"heads of coarse resolutions that the model does not have are drawn from seed {options.seed}")
    else:
        torch.save({"network_weights": weights}, folder / WEIGHTS)
        notes.append(f"the decoder is drawn from seed {options.seed}: an encoder has none, and nnU-Net wants one")
    write_card(model, folder)
    files.write_text(folder / "README.md", _readme(model, made, notes))
    return notes


def _depth(model: Model) -> int:
    return shape_of(model)[4]


def _readme(model: Model, made: dict[str, Any], notes: Sequence[str]) -> str:
    trained = isinstance(model, Segmenter)
    weights = f"{TRAINED}/fold_all/checkpoint_final.pth" if trained else WEIGHTS
    name, number = made["dataset_name"], int(made["dataset_name"][7:10])
    settings = made["configurations"][CONFIGURATION]
    predict = f"""
## Predict without training
```sh
nnUNetv2_predict_from_modelfolder -m EXPORT/{TRAINED} -f all -i IMAGES -o LABELS -step_size 0.375 --disable_tta
```
Files are called `CASE_0000.nii.gz`. A step of 0.375 is ctfoundry's overlap of 0.625; structures of one side must not be mirrored.
"""
    return f"""# {model.card.name} for nnU-Net v2

{about(model)}
Verified with {VERIFIED}. `{MODULE}.py` is the network (torch alone); it must be on `PYTHONPATH` whenever nnU-Net trains or predicts with
these plans, on every machine and also later.

## Fine-tune
EXPORT is this folder, {name} the data set the plans are made for (for another one change `dataset_name` in `{PLANS}.json`). Images and labels
are `.nii.gz` files in any orientation.
```sh
export PYTHONPATH=EXPORT
nnUNetv2_extract_fingerprint -d {number}
cp EXPORT/{PLANS}.json $nnUNet_raw/{name}/dataset.json $nnUNet_preprocessed/{name}/
nnUNetv2_preprocess -d {number} -plans_name {PLANS} -c {CONFIGURATION}
nnUNetv2_train {number} {CONFIGURATION} 0 -p {PLANS} -pretrained_weights EXPORT/{weights}
nnUNetv2_predict -d {number} -c {CONFIGURATION} -f 0 -p {PLANS} -i IMAGES -o LABELS
```
nnU-Net takes over every tensor but its segmentation layers (`.seg_layers.`), which start fresh. {"; ".join(notes)}
Its optimiser starts at a rate of 0.01 (SGD), made for training from scratch; for fine-tuning try one of its trainers with a smaller one
(`-tr nnUNetTrainerAdam3en4`). Its augmentation mirrors all axes: for structures of one side use `-tr nnUNetTrainerNoMirroring`.
{predict if trained else ""}
## What is the same as in ctfoundry, and what is not
- Same: network, weights, clip and scale of HU (`CTNormalization` with the numbers of the plans), orientation, spacing {settings["spacing"]} mm.
- nnU-Net's grid after resampling lies up to half a voxel off ours, it scales before it interpolates, and it does not crop to the
  foreground. Scans on the spacing of the plans are equal voxel by voxel.
- Its targets of coarser resolutions are sampled in the middle of cells; ours lie on voxels 0, s, 2s.
- Patch {settings["patch_size"]}, batch {settings["batch_size"]}: change them in the plans to what your GPU holds (multiples of the network's stride).
- Read `.nii.gz` only: another reader brings other directions of the axes, which nothing would notice.
"""
