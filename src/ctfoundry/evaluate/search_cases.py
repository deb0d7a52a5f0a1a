"""The labelled scans that searches are measured on: opened when they are needed, forgotten after, known by a few numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ctfoundry import files
from ctfoundry.adapt.cases import LabelledScan
from ctfoundry.body import body_box
from ctfoundry.errors import CTFoundryError, NotAScanError, UsageError
from ctfoundry.evaluate import landmarks, search_arrays
from ctfoundry.evaluate.landmarks import Point
from ctfoundry.identity import digest_of
from ctfoundry.io.discovery import Found, discover
from ctfoundry.layouts.cases import Cohort
from ctfoundry.phantom import make
from ctfoundry.phantom.spec import Spec
from ctfoundry.settings import to_data
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Float64

T = TypeVar("T")
VERSION = 1
"""Of what is kept between runs; grows when the same scans and settings give other numbers."""
Tell = Callable[[str, int, int], None]
"""Told what is done, and how many of how many are done in this run."""


def quiet(what: str, done: int, of: int) -> None:
    """A `Tell` that says nothing."""


@dataclass
class Gathered:
    """Labelled scans in one order, not read yet; `failed` says by id what cannot be used and why, `paths` where all are (private)."""

    scans: list[LabelledScan] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a scan without its voxels.

    Attributes
    ----------
    scan : to read it again. content : its hash.
    landmarks : centroids (world mm, RAS+) of the structures that it holds whole.
    held : all structures that it holds, in lower case.
    box : of the body, lowest and highest world mm.
    """

    scan: LabelledScan
    content: str
    landmarks: Mapping[str, Point]
    held: frozenset[str]
    box: Float64[np.ndarray, "2 3"]

    @property
    def id(self) -> str:
        """Public name."""
        return self.scan.id

    @property
    def patient(self) -> str:
        """Public name."""
        return self.scan.patient


def labels_of(scan: LabelledScan) -> Volume:
    """The label map with its names."""
    found = scan.maps["labels"]()
    return replace(found, names=dict(scan.names)) if scan.names else found


def tried(id: str, read: Callable[[], T], failed: dict[str, str]) -> T | None:
    """What `read` gives; None where a scan cannot be read or prepared, and then `failed` says why."""
    try:
        return read()
    except CTFoundryError as error:
        failed[id] = error.what
    except OSError as error:
        failed[id] = f"its files cannot be read ({error.strerror or type(error).__name__})"
    return None


def know(scans: Sequence[LabelledScan], parts: Path, failed: dict[str, str], tell: Tell = quiet) -> list[Known]:
    """Look once at every scan and its labels; what is known of a content stays in `parts`. Scans that cannot be used go to `failed`."""
    found = []
    for number, scan in enumerate(scans, 1):
        content = tried(scan.id, scan.content, failed)
        if content is not None and (known := _known(scan, content, parts, failed)) is not None:
            found.append(known)
        tell("reading labels", number, len(scans))
    return found


def _known(scan: LabelledScan, content: str, parts: Path, failed: dict[str, str]) -> Known | None:
    place = parts / "known" / f"{files.digest([VERSION, content])[:32]}.json"
    data = search_arrays.read_json(place)
    if data is None:
        data = tried(scan.id, partial(_look, scan), failed)
        if data is None:
            return None
        search_arrays.write_json(place, data)
    points = {name: (x, y, z) for name, (x, y, z) in data["landmarks"].items()}
    return Known(scan, content, points, frozenset(data["held"]), np.array(data["box"]))


def _look(scan: LabelledScan) -> dict[str, object]:
    volume, labels = scan.image(), labels_of(scan)
    if volume.kind != "hu":
        raise NotAScanError(f"is no CT in HU but of the kind {volume.kind!r}")
    if not volume.grid.same(labels.grid):
        raise NotAScanError("its label map lies on another grid")
    there = np.unique(labels.voxels)
    return {
        "landmarks": {name: list(point) for name, point in landmarks.centroids(labels).items()},
        "held": sorted({name.lower() for value, name in (labels.names or {}).items() if value in there}),
        "box": body_box(volume).tolist(),
    }


