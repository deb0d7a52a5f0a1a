"""PCA colour maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import worlds
from ctfoundry.cli.explain_maps import _spool
from ctfoundry.encoder import FeatureMap
from ctfoundry.errors import UsageError
from ctfoundry.explain import pca, pca_consistency, pca_files, pca_page
from ctfoundry.geometry import make_affine
from ctfoundry.keys import Key
from ctfoundry.report import page
from ctfoundry.retrieval.search import dense_map
from ctfoundry.volume import Volume


def maps() -> tuple[FeatureMap, torch.Tensor]:
    data = torch.randn(6, 5, 6, 7, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [5, 4, 3, 1, 1, 1.0]
    ).reshape(6, 1, 1, 1)
    return FeatureMap(data, make_affine(), torch.ones(5, 6, 7, dtype=torch.bool), "x"), torch.ones(
        5, 6, 7, dtype=torch.bool
    )


def test_components_are_those_of_scikit_learn():
    feature, mask = maps()
    model = pca.fit([feature], [mask])
    theirs = PCA(3).fit(feature.data.flatten(1).T.double().numpy())
    for ours, other in zip(model.components, theirs.components_, strict=True):
        assert abs(float(ours.double() @ torch.from_numpy(other))) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(model.explained, theirs.explained_variance_ratio_, rtol=1e-5)


def test_signs_are_fixed():
    feature, mask = maps()
    flipped = FeatureMap(feature.data.flip(1), feature.affine, feature.valid, "x")
    a, b = pca.fit([feature], [mask]).components, pca.fit([flipped], [mask]).components
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert (a.gather(1, a.abs().argmax(1, keepdim=True)) > 0).all()


def test_scans_have_equal_weight_whatever_their_size():
    feature, mask = maps()
    twice = FeatureMap(
        torch.cat([feature.data, feature.data], 1), feature.affine, torch.ones(10, 6, 7, dtype=torch.bool), "x"
    )
    other = FeatureMap(feature.data.roll(1, 0), feature.affine, feature.valid, "x")
    one = pca.fit([feature, other], [mask, mask])
    two = pca.fit([twice, other], [twice.valid, mask])
    torch.testing.assert_close(one.components, two.components, atol=1e-5, rtol=0)


def test_colours_are_srgb_and_black_outside():
    feature, mask = maps()
    mask = mask.clone()
    mask[0] = False
    rgb = pca.colours(pca.fit([feature], [mask]), feature, mask).data
    assert rgb.shape == (3, 5, 6, 7)
    assert float(rgb.min()) >= 0
    assert float(rgb.max()) <= 1
    assert not rgb[:, 0].any()


@pytest.mark.parametrize(
    ("lab", "srgb"),
    # values of CIE 1976 L*a*b* (D65) for the sRGB primaries, from the definition in IEC 61966-2-1
    [
        ((53.24, 80.09, 67.20), (1, 0, 0)),
        ((87.73, -86.18, 83.18), (0, 1, 0)),
        ((32.30, 79.19, -107.86), (0, 0, 1)),
        ((0, 0, 0), (0, 0, 0)),
    ],
)
def test_lab_of_the_primaries(lab, srgb):
    np.testing.assert_allclose(pca.lab_to_srgb(torch.tensor([lab]).float())[0], srgb, atol=0.01)


def test_body_cells_follow_the_body():
    encoder, volume = worlds.tiny(), worlds.body()
    grid = encoder(volume, levels=["stage1"]).grid
    mask = pca.body_cells(grid, volume)
    centre, corner = np.rint(grid.cell(volume.world([12, 32, 36]))).astype(int), (0, 0, 0)
    assert bool(mask[tuple(centre)])
    assert not bool(mask[corner])


def test_scans_read_one_by_one_give_the_joint_components():
    """The streamed covariance against scikit-learn on all cells of scans of one size at once; features far from zero."""
    parts = [torch.randn(5, 4, 5, 6, generator=torch.Generator().manual_seed(i)) * (1 + i) + 100 * i for i in range(4)]
    scale = torch.tensor([6, 5, 4, 1, 1.0]).reshape(5, 1, 1, 1)
    valid = torch.ones(4, 5, 6, dtype=torch.bool)
    model = pca.fit(
        (FeatureMap(p * scale, make_affine(), valid, "x") for p in parts), (valid for _ in parts), seed=3
    )  # generators: each map is gone before the next is made
    rows = torch.cat([(p * scale).flatten(1).T for p in parts]).double().numpy()
    theirs = PCA(3).fit(rows)
    np.testing.assert_allclose(model.explained, theirs.explained_variance_ratio_, rtol=1e-6)
    for ours, other in zip(model.components, theirs.components_, strict=True):
        assert abs(float(ours.double() @ torch.from_numpy(other))) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(model.mean, rows.mean(0), rtol=1e-5)
    scores = (rows - rows.mean(0)) @ model.components.double().numpy().T
    np.testing.assert_allclose(model.span, np.quantile(scores, pca.ENDS, axis=0).T, rtol=1e-3, atol=1e-2)


def test_the_sample_is_bounded_and_of_every_scan(monkeypatch):
    monkeypatch.setattr(pca, "SAMPLE", 40)
    moments = pca.Moments()
    for i in range(10):
        moments.add(torch.full((30, 3), float(i)))
    counts = torch.unique(moments.sample()[:, 0], return_counts=True)[1]
    assert counts.tolist() == [4] * 10


def test_otsu_is_the_cut_with_the_largest_variance_between():
    key = Key.of("otsu")
    values = np.concatenate([key("a").normal(300) - 4, 1.5 * key("b").normal(700) + 3])

    def between(cut):
        low, high = values[values <= cut], values[values > cut]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    best = max(between(cut) for cut in np.sort(values)[:-1])
    assert between(pca.otsu(values)) > 0.995 * best


def test_foreground_is_found_by_features_alone_whatever_their_sign():
    volume = worlds.body()
    encoder = worlds.tiny()
    feature = encoder(volume, levels=["stage1"]).grid
    body = pca.body_cells(feature, volume)
    flat = (body.float() * 2 - 1)[None] * torch.randn(6, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    noise = 0.05 * torch.randn(6, *body.shape, generator=torch.Generator().manual_seed(2))
    for sign in (1, -1):
        made = FeatureMap(sign * flat + noise, feature.affine, feature.valid, "x")
        mask = pca.fit_foreground([made], [body]).mask(made)
        assert pca.overlap(mask, body) > 0.999


def test_components_on_the_scans_grid_load_elsewhere(tmp_path):
    """A map that is linear in world coordinates stays so on the scan's grid, read by nibabel and SimpleITK."""
    import nibabel as nib
    import SimpleITK as sitk

    volume = worlds.body(code="LIP")
    shape, affine = (12, 30, 32), make_affine((14, 5, 5), "SPL", (14.0, -16.0, -104.0))
    feature = FeatureMap(torch.zeros(3, *shape), affine, torch.ones(shape, dtype=torch.bool), "x")
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    world = feature.world(index.reshape(-1, 3)).astype(np.float32)
    feature = FeatureMap(torch.from_numpy(world.T.reshape(3, *shape).copy()), affine, feature.valid, "x")
    span = torch.tensor([[-60.0, 60.0]] * 3)
    fitted = pca.Pca(torch.zeros(3), torch.eye(3), span, (0.5, 0.3, 0.2))
    mask = torch.ones(shape, dtype=torch.bool)
    names = pca_files.write(tmp_path, "a", fitted, feature, mask, volume)
    image = nib.load(tmp_path / names[1])
    values = image.get_fdata()
    assert image.shape == (*volume.shape[::-1], 3)
    filled = np.argwhere((values != 0).all(-1))
    assert len(filled) > 10_000
    there = nib.affines.apply_affine(image.affine, filled)
    inner = (there > world.min(0)).all(1) & (there < world.max(0)).all(1)
    np.testing.assert_allclose(values[tuple(filled[inner].T)], there[inner], atol=0.01)
    rgb = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / names[0])))
    assert rgb.shape == (*volume.shape, 3)
    i, j, k = filled[inner][100]
    lab = pca.to_lab(fitted, torch.from_numpy(values[i, j, k]).float()[None])
    np.testing.assert_allclose(rgb[k, j, i], pca.lab_to_srgb(lab)[0].numpy() * 255, atol=1)


