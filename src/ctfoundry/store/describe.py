"""What a store holds, in numbers: counts, spacings, sizes, the HU of each collection. Read from index and sidecars alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.errors import StoreError
from ctfoundry.store.store import Store

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64

HU_EDGES = np.arange(-1025, 3076, 25)
"""Bins of the HU histograms: 25 HU; lower and higher values fall into the first and the last bin."""


@dataclass(frozen=True, eq=False)
class Description:
    """Numbers about a store.

    Attributes
    ----------
    scans, patients : how many.
    collections : scans of each, most first.
    voxels : of all scans; `bytes` : of all array files.
    spacing_mm, extent_mm, shape : least, 5 %, median, 95 % and largest along S, P, L, arrays (5, 3).
    hu : collection to the number of voxels in each bin of `HU_EDGES`, fill and air around the patient included.
    unread : scans whose sidecar could not be read, with the reason.
    """

    scans: int
    patients: int
    collections: Mapping[str, int]
    voxels: int
    bytes: int
    spacing_mm: Float64[np.ndarray, "5 3"]
    extent_mm: Float64[np.ndarray, "5 3"]
    shape: Float64[np.ndarray, "5 3"]
    hu: Mapping[str, Int64[np.ndarray, "bins"]]
    unread: Mapping[str, str]


def describe(store: Store, *, say: Callable[[str], None] = lambda _: None) -> Description:
    """Count what the store holds; every sidecar is read once for its histogram. An empty store has NaN for quantiles."""
    table = store.entries.table
    affine, shape = table["affine"].astype(np.float64), table["shape"].astype(np.float64)
    spacing = np.sqrt((affine[:, :, :3] ** 2).sum(axis=1))
    hu: dict[str, np.ndarray] = {}
    unread: dict[str, str] = {}
    for k, entry in enumerate(store.entries):
        try:
            histogram = store.sidecar(entry.id).histogram.unpack()
        except (StoreError, ValueError) as error:
            unread[entry.id] = str(error)
            continue
        values = np.clip(histogram.values, HU_EDGES[0], HU_EDGES[-1] - 1)
        counts = np.bincount(
            np.searchsorted(HU_EDGES, values, side="right") - 1, weights=histogram.counts, minlength=len(HU_EDGES) - 1
        )
        hu[entry.collection] = hu.get(entry.collection, 0) + counts.astype(np.int64)
        if (k + 1) % 500 == 0:
            say(f"{k + 1} of {len(table)} scans counted")
    return Description(
        scans=len(table),
        patients=len(set(table["patient"].tolist())),
        collections=dict(Counter(store.entries.column("collection")).most_common()),
        voxels=int(shape.prod(axis=1).sum()),
        bytes=int(table["bytes"].sum()),
        spacing_mm=_spread(spacing),
        extent_mm=_spread(spacing * shape),
        shape=_spread(shape),
        hu=hu,
        unread=unread,
    )


def _spread(values: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "5 3"]:
    if len(values) == 0:
        return np.full((5, 3), np.nan)
    return np.asarray(np.quantile(values, (0, 0.05, 0.5, 0.95, 1), axis=0))
