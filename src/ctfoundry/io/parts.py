"""Series that hold more than one volume, split into parts with names.

A scanner may put several acquisitions, heart phases or reconstructions into one series. Slices are first put together by
what no volume can mix (size, in-plane spacing, orientation: `stack.group`). A group whose positions form one regular grid is
one volume, unless slices of different kinds (`_KINDS`) alternate in it. Otherwise it is split by the first of `_KEYS` that tells slices at one position apart, its
pieces again, and at last, where every position is there equally often, by the order of Instance Numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from os.path import commonpath, dirname

import numpy as np

from ctfoundry.errors import GeometryError, MissingSlicesError
from ctfoundry.geometry import POSITION_TOLERANCE_MM, SAME_GRID_MM
from ctfoundry.io import stack
from ctfoundry.io.dicom_header import Header

MOST_ACQUISITIONS, MOST_CHAINS = 1000, 32
"""More Acquisition Numbers in one group, or more volumes of them, are not looked at one by one."""
SPIRAL = 16
"""Acquisitions of fewer slices than this, on average, are steps of one scan rather than scans."""
FEWEST = 3
"""Two slices are always evenly spaced; a volume apart from the others has at least so many."""


@dataclass(frozen=True, eq=False)
class Part:
    """The slices of one volume.

    Attributes
    ----------
    headers : its slices, in no particular order.
    name : which part of its series it is, such as "acquisition 2"; "" where it is the only one.
    folder : the smallest folder that holds all slices of the series.
    """

    headers: list[Header]
    name: str
    folder: str

    @cached_property
    def where(self) -> str:
        """How `read` and errors name it: FOLDER#SeriesInstanceUID, with @PART where the series was split."""
        return f"{self.folder}#{self.headers[0].series}{f'@{self.name}' if self.name else ''}"


def split(headers: Iterable[Header]) -> tuple[list[Part], list[Header]]:
    """(the volumes, lone slices that form none) of slices of any number of series.

    Parts of a series come in the order of their names' values; names are different within a series.
    """
    parts: list[Part] = []
    lone: list[Header] = []
    by_series: dict[str, list[Header]] = {}
    for header in headers:
        by_series.setdefault(header.series, []).append(header)
    for slices in by_series.values():
        groups = stack.group(slices)
        lone += [g[0] for g in groups if len(g) == 1]
        groups = [g for g in groups if len(g) > 1]
        folder = _folder(slices)
        named = [
            (", ".join(filter(None, (outer, inner))), piece)
            for outer, group in zip(_shape_names(groups), groups, strict=True)
            for inner, piece in _split(group)
        ]
        for name, piece in zip(_different([n for n, _ in named]), (p for _, p in named), strict=True):
            parts.append(Part(piece, name, folder))
    return parts, lone


def _folder(slices: list[Header]) -> str:
    folders = {dirname(h.path) for h in slices}
    return folders.pop() if len(folders) == 1 else commonpath(folders)


def _different(names: list[str]) -> list[str]:
    """The names, with a number behind those that come more than once."""
    total, counts = Counter(names), Counter[str]()
    out = []
    for name in names:
        counts[name] += 1
        out.append(f"{name} ({counts[name]})" if total[name] > 1 else name)
    return out


# By shape ------------------------------------------------------------------------------------------------------------


def _shape_names(groups: list[list[Header]]) -> list[str]:
    """What tells groups of one series apart: the plane, else also the size, else also the spacing."""
    if len(groups) < 2:
        return [""] * len(groups)
    features = [
        (_plane(g[0]), f"{g[0].columns}x{g[0].rows}", " x ".join(f"{s:g}" for s in g[0].spacing) + " mm")
        for g in groups
    ]
    for count in (1, 2, 3):
        names = [", ".join(f[:count]) for f in features]
        if len(set(names)) == len(names):
            break
    return names


def _plane(header: Header) -> str:
    normal = np.abs(np.cross(header.orientation[:3], header.orientation[3:]))
    axis = int(normal.argmax())
    return ("sagittal", "coronal", "axial")[axis] if normal[axis] > 0.9 else "oblique"


# By tags -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Key:
    """One thing that may tell slices at one position apart.

    Attributes
    ----------
    of : its value in a header; "" where there is none.
    name : the name of the part with this value; ``{}`` is the value, or its number among them where it is not `shown`.
    shown : whether the value itself may stand in a name: not times, and not texts that people type.
    few : whether more values than slices at the fullest position speak against it.
    """

    of: Callable[[Header], str]
    name: str
    shown: bool = True
    few: bool = False


