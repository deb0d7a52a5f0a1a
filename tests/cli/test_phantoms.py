"""``ctfoundry phantom`` and ``ctfoundry evaluate difficulty`` as a stranger uses them."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, in this process: starting one takes seconds."""
    from ctfoundry.cli import main

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTFOUNDRY_SALT", "test")
        patch.setattr(sys, "argv", ["ctfoundry", *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
            main()
    return int(left.value.code or 0), out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("phantoms")
    code, text, err = run("phantom", out, "--count", 1, "--view", "chest", "--voxel", 10, "--lesions", "--repeat", 2, "--sheet", "--seed", 3, "--json")  # fmt: skip
    assert code == 0, err
    return out, json.loads(text)


def test_a_cohort_with_repeats_and_a_sheet(cohort):
    out, data = cohort
    assert data["phantoms"] == ["phantom-3-000", "phantom-3-000-b"]
    for name in data["phantoms"]:
        for file in ("ct.nii.gz", "labels.nii.gz", "labels.json", "report.txt", "findings.json", "spec.json"):
            assert (out / name / file).is_file()
    assert (out / "patients.csv").read_text().splitlines()[2] == "phantom-3-000-b,phantom-3-000"
    assert json.loads((out / "run.json").read_text())["results"]["phantoms"] == data["phantoms"]


def test_the_sheet_shows_every_scan_and_needs_nothing_else(cohort):
    from PIL import Image

    out, data = cohort
    page = (out / "sheet.html").read_text()
    for name in data["phantoms"]:
        assert name in page
        words = (out / name / "report.txt").read_text().splitlines()[1].split(". ")[0]
        assert words in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    with Image.open(out / "sheet.png") as picture:
        assert picture.size[0] == 1500
        assert picture.size[1] > 500


def test_difficulty_of_a_folder_of_labelled_scans(cohort):
    out, _ = cohort
    code, text, err = run("evaluate", "difficulty", "--data", out, "--json", "--quiet")
    assert code == 0, err
    results = json.loads(text)["results"]
    assert {r["measure"] for r in results} == {"hu", "position"}
    assert all(r["patients"] == 1 for r in results)  # half of two scans; too few for an interval
    assert all(r["low"] is None for r in results)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["phantom", "out", "--view", "chests"], "nearest known one is 'chest'"),
        (["phantom", "out", "--layout", "amoss"], "nearest known one is 'amos'"),
        (["phantom", "out", "--layout", "amos", "--dicom"], "its own file format"),
        (["phantom", "out", "--layout", "amos", "--repeat", "2"], "one scan of each patient"),
        (["evaluate", "difficulty", "--what", "hue"], "nearest known one is 'hu'"),
        (["evaluate", "difficulty", "--what", "findings", "--data", "."], "without their findings"),
        (["evaluate", "difficulty", "--data", "missing"], "no such folder"),
    ],
)
def test_wrong_usage_says_what_to_do(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*arguments)
    assert code == 2, err
    assert words in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["phantom", "evaluate", "evaluate difficulty"])
def test_help_imports_nothing_heavy(verb):
    code = (
        f"import sys; sys.argv = ['ctfoundry', *{verb!r}.split(), '--help']\n"
        "from ctfoundry.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code in (0, None), stop.code\n"
        "heavy = {'torch', 'numpy', 'scipy', 'PIL', 'matplotlib', 'SimpleITK', 'nibabel', 'pydicom'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
