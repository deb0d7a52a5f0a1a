"""Clusters of embeddings."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import silhouette_samples
from sklearn.neighbors import NearestNeighbors

import skips
from ctfoundry.cli.explain_maps import _encoder_names
from ctfoundry.errors import UsageError
from ctfoundry.explain import clusters, clusters_page
from ctfoundry.explain.clusters import Points
from ctfoundry.keys import Key


def blobs(groups: int = 3, each: int = 12, scans: int = 1, spread: float = 0.6) -> Points:
    """Patients of some groups with `scans` scans each; a patient's scans lie close together."""
    key = Key.of("blobs")
    ids, rows, labels, patients = [], [], [], []
    for g in range(groups):
        middle = key("group", g).normal(8)
        for p in range(each):
            person = middle + spread * key("patient", g, p).normal(8)
            for s in range(scans):
                ids.append(f"s{g}-{p:02}-{s}")
                rows.append(person + 0.01 * key("scan", g, p, s).normal(8))
                labels.append(f"g{g}")
                patients.append(f"p{g}-{p}")
    return Points(ids, np.array(rows), labels, patients)


def test_silhouette_is_that_of_scikit_learn():
    points = blobs()
    theirs = silhouette_samples(points.vectors, points.labels, metric="cosine")
    np.testing.assert_allclose(clusters.silhouette(points), theirs, atol=1e-9)


def test_silhouette_leaves_the_patient_out():
    points = blobs(scans=3, each=6)
    unit = points.vectors / np.linalg.norm(points.vectors, axis=1, keepdims=True)
    far = 1 - unit @ unit.T
    labels, patients = np.array(points.labels), np.array(points.patients)
    expected = []
    for i in range(len(points)):
        other = patients != patients[i]
        inner = far[i, other & (labels == labels[i])].mean()
        outer = min(far[i, other & (labels == g)].mean() for g in set(points.labels) - {points.labels[i]})
        expected.append((outer - inner) / max(inner, outer))
    np.testing.assert_allclose(clusters.silhouette(points), expected, atol=1e-9)
    assert silhouette_samples(points.vectors, points.labels, metric="cosine").mean() > np.mean(expected)


def test_purity_is_that_of_the_neighbours_of_scikit_learn():
    points = blobs(spread=1.5)
    near = NearestNeighbors(n_neighbors=6, metric="cosine", algorithm="brute").fit(points.vectors)
    found = near.kneighbors(points.vectors, return_distance=False)[:, 1:]
    labels = np.array(points.labels)
    np.testing.assert_allclose(clusters.purity(points, 5), (labels[found] == labels[:, None]).mean(1))


def test_a_patients_own_scans_are_no_neighbours():
    """Labels that say nothing: with a patient's own scans counted, purity would be near one."""
    points = blobs(groups=1, each=40, scans=4, spread=1.0)
    key = Key.of("coin")
    flips = {p: f"g{key(p).integers(0, 2)}" for p in points.patients}
    points = replace(points, labels=[flips[p] for p in points.patients])
    scores, _ = clusters.measure(points, 3, permutations=60)
    score = scores["purity@3"]
    assert score.interval.value < 0.7
    assert score.null == pytest.approx(0.5, abs=0.08)
    assert score.p > 0.01
    own = [points.patients[j] for row in clusters.neighbours(points, 3) for j in row]
    assert not any(a == b for a, b in zip(own, np.repeat(points.patients, 3), strict=True))


def test_real_clusters_beat_dealt_out_labels():
    points = blobs(scans=2)
    scores, values = clusters.measure(points, 5, permutations=100)
    for score in scores.values():
        assert score.interval.low is not None
        assert score.interval.low > score.null_high
        assert score.p == pytest.approx(1 / 101)
        assert score.interval.patients == 36
    gap = clusters.difference(points, values["silhouette"], values["silhouette"] - 0.1)
    assert gap.value == pytest.approx(0.1)


def test_labels_are_dealt_out_to_patients_whole():
    points = blobs(scans=2, each=5)
    for dealt in clusters.dealt_out(points, 5, 1):
        assert sorted(dealt) == sorted(points.labels)
        assert dealt[::2] == dealt[1::2]
    assert clusters.dealt_out(points, 3, 1) == clusters.dealt_out(points, 3, 1)


def test_a_label_of_one_patient_is_left_out():
    points = blobs(scans=2, each=5)
    labels = ["alone" if p == "p0-0" else label for p, label in zip(points.patients, points.labels, strict=True)]
    scores, values = clusters.measure(replace(points, labels=labels), 3, permutations=5)
    assert all(score.left_out == 2 for score in scores.values())
    assert np.isnan(values["purity@3"]).sum() == 2
    with pytest.raises(UsageError, match="two patients"):
        clusters.measure(replace(points, labels=points.patients), 3, permutations=2)
    with pytest.raises(UsageError, match="one label"):
        clusters.measure(replace(points, labels=["a"] * len(points)), 3)


