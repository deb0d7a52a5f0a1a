from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapt.bodies import write_plain
from ctfoundry import parallel, zoo
from ctfoundry.adapt.curve import KEPT, ROWS, best, best_text, kept, probe_set, probe_steps, read_rows
from ctfoundry.adapt.probe import ProbeSettings
from ctfoundry.cli import adapt, common, training
from ctfoundry.errors import UsageError
from ctfoundry.preparation import PREPARATIONS
from ctfoundry.pretrain.run import encoder_at, pretrain
from ctfoundry.settings import to_data
from ctfoundry.train.monitor import read_metrics
from pretrain.toys import loop, make_store, recipe

QUICK = ProbeSettings(steps=4, width=4, patch=(8, 16, 16), crops=2)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain(tmp_path_factory.mktemp("labelled"), 8)


def test_a_probed_run_is_the_run_it_would_have_been(tmp_path: Path, labelled: Path) -> None:
    data = probe_set(labelled, PREPARATIONS["ct-fm-tiny"], shots=2, settings=QUICK)
    assert (len(data.train), len(data.validation)) == (2, 2)
    made = make_store(tmp_path / "store")
    settings = recipe(train=loop(6, checkpoint_every=4, workers=0))
    for name, probe in (("plain", None), ("probed", (3, data))):
        pretrain(settings, made, tmp_path / name, device="cpu", quiet=True, probe=probe)
    plain, probed = tmp_path / "plain", tmp_path / "probed"
    assert (plain / "model.safetensors").read_bytes() == (probed / "model.safetensors").read_bytes()
    assert not (plain / ROWS).exists()

    rows = read_rows(probed)
    assert [row["step"] for row in rows] == [0, 3, 6]
    assert all(0 <= row["dice"] <= 1 and row["patients"] == 2 and row["low"] is None for row in rows)
    top = best(probed, data.digest)
    assert top == max(rows, key=lambda row: row["dice"])
    assert json.loads((probed / "run.json").read_text())["results"]["best_checkpoint"] == top
    assert best_text(top).startswith(f"best checkpoint: step {top['step']}, macro Dice {top['dice']:.3f} of 2 ")
    assert ["untrained" in best_text({**top, "step": step}) for step in (0, 3)] == [True, False]

    # what was probed is kept, ready to load, and is what the run had at that step
    last = zoo.load_encoder(kept(probed, 6), device="cpu")
    final = zoo.load_encoder(probed, device="cpu")
    for name, value in final.network.state_dict().items():
        assert torch.equal(value, last.network.state_dict()[name])
    assert zoo.load_encoder(kept(probed, 0), device="cpu").card.weights == "random"
    assert last.card.training["steps"] == 6

    # going on probes nothing twice; a lost row is made again, the same
    (probed / ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows[:2]) + "{broken\n")
    before = kept(probed, 3).stat().st_mtime_ns
    pretrain(settings, made, probed, device="cpu", quiet=True, probe=(3, data))
    assert read_rows(probed) == rows
    assert kept(probed, 3).stat().st_mtime_ns == before
    assert read_metrics(probed / "metrics.jsonl")[0][-1]["step"] == 6

    # by hand, from the kept weights and the last checkpoint
    (probed / ROWS).unlink()
    again = probe_steps(probed, [0, 6], lambda step: encoder_at(probed, step), data)
    assert again == [rows[0], rows[2]]
    with pytest.raises(UsageError, match="kept no checkpoint"):
        probe_steps(probed, [], lambda step: encoder_at(probed, step), data)
    # other settings are another probe, whose numbers do not mix
    other = replace(data, settings=replace(QUICK, seed=9))
    assert best(probed, other.digest) is None


def test_probing_needs_nobody_else() -> None:
    with parallel.alone():
        assert (parallel.rank(), parallel.size()) == (0, 1)
        with parallel.joined("cpu") as place:
            assert place.type == "cpu"


def test_command_line(
    tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "state", common.State(json=True, quiet=True))
    monkeypatch.setattr(training, "state", common.State(json=True, quiet=True))
    make_store(tmp_path / "store")
    toy, folder = tmp_path / "toy.json", tmp_path / "run"
    toy.write_text(json.dumps(to_data(recipe(train=loop(4, checkpoint_every=2, keep_every=2, workers=0)))))

    def shown(call: Callable[..., None], *arguments: Any, **options: Any) -> Any:
        call(*arguments, device="cpu", **options)
        return json.loads(capsys.readouterr().out)

    quick = {"change": ["steps=3", "crops=2", "patch=[8,16,16]"], "shots": 2}
    probing = {"probe_every": 2, "probe_data": labelled, "probe_shots": 2, "probe_set": quick["change"]}
    done = shown(training.pretrain, str(toy), tmp_path / "store", folder, **probing)
    assert done["best_checkpoint"]["step"] in (0, 2, 4)
    assert sorted(path.name for path in (folder / KEPT).glob("*.safetensors")) == [
        f"step-{step:08d}.safetensors" for step in (0, 2, 4)
    ]
    found = shown(adapt.probe, str(folder), labelled, **quick)
    assert [row["method"] for row in found["results"]] == [
        "toy, trained weights",
        "toy, random weights",
        "one voxel's intensity",
        "position in the body",
    ]
    assert set(found["results"][0]["labels"]) == {"bone", "fat", "left_side"}
    assert (found["train_patients"], found["validation_patients"]) == (2, 2)
    rows = shown(adapt.probe, str(folder), labelled, checkpoints=True, **quick)
    assert [row["step"] for row in rows["rows"]] == [0, 2, 4]
    assert rows["best"] in rows["rows"]
    with pytest.raises(UsageError, match="known: segmentation"):
        adapt.probe(str(folder), labelled, task="detection")
    with pytest.raises(UsageError, match="both --probe-every and --probe-data"):
        training.pretrain(str(toy), tmp_path / "store", folder, probe_every=2)
    with pytest.raises(UsageError, match="nowhere: is no folder of labelled scans"):
        training.pretrain(str(toy), tmp_path / "store", folder, **{**probing, "probe_data": tmp_path / "nowhere"})
    with pytest.raises(UsageError, match="not the folder of a pretraining run"):
        adapt.probe(str(tmp_path), labelled, checkpoints=True)
