"""Which scans there are, whose they are, and what is known in them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ctfoundry import identity, io
from ctfoundry.errors import CTFoundryError, UsageError
from ctfoundry.evaluate import landmarks, patients
from ctfoundry.geometry import Grid
from ctfoundry.keys import Key
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from ctfoundry.store import Store

SMALLEST_MM = 40.0
"""A scan shorter than this along any axis is no volume to learn anatomy from (single slices, scouts)."""
HELD_OUT_SHARE = 1 / 3
FEWEST_PATIENTS = 4
"""With fewer patients nobody is held out, and the report says so."""


@dataclass(frozen=True, eq=False)
class Scan:
    """One usable scan under a public name; `read` opens the file again."""

    id: str
    name: str
    patient: str
    digest: str
    grid: Grid
    read: Callable[[], Volume]
    landmarks: Mapping[str, landmarks.Point]
    range_hu: tuple[float, float]
    format: str

    @property
    def size_mm3(self) -> float:
        """Volume of the field of view."""
        return math.prod(n * s for n, s in zip(self.grid.shape, self.grid.spacing, strict=True))


@dataclass
class Gathered:
    """All scans found, and an account of everything that was left out."""

    scans: list[Scan] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    twins: list[patients.Twin] = field(default_factory=list)
    labels: int = 0
    paths: dict[str, str] = field(default_factory=dict)

    def leave_out(self, path: Path, reason: str) -> None:
        """Count a file that is not used; its path goes into the private list alone."""
        self.left_out[reason] += 1
        self.paths[identity.name("left-out", str(path))] = f"{path} ({reason})"

    @property
    def patients(self) -> list[str]:
        """Public names of the patients."""
        return sorted({scan.patient for scan in self.scans})

    @property
    def shared_landmarks(self) -> set[str]:
        """Names of landmarks that more than one patient has: only these can be searched for across patients."""
        owners: dict[str, set[str]] = {}
        for scan in self.scans:
            for name in scan.landmarks:
                owners.setdefault(name, set()).add(scan.patient)
        return {name for name, group in owners.items() if len(group) > 1}


def gather(root: Path, table: Path | None = None, *, say: Callable[[str], None] = lambda _: None) -> Gathered:
    """Read everything under `root` once: scans are checked and known by salted ids, label maps give landmarks."""
    if not root.is_dir():
        raise UsageError("no such folder", where=root)
    roster = patients.Roster.of(root, table)
    found = io.discover(root)
    if table is not None and found.found and not any(roster.given(item.path) for item in found.found):
        raise UsageError(
            "names none of the scans, so it would part no patients", where=table, do="path is relative to --data"
        )
    result = Gathered()
    for skip in found.skips:
        result.leave_out(skip.path, skip.reason)
    grids: dict[str, tuple[Path, Grid]] = {}
    raw: dict[str, str] = {}
    coarse: dict[str, patients.Coarse] = {}
    labels: list[tuple[Path, Grid, dict[str, landmarks.Point]]] = []  # not the maps: a scan may have a hundred of them
    drafts: dict[str, Scan] = {}
    for item in found.found:
        try:
            volume = item.read()
        except CTFoundryError as error:
            result.leave_out(item.path, f"not readable: {error.what}")
            continue
        if volume.kind == "label":
            labels.append((item.paths[0].parent, volume.grid, landmarks.centroids(volume)))
            continue
        reason = _unfit(volume)
        if reason:
            result.leave_out(item.path, reason)
            continue
        digest = identity.digest_of(item.hashes())
        name = identity.name("scan", digest)
        if name in drafts:
            result.leave_out(item.path, "a byte-for-byte copy of another scan")
            continue
        grids[name] = (item.paths[0].parent, volume.grid)
        raw[name] = identity.name("patient", roster.patient(item.paths[0], item.patient))
        coarse[name] = patients.Coarse.of(volume)
        result.paths[name] = str(item.paths[0] if len(item.paths) == 1 else item.paths[0].parent)
        span = (float(volume.voxels.min()), float(volume.voxels.max()))
        drafts[name] = Scan(name, "", raw[name], digest, volume.grid, item.read, {}, span, item.format)
        say(f"read {len(drafts)} scans")
    result.labels = len(labels)
    result.twins = patients.find_twins(coarse)
    owners = patients.merge_patients(raw, result.twins)
    known = landmarks.attach(grids, labels)
    result.scans = _named(drafts, owners, known)
    return result


def _unfit(volume: Volume) -> str | None:
    if volume.kind != "hu":
        return "not in Hounsfield units"
    size = [n * s for n, s in zip(volume.shape, volume.spacing, strict=True)]
    return f"thinner than {SMALLEST_MM:.0f} mm" if min(size) < SMALLEST_MM else None


def _named(
    drafts: Mapping[str, Scan], owners: Mapping[str, str], known: Mapping[str, Mapping[str, landmarks.Point]]
) -> list[Scan]:
    """Public names: P01, P02 ... by patient, with a letter where a patient has several scans.

    The order is that of the content, not of the salted ids, so that a split is the same on every machine.
    """
    content: dict[str, str] = {}
    for id, owner in owners.items():
        content[owner] = min(content.get(owner, "~"), drafts[id].digest)
    order = {owner: f"P{i + 1:02d}" for i, owner in enumerate(sorted(content, key=lambda name: content[name]))}
    count = Counter(owners.values())
    seen: Counter[str] = Counter()
    scans = []
    for id, draft in sorted(drafts.items(), key=lambda item: (order[owners[item[0]]], item[1].digest)):
        owner = owners[id]
        letter = chr(ord("a") + seen[owner] % 26) if count[owner] > 1 else ""
        seen[owner] += 1
        scans.append(
            Scan(
                id,
                order[owner] + letter,
                order[owner],
                draft.digest,
                draft.grid,
                draft.read,
                known[id],
                draft.range_hu,
                draft.format,
            )
        )
    return scans


@dataclass(frozen=True)
class Split:
    """Patients that are trained on and patients that are held out; `honest` is False when there were too few to hold any out."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    honest: bool


