"""Synthetic anatomy: a labelled CT of a torso, as a function of a seed and two small dataclasses.

>>> from ctfoundry.keys import Key
>>> spec = draw(Key.of("phantom", 1), view="chest", voxel_mm=6)
>>> phantom = make(spec)
>>> phantom.ct.kind, phantom.ct.orientation, phantom.labels.names[5]
('hu', 'SPL', 'liver')
"""

from ctfoundry.phantom.make import Phantom, make
from ctfoundry.phantom.names import GROUPS, IDS, LABELS, WRAPS
from ctfoundry.phantom.spec import Z_RANGE, Acquisition, Spec, Subject, draw, draw_acquisition, draw_subject

__all__ = [
    "GROUPS",
    "IDS",
    "LABELS",
    "WRAPS",
    "Z_RANGE",
    "Acquisition",
    "Phantom",
    "Spec",
    "Subject",
    "draw",
    "draw_acquisition",
    "draw_subject",
    "make",
]
