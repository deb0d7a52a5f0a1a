from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from adapt.bodies import CLASSES, NAMES, body, scans
from ctfoundry import zoo
from ctfoundry.adapt.cases import IGNORE, Classes, scan_of
from ctfoundry.adapt.prepared import Cases, PreparedCase, prepare_case
from ctfoundry.adapt.probe import (
    ProbeSettings,
    encoder_maps,
    feature_crops,
    probe_segmentation,
    random_twin,
)
from ctfoundry.adapt.scores import Scores, class_counts
from ctfoundry.adapt.trivial import intensity_scores, position_scores
from ctfoundry.encoder import Encoder
from ctfoundry.errors import ContractError, UsageError
from ctfoundry.infer.passes import Extent
from ctfoundry.preparation import PREPARATIONS
from ctfoundry.zoo.models import CARDS, build

TINY = PREPARATIONS["ct-fm-tiny"]
QUICK = ProbeSettings(steps=40, width=4, patch=(8, 16, 16), crops=6)


def encoder(seed: int = 0, filters: int = 4) -> Encoder:
    card = CARDS["ct-fm-tiny"]
    card = replace(
        card, arguments={"in_channels": 1, "filters": filters, "blocks": [1, 1, 1]}, level="stage2", seed=seed
    )
    return Encoder.of(build(card), card)


@pytest.fixture(scope="module")
def train() -> Cases:
    return Cases(scans(3), TINY, CLASSES)


@pytest.fixture(scope="module")
def validation() -> Cases:
    return Cases(scans(5, first=10), TINY, CLASSES)


def test_a_probe_finds_what_features_hold(train: Cases, validation: Cases) -> None:
    model = encoder()
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    result = probe_segmentation(model, train, validation, QUICK)
    assert all(torch.equal(before[name], value) for name, value in model.network.state_dict().items())
    assert not model.network.training
    found = {name: i.value for name, i in result.scores.labels.items() if i is not None}
    assert found["bone"] > 0.8
    assert result.scores.macro.patients == 5
    assert result.scores.macro.low is not None
    assert result.scores.macro.low < result.scores.macro.value < (result.scores.macro.high or 0)
    assert (result.train, result.validation, result.warnings) == (3, 5, ())
    again = probe_segmentation(model, train, validation, QUICK)
    assert np.array_equal(result.scores.counts, again.scores.counts)
    other = probe_segmentation(model, train, validation, replace(QUICK, seed=1))
    assert not np.array_equal(result.scores.counts, other.scores.counts)


def test_linear_probe_and_single_levels(train: Cases, validation: Cases) -> None:
    settings = replace(QUICK, decoder="linear", levels=("stage1",), steps=20)
    result = probe_segmentation(encoder(), train, validation, settings)
    assert result.scores.counts.shape == (5, 3, 3)
    with pytest.raises(ContractError, match="stage2"):
        probe_segmentation(encoder(), train, validation, replace(settings, levels=("stage9",)))


def test_maps_are_the_encoders_own(train: Cases) -> None:
    model = encoder()
    case = train[0]
    maps = encoder_maps(model, case, model.levels)
    wanted = model(scans(1)[0].image(), levels=[level.name for level in model.levels])
    for level in model.levels:
        torch.testing.assert_close(maps[level.name][0], wanted.maps[level.name].data, rtol=1e-3, atol=1e-4)
    # a cube sees a part of the scan: the probe takes windows of its size, and so sees all
    cube = Encoder.of(model.network, replace(model.card, extent=Extent("cube", (16, 16, 16))))
    assert encoder_maps(cube, case, model.levels)["stage0"].shape == maps["stage0"].shape


