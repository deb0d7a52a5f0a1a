"""Parts of a set of labelled scans, drawn by patient within each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ctfoundry.adapt.cases import Splits
from ctfoundry.adapt.tables import TargetScan, TargetSet
from ctfoundry.classifier import Kind
from ctfoundry.errors import UsageError
from ctfoundry.keys import Key


@dataclass(frozen=True)
class Parts(Splits):
    """Scans to learn from, to choose by, and to report on; no patient is in two of them."""

    train: tuple[TargetScan, ...]
    validation: tuple[TargetScan, ...]
    test: tuple[TargetScan, ...] = ()


def stratum(scans: Sequence[TargetScan], kind: Kind) -> tuple[int, ...]:
    """What a patient's scans show: each label that any of them has, or the highest class."""
    if kind == "multiclass":
        return (max(scan.target[0] for scan in scans),)
    return tuple(max(column) for column in zip(*(scan.target for scan in scans), strict=True))


def by_stratum(scans: Sequence[TargetScan], kind: Kind, key: Key) -> dict[tuple[int, ...], list[str]]:
    """Patients by what they show, in a random order."""
    own: dict[str, list[TargetScan]] = {}
    for scan in scans:
        own.setdefault(scan.patient, []).append(scan)
    groups: dict[tuple[int, ...], list[str]] = {}
    for patient in sorted(own):
        groups.setdefault(stratum(own[patient], kind), []).append(patient)
    return {
        what: [names[i] for i in key(*what).permutation(len(names))] for what, names in sorted(groups.items())
    }  # fmt: skip


def split_targets(
    data: TargetSet, *, seed: int = 0, validation: float = 0.2, test: float = 0.2
) -> tuple[Parts, tuple[str, ...]]:
    """The splits that the table gives, what it does not give drawn by patient within each class; and what is to be said of them.

    Scans that a table with splits gives none are left out. Raises UsageError when training or validation lacks a class, ContractError
    for a patient in two splits.
    """
    given = {name: [s for s in data.scans if s.split == name] for name in ("train", "validation", "test")}
    anything = any(given.values())
    notes = []
    left = sum(1 for s in data.scans if not s.split)
    if anything and left:
        notes.append(f"{left} scans without a split are left out, since others have one")
    pool = given["train"] if anything else list(data.scans)
    parts: dict[str, set[str]] = {"test": set(), "validation": set()}
    for patients in by_stratum(pool, data.kind, Key.of("split", seed)).values():
        rest = list(patients)
        for name, share in (("test", test), ("validation", validation)):
            if given[name] or not share or len(rest) < 2:
                continue
            count = min(max(1, round(share * len(patients))), len(rest) - 1)
            parts[name].update(rest[:count])
            rest = rest[count:]
    drawn = {name: tuple(given[name] or [s for s in pool if s.patient in parts[name]]) for name in parts}
    train = tuple(s for s in pool if s.patient not in parts["test"] | parts["validation"])
    splits = Parts(train, drawn["validation"], drawn["test"])
    notes += [
        f"{name}: drawn by patient within each class, seed {seed}"
        for name in ("validation", "test")
        if not given[name] and getattr(splits, name)
    ]
    _each_class(splits, data, notes)
    return splits, tuple(notes)


def _each_class(splits: Parts, data: TargetSet, notes: list[str]) -> None:
    for part in ("train", "validation", "test"):
        scans: Sequence[TargetScan] = getattr(splits, part)
        if not scans and part == "test":
            notes.append("there is no test part: nothing is reported on scans that chose nothing")
            continue
        for i, name in enumerate(data.classes):
            count = sum(s.target[i] if data.kind != "multiclass" else s.target[0] == i for s in scans)
            if count and (data.kind == "multiclass" or count < len(scans)):
                continue
            said = f"{part}: {name!r} is in {'no' if not count else 'every'} scan of {len(scans)}"
            if part == "test":
                notes.append(f"{said}, so it has no area under the curve there")
            else:
                raise UsageError(said, do="label more patients of each class, give other splits, or another seed")


def few_of_each(scans: Sequence[TargetScan], shots: int, kind: Kind, *, seed: int = 0) -> tuple[TargetScan, ...]:
    """One scan each of `shots` patients, in turns from each class; the draw of more shots with the same seed holds that of fewer.

    A patient's scan is drawn from those that show most of what the patient's scans show together: for a patient who bleeds in one scan of
    three it is that one.
    """
    groups = list(by_stratum(scans, kind, Key.of("shots", seed)).values())
    order = [names[turn] for turn in range(max(map(len, groups))) for names in groups if turn < len(names)]
    if not len(groups) <= shots <= len(order):
        raise UsageError(
            f"{shots} shots are asked for; {len(order)} training patients of {len(groups)} kinds are there",
            where="--shots",
            do=f"choose from {len(groups)} to {len(order)}",
        )
    own: dict[str, list[TargetScan]] = {}
    for scan in sorted(scans, key=lambda scan: scan.id):
        own.setdefault(scan.patient, []).append(scan)
    drawn = []
    for patient in order[:shots]:
        # of exclusive classes a patient counts as the highest
        most = max(sum(scan.target) for scan in own[patient])
        those = [scan for scan in own[patient] if sum(scan.target) == most]
        drawn.append(those[int(Key.of("shots", seed)("scan", patient).integers(0, len(those)))])
    return tuple(drawn)
