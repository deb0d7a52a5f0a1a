"""Label maps for scans: which mask belongs to which scan, by id, by file name, or by the data set that both are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ctfoundry import files, io
from ctfoundry.archive.adapters import open_dataset, recognised
from ctfoundry.archive.adapters.dataset import Series
from ctfoundry.errors import UsageError
from ctfoundry.volume import Volume

_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


@dataclass(frozen=True)
class LabelMaps:
    """Files of label maps, read when called: ``labels`` holds several structures by number, another name is one structure."""

    maps: tuple[tuple[str, Path], ...]
    names: tuple[tuple[int, str], ...] = ()

    def __call__(self) -> Sequence[Volume]:
        """The maps, with the names of their labels."""
        found = []
        for name, path in self.maps:
            volume = io.read(path, kind="label")
            if name == "labels":
                found.append(replace(volume, names=dict(self.names)) if self.names else volume)
            else:
                one = (volume.voxels > 0).astype("uint8")
                found.append(replace(volume, voxels=one, names={1: name}))
        return found

    def digest(self) -> str:
        """Of the files' content and the names."""
        parts: list[Any] = [[name, files.sha256(path)] for name, path in self.maps]
        return files.digest([parts, [list(pair) for pair in self.names]])


@dataclass(frozen=True)
class Regions:
    """The label maps that a folder holds: `by_path` of a data set's scans, `by_name` of files on their own, `beside` for the one
    scan that may lie in the folder itself, with a file that is called labels."""

    by_path: Mapping[str, LabelMaps] = field(default_factory=dict)
    by_name: Mapping[str, LabelMaps] = field(default_factory=dict)
    beside: str | None = None

    def of(self, id: str, path: str) -> LabelMaps | None:
        """The maps of a scan: of its place in the data set, its id, its file's name, or its folder's; None where there is none."""
        own = str(Path(path).resolve())
        if own in self.by_path:
            return self.by_path[own]
        if own == self.beside:
            return self.by_name["labels"]
        keys = (id, _stem(Path(path)), Path(path).parent.name)
        return next((self.by_name[key] for key in keys if key in self.by_name), None)


def open_regions(folder: Path) -> Regions:
    """The label maps under `folder`: a data set's (as ``datasets show`` lists them), or files named as the scans.

    ``ID.nii.gz`` or ``SCAN-FILE-NAME.nii.gz`` (as ``segment`` writes them); ``labels.json`` beside them names the numbers. A
    folder may also hold one scan and its ``labels.nii.gz``.
    Raises UsageError where there is none.
    """
    if not folder.is_dir():
        raise UsageError(
            "is no folder", where=folder, do="--roi takes a folder of label maps, or a data set with labels"
        )
    by_path: dict[str, LabelMaps] = {}
    if recognised(folder):
        for case in open_dataset(folder).cases:
            if case.labels and isinstance(case.image, Path | Series):
                place = case.image.name if isinstance(case.image, Series) else case.image
                by_path[str(Path(place).resolve())] = LabelMaps(
                    tuple(sorted(case.labels.items())), tuple(sorted(case.names.items()))
                )
    names = _names(folder)
    by_name = {
        _stem(path): LabelMaps((("labels", path),), names)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name.endswith(_SUFFIXES)
    }
    if not by_path and not by_name:
        raise UsageError(
            "holds no label maps",
            where=folder,
            do="name them ID.nii.gz, or as the scans' files; or give a data set's folder",
        )
    others = sorted(set(by_name) - {"labels"})
    beside = None
    if "labels" in by_name and len(others) == 1:  # of several scans nobody knows whose it is
        (_, place), *_ = by_name[others[0]].maps
        beside = str(place.resolve())
    return Regions(by_path, by_name, beside)


def _stem(path: Path) -> str:
    name = path.name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name.removesuffix("_0000")


def _names(folder: Path) -> tuple[tuple[int, str], ...]:
    import json

    place = folder / "labels.json"
    if not place.is_file():
        return ()
    try:
        table = json.loads(place.read_text())
        return tuple(sorted((int(number), str(name)) for number, name in table.items()))
    except (ValueError, AttributeError) as error:
        raise UsageError("is no table of numbers and names", where=place, do='write {"1": "liver"}') from error
