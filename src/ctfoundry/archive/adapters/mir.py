"""3D-MIR: retrieval cohorts over four tasks of the Decathlon (colon, liver, lung, pancreas).

Layout: abachaa/3D-MIR, Data/Data_Splits (``liver_full_train_split.csv`` with a column training, ``..._test_split.csv`` with testing;
a cohort also lists scans of other organs, as negatives) and Data/3DMIR_labels (``liver_labels_and_captions.csv``: name, organ,
max_tumor_size, number_tumors, lesion_group, cancer_flag, three captions). The images are those of the Decathlon, in the same folder.
"""

from __future__ import annotations

from pathlib import Path

from ctfoundry.archive.adapters.dataset import Adapter, Case, Parts, Split
from ctfoundry.archive.adapters.decathlon import task_cases, tasks
from ctfoundry.archive.adapters.tree import Row, Tree, stem, targets

_COHORTS = ("colon", "liver", "lung", "pancreas")
_PLACES = ("", "Data_Splits/", "3DMIR_labels/", "Data/Data_Splits/", "Data/3DMIR_labels/", "Data/")


def _find(tree: Tree, name: str) -> Path | None:
    return tree.first(*(place + name for place in _PLACES))


def _is_it(tree: Tree) -> bool:
    return any(_find(tree, f"{cohort}_full_test_split.csv") for cohort in _COHORTS)


def _read(tree: Tree) -> Parts:
    scans = {stem(case.id): case for folder in tasks(tree) for case in task_cases(tree, folder)}
    cases: dict[str, Case] = {}
    lost: list[str] = []
    for cohort in _COHORTS:
        listed: dict[str, Split] = {}
        for part, column, split in (("train", "training", "train"), ("test", "testing", "test")):
            table = _find(tree, f"{cohort}_full_{part}_split.csv")
            if table is None:
                tree.note(f"no {cohort}_full_{part}_split.csv here")
                continue
            for row in tree.rows(table, (column,)):
                name = stem(row[column].strip())
                if listed.setdefault(name, split) != split:  # type: ignore[arg-type]
                    tree.note(f"{cohort}: {name} is in both splits; it counts as {listed[name]}")
        told = targets(_labels(tree, cohort, listed), leave=("name",)) if listed else {}
        for name, split in listed.items():
            scan = scans.get(name)
            if scan is None:
                lost.append(name)
                continue
            cases[f"{cohort}/{name}"] = Case(
                f"{cohort}/{name}",
                scan.patient,
                scan.image,
                scan.labels,
                scan.names,
                split,
                targets={"cohort": cohort, **told.get(name, {})},
            )
    tree.note_missing("listed scans are", sorted(set(lost)))
    return Parts(list(cases.values()))


def _labels(tree: Tree, cohort: str, listed: dict[str, Split]) -> dict[str, Row]:
    table = _find(tree, f"{cohort}_labels_and_captions.csv")
    return tree.keyed(table, "name", listed, f"{cohort}_labels_and_captions.csv", as_id=stem)


ADAPTERS = (
    Adapter(
        name="3d-mir",
        title="3D-MIR (retrieval: colon, liver, lung, pancreas)",
        home="github.com/abachaa/3D-MIR",
        licence="images CC BY-SA 4.0 (Decathlon); for labels and captions read their page",
        citation="Ben Abacha A et al., arXiv 2311.13752",
        looks_for="liver_full_test_split.csv or that of another cohort, beside the Decathlon's TaskNN folders",
        source="abachaa/3D-MIR, Data/Data_Splits and Data/3DMIR_labels",
        is_it=_is_it,
        read=_read,
    ),
)
