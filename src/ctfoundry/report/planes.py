"""Pictures of a volume: axial, coronal and sagittal planes through one point.

The planes are planes of the *patient*, not of the array: every pixel is placed in world millimetres and looked up in the
volume, so all orientations, oblique grids and anisotropic voxels take one path. All three panels share one scale and follow
the radiological convention: the patient's Right is on the left, Anterior or Superior is up, and in the sagittal panel
Anterior is on the left. In RAS+ that is one rule: columns and rows run *against* their world axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ctfoundry import geometry
from ctfoundry.body import BODY_HU, largest_part
from ctfoundry.errors import UsageError
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Float64, UInt8
    from PIL import Image

    Picture = UInt8[np.ndarray, "rows columns 3"]
    Window = tuple[float, float] | str

WINDOWS: dict[str, tuple[float, float]] = {
    "soft tissue": (40, 400),
    "lung": (-600, 1500),
    "bone": (400, 1800),
    "wide": (50, 1800),
}
"""(centre, width) in HU of the named windows; "wide" shows lung, soft tissue and bone at once."""

HEAT = "inferno"
"""Matplotlib's name of the colour map of heat maps: lightness grows evenly with the value, for all kinds of colour vision."""

OFF_PLANE_MM = 10.0
"""A mark further than this from a panel's plane is drawn broken and faint, without its label."""

Field = Literal["scan", "body"]
"""What the panels show: all that was scanned, or the body's box with a margin."""

_MARGIN_MM = 12.0
_GAP = 6
_INK = (235, 235, 235)
_BARS_MM = (100, 50, 20, 10, 5)


@dataclass(frozen=True)
class Panel:
    """One plane of the picture.

    Attributes
    ----------
    name : "axial", "coronal" or "sagittal".
    across, down, through : world axes (0 x, 1 y, 2 z) of the columns, the rows and the normal.
    letters : the patient's direction at the left, right, top and bottom edge.
    top, left : first row and column in the picture.
    rows, columns : size in pixels.
    start : world millimetres, along `across` and `down`, of the left and the top *edge*.
    mm : millimetres per pixel.
    """

    name: str
    across: int
    down: int
    through: int
    letters: str
    top: int
    left: int
    rows: int
    columns: int
    start: tuple[float, float]
    mm: float

    def pixel(self, point: Sequence[float] | np.ndarray) -> tuple[float, float]:
        """(row, column) in the picture of a world point's projection; a pixel's centre has whole numbers."""
        row = (self.start[1] - float(point[self.down])) / self.mm - 0.5 + self.top
        column = (self.start[0] - float(point[self.across])) / self.mm - 0.5 + self.left
        return row, column

    def points(self, through: float, fine: int = 1) -> Float64[np.ndarray, "rows columns 3"]:
        """World millimetres of the pixels' centres, each pixel split into `fine` x `fine`."""
        step = self.mm / fine
        points = np.empty((self.rows * fine, self.columns * fine, 3))
        points[..., self.across] = self.start[0] - (np.arange(self.columns * fine) + 0.5) * step
        points[..., self.down] = (self.start[1] - (np.arange(self.rows * fine) + 0.5) * step)[:, None]
        points[..., self.through] = through
        return points


_PANELS = (("axial", 0, 1, 2, "RLAP"), ("coronal", 0, 2, 1, "RLSI"), ("sagittal", 1, 2, 0, "APSI"))


@dataclass(frozen=True)
class Mark:
    """A ring drawn round a place, in the panels that it projects into.

    Attributes
    ----------
    point : world millimetres (RAS+).
    colour : any CSS colour.
    label : a word or two beside the ring, or nothing.
    """

    point: tuple[float, float, float]
    colour: str = "#4cc3ff"
    label: str = ""


