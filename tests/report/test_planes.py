"""Pictures are placed in the patient, whatever the array's orientation, spacing and obliquity."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from ctfoundry import geometry
from ctfoundry.errors import UsageError
from ctfoundry.report import planes
from ctfoundry.volume import Volume

CODES = ["".join(c) for order in itertools.permutations(("RL", "AP", "SI")) for c in itertools.product(*order)]
MARKER = np.array([60.0, 45.0, 70.0])
"""Far Right, Anterior and Superior of the middle (0, 0, 0) of the test bodies."""


def coordinates(shape, affine):
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    return geometry.to_world(affine, index)


@functools.cache
def body(spacing=(5.0, 2.0, 3.0), code="SPL", rotation=None, marker=True) -> Volume:
    """An ellipsoid of soft tissue round (0, 0, 0) with a bright ball of 6 mm at the marker, painted in world millimetres."""
    half = {"R": 110, "L": 110, "A": 90, "P": 90, "S": 130, "I": 130}
    shape = tuple(int(2 * half[letter] / step) for letter, step in zip(code, spacing, strict=True))
    affine = np.array(geometry.make_affine(spacing, code, rotation=rotation))
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    world = coordinates(shape, affine)
    voxels = np.full(shape, -1000, np.int16)
    voxels[((world / (95, 75, 115)) ** 2).sum(-1) < 1] = 40
    if marker:
        voxels[np.linalg.norm(world - MARKER, axis=-1) < 6] = 900
    return Volume(voxels, affine)


def bright(picture, panel) -> tuple[float, float]:
    """Centre (row, column) of the marker in a panel."""
    part = picture[panel.top : panel.top + panel.rows, panel.left : panel.left + panel.columns, 0].astype(float)
    part[: panel.rows // 8] = part[-panel.rows // 6 :] = 0  # letters and the scale bar
    part[:, : panel.columns // 8] = part[:, -panel.columns // 8 :] = 0
    rows, columns = np.nonzero(part > 170)
    return rows.mean() + panel.top, columns.mean() + panel.left


def test_there_are_48_codes():
    assert len(set(CODES)) == 48


@functools.cache
def reference() -> np.ndarray:
    return planes.three_planes(body(), point=MARKER, window=(0, 1000), field="scan").astype(int)


@pytest.mark.parametrize("code", CODES)
def test_marker_is_at_one_pixel_in_all_orientations(code):
    volume = body().reorient(code)
    panels = planes.layout(volume, field="scan")
    picture = planes.three_planes(volume, point=MARKER, window=(0, 1000), field="scan")
    assert np.abs(picture.astype(int) - reference()).max() <= 1
    for panel in panels:
        assert bright(picture, panel) == pytest.approx(panel.pixel(MARKER), abs=1.0)


def test_radiological_convention():
    """The patient's Right is left on screen, Anterior is up (left in the sagittal panel), Superior is up: said without `Panel.pixel`."""
    volume = body()
    picture = planes.three_planes(volume, point=MARKER, window=(0, 1000))
    axial, coronal, sagittal = planes.layout(volume)

    def side(panel):
        row, column = bright(picture, panel)
        return (row - panel.top) / panel.rows, (column - panel.left) / panel.columns

    assert axial.letters == "RLAP"
    assert coronal.letters == "RLSI"
    assert sagittal.letters == "APSI"
    for panel in (axial, coronal, sagittal):
        row, column = side(panel)
        assert row < 0.4
        assert column < 0.4


@pytest.mark.parametrize("angles", [(20, 0, 0), (0, 0, 35), (15, -25, 10)])
def test_oblique_grids(angles):
    rotation = np.eye(3)
    for axis, angle in enumerate(np.radians(angles)):
        turn = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        rotation = turn @ rotation
    volume = body.__wrapped__((3.0, 2.0, 2.0), rotation=rotation)
    picture = planes.three_planes(volume, point=MARKER, window=(0, 1000))
    for panel in planes.layout(volume, include=[MARKER]):
        assert bright(picture, panel) == pytest.approx(panel.pixel(MARKER), abs=1.5)


