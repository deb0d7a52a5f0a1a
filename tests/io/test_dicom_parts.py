"""One series, several volumes: split and named, or left whole where tags only look like it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctfoundry import geometry, io
from ctfoundry.errors import DuplicateSlicesError, MissingSlicesError, NotAScanError, ReadError, UsageError
from ctfoundry.io.dicom_write import UID, write_series
from ctfoundry.io.references import source_of
from ctfoundry.retrieval import sources
from ctfoundry.volume import Volume

AFFINE = geometry.make_affine((2.5, 0.8, 1.3), "SPL", (30.0, 40.0, -100.0))
SHAPE = (6, 5, 7)


def values(seed: int, count: int = SHAPE[0]) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 2000, (count, *SHAPE[1:])).astype(np.int16)


def write(
    folder: Path,
    seed: int,
    change: Callable[[Any, int], None] | None = None,
    *,
    count: int = SHAPE[0],
    start: float = 0.0,
    step: float = 2.5,
) -> np.ndarray:
    """One volume of the series, whose files are named after the seed; returns what was written."""
    stored = values(seed, count)
    affine = np.array(AFFINE)
    affine[2, 0], affine[2, 3] = step, affine[2, 3] + start

    def all_changes(data: Any, d: int) -> None:
        data.InstanceNumber = 1000 * seed + d + 1
        if change is not None:
            change(data, d)

    write_series(folder, stored, affine, change=all_changes, name=f"{seed}-{{:04d}}.dcm".format)
    return stored


def check(folder: Path, expected: dict[str, np.ndarray]) -> None:
    """Every part is found by name, read by every name that it has, and nothing else is."""
    found = io.discover(folder).found
    assert {f.part for f in found} == set(expected)
    for item in found:
        assert item.problem is None
        np.testing.assert_array_equal(item.read().voxels, expected[item.part])
        np.testing.assert_array_equal(io.read(item.name).voxels, expected[item.part])
    if len(expected) > 1:
        with pytest.raises(NotAScanError, match=f"holds {len(expected)} stacks of slices") as error:
            io.read(folder)
        listed = re.findall(rf"#{UID}\.1@(.*?) \(\d+ slices", str(error.value))
        assert set(listed) == set(expected)
        for k, name in enumerate(listed, 1):
            np.testing.assert_array_equal(io.read(f"{folder}#{UID}.1@{k}").voxels, expected[name])
        with pytest.raises(NotAScanError, match="has no part 'nothing'"):
            io.read(f"{folder}#{UID}.1@nothing")


def tag(name: str, value: Any) -> Callable[[Any, int], None]:
    return lambda data, d: setattr(data, name, value)


@pytest.mark.parametrize(
    ("name", "tags", "parts"),
    [
        ("AcquisitionNumber", ["2", "10"], ["acquisition 2", "acquisition 10"]),
        ("TemporalPositionIdentifier", ["1", "2"], ["temporal position 1", "temporal position 2"]),
        ("NominalPercentageOfCardiacPhase", [30.0, 75.0], ["phase 30%", "phase 75%"]),
        ("TriggerTime", ["80", "350.5"], ["trigger time 80 ms", "trigger time 350.5 ms"]),
        ("ConvolutionKernel", ["B30f", "B70#f/@3"], ["kernel B30f", "kernel B70 f 3"]),
        ("KVP", ["80", "140"], ["80 kV", "140 kV"]),
        ("ContrastBolusAgent", ["", "given to Jane Doe"], ["contrast 1 of 2", "contrast 2 of 2"]),
        (
            "ImageType",
            [["DERIVED", "PRIMARY", "AXIAL", "MONO_70"], ["DERIVED", "PRIMARY", "AXIAL", "IODINE"]],
            ["image type MONO_70", "image type IODINE"],
        ),
        ("SliceThickness", ["1", "5"], ["1 mm thick", "5 mm thick"]),
        ("SeriesDescription", ["Dr Smith, inspiration", "expiration"], ["description 1 of 2", "description 2 of 2"]),
        ("AcquisitionTime", ["101500", "101730.5"], ["acquisition time 1 of 2", "acquisition time 2 of 2"]),
        ("ContentTime", ["101500", "101730.5"], ["content time 1 of 2", "content time 2 of 2"]),
    ],
)
def test_each_tag_that_parts_repeated_positions(name: str, tags: list[Any], parts: list[str], tmp_path: Path) -> None:
    pieces = {
        part: write(tmp_path, k, tag(name, value)) for k, (value, part) in enumerate(zip(tags, parts, strict=True))
    }
    check(tmp_path, pieces)


def test_one_value_missing_is_a_value_too(tmp_path: Path) -> None:
    check(
        tmp_path, {"no kernel": write(tmp_path, 1), "kernel Bone": write(tmp_path, 2, tag("ConvolutionKernel", "Bone"))}
    )


def test_several_tags_together(tmp_path: Path) -> None:
    expected = {}
    for acquisition in (1, 2):
        for kernel in ("Br40", "Br64"):

            def change(data: Any, d: int, acquisition: int = acquisition, kernel: str = kernel) -> None:
                data.AcquisitionNumber, data.ConvolutionKernel = acquisition, kernel

            name = f"acquisition {acquisition}, kernel {kernel}"
            expected[name] = write(tmp_path, 2 * acquisition + (kernel == "Br64"), change)
    check(tmp_path, expected)


@pytest.mark.parametrize("interleaved", [True, False])
def test_order_of_instances_at_last(interleaved: bool, tmp_path: Path) -> None:
    """Ten phases that nothing but Instance Number tells apart, counted phase by phase or position by position."""
    expected = {}
    for phase in range(10):

        def change(data: Any, d: int, phase: int = phase) -> None:
            data.InstanceNumber = 10 * d + phase + 1 if interleaved else SHAPE[0] * phase + d + 1

        expected[f"repeat {phase + 1} of 10"] = write(tmp_path, phase, change)
    check(tmp_path, expected)


def test_copies_are_no_phases(tmp_path: Path) -> None:
    write(tmp_path / "a", 1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (found,) = io.discover(tmp_path).found
    assert found.part == ""
    assert isinstance(found.problem, DuplicateSlicesError)
    with pytest.raises(DuplicateSlicesError, match="6 of 12 slices repeat a position"):
        io.read(tmp_path)
    np.testing.assert_array_equal(io.read(tmp_path / "b").voxels, values(1))


def test_positions_that_repeat_unevenly_are_not_guessed(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2, count=5)
    with pytest.raises(DuplicateSlicesError, match="5 of 11"):
        io.read(tmp_path)


def test_acquisitions_that_continue_one_volume_stay_together(tmp_path: Path) -> None:
    """Step and shoot: four slices an acquisition; and one acquisition a slice."""
    stored = write(tmp_path / "steps", 1, lambda data, d: setattr(data, "AcquisitionNumber", d // 4 + 1), count=20)
    check(tmp_path / "steps", {"": stored})
    stored = write(tmp_path / "each", 2, lambda data, d: setattr(data, "AcquisitionNumber", d + 1), count=20)
    check(tmp_path / "each", {"": stored})
    stored = write(tmp_path / "between", 3, lambda data, d: setattr(data, "AcquisitionNumber", d % 2 + 1), count=20)
    check(tmp_path / "between", {"": stored})


@pytest.mark.parametrize("by_pass", [True, False])
def test_steps_of_several_passes(by_pass: bool, tmp_path: Path) -> None:
    """Three passes of five steps of four slices; numbers run along each pass, or over the passes at each step."""
    expected = {}
    for p in range(3):

        def change(data: Any, d: int, p: int = p) -> None:
            data.AcquisitionNumber = 5 * p + d // 4 + 1 if by_pass else 3 * (d // 4) + p + 1

        first, last = (5 * p + 1, 5 * p + 5) if by_pass else (p + 1, 13 + p)
        expected[f"acquisitions {first} to {last}"] = write(tmp_path, p, change, count=20)
    check(tmp_path, expected)


def test_two_acquisitions_apart(tmp_path: Path) -> None:
    """Head and abdomen in one series, a hand's breadth between them."""
    head = write(tmp_path, 1, tag("AcquisitionNumber", 1), count=20)
    abdomen = write(tmp_path, 2, tag("AcquisitionNumber", 2), count=24, start=130.0)
    check(tmp_path, {"acquisition 1": head, "acquisition 2": abdomen})


