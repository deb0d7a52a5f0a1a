from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from ctfoundry.bench.baselines.views import monai_views
from ctfoundry.errors import ContractError
from ctfoundry.keys import Key
from ctfoundry.pretrain.view_operators import (
    _affine_by_grid,
    affine_,
    axis_operators,
    histogram_shift_,
)
from ctfoundry.pretrain.views import ViewDraw, ViewSettings, draw_view, make_views
from ctfoundry.resampling import affine_matrices, smoothing_operators, taps

KEY = Key.of("test", "views")
SIZE = (12, 40, 37)


ALL = {"affine": 1.0, "intensity_scale": 1.0, "intensity_shift": 1.0}


def crops(n: int, size: tuple[int, int, int] = SIZE) -> Tensor:
    return torch.from_numpy(KEY("crops").uniform(shape=(n, *size)))


def draws(n: int, size: tuple[int, int, int] = SIZE, settings: ViewSettings | None = None) -> list[ViewDraw]:
    return [draw_view(KEY(i), settings or ViewSettings(), size) for i in range(n)]


KINDS = {
    "as drawn": ViewSettings(),
    "all steps": ViewSettings(flip=1, shift=1, smooth=1),
    "zoom alone": ViewSettings(flip=0, shift=0, smooth=0),
    "smooth alone": ViewSettings(scale=(1, 1), flip=0, shift=0, smooth=1),
    "shift alone": ViewSettings(scale=(1, 1), flip=0, shift=1, smooth=0),
    "nothing": ViewSettings(scale=(1, 1), flip=0, shift=0, smooth=0),
    "affine alone": ViewSettings(scale=(1, 1), flip=0, shift=0, smooth=0, affine=1),
    "affine and smooth": ViewSettings(shift=0, smooth=1, affine=1),
    "intensities alone": ViewSettings(scale=(1, 1), flip=0, shift=0, smooth=0, intensity_scale=1, intensity_shift=1),
    "all steps and additions": ViewSettings(flip=1, shift=1, smooth=1, **ALL),
    "as drawn with additions": ViewSettings(affine=0.5, intensity_scale=0.5, intensity_shift=0.5),
}


@pytest.mark.monai
@pytest.mark.parametrize("kind", KINDS)
def test_equals_monai(kind: str) -> None:
    from monai.data import get_track_meta, set_track_meta

    drawn = draws(16, settings=KINDS[kind])
    x = crops(16).float()
    tracked = get_track_meta()
    set_track_meta(False)
    try:
        expected = monai_views(drawn, SIZE)(x)
    finally:
        set_track_meta(tracked)
    found = make_views(x, drawn)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(found, x) == (kind == "nothing")
    if kind == "as drawn with additions":  # all eight ways through the steps occur
        ways = {(d.affine_rotation is not None, d.control is not None, d.sigma is not None) for d in draws(60)}
        assert len(ways) == 4
        ways = {
            (d.affine_rotation is not None, d.control is not None, d.sigma is not None)
            for d in draws(60, settings=KINDS[kind])
        }
        assert len(ways) == 8


@pytest.mark.monai
def test_affine_is_scipys_and_monais_at_full_size() -> None:
    """White noise is the hardest image: in float32 both sides round positions to 1e-5 voxels, and noise shows that."""
    from monai.transforms import Affine
    from scipy.ndimage import affine_transform

    size = (32, 128, 128)
    x = crops(1, size)
    rotations, scales = [(0.26, -0.1, 0.2)], [(0.8, 1.2, 1.0)]
    by_grid = _affine_by_grid(x.clone(), affine_matrices(rotations, scales))
    found = affine_(x.clone(), rotations, scales)
    torch.testing.assert_close(found, by_grid, rtol=0, atol=1e-12)  # what the CPU does, what other devices do
    matrix, centre = affine_matrices(rotations, scales)[0].numpy(), (np.array(size) - 1) / 2
    literal = affine_transform(x[0].numpy(), matrix, centre - matrix @ centre, order=1, mode="grid-constant")
    np.testing.assert_allclose(found[0].numpy(), literal, atol=1e-9)
    # MONAI's matrix has float32 whatever its dtype says
    theirs = Affine(rotations[0], scale_params=scales[0], padding_mode="zeros", image_only=True, dtype=torch.float64)
    expected = theirs(x, spatial_size=size).as_tensor()
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(affine_(x.float(), rotations, scales).double(), found, rtol=0, atol=2e-5)
    smooth = make_views(x.float(), [dataclasses.replace(d, control=None) for d in draws(1, size, KINDS["all steps"])])
    exact = affine_(smooth.double(), rotations, scales)
    torch.testing.assert_close(affine_(smooth.clone(), rotations, scales).double(), exact, rtol=0, atol=1e-5)


