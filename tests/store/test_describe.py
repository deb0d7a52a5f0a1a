"""Numbers about a store against NumPy on the voxels themselves; scans taken out again."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from ctfoundry import store
from ctfoundry.store.describe import HU_EDGES, describe
from program import result, run


def made(path, scan):
    with store.create(path, "native") as opened:
        for k, collection in enumerate(("a", "a", "b")):
            opened.add(scan(k, spacing=(2.0 + k, 1.0, 1.0)), f"s{k}", patient=f"p{min(k, 1)}", collection=collection)
    return opened


def test_numbers_are_those_of_the_voxels(tmp_path, scan):
    opened = made(tmp_path / "s", scan)
    found = describe(opened)
    volumes = [opened.volume(f"s{k}") for k in range(3)]
    assert (found.scans, found.patients, dict(found.collections)) == (3, 2, {"a": 2, "b": 1})
    assert found.voxels == sum(v.voxels.size for v in volumes)
    assert found.bytes == sum(f.stat().st_size for f in (tmp_path / "s" / "scans").glob("*.b2nd"))
    spacing = np.array([v.spacing for v in volumes])
    np.testing.assert_allclose(found.spacing_mm[2], np.median(spacing, axis=0))
    np.testing.assert_allclose(found.spacing_mm[[0, 4]], [spacing.min(0), spacing.max(0)])
    for name, part in {"a": volumes[:2], "b": volumes[2:]}.items():
        hu = np.concatenate([v.voxels.ravel() for v in part])
        expected, _ = np.histogram(np.clip(hu, HU_EDGES[0], HU_EDGES[-1] - 1), bins=HU_EDGES)
        np.testing.assert_array_equal(found.hu[name], expected)
    assert found.unread == {}


def test_an_empty_store_and_a_broken_sidecar(tmp_path, scan):
    with store.create(tmp_path / "empty") as empty:
        assert describe(empty).scans == 0
        assert np.isnan(describe(empty).spacing_mm).all()
    opened = made(tmp_path / "s", scan)
    (tmp_path / "s" / "scans" / "s1.json").write_text("{")
    found = describe(opened)
    assert list(found.unread) == ["s1"]
    assert found.scans == 3


def test_stats_and_export_on_the_command_line(tmp_path, scan):
    opened = made(tmp_path / "s", scan)
    data = result("store", "stats", tmp_path / "s", "--html", tmp_path / "page.html")
    assert (data["scans"], data["collections"]) == (3, {"a": 2, "b": 1})
    text = (tmp_path / "page.html").read_text()
    assert "Content-Security-Policy" in text
    assert str(tmp_path) not in text
    done = result("store", "export", tmp_path / "s", tmp_path / "out", "--id", "s1")
    assert done == {"written": ["s1"], "skipped": [], "failed": {}}
    image = nib.load(tmp_path / "out" / "s1.nii.gz")
    volume = opened.volume("s1")
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), volume.voxels)
    np.testing.assert_allclose(image.affine[:, [2, 1, 0, 3]], volume.affine, atol=1e-5)
    assert result("store", "export", tmp_path / "s", tmp_path / "out")["skipped"] == ["s1"]
    unknown = run("store", "export", tmp_path / "s", tmp_path / "out", "--id", "nobody")
    assert unknown.returncode == 1
    assert "nobody" in unknown.stderr
