"""Scans on disk in one canonical form: int16 HU, SPL, one grid, chunked, compressed, checksummed.

>>> import numpy as np, tempfile
>>> from ctfoundry import store
>>> from ctfoundry.volume import Volume
>>> from ctfoundry.geometry import make_affine
>>> with tempfile.TemporaryDirectory() as folder, store.create(folder, grid="native") as scans:
...     scan = Volume(np.zeros((8, 9, 10), np.int16), make_affine((3, 1, 1)))
...     entry = scans.add(scan, "a", patient="p1")
...     scans.read("a", ((-1, 1), (0, 2), (0, 1))).ravel().tolist()
[-1024, -1024, 0, 0]
"""

from ctfoundry.store.grids import canonical
from ctfoundry.store.index import Entries
from ctfoundry.store.meta import Meta
from ctfoundry.store.placed import CropPlan, make_crop, placement, plan_crop
from ctfoundry.store.sidecar import PROVENANCE, Entry, Histogram, Sidecar
from ctfoundry.store.store import CHUNK, Store, create, open_store

__all__ = [
    "CHUNK",
    "PROVENANCE",
    "CropPlan",
    "Entries",
    "Entry",
    "Histogram",
    "Meta",
    "Sidecar",
    "Store",
    "canonical",
    "create",
    "make_crop",
    "open_store",
    "placement",
    "plan_crop",
]
