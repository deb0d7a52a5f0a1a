"""What a radiologist could find in a phantom: measured from its masks, so it is true to what the scan shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ctfoundry.phantom.spec import LesionKind


@dataclass(frozen=True)
class Finding:
    """One lesion as far as the scan shows it.

    Attributes
    ----------
    lesion : index into ``spec.subject.lesions``.
    kind, site : as in `spec.Lesion`; `side` : "left", "right" or "" for what has none.
    size_mm : longest diameter within the scan (collections: greatest thickness); `volume_ml` : of the mask.
    centre_mm : world centroid of the mask, RAS+.
    whole : whether all of it lies within the scan.
    attributes : as in `spec.Lesion`, with what was measured added.
    """

    lesion: int
    kind: LesionKind
    site: str
    side: str
    size_mm: float
    volume_ml: float
    centre_mm: tuple[float, float, float]
    whole: bool
    attributes: Mapping[str, str] = field(default_factory=dict)