def hold_out(gathered: Gathered, seed: int) -> Split:
    """A third of the patients, drawn by `seed`; patients with a landmark that another patient has too come first, because
    only they can show localisation."""
    everyone = gathered.patients
    if len(everyone) < FEWEST_PATIENTS:
        return Split(tuple(everyone), tuple(everyone), honest=False)
    names = gathered.shared_landmarks
    shared = {scan.patient for scan in gathered.scans if scan.landmarks.keys() & names}
    order = [everyone[i] for i in Key.of("hold-out", seed).permutation(len(everyone))]
    order.sort(key=lambda patient: patient not in shared)
    held = sorted(order[: max(round(len(everyone) * HELD_OUT_SHARE), 2)])
    return Split(tuple(p for p in everyone if p not in held), tuple(held), honest=True)


def fill_store(
    path: Path, scans: Sequence[Scan], spacing: Sequence[float | None], say: Callable[[str], None] = lambda _: None
) -> Store:
    """Every scan at the recipe's own spacing, so that a training crop is a plain read.

    A folder may have been used before, for other data or another ``--patients``: what is no longer a scan of that patient
    leaves the store, because training chooses by the patients' names, and a held-out one must not get in by an old name.
    """
    from ctfoundry.store import create

    grid = "x".join(f"{s:g}" for s in spacing if s is not None)
    owners = {scan.id: scan.patient for scan in scans}
    with create(path, grid=grid) as store:
        for entry in list(store.entries):
            if owners.get(entry.id) != entry.patient:
                store.remove(entry.id)
        for number, scan in enumerate(scans, 1):
            if scan.id not in store:
                store.add(scan.read(), scan.id, patient=scan.patient)
            say(f"stored {number} of {len(scans)} scans")
    return store
