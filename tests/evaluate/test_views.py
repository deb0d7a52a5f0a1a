"""View matching: what counts as found, and that a description of the place finds it."""

from __future__ import annotations

import torch

import worlds
from ctfoundry.evaluate import views
from ctfoundry.keys import Key
from ctfoundry.pretrain.views import ViewSettings

CROP = (16, 32, 32)
STILL = ViewSettings(scale=(1.0, 1.0), flip=0.0, shift=0.0, smooth=0.0)


def test_hits_are_the_literal_nearest_neighbours():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(9, 5, generator=generator)
    second = first + 0.8 * torch.randn(9, 5, generator=generator)
    expected = []
    for one, other in ((first, second), (second, first)):
        for i, row in enumerate(one):
            cosine = [float(row @ o / row.norm() / o.norm()) for o in other]
            expected.append(float(cosine.index(max(cosine)) == i))
    assert views.hits(first, second) == expected
    assert 0 < sum(expected) < len(expected)


def test_equal_vectors_find_chance_only():
    assert sum(views.hits(torch.ones(16, 4), torch.ones(16, 4))) == 2  # one of sixteen, both ways


def test_views_without_change_always_find_each_other():
    encoder = worlds.tiny()
    places = views.draw_places(encoder, worlds.body(0), CROP, Key.of("places"), places=6, settings=STILL)
    assert places.first.shape == (6, 1, *CROP)
    torch.testing.assert_close(places.first, places.second)
    assert views.encoder_hits(encoder, places) == [1.0] * 12
    assert views.hu_hits(places) == [1.0] * 12


def test_places_are_a_function_of_the_key():
    encoder, volume = worlds.tiny(), worlds.body(0)
    first, same, other = (
        views.draw_places(encoder, volume, CROP, Key.of("places", k), places=3).first for k in (0, 0, 1)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_scan_smaller_than_the_crop_is_padded_with_air():
    places = views.draw_places(worlds.tiny(), worlds.body(0, (6, 20, 20)), CROP, Key.of("p"), places=2, settings=STILL)
    assert float(places.first[:, :, -1].abs().max()) == 0.0