# ---------------------------------------------------------------------- phantoms


def phantom_scans(
    count: int,
    seed: int,
    parts: Path,
    *,
    voxel_mm: float | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Gathered:
    """Labelled phantoms of the torso's views, one patient each, kept in `parts` as they are drawn."""
    from ctfoundry.layouts.plain import in_processes

    cohort = Cohort(count, seed, voxel_mm=voxel_mm)
    specs = {cohort.name(n): cohort.specs(n)[0] for n in range(count)}
    content = {name: files.digest(["phantom", to_data(spec)]) for name, spec in specs.items()}
    place = {name: parts / "phantoms" / content[name][:32] for name in specs}
    in_processes(
        _keep_phantom,
        [(place[name], spec) for name, spec in specs.items() if search_arrays.about(place[name]) is None],
        say=say,
    )
    return Gathered(
        [
            LabelledScan(
                name,
                name,
                partial(_kept, place[name], "ct"),
                {"labels": partial(_kept, place[name], "labels")},
                {},
                partial(str, content[name]),
            )
            for name in specs
        ]
    )


def _keep_phantom(folder: Path, spec: Spec) -> None:
    made = make(spec)
    names = {str(value): name for value, name in (made.labels.names or {}).items()}
    arrays = {"ct": made.ct.voxels, "labels": made.labels.voxels, "affine": made.ct.affine}
    search_arrays.write(folder, arrays, {"names": names})


def _kept(folder: Path, what: str) -> Volume:
    affine = np.array(search_arrays.read(folder, "affine"))
    voxels = np.array(search_arrays.read(folder, what))
    if what == "ct":
        return Volume(voxels, affine)
    known = search_arrays.about(folder) or {"names": {}}
    return Volume(voxels, affine, "label", {int(value): name for value, name in known["names"].items()})


# ---------------------------------------------------------------------- folders


def labelled_scans(root: Path) -> Gathered:
    """Scans below a folder, each folder with one CT and one label map on its grid; the number of a folder is its patient's too.

    Folders of CTs that have no label map, or several, are in `failed`, except below one that has (the same scan in another format).
    Raises UsageError where `root` is missing.
    """
    if not root.is_dir():
        raise UsageError("no such folder", where=root)
    seen = discover(root)
    ct: dict[Path, list[Found]] = {}
    maps: dict[Path, list[Found]] = {}
    lost = {skip.path.parent: skip.reason for skip in seen.skips if skip.lost}
    for item in seen.found:
        if item.problem is not None:
            lost[item.path.parent] = item.problem.what
        elif not item.path.name.startswith("lesions"):
            (maps if item.is_label else ct).setdefault(item.path.parent, []).append(item)
    whole = {home for home in ct if len(ct[home]) == 1 and len(maps.get(home, ())) == 1}
    homes = [home for home in sorted({*ct, *lost}) if home in whole or not whole.intersection(home.parents)]
    gathered = Gathered()
    for number, home in enumerate(homes, 1):
        id = f"P{number:02d}"
        gathered.paths[id] = str(home.absolute())
        if home not in whole:
            counted = f"holds {len(ct.get(home, ()))} CTs and {len(maps.get(home, ()))} label maps, not one of each"
            gathered.failed[id] = lost.get(home, counted)
            continue
        image, labels = ct[home][0], maps[home][0]
        content = partial(_content, image, labels)
        gathered.scans.append(LabelledScan(id, id, image.read, {"labels": labels.read}, {}, content))
    return gathered


def _content(image: Found, labels: Found) -> str:
    """Hash of a scan, its label map and what may name the labels."""
    tables = sorted(path for path in labels.path.parent.iterdir() if path.suffix in (".json", ".csv"))
    names = [[path.name, files.sha256(path)] for path in tables]
    return files.digest(
        [digest_of(image.hashes()), digest_of(labels.hashes()), labels.path.name, labels.members, names]
    )