def test_shifted_passes_make_finer_maps_of_the_same_features():
    encoder, volume = worlds.tiny(), worlds.body()
    coarse = dense_map(encoder, volume, ["stage1", "stage2"])
    fine = dense_map(encoder, volume, ["stage1", "stage2"], shifts=(1, 2, 2))
    assert fine.data.shape[2:] == tuple(2 * n for n in coarse.data.shape[2:])
    np.testing.assert_allclose(fine.world([3, 8, 10]), coarse.world([3, 4, 5]), atol=1e-9)
    torch.testing.assert_close(fine.data[:, :, ::2, ::2], coarse.data, atol=1e-5, rtol=0)


# consistency of colours -----------------------------------------------------------------------------------------------


def test_consistent_colours_have_a_small_ratio_and_shuffled_ones_none():
    key = Key.of("colours")
    own = {f"s{i}": key("own", i).normal(3) * 20 for i in range(6)}
    good = [{n: c + key("noise", p, n).normal(3) for n, c in own.items()} for p in range(6)]
    mixed = [
        dict(zip(scan, [list(scan.values())[i] for i in key("mix", p).permutation(6)], strict=True))
        for p, scan in enumerate(good)
    ]
    fine, poor = (pca_consistency.measure(c) for c in (good, mixed))
    assert fine.right.value == 1
    assert fine.chance == pytest.approx(1 / 6)
    assert fine.ratio.value < 0.2
    assert 0.6 < poor.ratio.value < 1.4
    gap = pca_consistency.difference(good, mixed)
    assert gap.value == pytest.approx(fine.ratio.value - poor.ratio.value)
    assert gap.high is not None
    assert gap.high < 0
    # the plain loop, written out
    within = [
        np.linalg.norm(a[n] - b[n]) for i, a in enumerate(good) for j, b in enumerate(good) if i != j for n in own
    ]
    between = [
        np.linalg.norm(a[n] - b[m])
        for i, a in enumerate(good)
        for j, b in enumerate(good)
        if i != j
        for n in own
        for m in own
        if n != m
    ]
    assert fine.ratio.value == pytest.approx(np.mean(within) / np.mean(between))


