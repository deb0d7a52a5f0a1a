"""One error for each invariant of a store (docs/store-format.md) that can be broken."""

from __future__ import annotations

from ctfoundry.errors import StoreError


class NotAStoreError(StoreError):
    """The folder has no ``store.json``, or it cannot be read."""


class UnknownFormatError(StoreError):
    """The store or a sidecar was written in a format version that this program does not know."""


class GridMismatchError(StoreError):
    """A store, a sidecar or an affine is on another grid than it should be."""


class BadIdError(StoreError):
    """An id, patient or collection is not of the allowed form."""


class ProvenanceError(StoreError):
    """A provenance key is not on the allow-list, or its value could identify somebody."""


class LimitError(StoreError):
    """A scan is larger than the format allows."""


class ContentError(StoreError):
    """The id is taken by a scan with other content."""


class UnknownScanError(StoreError):
    """No scan of the store has that id."""


class SidecarError(StoreError):
    """A sidecar is missing or cannot be read."""


class MissingArrayError(StoreError):
    """A scan has a sidecar but no array."""


class TruncatedArrayError(StoreError):
    """An array file is not as long as its sidecar says."""


class ChecksumError(StoreError):
    """The bytes of an array, or its voxels, are not those that were written."""


class ArrayError(StoreError):
    """An array file is not a readable blosc2 array."""


class DtypeError(StoreError):
    """The voxels are not int16."""


class ShapeError(StoreError):
    """The array has another shape than its sidecar says."""


class HistogramError(StoreError):
    """The histogram or a foreground box is not that of the voxels."""


class StaleIndexError(StoreError):
    """The index disagrees with a sidecar; it is rebuilt by deleting ``index.npy``."""


class ForegroundError(StoreError):
    """A preparation crops to a foreground that no sidecar holds."""
