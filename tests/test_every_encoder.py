"""Everything that is written against `Encoder`, for every architecture: one test, no special cases.

The networks are small ones of each family; what is tested is that each room takes them as they come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import worlds
from ctfoundry import zoo
from ctfoundry.encoder import Card, Encoder
from ctfoundry.evaluate import localise
from ctfoundry.explain import pca
from ctfoundry.geometry import Vec3
from ctfoundry.infer.passes import Extent
from ctfoundry.preparation import PREPARATIONS, Preparation
from ctfoundry.retrieval import embed as embedding
from ctfoundry.retrieval import search
from ctfoundry.volume import Volume

PAGE = Path(__file__).parents[1] / "docs" / "add-a-model.md"


def card(name: str, **changes: Any) -> Encoder:
    made: Card = replace(zoo.CARDS[name], seed=0, **changes)
    network = zoo.build(made)
    for name, weight in network.named_parameters():
        if name.endswith("gamma"):  # LayerScale starts at 1e-5: a fresh CLS token is the same for every scan
            torch.nn.init.ones_(weight)
    return Encoder.of(network, made)


TINY_VIT = {"patch": 8, "size": [144, 3, 2], "rotary": "float32"}
QWEN = {
    "model_type": "qwen3", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


def coarse(name: str, spacing: tuple[float, float, float]) -> Preparation:
    """A preparation of the zoo on few voxels."""
    return replace(PREPARATIONS[name], resampling=replace(PREPARATIONS[name].resampling, spacing=spacing))


SMALL = coarse("ct-fm-tiny", (8.0, 4.0, 4.0))
WINDOWS = Extent("windows", (16, 32, 32), 0.25)


def slices() -> Encoder:
    preparation = coarse("flexict-2d", (6.0, 4.0, 4.0))
    return card("flexict-2d", arguments={"axes": 2, **TINY_VIT}, preparation=preparation, level="block2")


def cube() -> Encoder:
    return card(
        "flexict-3d", arguments={"axes": 3, **TINY_VIT}, preparation=PREPARATIONS["flexict-tiny"],
        extent=Extent("cube", (32, 32, 32)), level="block2",
    )  # fmt: skip


def pair() -> Encoder:
    return card(
        "flexict-vlm", arguments={"vision": {"axes": 3, **TINY_VIT}, "text": QWEN, "width": 24},
        preparation=PREPARATIONS["flexict-tiny"], extent=Extent("whole"), level="block2",
    )  # fmt: skip


def suprem() -> Encoder:
    arguments = {**zoo.CARDS["suprem-unet"].arguments, "filters": 4}
    made = card("suprem-unet", arguments=arguments, preparation=SMALL, extent=WINDOWS)
    # statistics of a scan, as a trained one has; with those of a fresh norm every scan's vector is the biases', to the seventh digit
    norms = [module for module in made.network.modules() if isinstance(module, torch.nn.BatchNorm3d)]
    for norm in norms:
        norm.momentum = 1.0
    made.network.train()
    with torch.no_grad():
        made.raw(made.prepare(scan(0)).x[None, :, :16], [made.card.level])
    made.network.eval()
    return made


def suprem_segresnet() -> Encoder:
    arguments = {**zoo.CARDS["suprem-segresnet"].arguments, "filters": 8}
    return card("suprem-segresnet", arguments=arguments, preparation=SMALL, extent=WINDOWS)


def third_family() -> Encoder:
    """As docs/add-a-model.md tells it: the page's own code is run."""
    first, second = (part.split("```")[0] for part in PAGE.read_text().split("```python\n")[1:3])
    assert len(first.splitlines()) < 60  # a family is that little work, card and registration among it
    space: dict[str, Any] = {}
    exec(first + "\n" + second, space)  # noqa: S102 (our own page)
    encoder = space["encoder"]
    assert isinstance(encoder, Encoder)
    return replace(encoder, preparation=SMALL, card=replace(encoder.card, preparation=SMALL))


FAMILIES: dict[str, Callable[[], Encoder]] = {
    "ct-fm": worlds.tiny,
    "flexict-2d": slices,
    "flexict-3d": cube,
    "flexict-vlm": pair,
    "suprem-unet": suprem,
    "suprem-segresnet": suprem_segresnet,
    "third-family": third_family,
}


def test_no_architecture_is_left_out() -> None:
    # no encoders: tests/infer and tests/adapt have them
    segmenters = {"segresnet-ds", "suprem-unet-full", "encoder-decoder"}
    assert set(zoo.models.UNDRAWN) - segmenters <= {
        zoo.CARDS[name].architecture for name in FAMILIES if name in zoo.CARDS
    }