def test_structures_have_the_mean_colour_of_their_cells():
    feature, _ = maps()
    mask = torch.ones(5, 6, 7, dtype=torch.bool)
    fitted = pca.fit([feature], [mask])
    ids = np.zeros((5, 6, 7), np.uint8)
    ids[:2], ids[3:], ids[0, 0, 0] = 1, 2, 3
    labels = Volume(ids, feature.affine, "label", names={1: "a", 2: "b", 3: "c"})
    found = pca_consistency.means(fitted, feature, labels)
    np.testing.assert_allclose(found["b"], pca.lab(fitted, feature).data[:, 3:].mean((1, 2, 3)), atol=1e-3)
    assert set(found) == {"a", "b", "c"}
    half = Volume(ids, feature.affine @ np.diag([0.5, 0.5, 0.5, 1]), "label", names={1: "a", 2: "b", 3: "c"})
    assert "c" not in pca_consistency.means(fitted, feature, half)  # an eighth of a cell
    with pytest.raises(UsageError, match="share"):
        pca_consistency.measure([{"a": np.zeros(3)}, {"b": np.ones(3)}])


def test_page_says_when_weights_are_random():
    volume, encoder = worlds.body(), worlds.tiny()
    feature = dense_map(encoder, volume, ["stage1"])
    mask = pca.body_cells(feature, volume)
    fitted = pca.fit([feature], [mask])
    picture = pca_page.picture(volume, fitted, feature, mask, height=60)
    shown = pca_page.Shown("scan-1", picture, picture, 3, float("nan"))
    text = page.render(pca_page.build([shown], fitted, {"model": "tiny"}, random=True))
    assert "weights are random" in text
    assert "weights are random" not in page.render(pca_page.build([shown], fitted, {}, random=False))


def test_what_killed_runs_left_goes_and_what_others_use_stays(tmp_path):
    (tmp_path / ".maps-killed").mkdir()
    (tmp_path / ".maps-killed" / "scan.safetensors").write_bytes(bytes(10))
    with _spool(tmp_path) as first:
        assert [place.name for place in tmp_path.iterdir()] == [first.name]
        with _spool(tmp_path) as second:
            assert first.is_dir()
            assert second != first
    assert not list(tmp_path.iterdir())
