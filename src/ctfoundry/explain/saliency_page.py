"""A saliency map as pictures, a page and numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import geometry
from ctfoundry.explain.saliency import Saliency, Settings, doubt
from ctfoundry.preparation import Prepared
from ctfoundry.report import charts, page
from ctfoundry.report.planes import Overlay, three_planes
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Float64, UInt8

    Picture = UInt8[np.ndarray, "rows columns 3"]


def box_centres(found: Saliency, prepared: Prepared, size: tuple[int, int, int]) -> Float64[np.ndarray, "n 3"]:
    """World millimetres of the boxes' centres, in the order of the flat scores; boxes are cut at the scan's ends."""
    low = found.starts.reshape(-1, 3)
    high = np.minimum(low + size, np.array(prepared.x.shape[1:]))
    return np.asarray(geometry.to_world(prepared.affine, (low + high - 1) / 2))


def compared(found: Saliency, other: Saliency | None) -> dict[str, float | None]:
    """Rank correlation, over boxes that change anything, with the map of random weights and with the mere change of the input."""
    from scipy import stats

    used = found.changes.ravel() > 0

    def rank(values: np.ndarray) -> float | None:
        a, b = found.scores.ravel()[used], values.ravel()[used]
        return None if len(a) < 3 or a.std() == 0 or b.std() == 0 else float(stats.spearmanr(a, b).statistic)

    return {"input_change": rank(found.changes), "random_weights": None if other is None else rank(other.scores)}


def summary(
    found: Saliency, other: Saliency | None, prepared: Prepared, settings: Settings, top: int = 10
) -> dict[str, Any]:
    """What stands in ``saliency.json`` for one scan."""
    flat = found.scores.ravel()
    order = np.argsort(-flat, kind="stable")
    centres = box_centres(found, prepared, settings.size)
    rising = np.cumsum(np.clip(flat[order], 0, None))
    half = int(np.searchsorted(rising, rising[-1] / 2)) + 1 if rising[-1] > 0 else 0
    return {
        "boxes": found.boxes,
        "computed": found.computed,
        "seconds": round(found.seconds, 2),
        "method": found.method,
        "checked": found.checked,
        "doubts": _doubts(found, other),
        "rank_correlation": compared(found, other),
        "largest": float(flat.max()),
        "median": float(np.median(flat[found.changes.ravel() > 0])) if (found.changes > 0).any() else 0.0,
        "half_of_all_in_boxes": half,
        "top": [
            {"point": [round(v, 2) for v in centres[k].tolist()], "deviation": float(flat[k])} for k in order[:top]
        ],
    }


def _doubts(found: Saliency, other: Saliency | None) -> list[str]:
    told = [("", found)] + ([] if other is None else [("random weights: ", other)])
    doubts = [(start, doubt(map.checked, float(np.abs(map.scores).max()))) for start, map in told]
    return [start + text for start, text in doubts if text]


def picture(volume: Volume, prepared: Prepared, found: Saliency, point: np.ndarray, *, height: int = 300) -> Picture:
    """Three planes through `point` with the map as heat: its 99.5th percentile and above is brightest."""
    top = float(np.quantile(found.map[found.map > 0], 0.995)) if (found.map > 0).any() else 1.0
    heat = np.clip(found.map / top, 0, 1)
    return three_planes(volume, point=point, height=height, overlay=Overlay(heat, prepared.affine, alpha=0.7))


def peak(found: Saliency, prepared: Prepared, settings: Settings) -> np.ndarray:
    """World point of the box that turns the vector most."""
    return np.asarray(box_centres(found, prepared, settings.size)[int(np.argmax(found.scores))])


def make_page(
    rows: list[tuple[str, str, dict[str, Any], Picture, Picture | None]], settings: Settings, model: str, footer: str
) -> page.Page:
    """One page for all scans: (name, target, summary, picture, picture of random weights)."""
    size = "x".join(map(str, settings.size))
    sections: list[page.Section] = [
        page.Prose(
            f"Each box of {size} voxels of the prepared scan was hidden ({settings.fill}). Bright: hiding it turns the vector most "
            "(1 - cosine). Colours are scaled in each picture by itself. A map that looks like that of random weights, or like "
            "the mere change of the input, says nothing about what was learned: the rank correlations with both stand below."
        ),
        page.Figure(charts.heat_key("nothing", "most", title="turn of the vector"), "Colour scale.", "colour scale"),
    ]
    for name, target, numbers, own, other in rows:
        rank = numbers["rank_correlation"]
        sections += [
            page.Heading(f"{name}: {target}"),
            page.Figure(own, f"Saliency of {model}, planes through its maximum.", f"saliency map of {name}"),
        ]
        sections += [page.Callout(f"{doubted}.", "To be read with care", "warning") for doubted in numbers["doubts"]]
        if other is not None:
            sections.append(page.Figure(other, "Random weights, the same planes.", f"random weights, {name}"))
        sections.append(
            page.Facts(
                {
                    "rank correlation with random weights": _text(rank["random_weights"]),
                    "rank correlation with the change of the input": _text(rank["input_change"]),
                    "largest and median deviation": f"{numbers['largest']:.2e}, {numbers['median']:.2e}",
                    "half of all deviation lies in": f"{numbers['half_of_all_in_boxes']} of {numbers['boxes']} boxes",
                    "method": numbers["method"],
                    "boxes computed exactly as a check": _checked(numbers["checked"]),
                    "seconds": f"{numbers['seconds']:.0f}",
                }
            )
        )
    return page.Page("Saliency by occlusion", sections, subtitle=model, footer=footer)


def _text(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


def _checked(checked: dict[str, Any]) -> str:
    if not checked["boxes"]:
        return "none"
    return f"{checked['boxes']}, correlation {_text(checked['correlation'])}, largest difference {checked['worst']:.1%} of the largest"