_ACQUISITION = _Key(lambda h: h.acquisition, "acquisition {}")
_THICKNESS = _Key(lambda h: "" if h.thickness is None else f"{h.thickness:g}", "{} mm thick")
_KINDS = (
    _Key(lambda h: h.temporal, "temporal position {}"),
    _Key(lambda h: h.phase, "phase {}%"),
    _Key(lambda h: h.trigger, "trigger time {} ms"),
    _Key(lambda h: h.kernel, "kernel {}"),
    _Key(lambda h: "" if h.kvp is None else f"{h.kvp:g}", "{} kV"),
    _Key(lambda h: h.contrast, "contrast {}", shown=False),
    _Key(lambda h: h.image_type, "image type {}"),
)
"""What no volume mixes, slice by slice."""
_KEYS = (
    _Key(lambda h: h.stack, "stack {}"),
    _ACQUISITION,
    *_KINDS,
    _THICKNESS,
    _Key(lambda h: h.description, "description {}", shown=False, few=True),
    _Key(lambda h: h.acquisition_time, "acquisition time {}", shown=False, few=True),
    _Key(lambda h: h.content_time, "content time {}", shown=False, few=True),
)


def _split(slices: list[Header], keys: Sequence[_Key] = _KEYS) -> list[tuple[str, list[Header]]]:
    """(name, slices) of the volumes in a group; one without a name where it cannot or need not be split."""
    try:
        layers = _layers(slices)
    except GeometryError:
        return [("", slices)]  # no orientation: `stack.plan` will say so
    most = int(np.bincount(layers).max())
    if most == 1:
        return _apart(slices, keys) or [("", slices)]
    beside = _side_by_side(slices, most)
    if beside:
        return [(_joined(name, inner), p) for name, piece in beside for inner, p in _split(piece, keys)]
    for k, key in enumerate(keys):
        pieces = _pieces(slices, key)
        if (
            len(pieces) > 1
            and not (key.few and len(pieces) > most)
            and all(len(piece) > 1 and np.bincount(_layers(piece)).max() < most for _, piece in pieces)
        ):
            return [(_joined(name, inner), p) for name, piece in pieces for inner, p in _split(piece, keys[k + 1 :])]
    return _in_turn(slices, layers, most) or [("", slices)]


def _apart(slices: list[Header], keys: Sequence[_Key]) -> list[tuple[str, list[Header]]]:
    """Volumes at different positions that are no one grid together: by the first key whose pieces are all regular."""
    try:
        stack.plan(slices, "")
        return _interleaved(slices)
    except MissingSlicesError:
        holes = True
    except GeometryError:
        holes = False
    for key in sorted(keys, key=lambda key: key is not _THICKNESS):
        pieces = _pieces(slices, key)
        if len(pieces) > 1 and not key.few and all(len(p) >= FEWEST and _is_regular(p) for _, p in pieces):
            # Many small acquisitions are one scan, step by step; a hole between two of them is a slice that got lost.
            small = key is _ACQUISITION and len(slices) < SPIRAL * len({h.acquisition for h in slices})
            if not (holes and small):
                return pieces
    return []


def _interleaved(slices: list[Header]) -> list[tuple[str, list[Header]]]:
    """Volumes of different kinds whose slices lie between each other's: together they only look like a finer one."""
    for key in _KINDS:
        first = key.of(slices[0])
        if all(key.of(h) == first for h in slices):
            continue
        pieces = _by(slices, key)
        if all(len(p) >= FEWEST and _is_regular(p) for _, p in pieces):
            ranges = sorted((a.min(), a.max()) for a in (_along(p) for _, p in pieces))
            if all(before[1] > behind[0] for before, behind in pairwise(ranges)):
                return pieces
    return []


def _joined(*names: str) -> str:
    return ", ".join(filter(None, names))


def _layers(slices: list[Header]) -> np.ndarray:
    """(n,) the number of the position, along the normal, that each slice lies at."""
    along = _along(slices)
    order = np.argsort(along, kind="stable")
    layers = np.empty(len(slices), dtype=np.int64)
    layers[order] = np.cumsum(np.diff(along[order], prepend=along[order[0]]) >= SAME_GRID_MM)
    return layers


def _along(slices: list[Header]) -> np.ndarray:
    *_, normal = stack.axes(slices[0], "")
    return np.array([h.position for h in slices], dtype=np.float64) @ normal


def _is_regular(slices: list[Header]) -> bool:
    try:
        stack.plan(slices, "")
    except GeometryError:
        return False
    return True


