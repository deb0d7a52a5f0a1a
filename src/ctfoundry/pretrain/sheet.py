"""Sheets of crops with both views: where each crop lies, what was drawn, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry.preparation import Intensity, Placement
from ctfoundry.pretrain.recipe import Recipe
from ctfoundry.pretrain.seen import Seen
from ctfoundry.pretrain.views import ViewDraw
from ctfoundry.report import page
from ctfoundry.report.planes import WINDOWS
from ctfoundry.store import Store, placement

if TYPE_CHECKING:
    from jaxtyping import Float, Int16, UInt8
    from PIL import Image, ImageDraw

    from ctfoundry.geometry import Vec3
    from ctfoundry.preparation import Preparation

    Picture = UInt8[np.ndarray, "rows columns 3"]
    Rectangle = tuple[float, float, float, float]  # left, top, right, bottom

CROP, VIEWS = "#7cff6b", ("#ffb000", "#4cc3ff")
"""Colours of a crop in its scan, and of its views."""
LONGEST = 256
"""Voxels along an axis that the picture of the whole scan is made of."""
TILE = 232
"""Pixels of the longest edge of a crop."""
GAP, EDGE, LINE = 18, 26, 17
INK, SOFT, PAPER = (236, 236, 236), (164, 164, 164), (17, 18, 20)


@dataclass(frozen=True, eq=False)
class Overview:
    """A thinned scan: voxel (i, j, k) of it is voxel (i, j, k) * stride of the stored one."""

    hu: Int16[np.ndarray, "d h w"]
    stride: Vec3
    spacing: tuple[float, float, float]


def overview(store: Store, id: str) -> Overview:
    """Every n-th voxel of a stored scan, at most about `LONGEST` along an axis; never the whole scan in memory."""
    entry = store.entry(id)
    d, h, w = entry.shape
    a, b, c = (max(1, -(-n // LONGEST)) for n in entry.shape)
    depth = a * max(1, (16 << 20) // (a * h * w))  # slabs of 32 MiB, or the least that holds a slice
    parts = [
        store.read(id, ((low, min(low + depth, d)), (0, h), (0, w)))[::a, ::b, ::c].copy() for low in range(0, d, depth)
    ]
    return Overview(np.concatenate(parts), (a, b, c), entry.spacing)


def crop_box(placed: Placement, start: Vec3, crop: Vec3) -> Float[np.ndarray, "3 2"]:
    """First and last edge of a crop along each axis of the stored scan, in its voxels (voxel k reaches from k - 1/2 to k + 1/2)."""
    first = np.array(placed.start) + np.array(placed.step) * (np.array(start) - 0.5)
    last = np.array(placed.start) + np.array(placed.step) * (np.array(start) + crop - 0.5)
    return np.stack([np.minimum(first, last), np.maximum(first, last)], axis=1)


def caption(draw: ViewDraw) -> list[str]:
    """What was drawn for a view, line by line."""
    lines = [f"box: {draw.scale:.0%} of each axis{', upside down' if draw.flip else ''}"]
    if draw.affine_rotation:
        angles = " ".join(f"{np.degrees(angle):.0f}°" for angle in draw.affine_rotation)
        lines.append(f"turned {angles}, scaled {_list(draw.affine_scale)}")
    lines.append("histogram shifted" if draw.control else "histogram as it is")
    lines.append(f"smoothed, sigma {_list(draw.sigma)} voxels" if draw.sigma else "not smoothed")
    if draw.intensity_factor is not None or draw.intensity_offset is not None:
        scaled = "" if draw.intensity_factor is None else f" times {1 + draw.intensity_factor:.2f}"
        shifted = (
            ""
            if draw.intensity_offset is None
            else f" {'plus' if draw.intensity_offset >= 0 else 'minus'} {abs(draw.intensity_offset):.3f}"
        )
        lines.append(f"intensities{scaled}{shifted}")
    return lines


def draw_sheet(seen: Seen, whole: Overview, preparation: Preparation, recipe: Recipe, shown: Sequence[int]) -> Picture:
    """The crops `shown` (numbers from 0) of a scan, one row each: its place in the scan, the crop with the boxes of its views,
    and both views. Coronal planes above, axial ones below, all through the middle; Superior, Anterior and the patient's Right
    are up and left, but for flipped views.
    """
    from PIL import Image, ImageDraw, ImageFont

    placed = placement(seen.entry, preparation.resampling)
    spacing = tuple(abs(step) * mm for step, mm in zip(placed.step, seen.entry.spacing, strict=True))
    d, h, w = (n * mm for n, mm in zip(recipe.crop, spacing, strict=True))
    scale = TILE / max(d, h, w)
    high, deep, wide = (max(1, round(length * scale)) for length in (d, h, w))
    words = [[caption(draw) for draw in seen.draws.views[m]] for m in shown]
    most = max((len(lines) for pair in words for lines in pair), default=0)
    row = high + 4 + deep + 8 + LINE * most + GAP
    columns = [EDGE + k * (TILE + GAP) for k in range(4)]
    image = Image.new("RGB", (2 * EDGE + 4 * TILE + 3 * GAP, EDGE + 26 + len(shown) * row), PAPER)
    pen, font, strong = ImageDraw.Draw(image), ImageFont.load_default(12.5), ImageFont.load_default(14)
    titles = (("in the scan", CROP), ("the crop", "white"), ("view 1", VIEWS[0]), ("view 2", VIEWS[1]))
    for left, (text, colour) in zip(columns, titles, strict=True):
        pen.text((left, EDGE - 8), text, fill=colour, font=strong)
    for place, m in enumerate(shown):
        top = EDGE + 20 + place * row
        below = top + high + 4
        draws, crop = seen.draws.views[m], seen.crops[m]
        _place(image, whole, crop_box(placed, seen.draws.starts[m], recipe.crop), (columns[0], top), (high, deep))
        for k, values in enumerate((crop, *seen.views[m])):
            left = columns[k + 1]
            # rows run from Superior or Anterior down, columns from the patient's Right
            for upper, plane, height in ((top, _coronal(values), high), (below, _axial(values), deep)):
                image.paste(_grey(plane, preparation.intensity, (wide, height)), (left, upper))
        for k, draw in enumerate(draws):
            _boxes(pen, draw, recipe.crop, (columns[1], top), (high, deep, wide), VIEWS[k])
            for upper, size in ((top, high), (below, deep)):
                pen.rectangle((columns[2 + k], upper, columns[2 + k] + wide - 1, upper + size - 1), outline=VIEWS[k])
            if draw.control:
                _curve(pen, draw.control, (columns[2 + k] + wide - 54, below + deep - 54), VIEWS[k])
        bottom = below + deep + 8
        texts = [_where(seen, m, recipe), _size(recipe, (d, h, w)), *words[place]]
        for left, lines in zip(columns, texts, strict=True):
            for n, line in enumerate(lines):
                pen.text((left, bottom + n * LINE), line, fill=INK if n == 0 else SOFT, font=font)
    return np.asarray(image)


def make_page(recipe: Recipe, sheets: Sequence[tuple[Seen, Picture]], *, source: str, footer: str) -> page.Page:
    """The page of some scans: the sheet of each, and all numbers that were drawn for it. `source` says what was drawn again."""
    sections: list[page.Section] = [
        page.Prose(
            f"Recipe `{recipe.name}`, {source}. Drawn again by the functions that training calls, under the same keys: these are "
            "the numbers that the network gets, window and size of the picture aside."
        ),
        page.Facts(settings(recipe)),
    ]
    for seen, picture in sheets:
        sections += [
            page.Heading(f"{seen.entry.id}, epoch {seen.epoch}"),
            page.Figure(
                picture,
                "Coronal planes above, axial ones below, each through the middle of what it shows. Left: where the crop lies (green). "
                "Second: the crop, with the boxes that the views take of it. Right: both views, as wide as the crop; the curve is "
                "the histogram shift.",
                f"Crops of scan {seen.entry.id} with two views each",
                stretch=True,
            ),
            page.Details("All that was drawn", [_table(seen)]),
        ]
    return page.Page(
        title="What pretraining sees",
        subtitle="Crops of each scan, and the two views of each crop that must find each other.",
        sections=sections,
        footer=footer,
    )


def settings(recipe: Recipe) -> dict[str, str]:
    """The recipe's views in words."""
    v = recipe.views
    off = "off"
    return {
        "preparation": recipe.preparation,
        "crops of a scan": f"{recipe.crops}, {' x '.join(map(str, recipe.crop))} voxels each",
        "resized crop": f"{v.scale[0]:g} to {v.scale[1]:g} of each axis",
        "flip along superior-inferior": f"{v.flip:.0%}",
        "affine": off
        if not v.affine
        else f"{v.affine:.0%}, up to {_list(np.degrees(v.affine_rotation), '.0f', ', ')} degrees, scales 1 ± {_list(v.affine_scale, 'g', ', ')}",
        "histogram shift": f"{v.shift:.0%}, {v.control_points} control points",
        "smoothing": f"{v.smooth:.0%}, sigma {v.sigma[0]:g} to {v.sigma[1]:g} voxels",
        "intensity scale": off
        if not v.intensity_scale
        else f"{v.intensity_scale:.0%}, times {1 + v.intensity_factor[0]:g} to {1 + v.intensity_factor[1]:g}",
        "intensity shift": off
        if not v.intensity_shift
        else f"{v.intensity_shift:.0%}, plus {v.intensity_offset[0]:g} to {v.intensity_offset[1]:g}",
    }