def test_affine_matrices_are_eulers_and_the_centre_stays() -> None:
    from scipy.spatial.transform import Rotation

    rotation, scale = (0.26, -0.11, 0.19), (0.9, 1.1, 1.2)
    expected = Rotation.from_euler("XYZ", rotation).as_matrix() @ np.diag(scale)
    np.testing.assert_allclose(affine_matrices([rotation], [scale])[0].numpy(), expected, atol=1e-12)
    x = torch.zeros(1, 9, 11, 13, dtype=torch.float64)
    x[0, 4, 5, 6] = 1
    assert float(affine_(x.clone(), [rotation], [scale])[0, 4, 5, 6]) == pytest.approx(1)
    ones = affine_(torch.ones_like(x), [(0.0, 0.0, 0.0)], [(1.2, 1.0, 1.0)])  # shows more than there is: air beyond
    assert ones[0, 1:-1].min() == pytest.approx(1)
    assert ones[0, 0].max() < 0.7


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 1), (9, 40, 31), (3, 200, 190), (5, 1, 70)])
def test_affine_far_beyond_the_view_and_of_any_size(size: tuple[int, int, int]) -> None:
    from scipy.ndimage import affine_transform

    x = crops(2, size)
    rotations, scales = [(3.0, -1.1, 0.7), (0.0, 0.0, 0.0)], [(0.1, 1.9, 1.9), (1.9, 1.9, 0.4)]
    centre = (np.array(size) - 1) / 2
    literal = [
        affine_transform(view.numpy(), m.numpy(), centre - m.numpy() @ centre, order=1, mode="grid-constant")
        for view, m in zip(x, affine_matrices(rotations, scales), strict=True)
    ]
    spare = torch.rand(3, 3 * x[0].numel() + 99, dtype=torch.float64)  # what lies in the memory given matters nothing
    np.testing.assert_allclose(affine_(x.clone(), rotations, scales, spare).numpy(), literal, atol=1e-9)
    np.testing.assert_allclose(affine_(x.clone(), rotations, scales).numpy(), literal, atol=1e-9)


def test_draws_are_those_that_runs_were_made_with() -> None:
    """The numbers of a key never change: runs could not continue, and published ones not be drawn again."""
    assert draw_view(Key.of("golden", 0), ViewSettings(), (32, 128, 128)) == ViewDraw(
        0.7408357526349432,
        (2, 3, 6),
        (24, 95, 95),
        False,
        (0.0, 0.44139780920459637, 0.5738460246976703, 0.8422779580212305, 1.0),
        (0.8267769331950747, 1.0116426351053496, 0.8952538313411333),
    )
    assert draw_view(Key.of("golden", 1), ViewSettings(), (32, 128, 128)) == ViewDraw(
        0.7208935328391968,
        (1, 17, 32),
        (24, 93, 93),
        True,
        None,
        (0.30940971936675654, 0.4274024829463299, 1.1404759890940477),
    )


