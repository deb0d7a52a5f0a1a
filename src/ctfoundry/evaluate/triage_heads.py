"""Head phantoms for triage: with and without blood in the skull, from the scanner that is learnt on and from another one."""

from __future__ import annotations

import csv
import io as text
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ctfoundry import files, io, phantom
from ctfoundry.keys import Key
from ctfoundry.layouts.plain import in_processes
from ctfoundry.phantom.findings import findings
from ctfoundry.phantom.spec import Kernel, LesionKind, Spec
from ctfoundry.settings import from_data, to_data
from ctfoundry.volume import Volume

ODDS: Mapping[LesionKind, float] = dict.fromkeys(
    ("epidural_haemorrhage", "subdural_haemorrhage", "parenchymal_haemorrhage"), 0.23
)
"""Of each kind of blood, so that 54 % of the heads have one (SinoCT: 55 %, CQ500: 55 %). Phantoms break no skulls, so blood alone is abnormal."""
TABLE = "labels.csv"


@dataclass(frozen=True)
class Scanner:
    """What one hospital's scans have in common; where the head lies and how it is turned differ from patient to patient.

    Attributes
    ----------
    pixel_mm, slice_mm : grid; slices are as thick as they are apart.
    kernel, noise_hu : as in `Acquisition`; the noise is that in the middle of an average torso, a head has about half of it.
    """

    pixel_mm: float
    slice_mm: float
    kernel: Kernel
    noise_hu: float

    def of(self, spec: Spec) -> Spec:
        """The same patient in the same place on this scanner, without contrast medium."""
        scan = spec.acquisition
        matrix = max(round(scan.field_mm / self.pixel_mm), 8)
        scan = replace(
            scan,
            matrix=matrix,
            field_mm=matrix * self.pixel_mm,
            spacing_mm=self.slice_mm,
            thickness_mm=self.slice_mm,
            kernel=self.kernel,
            noise_hu=self.noise_hu,
            phase="none",
        )
        return Spec(spec.subject, scan)


SOURCE = Scanner(1.5, 2.5, "soft", 3.4)
TARGET = Scanner(1.2, 5.0, "sharp", 12.0)
SITES: Mapping[str, Mapping[str, Scanner]] = {
    "source": {"train": SOURCE, "validation": SOURCE, "test": SOURCE},
    "target": {"test": TARGET},
}
"""Scanner of each part of each site."""


def make_site(
    root: Path,
    site: str,
    counts: Mapping[str, int],
    *,
    coarser: float = 1.0,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the heads of a site below `root` and a table of what they show; finished ones are kept. Returns the table's path.

    A head is ``PART-NNN/ct.nii.gz`` with ``truth.json`` (spec and findings). Patient n of a part is the same one in a larger cohort.
    `coarser` : factor on pixels and slices.
    """
    jobs = []
    for part, scanner in SITES[site].items():
        own = replace(scanner, pixel_mm=scanner.pixel_mm * coarser, slice_mm=scanner.slice_mm * coarser)
        jobs += [(root, site, part, n, own, seed) for n in range(counts[part])]
    named = in_processes(make_head, jobs, say=say)
    rows = [
        {
            "scan": name,
            "patient": f"{site}-{name}",
            "split": part,
            "abnormal": int(bool(truth["findings"])),
            "kinds": " ".join(sorted({finding["kind"] for finding in truth["findings"]})),
        }
        for (_, _, part, *_), name in zip(jobs, named, strict=True)
        for truth in [read_truth(root / name)]
    ]
    lines = text.StringIO()
    table = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    files.write_text(root / TABLE, lines.getvalue())
    return root / TABLE


def make_head(root: Path, site: str, part: str, number: int, scanner: Scanner, seed: int) -> str:
    """Write one head unless it is there; returns the name of its folder."""
    name = f"{part}-{number:03d}"
    folder = root / name
    key = Key.of("triage", seed, site, part, number)
    spec = scanner.of(phantom.draw(key, view="head", lesions=True, odds=ODDS))
    kept = folder / "truth.json"
    if kept.is_file() and (folder / "ct.nii.gz").is_file() and read_truth(folder)["spec"] == _plain(spec):
        return name
    folder.mkdir(parents=True, exist_ok=True)
    kept.unlink(missing_ok=True)
    made = phantom.make(spec)
    io.write(made.ct, folder / "ct.nii.gz")
    files.write_json(kept, {"spec": to_data(spec), "findings": [to_data(finding) for finding in findings(made)]})
    return name


def _plain(spec: Spec) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(to_data(spec)))


def read_truth(folder: Path) -> dict[str, Any]:
    """``spec`` and ``findings`` of a head."""
    found: dict[str, Any] = json.loads((folder / "truth.json").read_text())
    return found


def made_again(folder: Path) -> phantom.Phantom:
    """The phantom of a head made once more, for its masks."""
    return phantom.make(from_data(Spec, read_truth(folder)["spec"], str(folder.name)))


def brightest_blob(ct: Volume) -> np.ndarray:
    """One number, (1,): how much brighter than its median the brightest part of the inside of the skull is, in HU.

    What a person would write down who knows what blood looks like and learns nothing: HU smoothed by a Gaussian of 4 mm over voxels within
    the closed bone, at least 4 mm from it and between -50 and 120 HU; its 99.5 % quantile minus its median. The numbers are a first guess,
    tuned on nothing.
    """
    from scipy import ndimage

    skip = [max(round(2.5 / step), 1) for step in ct.spacing]
    hu = ct.voxels[tuple(slice(None, None, n) for n in skip)].astype(np.float32)
    spacing = np.array(ct.spacing) * skip
    bone = hu > 150
    inside = np.stack([ndimage.binary_fill_holes(cut) for cut in bone]) & ~bone
    inside &= (ndimage.distance_transform_edt(~bone, sampling=spacing) > 4) & (hu > -50) & (hu < 120)
    if not inside.any():
        return np.zeros(1)
    share = inside.astype(np.float32)
    smooth = ndimage.gaussian_filter(hu * share, 4 / spacing) / np.maximum(
        ndimage.gaussian_filter(share, 4 / spacing), 1e-3
    )
    values = smooth[inside]
    return np.array([np.quantile(values, 0.995) - np.median(values)], dtype=np.float64)
