"""A strip with the histogram of a volume's values, to stand under its picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import UInt8

    Picture = UInt8[np.ndarray, "rows columns 3"]

HU_SHOWN = (-1100, 1600)
"""Range of the strip for HU; what lies beyond is counted at its ends."""
_AIR_HU = -930
"""Bars below this, the air around the body, may be cut off at the top: they would make all others small."""
_TICKS = (-1000, -500, 0, 500, 1000, 1500)
_BAR, _INK = (150, 158, 170), (200, 200, 200)


def strip(volume: Volume, columns: int, rows: int = 56) -> Picture:
    """The histogram (bars as high as the root of the counts) of HU or other values, light on black; all black for labels.

    Voxels that are not valid are not counted.
    """
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (columns, rows))
    if volume.kind == "label" or columns < 40:
        return np.asarray(image)
    values = volume.voxels if volume.valid is None else volume.voxels[volume.valid]
    if volume.kind == "hu":
        low, high = map(float, HU_SHOWN)
        ticks: tuple[float, ...] = _TICKS
    else:
        low, high = (float(v) for v in np.percentile(values, (0.5, 99.5))) if values.size else (0.0, 1.0)
        high = max(high, low + 1e-6)
        ticks = (low, (low + high) / 2, high)
    bars = max(columns // 3, 8)
    places = np.clip((values.astype(np.float32) - low) * (bars / (high - low)), 0, bars - 1).astype(np.intp)
    counts = np.sqrt(np.bincount(places.ravel(), minlength=bars))
    body = counts[round((_AIR_HU - low) * bars / (high - low)) :] if volume.kind == "hu" else counts
    tallest = max(body.max(initial=0), counts.max() / 50, 1e-9)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(10)
    base = rows - 15
    for k, height in enumerate(np.minimum(counts / tallest, 1) * (base - 4)):
        if height >= 0.5:
            left, right = round(k * columns / bars), round((k + 1) * columns / bars) - 1
            draw.rectangle((left, base - round(height), max(left, right - 1), base - 1), fill=_BAR)
    for tick in ticks:
        x = (tick - low) / (high - low) * columns
        draw.line((x, base, x, base + 2), fill=_INK)
        text = f"{tick:g} HU" if volume.kind == "hu" and tick == 0 else f"{tick:.4g}"
        half = draw.textlength(text, font=font) / 2
        draw.text((min(max(x, half + 1), columns - half - 1), base + 3), text, fill=_INK, font=font, anchor="mt")
    return np.asarray(image)
