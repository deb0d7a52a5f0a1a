"""What frozen features hold: a light decoder on an encoder that is not trained, from few labelled scans.

The encoder sees each training scan once; crops of its maps are kept, and the decoder learns from these for a fixed number of
steps. Whole validation scans are then segmented on the prepared grid and scored by patient. Everything random is a function
of the seed, so that two encoders see the same scans, crops and order.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ctfoundry.adapt.cases import IGNORE
from ctfoundry.adapt.kept import preparation_digest
from ctfoundry.adapt.prepared import PreparedCase
from ctfoundry.adapt.scores import Scores, class_counts
from ctfoundry.adapt.segmentation import CaseSource, CropDraws, anchors, cut, dice_cross_entropy, draw_crop
from ctfoundry.encoder import WHOLE_CAP_BYTES, Encoder
from ctfoundry.errors import ContractError, UsageError
from ctfoundry.geometry import Vec3
from ctfoundry.infer import passes
from ctfoundry.infer.passes import Extent
from ctfoundry.keys import Key
from ctfoundry.models.decoders import LightDecoder, crop_cells
from ctfoundry.models.initialisation import initialise
from ctfoundry.models.levels import Level
from ctfoundry.train import LoopSettings, Optimiser, Schedule, fit

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from torch import Tensor


@dataclass(frozen=True)
class ProbeSettings:
    """How a probe is trained; the same for every encoder that is compared.

    Attributes
    ----------
    levels : maps of the encoder that the decoder sees; none named: all.
    decoder : ``light`` (`LightDecoder`) or ``linear`` (its linear form).
    width : channels that each level is brought to.
    steps, batch, rate, weight_decay : of the decoder's training (AdamW, warm-up of a tenth, then half a cosine).
    patch : voxels of a crop, rounded up to whole cells of the deepest level.
    crops : of each training scan; all that the decoder ever sees.
    seed : of crops, order and the decoder's first weights.
    """

    levels: tuple[str, ...] = ()
    decoder: Literal["light", "linear"] = "light"
    width: int = 16
    steps: int = 150
    batch: int = 4
    rate: float = 3e-2
    weight_decay: float = 1e-4
    patch: Vec3 = (16, 32, 32)
    crops: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.width, self.steps, self.batch, self.crops, *self.patch) < 1:
            raise ValueError("width, steps, batch, crops and patch are at least 1")


DEFAULTS = ProbeSettings()


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """What a probe came to.

    Attributes
    ----------
    scores : on the validation scans.
    train, validation : how many patients.
    loss : the last one logged.
    seconds : spent on ``features``, ``training`` and ``validation``.
    warnings : of cases and classes.
    """

    scores: Scores
    train: int
    validation: int
    loss: float
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def probe_segmentation(
    encoder: Encoder,
    train: Sequence[PreparedCase],
    validation: Sequence[PreparedCase],
    settings: ProbeSettings = DEFAULTS,
    *,
    method: str = "",
) -> ProbeResult:
    """Train a light decoder on the frozen encoder and score it on whole validation scans.

    Parameters
    ----------
    encoder : stays as it is: weights and running statistics.
    train, validation : cases of the encoder's own preparation (`Cases`), with the same classes; no patient in both.
    method : what the scores are called (default: the card's name and weights).

    Raises ContractError for cases of another preparation or of other classes, and for a patient in both parts.
    """
    names, warnings = _checked(encoder, train, validation)
    levels = tuple(encoder.level(name) for name in settings.levels) or encoder.levels
    began = time.perf_counter()
    crops = feature_crops(encoder, train, levels, settings)
    featured = time.perf_counter()
    decoder = _trained(crops, levels, len(names) + 1, settings, encoder.device)
    trained = time.perf_counter()
    counts = [
        class_counts(decoder[0].segment(maps, case.shape).cpu().numpy(), case.labels, len(names))
        for case in validation
        for maps in (encoder_maps(encoder, case, levels),)
    ]
    done = time.perf_counter()
    title = method or f"{encoder.card.name}, {encoder.card.weights} weights"
    scores = Scores(title, names, tuple(case.patient for case in validation), np.stack(counts), settings.seed)
    seen = {int(c) for crop in crops for c in np.unique(crop.labels.numpy())}
    held = {int(c) for case in validation for c in np.unique(case.labels)}
    never = [names[c - 1] for c in sorted(held - seen) if 0 < c < IGNORE]
    if never:
        warnings.append(f"never seen in training, so never found: {', '.join(never)}")
    return ProbeResult(
        scores,
        len({case.patient for case in train}),
        len({case.patient for case in validation}),
        decoder[1],
        {"features": featured - began, "training": trained - featured, "validation": done - trained},
        tuple(warnings),
    )


def _checked(
    encoder: Encoder, train: Sequence[PreparedCase], validation: Sequence[PreparedCase]
) -> tuple[tuple[str, ...], list[str]]:
    if not len(train) or not len(validation):
        raise UsageError(f"a probe needs training and validation scans, not {len(train)} and {len(validation)}")
    wanted = preparation_digest(encoder.preparation)
    warnings: list[str] = []
    names = train[0].classes
    patients: dict[str, set[str]] = {"train": set(), "validation": set()}
    for part, cases in (("train", train), ("validation", validation)):
        for case in cases:
            if case.preparation != wanted:
                raise ContractError(
                    f"was not prepared as {encoder.preparation.name!r} of {encoder.card.name!r}",
                    where=case.id,
                    do="make the cases with the encoder's own preparation: Cases(scans, encoder.preparation, classes)",
                )
            if case.classes != names:
                raise ContractError("has other classes than the first training scan", where=case.id)
            patients[part].add(case.patient)
            warnings += case.warnings
    both = sorted(patients["train"] & patients["validation"])
    if both:
        raise ContractError(
            f"patient {both[0]} is in training and in validation", do="put all scans of a patient into one split"
        )
    return names, warnings


@torch.no_grad()
def encoder_maps(
    encoder: Encoder, case: PreparedCase, levels: Sequence[Level]
) -> dict[str, Float[Tensor, "1 c d h w"]]:
    """Maps of a whole prepared case under the encoder's extent; a cube becomes windows of its size, so that all is seen.

    Raises ContractError when one pass would take more than 16 GiB.
    """
    x = case.x().to(encoder.device)
    extent, backbone = encoder.extent, encoder.network
    if extent.mode == "cube":
        extent = Extent("windows", extent.size)
    need = backbone.peak_bytes(case.shape) if extent.mode == "whole" else 0  # type: ignore[operator]
    if need > WHOLE_CAP_BYTES:
        raise ContractError(
            f"one pass over {case.shape} voxels takes about {need / 2**30:.0f} GiB",
            where=case.id,
            do="probe with a coarser preparation, or an encoder of extent 'windows'",
        )
    names = tuple(level.name for level in levels)
    d, h, w = (max(level.stride[axis] for level in encoder.levels) for axis in range(3))
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for piece in passes.run(lambda b: encoder.raw(b, names), x, tuple(levels), extent, (d, h, w)):
        for name, (_, data) in piece.maps.items():
            parts[name].append(data.float())
    return {name: torch.cat(data, 1)[None] for name, data in parts.items()}


@dataclass(frozen=True, eq=False)
class FeatureCrop:
    """A crop of an encoder's maps (`crop_cells`) with its labels."""

    maps: dict[str, Float[Tensor, "c d h w"]]
    labels: UInt8[Tensor, "d h w"]


def feature_crops(
    encoder: Encoder, cases: Sequence[PreparedCase], levels: Sequence[Level], settings: ProbeSettings
) -> list[FeatureCrop]:
    """`settings.crops` class-balanced crops of each case's maps; the encoder sees whole scans, as in validation."""
    deepest = [max(level.stride[axis] for level in levels) for axis in range(3)]
    multiple: Vec3 = (deepest[0], deepest[1], deepest[2])
    p = [-(-n // m) * m for n, m in zip(settings.patch, multiple, strict=True)]
    patch: Vec3 = (p[0], p[1], p[2])
    found = []
    for number, case in enumerate(cases):
        maps = {name: data[0] for name, data in encoder_maps(encoder, case, levels).items()}
        places = anchors(case.labels)
        for i in range(settings.crops):
            key = Key.of("probe", settings.seed, "crop", number, i)
            start = draw_crop(key, places, case.shape, patch, multiple)
            cells = {
                level.name: _repeated(crop_cells(maps[level.name], level, start, patch), level, patch)
                for level in levels
            }
            found.append(FeatureCrop(cells, cut(case, start, patch)[1]))
    return found


def _repeated(data: Float[Tensor, "c d h w"], level: Level, patch: Vec3) -> Float[Tensor, "c d2 h2 w2"]:
    """A copy of a crop's cells with the far border repeated, so that all crops are of one size."""
    full = [n // s + (s > 1) + (o > 0) for n, s, o in zip(patch, level.stride, level.offset, strict=True)]
    grow = [v for have, want in zip(reversed(data.shape[1:]), reversed(full), strict=True) for v in (0, want - have)]
    return torch.nn.functional.pad(data[None], grow, mode="replicate")[0].clone()


def _moments(crops: Sequence[FeatureCrop], level: str) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel over all crops, in float64."""
    rows = [crop.maps[level].flatten(1) for crop in crops]
    count = sum(r.shape[1] for r in rows)
    mean = sum((r.double().sum(1) for r in rows), torch.zeros((), dtype=torch.float64)) / count
    square = sum(((r.double() - mean[:, None]).square().sum(1) for r in rows), torch.zeros((), dtype=torch.float64))
    return mean, (square / count).sqrt()


class DecoderTask:
    """Train a decoder on crops of frozen features."""

    separable = False  # the decoder's batch norm sees all crops of a step

    def __init__(self, decoder: LightDecoder, crops: Sequence[FeatureCrop]) -> None:
        self.modules = torch.nn.ModuleDict({"decoder": decoder})
        self.crops = crops

    def plan(self, key: Key, entry: Any) -> CropDraws:
        """The crop itself: which ones there are was drawn before."""
        return CropDraws(int(entry.id), (0, 0, 0))

    def batch(self, reads: Any, draws: Sequence[CropDraws], device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """Maps by level and classes."""
        crops = [self.crops[d.case] for d in draws]
        maps = {name: torch.stack([c.maps[name] for c in crops]).to(device) for name in crops[0].maps}
        return maps, torch.stack([c.labels for c in crops]).to(device)

    def losses(self, batch: tuple[dict[str, Tensor], Tensor], step: int) -> dict[str, Tensor]:
        """Dice and cross-entropy."""
        maps, target = batch
        d, h, w = target.shape[1:]
        return {"loss": dice_cross_entropy(self.modules["decoder"](maps, (d, h, w), crop=True), target)}

    def measures(self) -> dict[str, float]:
        """None."""
        return {}

    def after(self, step: int) -> None:
        """Nothing."""

    def state(self) -> dict[str, Any]:
        """Nothing beside the decoder."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Nothing."""


def _trained(
    crops: Sequence[FeatureCrop], levels: Sequence[Level], classes: int, settings: ProbeSettings, device: torch.device
) -> tuple[LightDecoder, float]:
    decoder = LightDecoder(levels, classes, settings.width, linear=settings.decoder == "linear")
    initialise(decoder, Key.of("probe", settings.seed, "decoder"))
    decoder.standardise({level.name: _moments(crops, level.name) for level in levels})
    loop = LoopSettings(
        Schedule(settings.steps, warmup=settings.steps // 10),
        Optimiser(settings.rate, settings.weight_decay, clip=1.0),
        batch=settings.batch,
        seed=settings.seed,
        precision="fp32",
        workers=0,
        log_every=max(settings.steps // 5, 1),
        checkpoint_every=settings.steps,
    )
    with tempfile.TemporaryDirectory(prefix="ctfoundry-probe-") as folder:
        # a probe takes seconds: nothing of its run is worth keeping
        summary = fit(DecoderTask(decoder, crops), CaseSource(crops), loop, Path(folder), device=device, quiet=True)
    return decoder.eval(), float(summary.last["loss"])


def random_twin(encoder: Encoder, seed: int = 0) -> Encoder:
    """An encoder of the same architecture and preparation with random weights."""
    from ctfoundry.zoo.models import build

    card = replace(encoder.card, weights="random", seed=seed, sha256="", training={})
    return Encoder.of(build(card).to(encoder.device), card)