def as_data(seen: Seen) -> dict[str, Any]:
    """All draws of a scan as plain data."""
    from ctfoundry.settings import to_data

    return {
        "scan": seen.entry.id,
        "epoch": seen.epoch,
        "crops": [
            {"start": list(start), "views": to_data(pair)}
            for start, pair in zip(seen.draws.starts, seen.draws.views, strict=True)
        ],
    }


def _table(seen: Seen) -> page.Table:
    rows = [
        [
            f"crop {m + 1}, view {v + 1}",
            _cell(seen.draws.starts[m], "d") if v == 0 else "",
            f"{draw.scale:.3f}",
            _cell(draw.start, "d"),
            _cell(draw.size, "d"),
            "yes" if draw.flip else "no",
            _cell(np.degrees(draw.affine_rotation), ".1f") if draw.affine_rotation else None,
            _cell(draw.affine_scale) if draw.affine_rotation else None,
            _cell(draw.control[1:-1]) if draw.control else None,
            _cell(draw.sigma) if draw.sigma else None,
            None if draw.intensity_factor is None else f"{1 + draw.intensity_factor:.3f}",
            None if draw.intensity_offset is None else f"{draw.intensity_offset:+.3f}",
        ]
        for m, pair in enumerate(seen.draws.views)
        for v, draw in enumerate(pair)
    ]
    headers = (
        "view", "crop's first voxel", "scale", "box from", "box size", "flipped", "turned (degrees)", "axes scaled", "control points", "sigma (voxels)",
        "times", "plus",
    )  # fmt: skip
    used = [c for c in range(len(headers)) if any(row[c] is not None for row in rows)]
    return page.Table(
        [headers[c] for c in used],
        [[row[c] for c in used] for row in rows],
        align="l" * len(used),
        caption="Axes in the order d, h, w (superior, posterior, left); voxels of the prepared grid, negative where the scan is padded.",
    )


