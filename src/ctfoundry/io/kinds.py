"""What a file's numbers are: Hounsfield units, labels, or something else. One rule, by the values.

Only DICOM says that its numbers are HU. For every other format `recognise` decides:

1. *label*: whole numbers, none negative, and either at most 16 different values (masks 0/1, 0/255, empty ones too) or at
   most 1024 different ones that form regions: of neighbours along the last axis whose first is neither 0 nor the largest
   nor the most frequent value, more than 0.6 are equal.
2. *hu*: the smallest value is -200 or lower (a CT holds air, or at least lung or bowel gas; an MR, a PET and an image of
   0..1, -1..1, 8 bit or HU + 1024 do not), and none is outside -32768..32767.
3. *other*: the rest. It is read, but every preparation that is made for HU refuses it.

`why_not_hu` puts what it looks like into words. A header that calls its numbers labels is believed where they can be labels.

What it cannot know: a signed phase image passes for HU, and a CT cropped to soft tissue (nothing at -200 or below, such as a
skull-stripped brain) counts as *other*. For those, say ``kind="hu"``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from os import PathLike

import numpy as np

from ctfoundry.errors import NotAScanError, ReadError
from ctfoundry.volume import AIR, Kind, Volume

FEW_VALUES = 16
"""So few different whole numbers are labels, however they are spread."""
MOST_VALUES = 1024
"""More different values are never labels."""
REGION_SHARE = 0.6
"""Share of equal neighbours above which whole numbers count as regions. Measured: 0.97 on a map of 89 organs at 0.7 mm and
still 0.68 on its every 14th voxel; 0.05 to 0.51 on six real scans as 8-bit images through four wide windows. The most
frequent value is left out because it is the air around the patient."""
AIR_HU = -200
"""Some voxel of a CT in HU is as low as this."""
SHIFT = 1024
"""What many programs add to HU so that nothing is negative."""
FILL_HU = -1500
"""Values as low as this are a scanner's or a program's fill (-2000, -2048, -3024, -32768 are usual), never measured: noise
and resampling push air to about -1100."""


NOT_HU = "not HU: "
"""How the note of a volume begins that was recognised as *other*."""
TAKEN = "taken as HU because the caller says so, but "
"""How the note of a volume begins that was forced to be HU."""


def recognise(voxels: np.ndarray) -> tuple[Kind, str]:
    """(kind, reason) of an array (d, h, w) by the rule of this module; the reason is a clause for messages."""
    low, high = float(voxels.min()), float(voxels.max())
    whole = is_whole(voxels)
    if low >= 0 and whole and high < 2**31:
        count, most = _count_values(voxels, int(high))
        if count <= FEW_VALUES:
            return "label", f"{count} different whole numbers"
        if count <= MOST_VALUES:
            share = _region_share(voxels, high, most)
            if share > REGION_SHARE:
                return "label", f"{count} different whole numbers in regions"
    if low > AIR_HU or low < -32768 or high > 32767:
        return "other", why_not_hu(voxels)
    return "hu", f"values from {low:g} to {high:g}"


def why_not_hu(voxels: np.ndarray) -> str:
    """What numbers that are no HU look like, as a clause: the range, and the likeliest cause where there is one."""
    low, high = float(voxels.min()), float(voxels.max())
    span, whole = f"values from {low:g} to {high:g}", is_whole(voxels)
    if not whole and low >= 0 and high <= 1:
        return f"{span}: a normalised image"
    if not whole and low >= -1 and high <= 1:
        return f"{span}: a normalised image (-1 to 1)"
    if not whole and low >= -20 and low < 0 and high <= 20:
        return f"{span}: an image in standard deviations (z-score)?"
    if whole and low >= 0 and high <= 255:
        return f"{span}: an 8-bit image through a window"
    if whole and low >= 0 and _is_shifted(voxels, high):
        return f"{span}, most of them near {SHIFT}: CT stored without its intercept of -{SHIFT} (HU + {SHIFT})?"
    if low < -32768 or high > 32767:
        return f"{span}, beyond HU"
    if low >= 0:
        return f"{span}, none below 0: MR, PET, or a picture of a CT?"
    return f"the smallest value is {low:g}, so there is no air in HU: not CT, or a CT cut down to soft tissue?"


def _is_shifted(voxels: np.ndarray, high: float) -> bool:
    """Whether much lies within soft tissue's band about SHIFT, as in a CT stored as HU + 1024, and none far above CT's range."""
    if high > 4095 + SHIFT:
        return False
    sample = voxels[:: max(len(voxels) // 32, 1), ::2, ::2]
    body = sample[sample > SHIFT // 2]
    return body.size > 0 and float(np.mean(np.abs(body - np.float32(SHIFT + 20)) < 130)) > 0.5


def is_whole(voxels: np.ndarray) -> bool:
    """Whether all numbers are whole; looks at one slice after the other and stops at the first that is not."""
    if voxels.dtype.kind in "iu":
        return True
    return all(bool((part == np.rint(part)).all()) for part in voxels)


def _count_values(voxels: np.ndarray, high: int) -> tuple[int, int]:
    """(how many different values there are, the most frequent one that is not 0); a count over MOST_VALUES may stop early."""
    if high < 1 << 16:
        counts = np.zeros(high + 1, dtype=np.int64)
        for part in voxels:
            counts += np.bincount(part.ravel().astype(np.int64), minlength=high + 1)
        return int(np.count_nonzero(counts)), int(counts[1:].argmax()) + 1 if high else 0
    values: Counter[float] = Counter()
    for part in voxels:
        values.update(dict(zip(*(a.tolist() for a in np.unique(part, return_counts=True)), strict=True)))
        if len(values) > MOST_VALUES:
            break
    values.pop(0, None)
    return len(values) + 1, int(values.most_common(1)[0][0])


def _region_share(voxels: np.ndarray, high: float, most: int) -> float:
    equal = inner = 0
    for part in voxels:
        first, second = part[:, :-1], part[:, 1:]
        counted = (first != 0) & (first != high) & (first != most)
        inner += int(np.count_nonzero(counted))
        equal += int(np.count_nonzero(counted & (first == second)))
    return equal / inner if inner else 1.0


def check_finite(voxels: np.ndarray, where: str | PathLike[str]) -> None:
    """Raise ReadError, with the count and the first place, when a number is NaN or infinite."""
    if voxels.dtype.kind != "f":
        return
    count, first = 0, None
    for d, part in enumerate(voxels):
        bad = ~np.isfinite(part)
        if bad.any():
            count += int(bad.sum())
            if first is None:
                h, w = np.argwhere(bad)[0].tolist()
                first = (d, h, w, float(part[h, w]))
    if first is not None:
        raise ReadError(
            f"{count:,} voxels are NaN or infinite, the first at {first[:3]} ({first[3]})",
            where=where,
            do="replace them, e.g. by -1024, with the program that made the file",
        )


def scaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """``stored * slope + intercept`` as int16 where all are whole and fit, else as float32 (computed in float64)."""
    if stored.dtype.kind in "iu" and float(slope).is_integer() and float(intercept).is_integer():
        low, high = sorted(int(v) * int(slope) + int(intercept) for v in (stored.min(), stored.max()))
        if low >= -32768 and high <= 32767:
            if (slope, intercept) == (1, 0):
                return stored.astype(np.int16, copy=False)
            # Wrapping 16-bit arithmetic is exact when the result fits, so no wider copy is made.
            result = stored.astype(np.int16)
            result *= np.array(int(slope)).astype(np.int16)
            result += np.array(int(intercept)).astype(np.int16)
            return result
    if stored.dtype == np.float32 and (slope, intercept) == (1, 0):
        result = stored
    else:
        result = np.empty(stored.shape, dtype=np.float32)
        for k, part in enumerate(stored):
            with np.errstate(over="ignore", invalid="ignore"):  # infinities are named by check_finite
                result[k] = part.astype(np.float64) * slope + intercept
    return compact(result)


def compact(voxels: np.ndarray) -> np.ndarray:
    """Floating numbers as int16 when all are whole and fit; otherwise unchanged."""
    if voxels.dtype.kind == "f":
        low, high = voxels.min(), voxels.max()
        if low >= -32768 and high <= 32767 and is_whole(voxels):  # False for NaN
            return voxels.astype(np.int16)
    return voxels


def judge(
    voxels: np.ndarray, kind: Kind | None, where: str | PathLike[str], *, says_label: bool = False
) -> tuple[Kind, tuple[str, ...]]:
    """(kind, notes) of `voxels`: recognised, or the caller's `kind` where the values allow it.

    ``"hu"`` is refused for a label map, ``"label"`` for anything but whole numbers from 0; both as NotAScanError. The notes
    say why numbers are *other*, or that they are taken as HU although they do not look it. `says_label`: the header does.
    """
    if kind == "other":
        return kind, ()
    own, reason = recognise(voxels)
    if own != "label" and (says_label or kind == "label") and is_whole(voxels) and voxels.min() >= 0:
        if kind != "hu":
            return "label", ()
        own, reason = "label", "its header says so"
    if kind == "label" and own != "label":
        raise NotAScanError(f"is no label map ({reason})", where=where, do="read it without kind='label'")
    if kind == "hu" and own == "label":
        raise NotAScanError(f"is a label map ({reason})", where=where, do="read it without kind='hu'")
    if own == "other":
        return (kind, (TAKEN + reason,)) if kind else ("other", (NOT_HU + reason,))
    return own, ()


def as_hu(volume: Volume) -> Volume:
    """A volume of kind "other" as HU because the caller knows better; its notes say so. HU come back as they are.

    Raises NotAScanError for a label map.
    """
    if volume.kind == "hu":
        return volume
    if volume.kind == "label":
        raise NotAScanError("is a label map, not a scan", where=volume.source or None)
    reasons = [note.removeprefix(NOT_HU) for note in volume.notes if note.startswith(NOT_HU)]
    notes = [note for note in volume.notes if not note.startswith(NOT_HU)]
    notes.append(TAKEN + (reasons[0] if reasons else why_not_hu(volume.voxels)))
    voxels, valid = finished(volume.voxels.copy(), "hu")
    return replace(volume, voxels=voxels, kind="hu", valid=valid, notes=tuple(notes))


def as_labels(voxels: np.ndarray) -> np.ndarray:
    """Labels in the smallest unsigned type that holds them."""
    high = int(voxels.max())
    return voxels.astype(np.uint8 if high < 1 << 8 else np.uint16 if high < 1 << 16 else np.uint32, copy=False)


def finished(voxels: np.ndarray, kind: Kind) -> tuple[np.ndarray, np.ndarray | None]:
    """(voxels, valid) as a `Volume` of this kind holds them.

    HU: everything at FILL_HU or below becomes AIR, in place, and is not valid; int16 where whole. Labels: the smallest
    unsigned type. `valid` is None where nothing was fill.
    """
    if kind == "label":
        return as_labels(voxels), None
    if kind == "other" or voxels.min() > FILL_HU:
        return compact(voxels), None
    valid = voxels > FILL_HU
    voxels[~valid] = AIR
    return compact(voxels), valid