def test_draws_are_a_function_of_the_key_and_lie_in_range() -> None:
    assert draws(5) == draws(5)
    assert len(set(draws(50))) == 50
    for draw in draws(200):
        assert 0.33 <= draw.scale < 1
        assert draw.size == tuple(int(np.ceil(draw.scale * n)) for n in SIZE)
        assert all(a >= 0 and a + b <= n for a, b, n in zip(draw.start, draw.size, SIZE, strict=True))
        if draw.control:
            assert draw.control[0] == 0
            assert draw.control[-1] == 1
            assert list(draw.control) == sorted(draw.control)
    # turning a step off or on leaves all other decisions as they were
    plain = draws(20, settings=ViewSettings(smooth=0))
    assert plain == [dataclasses.replace(d, sigma=None) for d in draws(20)]
    for name in ALL:
        more = draws(20, settings=ViewSettings(**ALL | {name: 0.0}))
        fields = {
            "affine": {"affine_rotation": None, "affine_scale": (1.0, 1.0, 1.0)},
            "intensity_scale": {"intensity_factor": None},
            "intensity_shift": {"intensity_offset": None},
        }
        assert more == [dataclasses.replace(d, **fields[name]) for d in draws(20, settings=ViewSettings(**ALL))]
    for before, after in zip(draws(20), draws(20, settings=ViewSettings(**ALL)), strict=True):
        assert all(getattr(before, f) == getattr(after, f) for f in ("scale", "start", "flip", "control", "sigma"))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"flip": 1.5}, "flip is a probability"),
        ({"affine": -0.1}, "affine is a probability"),
        ({"scale": (1.0, 0.33)}, "the lower number first"),
        ({"scale": (0.5, 1.1)}, "at most at 1"),
        ({"sigma": (0.0, 1.0)}, "sigma is above 0"),
        ({"control_points": 1}, "at least 2"),
        ({"affine_scale": (0.2, 0.2, 1.0)}, "affine_scale"),
        ({"affine_rotation": (4.0, 0.0, 0.0)}, "affine_rotation"),
        ({"intensity_offset": (0.1, -0.1)}, "intensity_offset is a range"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ViewSettings(**wrong)


def test_zoom_operators_are_torchs_interpolate_and_our_taps() -> None:
    drawn = draws(8)
    operators = axis_operators(drawn, SIZE)
    for axis, n in enumerate(SIZE):
        for draw, matrix in zip(drawn, operators[axis], strict=True):
            start, size = draw.start[axis], draw.size[axis]
            x = torch.eye(n, dtype=torch.float64)[:, start : start + size]
            zoomed = torch.nn.functional.interpolate(x[None], size=n, mode="linear", align_corners=False)[0].T
            zoomed = zoomed.flip(0) if draw.flip and axis == 0 else zoomed
            torch.testing.assert_close(matrix, zoomed, rtol=0, atol=1e-12)
            step = size / n
            ours = taps(size, n, step / 2 - 0.5, step).as_matrix()
            ours = ours[::-1] if draw.flip and axis == 0 else ours
            np.testing.assert_allclose(matrix[:, start : start + size].numpy(), ours, atol=1e-6)
    assert operators[0].shape == (8, 12, 12)
    with pytest.raises(ContractError, match="leaves its crop of 12 voxels along axis 0"):
        axis_operators([ViewDraw(1.0, (1, 0, 0), SIZE)], SIZE)


def test_smoothing_keeps_a_constant_inside_and_fades_at_the_border() -> None:
    rows = smoothing_operators([(0.25, 1.0, 1.5)], (20, 20, 20))
    for matrix in rows:
        torch.testing.assert_close(matrix[0], matrix[0].T)
        assert float(matrix[0].sum(1)[10]) == pytest.approx(1, abs=1e-3)
    assert float(rows[2][0].sum(1)[0]) < 0.7
    assert int((rows[1][0, 10] > 0).sum()) == 2 * 4 + 1


def test_histogram_shift_is_a_linear_interpolation_of_the_control_points() -> None:
    x = crops(4).mul(3).sub(1)
    control = [d.control for d in draws(50) if d.control][:4]
    found = histogram_shift_(x.clone(), control)
    for view, points, out in zip(x, control, found, strict=True):
        low, high = float(view.min()), float(view.max())
        knots = low + (high - low) * np.linspace(0, 1, 5)
        expected = np.interp(view.numpy(), knots, low + (high - low) * np.array(points))
        np.testing.assert_allclose(out.numpy(), expected, atol=1e-12)
    constant = torch.full((1, 3, 3, 3), 0.3)
    torch.testing.assert_close(histogram_shift_(constant.clone(), control[:1]), constant)


@pytest.mark.parametrize("settings", [ViewSettings(), KINDS["as drawn with additions"]], ids=["plain", "additions"])
def test_one_by_one_and_together_are_the_same(monkeypatch: pytest.MonkeyPatch, settings: ViewSettings) -> None:
    """The CPU makes view by view, an accelerator all of a kind at once; and no view sees the others of its batch."""
    from ctfoundry.pretrain import views

    x, drawn = crops(24), draws(24, settings=settings)
    each = make_views(x, drawn)
    assert each.dtype == torch.float64
    assert torch.equal(make_views(x, drawn), each)
    torch.testing.assert_close(make_views(x[5:9], drawn[5:9]), each[5:9], rtol=0, atol=1e-12)
    real = views._groups
    monkeypatch.setattr(views, "_groups", lambda d, _: real(d, torch.device("meta")))
    together = make_views(x, drawn)
    groups = views._groups(drawn, torch.device("cpu"))
    assert len(groups) == (7 if settings.extended else 3)
    assert sorted(i for group in groups for i in group) == list(range(24))
    torch.testing.assert_close(together, each, rtol=0, atol=1e-12)


def test_what_is_refused_and_what_is_empty() -> None:
    assert make_views(crops(1)[:0], []).shape == (0, *SIZE)
    with pytest.raises(ContractError, match="2 draws"):
        make_views(crops(1), draws(2))
    with pytest.raises(ContractError, match="int16"):
        make_views(torch.zeros(1, *SIZE, dtype=torch.int16), draws(1))
    out = torch.full((3, *SIZE), 7.0, dtype=torch.float64)
    assert make_views(crops(3), draws(3), out=out) is out
    assert torch.equal(out, make_views(crops(3), draws(3)))
    with pytest.raises(ContractError, match="contiguous"):
        make_views(crops(3), draws(3), out=out.float())


def test_autocast_does_not_touch_views() -> None:
    x, drawn = crops(4).float(), draws(4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(make_views(x, drawn), make_views(x, drawn))
        low = make_views(x, drawn)
    assert torch.equal(low, make_views(x, drawn))