def _list(values: Any, form: str = ".2f", between: str = " ") -> str:
    return between.join(f"{value:{form}}" for value in values)


def _cell(values: Any, form: str = ".2f") -> str:
    """Numbers that stay in one line."""
    return _list(values, form, "\u00a0\u00a0")


def _where(seen: Seen, m: int, recipe: Recipe) -> list[str]:
    return [f"crop {m + 1} of {recipe.crops}", f"first voxel {_list(seen.draws.starts[m], 'd')}"]


def _size(recipe: Recipe, mm: tuple[float, float, float]) -> list[str]:
    return [f"{' x '.join(map(str, recipe.crop))} voxels", f"{' x '.join(f'{length:.0f}' for length in mm)} mm"]


def _coronal(values: np.ndarray) -> np.ndarray:
    return values[::-1, values.shape[1] // 2]


def _axial(values: np.ndarray) -> np.ndarray:
    return values[values.shape[0] // 2]


def _grey(plane: np.ndarray, intensity: Intensity, size: tuple[int, int]) -> Image.Image:
    """A plane of intensities 0..1 through the window that shows lung, soft tissue and bone, (columns, rows) pixels large."""
    low, high = intensity.clip
    return _window(plane * (high - low) + low, size)


def _window(hu: np.ndarray, size: tuple[int, int]) -> Image.Image:
    from PIL import Image

    centre, width = WINDOWS["wide"]
    grey = np.clip((hu - (centre - width / 2)) / width, 0, 1) * 255
    return Image.fromarray((grey + 0.5).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC).convert("RGB")


def _place(
    image: Image.Image,
    whole: Overview,
    box: Float[np.ndarray, "3 2"],
    at: tuple[int, int],
    heights: tuple[int, int],
) -> None:
    """Coronal and axial plane of the scan through the middle of the crop, with the crop's outline."""
    from PIL import ImageDraw

    thin = (box + 0.5) / np.array(whole.stride)[:, None]  # edges, counted in thinned voxels from the first one's edge
    middle = [int(np.clip(thin[a].mean(), 0, whole.hu.shape[a] - 1)) for a in range(3)]
    mm = np.array(whole.stride) * np.array(whole.spacing)
    pen, (left, top) = ImageDraw.Draw(image), at
    coronal, axial = (whole.hu[::-1, middle[1]], 0, heights[0]), (whole.hu[middle[0]], 1, heights[1])
    for plane, axis, height in (coronal, axial):
        scale = min(TILE / (plane.shape[1] * mm[2]), height / (plane.shape[0] * mm[axis]))  # pixels a millimetre
        columns, rows = (max(1, round(plane.shape[a] * mm[b] * scale)) for a, b in ((1, 2), (0, axis)))
        x, y = left + (TILE - columns) // 2, top + (height - rows) // 2
        image.paste(_window(plane, (columns, rows)), (x, y))
        across = x + thin[2] * mm[2] * scale
        down = thin[axis] * mm[axis] * scale
        down = y + (down if axis else rows - down[::-1])
        limits = (left, top, left + TILE - 1, top + height - 1)
        _outline(pen, (across[0], down[0], across[1], down[1]), CROP, limits)
        top += height + 4


def _boxes(
    pen: ImageDraw.ImageDraw,
    draw: ViewDraw,
    crop: Vec3,
    at: tuple[int, int],
    size: tuple[int, int, int],
    colour: str,
) -> None:
    """The box of a view in both planes of its crop."""
    (left, top), (high, deep, wide) = at, size
    share = [(a / n, (a + b) / n) for a, b, n in zip(draw.start, draw.size, crop, strict=True)]
    across = (left + share[2][0] * wide, left + share[2][1] * wide)
    for upper, (a, b), height in (
        (top, (1 - share[0][1], 1 - share[0][0]), high),
        (top + high + 4, share[1], deep),
    ):
        limits = (left, upper, left + wide - 1, upper + height - 1)
        _outline(pen, (across[0], upper + a * height, across[1], upper + b * height), colour, limits)


def _outline(pen: ImageDraw.ImageDraw, box: Rectangle, colour: str, limits: tuple[int, int, int, int]) -> None:
    """A rectangle, two pixels wide, as far as it lies within `limits`; edges beyond are left out."""
    left, top, right, bottom = (round(v) for v in (box[0], box[1], box[2] - 1, box[3] - 1))
    x0, x1 = max(left, limits[0]), min(right, limits[2])
    y0, y1 = max(top, limits[1]), min(bottom, limits[3])
    if x0 > x1 or y0 > y1:
        return
    for x, inner in ((left, 1), (right, -1)):
        if limits[0] <= x <= limits[2]:
            pen.rectangle((min(x, x + inner), y0, max(x, x + inner), y1), fill=colour)
    for y, inner in ((top, 1), (bottom, -1)):
        if limits[1] <= y <= limits[3]:
            pen.rectangle((x0, min(y, y + inner), x1, max(y, y + inner)), fill=colour)


def _curve(pen: ImageDraw.ImageDraw, control: Sequence[float], at: tuple[int, int], colour: str) -> None:
    """Where the histogram shift sends the range of intensities, beside the diagonal."""
    (left, top), size = at, 46
    pen.rectangle((left, top, left + size, top + size), fill=(0, 0, 0), outline=(90, 90, 90))
    pen.line((left, top + size, left + size, top), fill=(110, 110, 110))
    steps = len(control) - 1
    points = [(left + size * k / steps, top + size * (1 - value)) for k, value in enumerate(control)]
    pen.line(points, fill=colour, width=2)