def _pieces(slices: list[Header], key: _Key) -> list[tuple[str, list[Header]]]:
    return _acquisitions(slices) if key is _ACQUISITION else _by(slices, key)


def _by(slices: list[Header], key: _Key) -> list[tuple[str, list[Header]]]:
    """Slices by the value of a key, in the order of the values, none first."""
    values: dict[str, list[Header]] = {}
    for header in slices:
        values.setdefault(key.of(header), []).append(header)
    ordered = sorted(values, key=_rank)
    shown = _shown(ordered) if key.shown else [f"{k + 1} of {len(ordered)}" for k in range(len(ordered))]
    names = [key.name.format(text) if text else f"no {key.name.split(' {')[0].strip('{} ')}" for text in shown]
    return [(name, values[value]) for name, value in zip(names, ordered, strict=True)]


def _rank(value: str) -> tuple[int, float, str]:
    try:
        return (1, float(value), value) if value else (0, 0.0, "")
    except ValueError:
        return 2, 0.0, value


def _shown(values: list[str]) -> list[str]:
    """Values as names hold them: the words that not all have, without signs that would confuse FOLDER#UID@PART."""
    words = [v.split("\\") for v in values]
    common = set.intersection(*(set(w) for w in words)) if len(words) > 1 else set()
    texts = [" ".join(w for w in ws if w not in common) or " ".join(ws) for ws in words]
    return [" ".join("".join(c if c.isprintable() and c not in "#@/" else " " for c in t).split())[:40] for t in texts]


def _side_by_side(slices: list[Header], most: int) -> list[tuple[str, list[Header]]]:
    """Slices at one position along the normal, but at different places in their plane, by that place."""
    across, down, _ = stack.axes(slices[0], "")
    points = np.array([h.position for h in slices], dtype=np.float64) @ np.stack([across, down], axis=1)
    corners: list[np.ndarray] = []
    pieces: list[list[Header]] = []
    for header, point in zip(slices, points, strict=True):
        for corner, piece in zip(corners, pieces, strict=True):
            if np.abs(point - corner).max() <= POSITION_TOLERANCE_MM:
                piece.append(header)
                break
        else:
            if len(corners) == most:  # slices that shift as they advance, not fields of view
                return []
            corners.append(point)
            pieces.append([header])
    if len(pieces) < 2 or min(len(p) for p in pieces) < 2:
        return []
    return [(f"field of view {k + 1}", piece) for k, piece in enumerate(pieces)]


def _acquisitions(slices: list[Header]) -> list[tuple[str, list[Header]]]:
    """Slices by Acquisition Number; numbers that only continue one volume stay together.

    In the order of the numbers, each joins the first volume that it continues: it brings other positions and both together
    form one regular grid.
    """
    numbers: dict[str, list[Header]] = {}
    for header in slices:
        numbers.setdefault(header.acquisition, []).append(header)
    if not 1 < len(numbers) <= MOST_ACQUISITIONS:
        return []
    volumes: list[tuple[list[str], list[Header]]] = []
    for number in sorted(numbers, key=_rank):
        new = numbers[number]
        for names, piece in volumes:
            if _is_regular([*piece, *new]):
                names.append(number)
                piece += new
                break
        else:
            if len(volumes) == MOST_CHAINS:
                return []
            volumes.append(([number], list(new)))
    return [(_numbered(names), piece) for names, piece in volumes]


def _numbered(numbers: list[str]) -> str:
    shown = [text or "without number" for text in _shown(numbers)]
    if len(shown) == 1:
        return f"acquisition {shown[0]}"
    return f"acquisitions {shown[0]} to {shown[-1]}" if len(shown) > 3 else f"acquisitions {' and '.join(shown)}"


def _in_turn(slices: list[Header], layers: np.ndarray, most: int) -> list[tuple[str, list[Header]]]:
    """The k-th slice of every position, in the order of Instance Numbers, where each position is there equally often."""
    counts = np.bincount(layers)
    if len(counts) < 2 or (counts != most).any():
        return []
    at: list[list[Header]] = [[] for _ in counts]
    for header, layer in zip(slices, layers, strict=True):
        at[layer].append(header)
    if any(len({h.instance for h in headers} - {None}) < most for headers in at):
        return []  # copies of the same slices, most likely
    turns = [sorted(headers, key=lambda h: h.instance or 0) for headers in at]
    return [(f"repeat {k + 1} of {most}", [headers[k] for headers in turns]) for k in range(most)]