def test_maps_keep_clusters_and_come_again():
    points = blobs()
    one, again = (clusters.project(points, "t-SNE", 8, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one).max() == pytest.approx(1)
    assert silhouette_samples(one, points.labels).mean() > 0.3
    with pytest.raises(UsageError, match="perplexity of 100"):
        clusters.project(points, "t-SNE", 100)


def test_umap_keeps_clusters():
    points = blobs()
    found = clusters.project(points, "UMAP", 8, seed=4)
    assert found.shape == (36, 2)
    assert silhouette_samples(found, points.labels).mean() > 0.3


def test_labels_are_read_with_or_without_patients(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("id,label,patient\na,x,p1\nb,y,\nc,,p2\n")
    assert clusters.read_labels(table) == {"a": ("x", "p1"), "b": ("y", "b")}
    table.write_text("id,stage\na,x\na,y\n")
    with pytest.raises(UsageError, match="no column 'label'"):
        clusters.read_labels(table)
    with pytest.raises(UsageError, match="two labels"):
        clusters.read_labels(table, "stage")
    with pytest.raises(UsageError, match="cannot be read"):
        clusters.read_labels(tmp_path / "none.csv")
    with pytest.raises(UsageError, match="1 of 2 vectors"):
        clusters.chosen(["a", "b"], np.eye(2), {"a": ("x", "p")})


def test_patients_that_nobody_named_are_not_counted(tmp_path):
    """Intervals "over 3 patients" would be a claim where the scans may all be of one."""
    table = tmp_path / "labels.csv"
    table.write_text("id,label\na,x\nb,y\nc,x\n")
    points = clusters.chosen("abc", np.eye(3), clusters.read_labels(table))
    assert points.people == "3 scans, each taken for a patient of its own, because the table names no patients"
    table.write_text("id,label,patient\na,x,p\nb,y,p\nc,x,q\n")
    assert clusters.chosen("abc", np.eye(3), clusters.read_labels(table)).people == "2 patients"


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_labels_as_spreadsheets_write_them(tmp_path, mark):
    table = tmp_path / "labels.csv"
    table.write_text(mark.join(("id", "label", "patient")) + "\n" + mark.join(("a", "x", "p1")), encoding="utf-8-sig")
    assert clusters.read_labels(table) == {"a": ("x", "p1")}
    table.write_bytes("id,label\na,Köln\n".encode("latin-1"))
    with pytest.raises(UsageError, match="no CSV in UTF-8"):
        clusters.read_labels(table)


def test_the_page_tells_trained_from_random_weights():
    trained, random = {"name": "m", "weights": "trained"}, {"name": "m", "weights": "random"}
    assert _encoder_names([trained, random]) == ["m", "m, random weights"]
    assert _encoder_names([trained, random, trained]) == ["m 1", "m, random weights", "m 3"]


def hostile() -> str:
    points = blobs(each=5)
    bad = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    points = replace(points, labels=[bad if label == "g0" else label for label in points.labels])
    scores, _ = clusters.measure(points, 3, permutations=5)
    rows = [clusters_page.Row("e", score) for score in scores.values()]
    panel = clusters_page.Panel(bad, clusters.project(points, "t-SNE", 4))
    return clusters_page.render(
        points, [panel, panel], rows, {"seed": "0"}, thumbs={points.ids[0]: "data:image/webp;base64,AA"}
    )


def test_page_holds_the_points_and_nothing_from_elsewhere():
    text = hostile()
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", text)
    assert text.count("<script") == 2
    found = re.search(r'id="clusters-data">(.*?)</script>', text, re.DOTALL)
    assert found
    data = json.loads(found.group(1))
    assert len(data["ids"]) == 15
    assert [label["count"] for label in data["labels"]] == [5, 5, 5]


def test_picture_is_drawn(tmp_path):
    from PIL import Image

    points = blobs(each=4)
    panel = clusters_page.Panel("map $x$", clusters.project(points, "t-SNE", 4))
    clusters_page.draw(points, [panel, panel], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[0] > 700


def test_page_in_a_browser(tmp_path):
    """The script runs under its policy, draws, and a label that is code stays text."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip(skips.CHROMIUM_ABSENT)
    place = tmp_path / "page.html"
    place.write_text(hostile())
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom", place.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.count('aria-pressed="true"') == 3
    assert len(re.findall(r"<figure><figcaption>.*?<canvas tabindex=\"0\"", done.stdout)) == 2
    assert "<title>owned" not in done.stdout
