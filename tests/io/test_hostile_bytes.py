"""Truncated and garbled files: an error of the package or a volume, never anything else, in bounded memory."""

from __future__ import annotations

import gzip
import resource
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from ctfoundry import geometry, io
from ctfoundry.errors import CTFoundryError
from ctfoundry.io.dicom_write import write_series
from ctfoundry.volume import Volume

AFFINE = geometry.make_affine((2.5, 0.8, 1.3), "SPL", (30.0, 40.0, -100.0))
NAMES = ["a.nii", "a.nii.gz", "gz", "a.nrrd", "a.mha", "dcm", "implicit", "big", "deflated", "rle"]


@cache
def good(name: str) -> bytes:
    """The bytes of a small valid file."""
    voxels = np.random.default_rng(0).integers(-1000, 1500, (1, 6, 7)).astype(np.int16)
    with tempfile.TemporaryDirectory() as place:
        if name.startswith("a."):
            io.write(Volume(voxels, AFFINE), Path(place, name))
            return Path(place, name).read_bytes()
        if name == "gz":
            return good("a.nii")
        syntax = {
            "implicit": ImplicitVRLittleEndian,
            "big": ExplicitVRBigEndian,
            "deflated": DeflatedExplicitVRLittleEndian,
        }
        plain = {"syntax": str(syntax[name])} if name in syntax else {}
        change = (lambda data, d: data.compress(RLELossless)) if name == "rle" else None
        return write_series(Path(place), voxels, AFFINE, change=change, **plain)[0].read_bytes()


@st.composite
def garbled(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` cut, with bytes and runs of bytes replaced; headers are hit more often than the rest."""
    out = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, min(len(out), draw(st.sampled_from([360, 2000]))) - 1))
        new = draw(
            st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff", b"9"]))
        )
        out[at : at + len(new)] = new
    if draw(st.booleans()):
        del out[draw(st.integers(0, len(out))) :]
    return bytes(out)


@pytest.mark.parametrize("name", NAMES)
def test_only_our_errors(name: str, tmp_path: Path) -> None:
    path = tmp_path / (name if name.startswith("a.") else "file")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = set()

    @settings(max_examples=80, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        content = data.draw(garbled(good(name)))
        path.write_bytes(gzip.compress(content, 1) if name == "gz" else content)
        for work in (lambda: io.read(path, cap=1 << 24), lambda: io.discover(tmp_path)):
            try:
                work()
                outcomes.add("fine")
            except CTFoundryError as error:
                outcomes.add("error" if str(tmp_path) in str(error) else f"nameless: {error}")

    check()
    assert outcomes == {"fine", "error"}
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 << 10  # KiB; imports of the first run included


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation(name: str, tmp_path: Path) -> None:
    path = tmp_path / (name if name.startswith("a.") else "file")
    data = good(name)
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(CTFoundryError):
            io.read(path, cap=1 << 24)


def test_a_deflated_slice_that_swells(tmp_path: Path) -> None:
    """A private element of 256 MiB of zeros before the pixels, one kilobyte on the disk for each of its megabytes."""

    def change(data, d):
        data.add_new(0x00091010, "LO", "private")
        data.add_new(0x00091011, "OB", bytes(1 << 28))

    voxels = np.zeros((1, 6, 7), np.int16)
    path = write_series(tmp_path, voxels, AFFINE, change=change, syntax=str(DeflatedExplicitVRLittleEndian))[0]
    with pytest.raises(CTFoundryError, match="header is longer than 64 MiB"):
        io.read(path)
