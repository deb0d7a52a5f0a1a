"""PCA colour maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import worlds
from ctfoundry.encoder import FeatureMap
from ctfoundry.explain import pca
from ctfoundry.geometry import make_affine


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