@dataclass(frozen=True, eq=False)
class Overlay:
    """Colours laid over the scan.

    Attributes
    ----------
    values : a heat map (d, h, w) of 0..1, or colours (d, h, w, 3) of 0..1; where a value is NaN nothing is drawn.
    affine : where the values lie; None: on the scan's own grid.
    alpha : opacity; of a heat map, the opacity at value 1 (it falls to none at 0).
    smooth : whether to interpolate between cells; False shows the cells as they are.
    """

    values: Float[np.ndarray, "d h w ..."]
    affine: geometry.Affine | None = None
    alpha: float = 0.65
    smooth: bool = True

    def __post_init__(self) -> None:
        shape = self.values.shape
        if not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)):
            raise UsageError(f"an overlay is (d, h, w) or (d, h, w, 3), not {shape}")
        if self.affine is not None:
            object.__setattr__(self, "affine", geometry.as_affine(self.affine))


def three_planes(
    volume: Volume,
    *,
    point: Sequence[float] | np.ndarray | None = None,
    window: Window = "auto",
    height: int = 200,
    field: Field = "body",
    crosshair: str | None = None,
    marks: Sequence[Mark] = (),
    overlay: Overlay | Volume | None = None,
    outlined: bool = False,
) -> Picture:
    """Axial, coronal and sagittal plane through a point, side by side at one scale, as RGB.

    Parameters
    ----------
    volume : any orientation and kind; labels are drawn in colours.
    point : world millimetres (RAS+) that all three planes pass through; default: the middle of the body's box.
    window : (centre, width), a name of `WINDOWS`, or "auto" (`choose_window`).
    height : rows of the picture.
    field : show the body's box, grown to hold the point and the marks, or the whole scan.
    crosshair : CSS colour of a crosshair at `point`, or None.
    marks : rings at other places.
    overlay : a heat or colour map, a label volume (one colour a label, `label_colour`), or another volume of 0..1 as a heat map.
    outlined : draw labels of the overlay as outlines, so that what lies within stays visible, instead of filled.

    Raises UsageError for a window or field that does not exist and an overlay that does not fit.
    """
    from PIL import Image

    low, high = _limits(volume, window)
    centre = body_centre(volume) if point is None else np.asarray(point, dtype=np.float64)
    panels = layout(volume, height=height, field=field, include=[centre, *(mark.point for mark in marks)])
    picture = np.full((height, panels[-1].left + panels[-1].columns, 3), 0, dtype=np.float32)
    for panel in panels:
        part = picture[panel.top : panel.top + panel.rows, panel.left : panel.left + panel.columns]
        part[:] = _base(volume, panel, centre, low, high)
        if overlay is not None:
            _lay_over(part, volume, panel, centre, overlay, outlined)
        for mark in marks:
            _ring(part, panel, mark, centre)
        if crosshair is not None:
            _cross(part, panel, centre, crosshair)
    image = Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))
    _letter(image, panels, marks, centre)
    return np.asarray(image)


def layout(
    volume: Volume,
    *,
    height: int = 200,
    field: Field = "body",
    include: Sequence[Sequence[float] | np.ndarray] = (),
) -> tuple[Panel, Panel, Panel]:
    """Where `three_planes` puts its panels, and which millimetres they show; world points in `include` are in the field."""
    if field not in ("scan", "body"):
        raise UsageError(f"a picture shows 'scan' or 'body', not {field!r}")
    low, high = scan_box(volume)
    if field == "body":
        inner = np.stack([*picture_box(volume), *(np.asarray(point, dtype=np.float64) for point in include)])
        low, high = (
            np.maximum(low, inner.min(axis=0) - _MARGIN_MM),
            np.minimum(high, inner.max(axis=0) + _MARGIN_MM),
        )
    size = high - low
    mm = float(max(size[1], size[2])) / height
    panels, left = [], 0
    for name, across, down, through, letters in _PANELS:
        rows, columns = (
            max(1, min(round(float(size[a]) / mm), limit)) for a, limit in ((down, height), (across, 8192))
        )
        # the pixels are centred on the field, so that rounding to whole pixels favours neither side
        start = tuple(float((low[a] + high[a]) / 2 + n * mm / 2) for a, n in ((across, columns), (down, rows)))
        top = (height - rows) // 2
        panels.append(Panel(name, across, down, through, letters, top, left, rows, columns, (start[0], start[1]), mm))
        left += columns + _GAP
    return panels[0], panels[1], panels[2]