def test_crops_of_maps_and_labels_belong_together(train: Cases) -> None:
    model = encoder()
    marked = [replace_labels(train[0], np.arange(np.prod(train[0].shape)).reshape(train[0].shape) % 3)]
    crops = feature_crops(model, marked, model.levels, replace(QUICK, crops=8))
    whole = encoder_maps(model, marked[0], model.levels)
    for crop in crops:
        assert crop.labels.shape == (8, 16, 16)
        assert {n: tuple(m.shape[1:]) for n, m in crop.maps.items()} == {
            "stage0": (8, 16, 16),
            "stage1": (5, 9, 9),
            "stage2": (3, 5, 5),
        }
        # find the crop by its first voxel's features, then its labels must be those of that place
        first = crop.maps["stage0"][:, 0, 0, 0]
        distance = (whole["stage0"][0] - first[:, None, None, None]).abs().sum(0)
        d, h, w = np.unravel_index(int(distance.argmin()), marked[0].shape)
        part = marked[0].labels[d : d + 8, h : h + 16, w : w + 16]
        assert (crop.labels[: part.shape[0], : part.shape[1], : part.shape[2]].numpy() == part).all()
        assert torch.equal(crop.maps["stage2"][:, 0, 0, 0], whole["stage2"][0, :, d // 4, h // 4, w // 4])


def replace_labels(case: PreparedCase, labels: np.ndarray) -> PreparedCase:
    return replace(case, labels=labels.astype(np.uint8))


def test_what_must_not_be_compared_is_refused(train: Cases, validation: Cases) -> None:
    model = encoder()
    with pytest.raises(ContractError, match="patient body1 is in training and in validation"):
        probe_segmentation(model, train, [*validation, train[1]], QUICK)
    other = Cases(scans(1, first=20), PREPARATIONS["ct-fm"], CLASSES)
    with pytest.raises(ContractError, match="was not prepared as 'ct-fm-tiny'"):
        probe_segmentation(model, train, other, QUICK)
    with pytest.raises(ContractError, match="other classes"):
        probe_segmentation(model, train, Cases(scans(1, first=20), TINY, Classes.of(["fat"])), QUICK)
    with pytest.raises(UsageError, match="3 and 0"):
        probe_segmentation(model, train, [], QUICK)


def test_a_class_never_seen_in_training_is_said(train: Cases, validation: Cases) -> None:
    blind = [replace_labels(case, np.where(case.labels == 2, 0, case.labels)) for case in train]
    result = probe_segmentation(encoder(), blind, validation, replace(QUICK, steps=3))
    assert result.warnings == ("never seen in training, so never found: fat",)
    assert result.scores.labels["fat"] is not None
    assert result.scores.labels["fat"].value == 0


def test_a_random_twin_is_of_the_same_make() -> None:
    model = encoder()
    trained = replace(model, card=replace(model.card, weights="trained", sha256="ab"))
    twin = random_twin(trained, seed=3)
    assert twin.card.weights == "random"
    assert twin.card.sha256 == ""
    a, b = twin.network.state_dict(), model.network.state_dict()
    assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}
    assert not torch.equal(a["conv_init.weight"], b["conv_init.weight"])
    assert torch.equal(random_twin(trained, seed=3).network.state_dict()["conv_init.weight"], a["conv_init.weight"])


def test_scores_against_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    reference, prediction = (draw.integers(0, 5, (4, 6, 7, 8)).astype(np.uint8) for _ in range(2))
    reference[reference == 4] = 0  # asked of no scan, though predicted
    reference[:2][reference[:2] == 3] = 0
    prediction[0][prediction[0] >= 3] = 0  # scan 0 neither holds nor predicts classes 3 and 4
    reference[:, :, :, 7] = IGNORE
    counts = np.stack([class_counts(p, r, 4) for p, r in zip(prediction, reference, strict=True)])
    scores = Scores("x", ("a", "b", "c", "d"), ("p0", "p0", "p1", "p2"), counts)
    asked = reference != IGNORE
    each = np.array(
        [
            f1_score(r[a], p[a], labels=[1, 2, 3, 4], average=None, zero_division=np.nan)
            for p, r, a in zip(prediction, reference, asked, strict=True)
        ]
    )
    assert np.allclose(scores.dice, each, equal_nan=True)
    assert np.isnan(scores.dice[0]).tolist() == [False, False, True, True]
    assert scores.dice[1, 3] == 0  # predicted where there is none
    by_scan = np.nanmean(each, 1)
    assert scores.macro.value == pytest.approx(np.mean([by_scan[:2].mean(), by_scan[2], by_scan[3]]))
    pooled = f1_score(reference[asked], prediction[asked], labels=[1, 2, 3, 4], average="micro")
    assert scores.micro.value == pytest.approx(pooled)
    assert scores.macro.low is None  # three patients are examples
    assert Scores("x", ("a",), ("p",), np.zeros((1, 1, 3), np.int64)).labels == {"a": None}


def test_trivial_methods_find_what_is_trivial(train: Cases, validation: Cases) -> None:
    by_value = intensity_scores(train, validation)
    assert by_value.labels["bone"] is not None
    assert by_value.labels["bone"].value > 0.95  # nothing else is as bright
    assert by_value.labels["left_side"] is not None
    assert by_value.labels["left_side"].value < 0.5  # the body's own HU
    by_place = position_scores(train, validation)
    assert by_place.labels["left_side"] is not None
    assert 0.4 < by_place.labels["left_side"].value < 1  # organs move by up to two voxels of seven
    assert by_place.counts[..., 2].tolist() == by_value.counts[..., 2].tolist()
    still = [prepare_case(scan_of(f"s{i}", *body(7)), TINY, CLASSES) for i in range(2)]
    same = position_scores(still[:1], still[1:])
    assert same.macro.value > 0.8  # but for the atlas' own grid


def test_a_vit_of_the_zoo_is_probed(train: Cases) -> None:
    model = zoo.load_encoder("flexict-tiny", weights="random", device="cpu")
    made = Cases(scans(2, first=30), model.preparation, Classes.of(NAMES.values()))
    settings = replace(QUICK, steps=3, crops=2, levels=(model.card.level,))
    result = probe_segmentation(model, made[:1], made[1:], settings)
    assert result.scores.counts[..., 2].sum() == (np.isin(made[1].labels, (1, 2, 3))).sum()
