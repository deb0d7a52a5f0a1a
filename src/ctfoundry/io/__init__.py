"""Volumes in and out: DICOM, NIfTI, NRRD, MetaImage. See docs/readers.md for every rule.

>>> from ctfoundry import io
>>> io.read("scan.nii.gz")  # doctest: +SKIP
Volume(hu int16, 133x512x512, 2.50x0.70x0.70 mm, SAL, -1024..3071 HU)
"""

from ctfoundry.io.dicom_seg import read_seg, read_seg_masks
from ctfoundry.io.dicom_seg_write import write_seg
from ctfoundry.io.discovery import Discovery, Facts, Found, discover, is_listing
from ctfoundry.io.kinds import recognise
from ctfoundry.io.reading import read, write
from ctfoundry.io.rtstruct import read_rtstruct, read_rtstruct_masks
from ctfoundry.io.rtstruct_write import write_rtstruct
from ctfoundry.io.skips import Skip
from ctfoundry.io.stream import CAP

__all__ = [
    "CAP",
    "Discovery",
    "Facts",
    "Found",
    "Skip",
    "discover",
    "is_listing",
    "read",
    "read_rtstruct",
    "read_rtstruct_masks",
    "read_seg",
    "read_seg_masks",
    "recognise",
    "write",
    "write_rtstruct",
    "write_seg",
]