def scan_box(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest x, y, z (mm) of the scan's voxels, to their edges."""
    ends = [(-0.5, n - 0.5) for n in volume.shape]
    return _world_box(volume.affine, ends)


def picture_box(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest x, y, z (mm) of the largest thing that is not air; the scan's box where nothing is.

    Thin things (the table's sheets, cables, blankets) are opened away first, and one half percent of the body is left out
    at either end of each axis. The box is for pictures of any kind of volume; measurements use `ctfoundry.body`.
    """
    voxels, affine = _canonical(volume)
    stride = [-(-n // 96) for n in voxels.shape]
    thin = voxels[:: stride[0], :: stride[1], :: stride[2]]
    if volume.kind == "hu":
        mask = thin > BODY_HU
    elif volume.kind == "label":
        mask = thin > 0
    else:
        dark, bright = np.percentile(thin, (1, 99))
        mask = thin > dark + 0.15 * (bright - dark)
    if not mask.any():
        return scan_box(volume)
    mask = largest_part(mask)
    ends = []
    for axis in range(3):
        share = np.cumsum(mask.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.float64))
        first, last = np.searchsorted(share, (0.005 * share[-1], 0.995 * share[-1]))
        end = min((int(last) + 1) * stride[axis], voxels.shape[axis])
        ends.append((int(first) * stride[axis] - 0.5, end - 0.5))
    return _world_box(affine, ends)


def body_centre(volume: Volume) -> np.ndarray:
    """Middle of the body's box, world millimetres."""
    low, high = picture_box(volume)
    return np.asarray((low + high) / 2)


def choose_window(volume: Volume) -> tuple[float, float]:
    """The (centre, width) that shows what a volume mostly holds.

    HU: looked at in the inner half of the body's box, where air outside the patient and the table do not count. "lung" where
    nearly all is lung, "wide" where lung or bone lies among soft tissue, otherwise "soft tissue". Other kinds: the 1st to the
    99th percentile.
    """
    if volume.kind != "hu":
        voxels, _ = _canonical(volume)
        thin = voxels[tuple(slice(None, None, -(-n // 96)) for n in voxels.shape)]
        low, high = (float(v) for v in np.percentile(thin, (1, 99)))
        return (low + high) / 2, max(high - low, 1e-6)
    voxels, affine = _canonical(volume)
    first, last = picture_box(volume)
    place = np.stack(np.meshgrid(*[np.linspace(0.25, 0.75, 40)] * 3, indexing="ij"), axis=-1)
    values, inside = _look_up(voxels, affine, (first + place * (last - first)).reshape(1600, 40, 3), linear=False)
    inner = values[inside]
    lung, soft, bone = (int(((inner > a) & (inner < b)).sum()) for a, b in ((-960, -600), (-150, 250), (300, 4096)))
    known = max(lung + soft + bone, 1)
    if lung > 0.7 * known:
        return WINDOWS["lung"]
    return WINDOWS["wide"] if lung > 0.12 * known or bone > 0.2 * known else WINDOWS["soft tissue"]


def label_colour(label: int) -> tuple[int, int, int]:
    """The RGB colour of a label: neighbours in number are far apart in hue."""
    import colorsys

    hue = (label * 0.6180339887498949) % 1.0
    light, strong = ((0.62, 0.75), (0.52, 0.65), (0.72, 0.6))[label % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, light, strong)
    return round(red * 255), round(green * 255), round(blue * 255)


def label_legend(names: Mapping[int, str], *, across: int = 4, width: int = 0) -> Picture:
    """Names beside their labels' colours, in `across` columns; at least `width` pixels wide."""
    from PIL import Image, ImageDraw, ImageFont

    font, line = ImageFont.load_default(13), 20
    widest = max([int(font.getlength(name)) for name in names.values()] or [0]) + 34
    wide = max(widest, (width - 10) // across)
    down = max(1, -(-len(names) // across))
    image = Image.new("RGB", (max(width, wide * min(across, max(len(names), 1)) + 10), down * line + 10))
    draw = ImageDraw.Draw(image)
    for k, (value, name) in enumerate(sorted(names.items())):
        x, y = 8 + wide * (k // down), 8 + line * (k % down)
        draw.rectangle((x, y, x + 12, y + 12), fill=label_colour(value))
        draw.text((x + 19, y + 6), name, (235, 235, 235), font, anchor="lm")
    return np.asarray(image)


def heat_colours(values: Float[np.ndarray, "..."]) -> Float32[np.ndarray, "... 3"]:
    """RGB (0..1) of heat values 0..1; beyond them the end colours."""
    import matplotlib

    table = matplotlib.colormaps[HEAT](np.linspace(0, 1, 256))[:, :3].astype(np.float32)
    place = np.clip(np.nan_to_num(values) * 255 + 0.5, 0, 255).astype(np.intp)
    return np.asarray(table[place])


def _limits(volume: Volume, window: Window) -> tuple[float, float]:
    if isinstance(window, str):
        if window == "auto":
            window = choose_window(volume)
        elif window in WINDOWS:
            window = WINDOWS[window]
        else:
            raise UsageError(f"unknown window {window!r}", do=f"use (centre, width), 'auto' or one of {list(WINDOWS)}")
    centre, width = window
    if not width > 0:
        raise UsageError(f"a window's width is positive, not {width}")
    return centre - width / 2, centre + width / 2


def _world_box(affine: geometry.Affine, ends: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    corners = np.array([(d, h, w) for d in ends[0] for h in ends[1] for w in ends[2]])
    world = geometry.to_world(affine, corners)
    return world.min(axis=0), world.max(axis=0)


def _canonical(volume: Volume) -> tuple[np.ndarray, geometry.Affine]:
    """The voxels as a *view* in one orientation, so that all 48 give the same picture to the bit and nothing is copied."""
    order, flip = geometry.axes_to(volume.affine, "SPL")
    view = volume.voxels.transpose(order)[tuple(slice(None, None, -1 if f else 1) for f in flip)]
    return view, geometry.reordered(volume.affine, volume.shape, order, flip)


def _look_up(
    voxels: np.ndarray, affine: geometry.Affine, points: np.ndarray, *, linear: bool
) -> tuple[Float32[np.ndarray, "rows columns"], np.ndarray]:
    """Values at world points, and whether each lies within the voxels (to their edges)."""
    from scipy import ndimage

    index = geometry.to_index(affine, points)
    shape = np.array(voxels.shape)
    inside = ((index >= -0.5 - 1e-6) & (index <= shape - 0.5 + 1e-6)).all(axis=-1)
    # nudged by a millionth of a voxel, so that points midway between two voxels fall to one side on every machine
    place = np.moveaxis(index if linear else np.round(index + 1e-6), -1, 0)
    values = ndimage.map_coordinates(voxels, place, np.float32, order=int(linear), mode="nearest", prefilter=False)
    return values, np.asarray(inside)


def _base(volume: Volume, panel: Panel, centre: np.ndarray, low: float, high: float) -> np.ndarray:
    """One panel of the scan, RGB 0..1; black outside the scan."""
    voxels, affine = _canonical(volume)
    through = float(centre[panel.through])
    if volume.kind == "label":
        colours, shown = _labels(voxels, affine, panel.points(through))
        return np.where(shown[..., None], colours, 0)
    # several looks a pixel where voxels are smaller than pixels: otherwise fine structures alias
    fine = int(np.clip(np.ceil(panel.mm / min(geometry.spacing(affine)) - 0.1), 1, 4))
    values, inside = _look_up(voxels, affine, panel.points(through, fine), linear=True)
    values = np.where(inside, values, low).reshape(panel.rows, fine, panel.columns, fine).mean(axis=(1, 3))
    grey = np.clip((values - low) / (high - low), 0, 1)
    return np.repeat(grey[..., None], 3, axis=-1)


def _labels(
    voxels: np.ndarray, affine: geometry.Affine, points: np.ndarray
) -> tuple[Float32[np.ndarray, "rows columns 3"], np.ndarray]:
    values, inside = _look_up(voxels, affine, points, linear=False)
    found, which = np.unique(values.astype(np.int64), return_inverse=True)
    table = np.array([label_colour(int(label)) for label in found], dtype=np.float32) / 255
    return table[which.reshape(values.shape)], np.asarray(inside & (values != 0))


def _lay_over(
    part: np.ndarray, volume: Volume, panel: Panel, centre: np.ndarray, overlay: Overlay | Volume, outlined: bool
) -> None:
    points = panel.points(float(centre[panel.through]))
    if isinstance(overlay, Volume) and overlay.kind == "label":
        colours, shown = _labels(*_canonical(overlay), points)
        weight = _edges(colours, shown) * np.float32(0.9) if outlined else shown * np.float32(0.5)
    else:
        if isinstance(overlay, Volume):
            overlay = Overlay(overlay.voxels, overlay.affine)
        own = overlay.affine is None
        if own and overlay.values.shape[:3] != volume.shape:
            raise UsageError(
                f"the overlay has shape {overlay.values.shape[:3]}, the scan {volume.shape}",
                do="give the overlay's affine, or values on the scan's grid",
            )
        affine = volume.affine if overlay.affine is None else overlay.affine
        values = overlay.values[..., None] if overlay.values.ndim == 3 else overlay.values
        finite = np.isfinite(values).all(axis=-1)
        share, inside = _look_up(finite.astype(np.float32), affine, points, linear=overlay.smooth)
        bands = [
            _look_up(np.where(finite, values[..., b], 0), affine, points, linear=overlay.smooth)[0]
            for b in range(values.shape[-1])
        ]
        # dividing by the share keeps values true beside cells that hold none
        mapped = np.stack(bands, axis=-1) / np.maximum(share, 1e-3)[..., None]
        weight = (inside & (share > 0.5)) * np.float32(overlay.alpha)
        if mapped.shape[-1] == 1:
            heat = np.clip(mapped[..., 0], 0, 1)
            colours, weight = heat_colours(heat), weight * heat
        else:
            colours = np.clip(mapped, 0, 1)
    part += (colours - part) * weight[..., None]


def _edges(colours: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """The pixels of each coloured region that have a neighbour of another colour, or none, above, below or beside them."""
    same = np.pad(np.where(shown[..., None], colours, -1), ((1, 1), (1, 1), (0, 0)), mode="edge")
    inner = same[1:-1, 1:-1]
    beside = (same[:-2, 1:-1], same[2:, 1:-1], same[1:-1, :-2], same[1:-1, 2:])
    return np.asarray(shown & np.any([(inner != other).any(-1) for other in beside], axis=0))


def _paint(part: np.ndarray, weight: np.ndarray, colour: str) -> None:
    from PIL import ImageColor

    rgb = np.array(ImageColor.getrgb(colour)[:3], dtype=np.float32) / 255
    part += (rgb - part) * np.clip(weight, 0, 1)[..., None]


def _cross(part: np.ndarray, panel: Panel, centre: np.ndarray, colour: str) -> None:
    """Faint lines across the panel, strong arms near the point, and nothing on the point itself."""
    row, column = (round(v) for v in panel.pixel(centre))  # whole pixels: a line between two is a blur
    down = np.abs(np.arange(panel.rows) - (row - panel.top))[:, None]
    across = np.abs(np.arange(panel.columns) - (column - panel.left))[None, :]
    reach = max(14.0, 0.11 * max(panel.rows, panel.columns))
    for off, along in ((down, across), (across, down)):
        strong = np.where(along < reach, 0.95, 0.28) * (along > 5)
        _paint(part, np.clip(2.0 - off, 0, 1) * strong * 0.5, "#000")  # a dark edge, to be seen on bright ground
        _paint(part, np.clip(1.3 - off, 0, 1) * strong, colour)


def _ring(part: np.ndarray, panel: Panel, mark: Mark, centre: np.ndarray) -> None:
    row, column = panel.pixel(mark.point)
    down = (np.arange(panel.rows) - (row - panel.top))[:, None]
    across = (np.arange(panel.columns) - (column - panel.left))[None, :]
    off = np.abs(np.hypot(down, across) - _radius(panel))
    strong: np.ndarray | float = 1.0
    if _off_plane(panel, mark, centre):
        strong = 0.75 * (np.sin(np.arctan2(down, across) * 8) > 0)
    _paint(part, np.clip(2.2 - off, 0, 1) * strong * 0.5, "#000")
    _paint(part, np.clip(1.35 - off, 0, 1) * strong, mark.colour)


def _letter(image: Image.Image, panels: Sequence[Panel], marks: Sequence[Mark], point: np.ndarray) -> None:
    """Orientation letters at the middle of each edge, names of marks, and one scale bar in the first panel."""
    from PIL import ImageDraw, ImageFont

    draw = ImageDraw.Draw(image)
    size = int(np.clip(max(panel.rows for panel in panels) / 15, 11, 17))
    large, small = ImageFont.load_default(size), ImageFont.load_default(size * 0.85)
    edge = max(1, size // 7)

    def put(text: str, x: float, y: float, anchor: str, colour: tuple[int, int, int] | str = _INK) -> None:
        font = small if text.endswith(" mm") else large
        draw.text((x, y), text, colour, font, anchor=anchor, stroke_width=edge, stroke_fill=(0, 0, 0))

    for panel in panels:
        middle, centre = panel.top + panel.rows / 2, panel.left + panel.columns / 2
        bottom, right = panel.top + panel.rows, panel.left + panel.columns
        if panel.rows > 2 * size and panel.columns > 4 * size:
            put(panel.letters[0], panel.left + 3, middle, "lm")
            put(panel.letters[1], right - 3, middle, "rm")
        if panel.rows > 4 * size:
            put(panel.letters[2], centre, panel.top + 3, "mt")
            put(panel.letters[3], centre, bottom - 3, "mb")
        for mark in marks:
            row, column = panel.pixel(mark.point)
            seen = panel.top <= row < bottom and panel.left <= column < right
            if mark.label and seen and not _off_plane(panel, mark, point):
                away = _radius(panel) + 3
                left = column < centre
                put(mark.label, column + (away if left else -away), row, "lm" if left else "rm", mark.colour)
    first, bar = panels[0], scale_bar(panels[0])
    if bar is not None:
        length, long = bar
        x, y = first.left + 6, first.top + first.rows - 6
        draw.rectangle((x - 1, y - 2, x + length, y + 1), fill=(0, 0, 0))
        draw.rectangle((x, y - 1, x + length - 1, y), fill=_INK)
        put(f"{long} mm", x, y - 5, "ls")


def _off_plane(panel: Panel, mark: Mark, point: np.ndarray) -> bool:
    return abs(mark.point[panel.through] - float(point[panel.through])) > OFF_PLANE_MM


def _radius(panel: Panel) -> float:
    """Pixels of a mark's ring."""
    return max(6.0, 0.035 * max(panel.rows, panel.columns))


def scale_bar(panel: Panel) -> tuple[int, int] | None:
    """(pixels, millimetres) of the longest round bar that takes at most 40 % of a panel's width; None if none does."""
    for long in _BARS_MM:
        if long / panel.mm <= 0.4 * panel.columns:
            return round(long / panel.mm), long
    return None
