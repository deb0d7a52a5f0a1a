"""explain stability from the command line: what is no pair of two scans."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import worlds
from ctfoundry import cli, io


def test_one_scan_given_twice_is_no_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would agree with itself perfectly; and a first scan in two pairs would be two patients."""
    for number, name in enumerate(("a", "b", "c")):
        io.write(worlds.body(number), tmp_path / f"{name}.nii.gz")
    (tmp_path / "copy.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes())
    for pairs in (("a", "copy"), ("a", "b", "a", "c")):
        scans = [str(tmp_path / f"{name}.nii.gz") for name in pairs]
        model = ["--model", "ct-fm-tiny", "--weights", "random", "-o", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["ctfoundry", "explain", "stability", *scans, *model])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        assert "names the same content twice: scan-" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
