"""What is drawn follows the distributions of MONAI's transforms, and draws know nothing of one another.

Two-sample tests (Kolmogorov and Smirnov for numbers, chi-square for counts) at fixed seeds, each at p > 0.001; the wrong
distributions that somebody might take instead are refused by the same tests.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ctfoundry.keys import Key
from ctfoundry.pretrain.task import CropTask
from ctfoundry.pretrain.views import ViewDraw, ViewSettings, draw_view
from ctfoundry.store import Store
from ctfoundry.train.data import Quarantine, Samples
from pretrain.toys import make_store, recipe

LEVEL = 1e-3
COUNT = 3000
SIZE = (32, 128, 128)
PAPER = ViewSettings(affine=0.2, intensity_scale=0.5, intensity_shift=0.5)
EVERY = ViewSettings(flip=0.5, shift=1, smooth=1, affine=1, intensity_scale=1, intensity_shift=1)


def drawn(count: int = COUNT, settings: ViewSettings = PAPER, name: str = "drawn") -> list[ViewDraw]:
    return [draw_view(Key.of("distribution", name, i), settings, SIZE) for i in range(count)]


def p_value(one: Any, two: Any) -> float:
    """Of the hypothesis that two samples have one distribution."""
    a, b = np.asarray(one), np.asarray(two)
    if a.dtype.kind == "f":
        return float(stats.ks_2samp(a, b).pvalue)
    edges = np.unique(np.quantile(np.concatenate([a, b]), np.linspace(0, 1, 13)[1:-1], method="nearest"))
    counts = np.stack([np.bincount(np.searchsorted(edges, s), minlength=len(edges) + 1) for s in (a, b)])
    return float(stats.chi2_contingency(counts[:, counts.sum(0) > 0]).pvalue)


def agree(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert len(ours[name]) > 500
        assert p_value(ours[name], values) > LEVEL, name


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("store"), count=3)


@pytest.mark.monai
def test_crop_positions_are_those_of_rand_spatial_crop_samples(scans: Store) -> None:
    """Positions of a plan against MONAI's, in the prepared scan, axis by axis and all three together."""
    from monai.transforms import RandSpatialCropSamples

    task, entry = CropTask(recipe(crops=40)), scans.entries[0]
    ours = np.array([start for k in range(60) for start in task.plan(Key.of("positions", k), entry).starts])
    shape = [high - low for low, high in entry.box_soft]
    crops = RandSpatialCropSamples((8, 16, 16), num_samples=40, random_size=False).set_random_state(0)
    theirs = []
    for _ in range(len(ours)):
        crops.cropper.randomize(shape)
        theirs.append([part.start for part in crops.cropper._slices])
    both = {}
    for name, starts in (("ours", ours), ("theirs", np.array(theirs))):
        d, h, w = starts.T
        part = [np.minimum(s * 4 // (n - c + 1), 3) for s, n, c in zip((d, h, w), shape, (8, 16, 16), strict=True)]
        both[name] = {"d": d, "h": h, "w": w, "octants": (part[0] // 2 * 4 + part[1] // 2 * 2 + part[2] // 2)}
    agree(both["ours"], both["theirs"])
    # a position too few, as `randint(0, room)` would have it, is seen
    room = shape[0] - 8
    assert p_value(both["ours"]["d"], np.random.RandomState(1).randint(0, room, len(ours))) < LEVEL


@pytest.mark.monai
def test_boxes_of_the_resized_crop_are_those_of_rand_scale_crop() -> None:
    """One scale for all axes, lengths rounded up, any position."""
    from monai.transforms import RandScaleCrop

    random, crop = np.random.RandomState(0), RandScaleCrop(roi_scale=1.0, random_size=False)
    crop.set_random_state(1)
    boxes, scales = [], []
    for _ in range(COUNT):
        scales.append(random.uniform(0.33, 1.0))
        crop.roi_scale = scales[-1]
        crop.randomize(SIZE)
        boxes.append([(part.start, part.stop - part.start) for part in crop._slices])

    def features(scale: list[float], box: np.ndarray) -> dict[str, Any]:
        start, size = box[..., 0], box[..., 1]
        room = np.array(SIZE) - size
        share = (start + 0.5) / (room + 1)  # the middle of the position's own cell
        found: dict[str, Any] = {"scale": scale}
        for axis, name in enumerate("dhw"):
            found |= {
                f"size {name}": size[:, axis],
                f"start {name}": start[:, axis],
                f"end {name}": (room - start)[:, axis],
            }
            found[f"share {name}"] = (share[room[:, axis] > 9, axis] * 5).astype(int)
        return found

    ours = drawn()
    agree(
        features([d.scale for d in ours], np.array([list(zip(d.start, d.size, strict=True)) for d in ours])),
        features(scales, np.array(boxes)),
    )
    # a scale of the volume instead of the length, and a position that is always the middle, are seen
    volume = [s ** (1 / 3) for s in scales]
    assert p_value([d.scale for d in ours], volume) < LEVEL
    middle = [(128 - b[2][1]) // 2 for b in boxes]
    assert p_value([d.start[2] for d in ours], middle) < LEVEL


@pytest.mark.monai
def test_flip_histogram_shift_and_smoothing_are_drawn_as_monai_draws_them() -> None:
    from monai.transforms import RandFlip, RandGaussianSmooth, RandHistogramShift

    sigma = (0.25, 1.5)
    flip = RandFlip(prob=0.5, spatial_axis=0).set_random_state(0)
    shift = RandHistogramShift(num_control_points=5, prob=0.5).set_random_state(1)
    smooth = RandGaussianSmooth(sigma, sigma, sigma, prob=0.5).set_random_state(2)
    on: dict[str, list[bool]] = {"flip": [], "shift": [], "smooth": []}
    control, widths = [], []
    for _ in range(COUNT):
        flip.randomize(None)
        shift.randomize(None)
        smooth.randomize(None)
        for name, transform in (("flip", flip), ("shift", shift), ("smooth", smooth)):
            on[name].append(transform._do_transform)
        if shift._do_transform:
            control.append(shift.floating_control_points)
        if smooth._do_transform:
            widths.append((smooth.x, smooth.y, smooth.z))
    ours = drawn()

    def features(on: dict[str, Any], control: Any, widths: Any) -> dict[str, Any]:
        control, widths = np.array(control), np.array(widths)
        found: dict[str, Any] = {name: np.array(values, dtype=int) for name, values in on.items()}
        found["together"] = found["flip"] * 4 + found["shift"] * 2 + found["smooth"]
        found |= {f"point {k}": control[:, k] for k in (1, 2, 3)}
        found |= {f"gap {k}": np.diff(control, axis=1)[:, k] for k in range(4)}
        return found | {f"sigma {name}": widths[:, axis] for axis, name in enumerate("dhw")}

    agree(
        features(
            {
                "flip": [d.flip for d in ours],
                "shift": [d.control is not None for d in ours],
                "smooth": [d.sigma is not None for d in ours],
            },
            [d.control for d in ours if d.control],
            [d.sigma for d in ours if d.sigma],
        ),
        features(on, control, widths),
    )
    # sorted uniform points, the obvious other way to draw rising ones, are seen
    rising = np.sort(np.random.RandomState(3).uniform(size=(len(control), 3)))
    assert p_value([d.control[1] for d in ours if d.control], rising[:, 0]) < LEVEL


@pytest.mark.monai
def test_the_papers_additions_are_drawn_as_monai_draws_them() -> None:
    from monai.transforms import RandAffine, RandScaleIntensity, RandShiftIntensity

    affine = RandAffine(prob=0.2, rotate_range=(0.26,) * 3, scale_range=(0.2,) * 3).set_random_state(0)
    scale = RandScaleIntensity(0.3, prob=0.5).set_random_state(1)
    shift = RandShiftIntensity(0.1, prob=0.5).set_random_state(2)
    affine.rand_affine_grid.set_random_state(3)
    turned, factors, offsets = [], [], []
    for _ in range(COUNT):
        affine.randomize()
        scale.randomize()
        shift.randomize()
        if affine._do_transform:
            turned.append([*affine.rand_affine_grid.rotate_params, *affine.rand_affine_grid.scale_params])
        factors.append(scale.factor if scale._do_transform else np.nan)
        offsets.append(shift._offset if shift._do_transform else np.nan)
    ours = drawn()

    def features(turned: Any, factors: Any, offsets: Any) -> dict[str, Any]:
        turned, factors, offsets = np.array(turned), np.array(factors, float), np.array(offsets, float)
        scaled, shifted = np.isfinite(factors), np.isfinite(offsets)
        found: dict[str, Any] = {
            "turned": (np.arange(COUNT) < len(turned)).astype(int),
            "scaled and shifted": scaled * 2 + shifted,
            "factor": factors[scaled],
            "offset": offsets[shifted],
        }
        return found | {
            f"{what} {k}": turned[:, 3 * s + k] for s, what in enumerate(("angle", "scale")) for k in range(3)
        }

    agree(
        features(
            [[*d.affine_rotation, *d.affine_scale] for d in ours if d.affine_rotation],
            [np.nan if d.intensity_factor is None else d.intensity_factor for d in ours],
            [np.nan if d.intensity_offset is None else d.intensity_offset for d in ours],
        ),
        features(turned, factors, offsets),
    )


def numbers(draw: ViewDraw) -> list[float]:
    """Every decision of a view as a number; positions as a share of their room, which the scale says nothing about."""
    assert draw.control
    assert draw.sigma
    assert draw.affine_rotation
    shares = [(a + 0.5) / (n - b + 1) for a, b, n in zip(draw.start, draw.size, SIZE, strict=True)]
    control = draw.control
    inner = [(control[k] - control[k - 1]) / ((k + 1) / 4 - control[k - 1]) for k in (1, 2, 3)]
    rest = [draw.intensity_factor or 0.0, draw.intensity_offset or 0.0]
    return [draw.scale, *shares, draw.flip, *inner, *draw.sigma, *draw.affine_rotation, *draw.affine_scale, *rest]


def strongest(one: np.ndarray, two: np.ndarray | None = None) -> tuple[float, float]:
    """The strongest correlation between decisions of two sets of views (or of different ones of one), and the largest that
    independent ones show once in a thousand times."""
    k = one.shape[1]
    table = np.corrcoef(one.T, two.T)[:k, k:] if two is not None else np.corrcoef(one.T) - np.eye(k)
    pairs = table.size if two is not None else table.size / 2
    return float(np.abs(table).max()), float(stats.norm.isf(LEVEL / (2 * pairs)) / np.sqrt(len(one)))


def test_views_crops_epochs_and_scans_are_independent() -> None:
    """Correlations of every decision of one view with every decision of the other: both views of a crop, two crops, two
    epochs, two scans, two seeds; and among the decisions of one view."""

    def views(
        *, seed: int = 0, epoch: int = 0, scan: str = "a", crop: int = 0, view: int = 0, count: int = COUNT
    ) -> np.ndarray:
        # the path of a key in training, with the count in the place of the epoch's beginning
        keys = (Key.of("train", seed)("sample", 2 * k + epoch, scan)("crop", crop, "view", view) for k in range(count))
        return np.array([numbers(draw_view(key, EVERY, SIZE)) for key in keys])

    first, second = views(), views(view=1)
    found, limit = strongest(first)
    assert found < limit
    for name, other in {
        "view": second,
        "crop": views(crop=1),
        "epoch": views(epoch=1),
        "scan": views(scan="b"),
        "seed": views(seed=1),
    }.items():
        found, limit = strongest(first, other)
        assert found < limit, name
    leaking = first.copy()
    leaking[: COUNT // 8] = second[: COUNT // 8]  # an eighth of the views repeated is seen
    assert strongest(leaking, second)[0] > limit


def test_decisions_of_one_view_do_not_move_together_with_crop_positions(scans: Store) -> None:
    task, entry = CropTask(recipe(crops=8, crop=(8, 16, 16), views=EVERY)), scans.entries[0]
    plans = [task.plan(Key.of("together", k), entry) for k in range(150)]
    starts = np.array([s for plan in plans for s in plan.starts], float)
    scales = np.array([[v.scale for v in pair] for plan in plans for pair in plan.views])
    found, limit = strongest(starts, scales)
    assert found < limit
    found, limit = strongest(starts)
    assert found < limit


class Spy:
    """A task that plans as `CropTask` does and reads nothing."""

    def __init__(self) -> None:
        self.task = CropTask(recipe(crops=2))

    def plan(self, key: Key, entry: Any) -> Any:
        plan = self.task.plan(key, entry)
        return type("Draws", (), {"boxes": (), "decided": (entry.id, plan.starts, plan.views)})()


def test_workers_and_epochs_repeat_nothing(scans: Store, tmp_path: Path) -> None:
    """The published pretraining drew with generators that every worker and epoch began anew (reference, section 5): all of them
    saw the same crops. Ours: any number of workers gives the same samples, and no crop or view comes twice."""

    def seen(workers: int) -> list[Any]:
        quarantine = Quarantine(tmp_path / "quarantine.jsonl", len(scans), 0.5)
        with Samples(Spy(), scans, Key.of("train", 0), quarantine, start=0, workers=workers, ahead=4) as samples:  # type: ignore[arg-type]
            return [sample.draws.decided for sample in samples.take(4 * len(scans))]

    alone = seen(0)
    assert seen(1) == seen(3) == alone
    views = [view for _, _, pairs in alone for view in itertools.chain(*pairs)]
    assert len(set(views)) == len(views) == 4 * 3 * 2 * 2
    assert len({(id, start) for id, starts, _ in alone for start in starts}) == 4 * 3 * 2
