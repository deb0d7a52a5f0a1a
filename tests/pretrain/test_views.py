from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from ctfoundry.bench.baselines.views import monai_views
from ctfoundry.errors import ContractError
from ctfoundry.keys import Key
from ctfoundry.pretrain.views import (
    ViewDraw,
    ViewSettings,
    axis_operators,
    draw_view,
    histogram_shift_,
    make_views,
    smoothing_operators,
)
from ctfoundry.resampling import taps

KEY = Key.of("test", "views")
SIZE = (12, 40, 37)


def crops(n: int, size: tuple[int, int, int] = SIZE) -> Tensor:
    return torch.from_numpy(KEY("crops").uniform(shape=(n, *size)))


def draws(n: int, size: tuple[int, int, int] = SIZE, settings: ViewSettings | None = None) -> list[ViewDraw]:
    return [draw_view(KEY(i), settings or ViewSettings(), size) for i in range(n)]


@pytest.mark.monai
@pytest.mark.parametrize("kind", ["as drawn", "all steps", "zoom alone", "smooth alone", "shift alone", "nothing"])
def test_equals_monai(kind: str) -> None:
    from monai.data import get_track_meta, set_track_meta

    settings = {
        "all steps": ViewSettings(flip=1, shift=1, smooth=1),
        "zoom alone": ViewSettings(flip=0, shift=0, smooth=0),
        "smooth alone": ViewSettings(scale=(1, 1), flip=0, shift=0, smooth=1),
        "shift alone": ViewSettings(scale=(1, 1), flip=0, shift=1, smooth=0),
        "nothing": ViewSettings(scale=(1, 1), flip=0, shift=0, smooth=0),
    }
    drawn = draws(16, settings=settings.get(kind))
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
    if kind == "nothing":
        assert torch.equal(found, x)


@pytest.mark.monai
def test_distributions_are_monais() -> None:
    """A light look at the ranges: sizes, starts and control points of MONAI's random transforms against ours, by quantiles."""
    from monai.transforms import RandHistogramShift, RandScaleCrop

    n, size = 2000, (32, 128, 128)
    ours = draws(n, size)
    random = np.random.RandomState(0)
    shift = RandHistogramShift(num_control_points=5, prob=1.0).set_random_state(0)
    theirs: dict[str, list[float]] = {"size": [], "start": [], "end": [], "first": [], "middle": [], "last": []}
    for _ in range(n):
        scale = random.uniform(0.33, 1.0)
        crop = RandScaleCrop(roi_scale=scale, random_size=False)
        crop.set_random_state(random.randint(2**31))
        crop.get_max_roi_size(size)
        crop.randomize(size)
        part = crop._slices[-1]
        theirs["size"].append(part.stop - part.start)
        theirs["start"].append(part.start)
        theirs["end"].append(size[2] - part.stop)
        shift.randomize()
        for name, value in zip(("first", "middle", "last"), shift.floating_control_points[1:4], strict=True):
            theirs[name].append(value)
    bent = [d.control for d in ours if d.control]
    mine = {
        "size": [d.size[2] for d in ours],
        "start": [d.start[2] for d in ours],
        "end": [size[2] - d.start[2] - d.size[2] for d in ours],
        "first": [c[1] for c in bent],
        "middle": [c[2] for c in bent],
        "last": [c[3] for c in bent],
    }
    grid = np.linspace(0.1, 0.9, 9)
    for name, values in theirs.items():
        spread = max(values) - min(values)
        difference = np.abs(np.quantile(mine[name], grid) - np.quantile(values, grid)) / spread
        assert difference.max() < 0.06, name
    for share in (
        np.mean([d.flip for d in ours]),
        np.mean([d.control is not None for d in ours]),
        np.mean([d.sigma is not None for d in ours]),
        np.mean([d.sigma is not None and d.control is not None for d in ours]) * 2,
    ):
        assert abs(share - 0.5) < 0.05
    sigma = np.array([d.sigma for d in ours if d.sigma])
    assert sigma.min() >= 0.25
    assert sigma.max() < 1.5
    assert np.abs(np.quantile(sigma, grid, axis=0) - (0.25 + 1.25 * grid)[:, None]).max() < 0.1
    assert np.abs(np.corrcoef(sigma.T) - np.eye(3)).max() < 0.1


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
    # turning a step off leaves all other decisions as they were
    plain = draws(20, settings=ViewSettings(smooth=0))
    assert plain == [dataclasses.replace(d, sigma=None) for d in draws(20)]


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


def test_one_by_one_and_together_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU makes view by view, an accelerator all of a kind at once; and no view sees the others of its batch."""
    from ctfoundry.pretrain import views

    x, drawn = crops(24), draws(24)
    each = make_views(x, drawn)
    assert each.dtype == torch.float64
    assert torch.equal(make_views(x, drawn), each)
    torch.testing.assert_close(make_views(x[5:9], drawn[5:9]), each[5:9], rtol=0, atol=1e-12)
    real = views._groups
    monkeypatch.setattr(views, "_groups", lambda d, _: real(d, torch.device("meta")))
    together = make_views(x, drawn)
    groups = views._groups(drawn, torch.device("cpu"))
    assert len(groups) == 3
    assert sorted(i for group in groups for i in group) == list(range(24))
    torch.testing.assert_close(together, each, rtol=0, atol=1e-12)


def test_composes_with_a_finer_grid() -> None:
    """Reading a 3-times finer grid and composing equals resampling first, shared or per-crop operators alike."""
    n, read = 6, (36, 40, 50)
    fine, drawn = crops(n, read), draws(n)
    shared = (
        torch.from_numpy(taps(36, 12, 1.0, 3.0, antialias=True).as_matrix()),
        torch.eye(40),
        torch.from_numpy(taps(50, 37, 0.3, 1.3).as_matrix()),
    )
    coarse = fine
    for matrix in reversed(shared):  # the last axis contracted, its result put first, three times
        coarse = (coarse @ matrix.double().T).movedim(-1, 1)
    expected = make_views(coarse, drawn)
    torch.testing.assert_close(make_views(fine, drawn, before=shared), expected, rtol=0, atol=1e-9)
    stacks = tuple(s.expand(n, -1, -1) for s in shared)
    torch.testing.assert_close(
        make_views(fine, drawn, before=(stacks[0], stacks[1], stacks[2])), expected, rtol=0, atol=1e-9
    )
    with pytest.raises(ContractError, match="were read"):
        make_views(fine[:, :30], drawn, before=shared)


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