def test_two_thicknesses_one_above_the_other(tmp_path: Path) -> None:
    """An old head scan: 2.5 mm through the base, 5 mm above, one acquisition a slice."""

    def each(thickness: str, first: int) -> Callable[[Any, int], None]:
        def change(data: Any, d: int) -> None:
            data.SliceThickness, data.AcquisitionNumber = thickness, first + d

        return change

    base = write(tmp_path, 1, each("2.5", 1), count=8)
    top = write(tmp_path, 2, each("5", 9), count=10, start=8 * 2.5 + 1.25, step=5.0)
    check(tmp_path, {"2.5 mm thick": base, "5 mm thick": top})


def test_a_lost_slice_between_steps_stays_an_error(tmp_path: Path) -> None:
    write(tmp_path, 1, lambda data, d: setattr(data, "AcquisitionNumber", d // 4 + 1), count=20)
    (tmp_path / "1-0011.dcm").unlink()
    (found,) = io.discover(tmp_path).found
    assert isinstance(found.problem, MissingSlicesError)
    with pytest.raises(MissingSlicesError, match=r"1 slices are missing at -72\.50 mm"):
        io.read(tmp_path)


def test_a_part_with_a_lost_slice_says_so_and_leaves_the_other_alone(tmp_path: Path) -> None:
    first = write(tmp_path, 1, tag("AcquisitionNumber", 1), count=12)
    write(tmp_path, 2, tag("AcquisitionNumber", 2), count=12)
    (tmp_path / "2-0005.dcm").unlink()
    one, two = sorted(io.discover(tmp_path).found, key=lambda f: f.part)
    np.testing.assert_array_equal(one.read().voxels, first)
    assert isinstance(two.problem, MissingSlicesError)
    assert two.problem.where == two.name
    with pytest.raises(MissingSlicesError, match="acquisition 2: 1 slices are missing"):
        io.read(two.name)


def test_kernels_that_alternate_are_no_finer_volume(tmp_path: Path) -> None:
    """Each at 2.5 mm, one half a step above the other: together a regular grid of 1.25 mm."""
    soft = write(tmp_path, 1, tag("ConvolutionKernel", "Br40"))
    sharp = write(tmp_path, 2, tag("ConvolutionKernel", "Br64"), start=1.25)
    check(tmp_path, {"kernel Br40": soft, "kernel Br64": sharp})


def test_fields_of_view_side_by_side(tmp_path: Path) -> None:
    """Both knees in one series: positions differ in their plane alone."""
    left = write(tmp_path, 1)

    def aside(data: Any, d: int) -> None:
        x, y, z = data.ImagePositionPatient
        data.ImagePositionPatient = [float(x) + 120, y, z]

    check(tmp_path, {"field of view 1": left, "field of view 2": write(tmp_path, 2, aside)})


def test_planes_and_sizes_have_names(tmp_path: Path) -> None:
    axial, coronal = values(1), values(2)
    write_series(tmp_path, axial, AFFINE, name="a{}".format)
    plane = geometry.make_affine((2.0, 1.0, 1.0), "PIL")
    write_series(tmp_path, coronal, plane, name="c{}".format)
    check(tmp_path, {"axial": axial, "coronal": coronal})
    bigger = np.pad(values(3), ((0, 0), (0, 3), (0, 3)))
    write_series(tmp_path, bigger, AFFINE, name="b{}".format)
    found = {f.part: f for f in io.discover(tmp_path).found}
    assert set(found) == {"axial, 7x5", "coronal, 7x5", "axial, 10x8"}
    np.testing.assert_array_equal(io.read(found["axial, 10x8"].name).voxels, bigger)


def test_phases_of_a_tilted_series(tmp_path: Path) -> None:
    """Slices that shift as they advance are not side by side."""

    def change(acquisition: int) -> Callable[[Any, int], None]:
        def tilt(data: Any, d: int) -> None:
            x, y, z = (float(v) for v in data.ImagePositionPatient)
            data.ImagePositionPatient, data.AcquisitionNumber = [x, y + 0.6 * d, z], acquisition

        return tilt

    for k in (1, 2):
        write(tmp_path, k, change(k), count=8)
    found = io.discover(tmp_path).found
    assert [f.part for f in found] == ["acquisition 1", "acquisition 2"]
    for item in found:
        assert item.notes == ("gantry tilt of 13.5 degrees undone by a shear",)
        assert io.read(item.name).notes == item.notes


def test_bolus_tracking_at_one_position(tmp_path: Path) -> None:
    """Ten slices at one position beside a volume: they are a part with a problem, the volume is whole."""
    stored = write(tmp_path, 1, tag("AcquisitionNumber", 2), count=12)
    for k in range(10):

        def change(data: Any, d: int, k: int = k) -> None:
            data.AcquisitionNumber, data.InstanceNumber = 1, k + 1

        write_series(tmp_path, values(50 + k, 1), AFFINE, change=change, name=f"t{k}{{}}".format)
    tracking, volume = sorted(io.discover(tmp_path).found, key=lambda f: f.part)
    assert (tracking.part, type(tracking.problem)) == ("acquisition 1", DuplicateSlicesError)
    np.testing.assert_array_equal(volume.read().voxels, stored)


def test_facts_come_from_the_header(tmp_path: Path) -> None:
    def change(data: Any, d: int) -> None:
        data.SeriesDescription, data.SeriesNumber, data.AcquisitionNumber = "Thorax  1.0 ü", 4, 2
        data.SpecificCharacterSet = "ISO_IR 192"
        data.ConvolutionKernel, data.KVP, data.SliceThickness = "B30f", "120", "1.5"
        data.ContrastBolusAgent, data.BodyPartExamined = "agent", "CHEST"
        data.Manufacturer, data.ManufacturerModelName = "Maker", "Model 5"

    write(tmp_path, 1, change)
    (found,) = io.discover(tmp_path).found
    assert found.facts == io.Facts(
        description="Thorax  1.0 ü",
        number="4",
        acquisition="2",
        kernel="B30f",
        kvp=120.0,
        thickness_mm=1.5,
        contrast="agent",
        image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
        body_part="CHEST",
        manufacturer="Maker",
        model="Model 5",
        tilt_deg=0.0,
    )


def test_a_series_spread_over_folders(tmp_path: Path) -> None:
    """Its name holds the folder above all of them, also where one part of it lies in one folder."""
    stored = values(1)
    for k, path in enumerate(write_series(tmp_path / "all", stored, AFFINE)):
        (tmp_path / "case" / f"disc{k % 3}").mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / "case" / f"disc{k % 3}" / path.name)
    (tmp_path / "other").mkdir()
    (found,) = io.discover(tmp_path).found
    assert found.name == f"{tmp_path / 'case'}#{UID}.1"
    np.testing.assert_array_equal(io.read(found.name).voxels, stored)
    np.testing.assert_array_equal(found.read().voxels, stored)
    shutil.rmtree(tmp_path / "case")
    expected = {
        f"acquisition {k}": write(tmp_path / "case" / f"part{k}", k, tag("AcquisitionNumber", k)) for k in (1, 2)
    }
    check(tmp_path / "case", expected)


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [(1, 2), (2, 10)])
def test_a_part_has_one_name_and_number_everywhere(numbers: tuple[int, int], tmp_path: Path) -> None:
    """`read`, `discover`, the commands on scans, and what is written beside a series understand the same texts."""
    for k in numbers:
        write(tmp_path / "study" / "ct", k, tag("AcquisitionNumber", k))
    for place in (tmp_path / "study" / "ct", tmp_path / "study"):
        listed = io.discover(place)
        for k, number in enumerate(numbers, 1):
            expected = values(number)
            for name in (f"{UID}.1@{k}", f"{UID}.1@acquisition {number}"):
                text = f"{place}#{name}"
                np.testing.assert_array_equal(io.read(text).voxels, expected)
                (found,) = listed.named(name)
                np.testing.assert_array_equal(found.read().voxels, expected)
                np.testing.assert_array_equal(sources.resolve([text]).one(text).read().voxels, expected)
                assert source_of(text).paths == found.paths
        assert len(listed.named(f"{UID}.1")) == 2
        assert listed.named(f"{UID}.1@3") == listed.named(f"{UID}.2") == ()
        with pytest.raises(UsageError, match=r"holds 2 volumes .*acquisition"):
            sources.resolve([f"{place}#{UID}.1"])


def test_nothing_is_in_a_file_of_one_volume(tmp_path: Path) -> None:
    io.write(Volume(values(0), AFFINE), tmp_path / "ct.nii")
    with pytest.raises(ReadError, match=r"ct\.nii: is one file, so 'liver' is not in it"):
        io.read(f"{tmp_path / 'ct.nii'}#liver")