def test_a_ball_is_round_and_of_true_size():
    spacing = (5.0, 1.0, 2.0)
    affine = geometry.make_affine(spacing, "SPL")
    shape = (40, 200, 100)
    middle = geometry.to_world(affine, (np.array(shape) - 1) / 2)
    ball = np.linalg.norm(coordinates(shape, affine) - middle, axis=-1) < 60
    volume = Volume(np.where(ball, 300, -1000).astype(np.int16), affine)
    picture = planes.three_planes(volume, point=middle, window=(0, 10), height=300, field="scan")
    for panel in planes.layout(volume, height=300, field="scan"):
        part = picture[panel.top : panel.top + panel.rows, panel.left : panel.left + panel.columns, 0] > 128
        tall = part[:, panel.columns // 2 - 30 : panel.columns // 2 - 20].any(axis=1).sum() * panel.mm
        wide = part[panel.rows // 2 - 30 : panel.rows // 2 - 20].any(axis=0).sum() * panel.mm
        chord = 2 * np.sqrt(
            60**2 - (25 * panel.mm) ** 2
        )  # rows and columns beside the letters, 20 to 30 pixels off centre
        assert tall == pytest.approx(chord, abs=7)
        assert wide == pytest.approx(chord, abs=7)


def test_scale_bar_has_the_length_that_it_says():
    volume = body(marker=False)
    panel = planes.layout(volume, height=260, field="scan")[0]
    bar = planes.scale_bar(panel)
    assert bar is not None
    pixels, long = bar
    assert long == 50
    assert pixels * panel.mm == pytest.approx(long, abs=panel.mm / 2 + 1e-9)
    picture = planes.three_planes(volume, height=260, field="scan", window=(2000, 10))  # all dark but the ink
    row = picture[panel.top + panel.rows - 6, panel.left : panel.left + 2 * panel.columns // 5, 0]
    assert (row > 200).sum() == pixels


def test_all_panels_share_one_scale_and_the_field_holds_points():
    volume = body()
    far = (105.0, 0.0, 0.0)
    panels = planes.layout(volume, include=[far])
    assert len({panel.mm for panel in panels}) == 1
    row, column = panels[0].pixel(far)
    assert panels[0].left <= column < panels[0].left + panels[0].columns
    assert panels[0].top <= row < panels[0].top + panels[0].rows


def test_picture_box_leaves_the_table_out():
    volume = body((3.0, 3.0, 3.0), marker=False)
    low, high = planes.picture_box(volume)
    voxels = volume.voxels.copy()
    world = coordinates(volume.shape, volume.affine)
    voxels[(world[..., 1] < -82) & (world[..., 1] > -86)] = 100
    assert np.stack(planes.picture_box(volume.with_voxels(voxels))) == pytest.approx(np.stack([low, high]))
    assert low == pytest.approx((-95, -75, -115), abs=12)
    assert high == pytest.approx((95, 75, 115), abs=12)
    assert planes.body_centre(volume) == pytest.approx((0, 0, 0), abs=3)


def test_heat_map_lights_its_own_place_and_nothing_else():
    volume = body(marker=False)
    affine = np.array(geometry.make_affine((20, 20, 20), "LIA"))
    affine[:3, 3] = MARKER - affine[:3, :3] @ (4, 5, 5)
    heat = np.zeros((10, 11, 11), np.float32)
    heat[4, 5, 5] = 1
    plain = planes.three_planes(volume, point=MARKER, field="scan")
    lit = planes.three_planes(volume, point=MARKER, field="scan", overlay=planes.Overlay(heat, affine, smooth=False))
    changed = (plain != lit).any(axis=-1)
    for panel in planes.layout(volume, field="scan"):
        part = changed[panel.top : panel.top + panel.rows, panel.left : panel.left + panel.columns]
        rows, columns = np.nonzero(part)
        assert (rows.mean() + panel.top, columns.mean() + panel.left) == pytest.approx(panel.pixel(MARKER), abs=0.7)
        assert part.sum() * panel.mm**2 == pytest.approx(400, rel=0.15)


def test_values_beside_nothing_stay_true():
    """Linear interpolation must not darken a cell because its neighbour holds no value."""
    volume = body(marker=False)
    values = np.full((*volume.shape, 3), np.nan, np.float32)
    values[:, :, : volume.shape[2] // 2] = (1.0, 0.0, 0.0)
    picture = planes.three_planes(volume, overlay=planes.Overlay(values, alpha=1.0), window=(2000, 10))
    axial = planes.layout(volume)[0]
    row = picture[axial.rows // 3 + axial.top, axial.left : axial.left + axial.columns].astype(int)
    red = (row[:, 0] - row[:, 2])[20:-20]
    assert set(red.tolist()) <= {0, 255}
    assert 0 < (red == 255).sum() < len(red)


def test_labels_are_drawn_in_their_colours():
    labels = Volume((body().voxels > 500).astype(np.uint8) * 7, body().affine, "label", {7: "marker"})
    colour = planes.label_colour(7)
    alone = planes.three_planes(labels, point=MARKER, field="scan")
    panel = planes.layout(labels, field="scan")[0]
    row, column = (round(v) for v in panel.pixel(MARKER))
    assert tuple(alone[row, column]) == colour
    over = planes.three_planes(body(), point=MARKER, field="scan", overlay=labels, window=(0, 1))
    assert over[row, column] == pytest.approx((np.array(colour) + 255) / 2, abs=1)
    assert len({planes.label_colour(n) for n in range(1, 120)}) > 110


def test_crosshair_spares_the_point_and_marks_ring_it():
    volume = body(marker=False)
    plain = planes.three_planes(volume, point=MARKER, field="scan")
    crossed = planes.three_planes(volume, point=MARKER, field="scan", crosshair="#ffb000")
    ringed = planes.three_planes(volume, point=MARKER, field="scan", marks=[planes.Mark(tuple(MARKER))])
    for panel in planes.layout(volume, field="scan"):
        row, column = (round(v) for v in panel.pixel(MARKER))
        for picture in (crossed, ringed):
            assert (
                picture[row - 2 : row + 3, column - 2 : column + 3] == plain[row - 2 : row + 3, column - 2 : column + 3]
            ).all()
            assert (
                picture[row - 12 : row + 13, column - 12 : column + 13]
                != plain[row - 12 : row + 13, column - 12 : column + 13]
            ).any()
        assert crossed[row, column - 8].tolist() != plain[row, column - 8].tolist()


def test_the_same_input_gives_the_same_picture():
    kwargs = {"crosshair": "red", "marks": [planes.Mark((0, 0, 0), label="middle")], "height": 240}
    first, second = (planes.three_planes(body(), **kwargs) for _ in range(2))
    assert first.dtype == np.uint8
    assert first.shape[0] == 240
    assert (first == second).all()


@pytest.mark.parametrize("shape", [(1, 50, 60), (1, 1, 1), (30, 1, 30)])
def test_thin_volumes(shape):
    volume = Volume(np.zeros(shape, np.int16), geometry.make_affine((5, 1, 1), "SPL"))
    picture = planes.three_planes(volume, height=90, crosshair="white")
    assert picture.shape[0] == 90


def test_windows():
    volume = body()
    named = planes.three_planes(volume, window="bone")
    assert (named == planes.three_planes(volume, window=(400, 1800))).all()
    assert planes.choose_window(volume) == planes.WINDOWS["soft tissue"]
    lung = volume.with_voxels(np.where(volume.voxels > -500, -850, volume.voxels).astype(np.int16))
    assert planes.choose_window(lung) == planes.WINDOWS["lung"]
    assert planes.choose_window(
        Volume(np.linspace(0, 1, 8000, dtype=np.float32).reshape(20, 20, 20), np.eye(4), "other")
    ) == (
        pytest.approx(0.5),
        pytest.approx(0.98, abs=0.01),
    )


def test_bad_requests_are_named():
    volume = body()
    with pytest.raises(UsageError, match="unknown window 'brian'"):
        planes.three_planes(volume, window="brian")
    with pytest.raises(UsageError, match="width is positive"):
        planes.three_planes(volume, window=(40, 0))
    with pytest.raises(UsageError, match="'scan' or 'body'"):
        planes.three_planes(volume, field="all")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the overlay has shape"):
        planes.three_planes(volume, overlay=planes.Overlay(np.zeros((2, 2, 2), np.float32)))
    with pytest.raises(UsageError, match="an overlay is"):
        planes.Overlay(np.zeros((2, 2), np.float32))


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("totalseg-pulmonary/ct_cropped.nii.gz", "wide"),
        ("sts-ibsi-2mm/STS_001_CT.nii.gz", "soft tissue"),
    ],
)
def test_real_scans(shared_ct: Path, name: str, window: str):
    import nibabel

    image = nibabel.load(shared_ct / name)
    volume = Volume(np.asarray(image.dataobj).transpose(2, 1, 0), image.affine[:, [2, 1, 0, 3]])
    assert planes.choose_window(volume) == planes.WINDOWS[window]
    picture = planes.three_planes(volume)
    assert picture.mean() > 20
    assert picture.std() > 30


def test_outlines_leave_what_lies_within_visible() -> None:
    hu = Volume(np.full((20, 40, 40), 40, np.int16), geometry.make_affine((2.0, 1.0, 1.0), "SPL"))
    labels = np.zeros(hu.shape, np.uint8)
    labels[5:15, 10:30, 10:30] = 3
    options = {"point": hu.world((10, 20, 20)), "field": "scan", "height": 80, "window": (40, 400)}
    plain = planes.three_planes(hu, **options)
    drawn = planes.three_planes(hu, **options, overlay=Volume(labels, hu.affine, "label"), outlined=True)
    panel = planes.layout(hu, height=80, field="scan")[0]
    rows, columns = (slice(panel.top, panel.top + 80), slice(panel.left, panel.left + panel.columns))
    changed = (plain != drawn).any(-1)[rows, columns]
    box = np.zeros_like(changed)
    box[20:60, 20:60] = True  # half a millimetre a pixel
    edge = box & ~ndimage.binary_erosion(box)
    assert changed[edge].mean() > 0.95  # letters of the picture hide some
    assert not changed[~edge].any()