@pytest.fixture(
    params=[
        pytest.param(
            name,
            marks=[pytest.mark.monai, pytest.mark.xdist_group("monai")]
            if name == "third-family"
            else pytest.mark.xdist_group("text")
            if name == "flexict-vlm"
            else [],
        )
        for name in FAMILIES
    ]
)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return FAMILIES[request.param]()


def scan(seed: int = 0) -> Volume:
    """Bodies of their own density, so that untrained networks tell them apart too."""
    made = worlds.body(seed, (40, 64, 72), (4.0, 4.0, 4.0))
    return replace(made, voxels=made.voxels + np.int16(350 * seed) * (made.voxels > -500))


def test_every_room_takes_it(encoder: Encoder, tmp_path: Path) -> None:
    first, second = scan(0), scan(1)
    point = tuple(first.world((np.array(first.shape) - 1) / 2))

    # features, alone and in slabs; regions; nothing depends on how a file lies
    features = encoder(first)
    assert features.vector.isfinite().all()
    slabs = torch.cat([part.data.float() for part in encoder.stream(first, encoder.card.level, dtype=torch.float32)], 1)
    torch.testing.assert_close(slabs, features.grid.data, rtol=0, atol=1e-5)
    turned = encoder(first.reorient("RAI"))
    torch.testing.assert_close(turned.vector, features.vector, rtol=1e-4, atol=1e-4)
    roi = Volume((first.voxels > 0).astype(np.uint8), first.affine, "label", {1: "body"})
    inside = encoder(first, roi=roi).vectors["roi:body"]
    assert inside.shape == features.grid.data.shape[:1]
    assert inside.isfinite().all()

    # embeddings on disk, and the nearest scan
    listed = [embedding.Scan(f"scan-{i}", str(i), lambda i=i: scan(i)) for i in range(2)]  # type: ignore[misc]
    outcome = embedding.embed(listed, encoder, tmp_path / "e")
    assert not outcome.failed
    index = embedding.load_index(tmp_path / "e")
    again = encoder(scan(1)).vector
    assert index.nearest(again, 1)[0].id == "scan-1"

    # a place finds itself, by one pass and by windows
    hit = search.find(encoder, first, point, first)
    reach = np.array(encoder.level(encoder.card.level).stride) * np.array(encoder.preparation.resampling.spacing)
    assert np.linalg.norm(np.array(hit.point) - point) <= np.linalg.norm(reach) / 2 + 1
    deepest = [max(level.stride[axis] for level in encoder.levels) for axis in range(3)]
    window: Vec3 = (max(deepest[0], 4), max(deepest[1], 16), max(deepest[2], 16))
    hit = search.find(encoder, first, point, first, method="windows", window=window, overlap=0.5)
    assert hit.heatmap is not None
    assert hit.heatmap.shape == first.shape
    assert np.isfinite(hit.similarity)

    # the same landmark in another patient, beside methods that know nothing
    cases = [localise.Case(f"c{i}", f"p{i}", scan(i), {"centre": point}) for i in range(2)]
    levels = tuple(level.name for level in encoder.levels[-2:])
    table = localise.by_method(localise.localise(cases, {"encoder": localise.encoder_method(encoder, levels)}))
    assert [len(pairs) for pairs in table.values()] == [2, 2, 2]

    # colours
    maps = [search.dense_map(encoder, volume, levels) for volume in (first, second)]
    masks = [pca.body_cells(feature, volume) for feature, volume in zip(maps, (first, second), strict=True)]
    model = pca.fit(maps, masks)
    picture = pca.colours(model, maps[0], masks[0])
    assert np.isfinite(np.asarray(picture.voxels if isinstance(picture, Volume) else picture.data)).all()


def test_a_probe_learns_on_it(encoder: Encoder) -> None:
    from ctfoundry.adapt.cases import Classes, scan_of
    from ctfoundry.adapt.prepared import Cases
    from ctfoundry.adapt.probe import ProbeSettings, probe_segmentation

    def labelled(seed: int) -> Any:
        ct = scan(seed)
        labels = Volume((ct.voxels > -500).astype(np.uint8), ct.affine, "label", {1: "body"})
        return scan_of(f"s{seed}", ct, labels)

    parts = [
        Cases([labelled(i) for i in seeds], encoder.preparation, Classes.of(["body"])) for seeds in ((0, 1), (2, 3))
    ]
    settings = ProbeSettings(steps=25, crops=4, patch=(8, 32, 32))
    result = probe_segmentation(encoder, parts[0], parts[1], settings)
    assert result.scores.macro.value > 0.8  # a body is easy for any features, also untrained ones
