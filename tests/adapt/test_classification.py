"""Classifiers, their training and their scores."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from adapt.heads import head, target_scan, write_heads
from ctfoundry.adapt.augment import Changes
from ctfoundry.adapt.class_scores import ScanScores, coded, score
from ctfoundry.adapt.classification import (
    TEMPERATURES,
    augmented,
    chosen_rule,
    class_weights,
    classification_loss,
    find_temperature,
    histogram_baseline,
)
from ctfoundry.adapt.classify_begin import begin
from ctfoundry.adapt.classify_run import _Run, finetune
from ctfoundry.adapt.initial import start
from ctfoundry.adapt.inputs import Inputs, prepare_input
from ctfoundry.adapt.recipe import ClassificationRecipe, finetune_recipe
from ctfoundry.adapt.tables import TargetSet, open_targets
from ctfoundry.classifier import Rule, assemble, fixed_size, make_card
from ctfoundry.errors import ContractError, SettingsError, UsageError, WeightsError
from ctfoundry.io import read
from ctfoundry.keys import Key
from ctfoundry.models.initialisation import initialise
from ctfoundry.preparation import PREPARATIONS, prepare
from ctfoundry.segmenter import Segmenter
from ctfoundry.volume import Volume
from ctfoundry.zoo import load_classifier, load_encoder, save_model, verify_model

SMALL = ["size=[8,32,32]", "train.batch=2", "train.schedule.steps=4", "train.schedule.warmup=0", "validate_every=2",
         "train.checkpoint_every=2", "train.log_every=2", "train.workers=0"]  # fmt: skip


def classifier(model="ct-fm-tiny", pool="mean", kind="binary", classes=("bleed",), size=(8, 32, 32)):
    encoder = load_encoder(model, weights="random", device="cpu")
    base = PREPARATIONS["ct-fm-head-tiny"] if model == "ct-fm-tiny" else encoder.preparation
    limits = () if kind == "multiclass" else (0.5,) * len(classes)
    card = make_card("c", encoder.card, fixed_size(base, size), pool, classes, Rule(kind, limits))
    made = assemble(card, encoder)
    initialise(made.head, Key.of("head"))
    return made


FAMILIES = [("ct-fm-tiny", "mean", (8, 32, 32)), ("flexict-tiny", "cls", (32, 40, 40))]


@pytest.mark.parametrize(("model", "pool", "size"), FAMILIES)
def test_a_classifier_comes_back_from_its_file(tmp_path, model, pool, size):
    made = classifier(model, pool, size=size)
    with torch.no_grad():  # running statistics that are not the first ones
        for name, value in made.network.named_buffers():
            if name.endswith("running_var"):
                value.fill_(1.3)
    save_model(made, tmp_path / "c.safetensors")
    again = load_classifier(tmp_path / "c.safetensors", device="cpu")
    volume = head(1, True)
    assert again(volume) == made(volume)
    assert not any(part.training for part in again.network.modules())
    # a batch changes nothing: alone and among others
    xs = torch.stack([prepare(made.preparation, head(n, True)).x for n in (1, 2, 3)])
    with torch.no_grad():
        torch.testing.assert_close(made.forward(xs)[:1], made.forward(xs[:1]), rtol=1e-5, atol=1e-6)
    other = made.with_rule(Rule("binary", (made(volume).probabilities["bleed"] + 1e-6,), 2.0))
    assert other(volume).found == ()
    assert other(volume).calibrated["bleed"] == pytest.approx(1 / (1 + np.exp(-made(volume).logits["bleed"] / 2)))


def test_files_that_are_no_classifiers(tmp_path):
    made = classifier()
    path = tmp_path / "c.safetensors"
    save_model(made, path)
    card = json.loads(path.with_suffix(".json").read_text())
    changed = {
        "kind": ({**card, "kind": "encoder"}, "is no classifier"),
        "hash": ({**card, "sha256": "0" * 64}, "SHA-256"),
        "names": ({**card, "names": ["a", "b"]}, "not binary"),
        "extra": ({**card, "arguments": {**card["arguments"], "magic": 1}}, "unknown argument 'magic'"),
        "hidden": ({**card, "arguments": {**card["arguments"], "hidden": 3}}, "do not fit"),
        "encoder": ({**card, "arguments": {**card["arguments"], "encoder": {}}}, "describes no classifier"),
    }
    for text, says in changed.values():
        path.with_suffix(".json").write_text(json.dumps(text))
        with pytest.raises(WeightsError, match=says):
            load_classifier(path, device="cpu")
    with pytest.raises(UsageError, match="no file or folder"):
        load_classifier(tmp_path / "none")
    with pytest.raises(ContractError, match="has no vector 'cls'"):
        classifier(pool="cls")
    with pytest.raises(ContractError, match="takes hu"):
        made(Volume(np.zeros((9, 9, 9), np.float32), np.eye(4), "other"))


def test_the_loss_is_torchs():
    key = Key.of("loss")
    z = torch.from_numpy(key("z").normal((5, 3)))
    y = torch.from_numpy(key("y").integers(0, 2, (5, 3)))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(z, y.double())
    torch.testing.assert_close(classification_loss(z, y, "multilabel"), expected)
    one = torch.eye(3, dtype=torch.int64)[[0, 2, 1, 1, 0]]
    expected = torch.nn.functional.cross_entropy(z, one.argmax(1))
    torch.testing.assert_close(classification_loss(z, one, "multiclass"), expected)
    truth = np.array([[1], [0], [0], [0]])
    weights = class_weights(truth, "binary")
    assert weights.tolist() == [[pytest.approx(2 / 3), 2.0]]
    flat = torch.zeros(4, 1, dtype=torch.float64)
    # balanced: both classes bring half of the loss, which at logit 0 is log 2
    assert float(classification_loss(flat, torch.from_numpy(truth), "binary", weights)) == pytest.approx(np.log(2))


def test_windows_are_turned_each_for_itself():
    x = torch.zeros(1, 16, 8, 8)
    x[:, 4:8] = 1  # the second of four windows
    turn = Changes(matrix=((0.9, 0.3, 0.0), (-0.3, 0.9, 0.0), (0.0, 0.0, 1.0)))
    found = augmented(x, turn, 4)
    assert found.shape == x.shape
    assert found[:, :4].abs().max() == found[:, 8:].abs().max() == 0
    assert found[:, 4:8, 3:5, 3:5].min() > 0.5


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_a_temperature_undoes_overconfidence(scale):
    key = Key.of("temperature")
    z = 2 * key("z").normal((4000, 1))
    y = (key("y").uniform(shape=(4000, 1)) < 1 / (1 + np.exp(-z))).astype(np.int64)
    assert find_temperature(scale * z, y, "binary") == pytest.approx(scale, rel=0.1)
    perfect = np.where(y > 0, 1.0, -1.0)
    assert find_temperature(perfect, y, "binary") == pytest.approx(TEMPERATURES[0], rel=0.01)


def scores(logits, truth):
    n, rule = len(truth), Rule("binary", (0.5,))
    return ScanScores("m", ("bleed",), rule, tuple(f"s{i}" for i in range(n)), tuple(f"p{i // 2}" for i in range(n)),
                      np.array(logits, float)[:, None], np.array(truth)[:, None])  # fmt: skip


def test_no_scan_called_positive_leaves_precision_undefined():
    found = scores([-5.0, -4.0] * 8, [0, 0, 1, 1] * 4).measures()
    assert (found["precision"].low, found["precision"].text()) == (None, "undefined")
    assert found["specificity"].low == 1.0


def test_scores_are_of_patients_and_name_what_a_threshold_hides():
    key = Key.of("scores")
    truth = key("y").integers(0, 2, (60,))
    logits = truth + 1.5 * key("z").normal(60) + 4.0  # ranks well, but says yes to all at 0.5
    found = scores(logits, truth)
    measures = found.measures()
    assert measures["f1"].value == measures["f1_all_positive"].value == measures["f1_at_half"].value
    assert measures["specificity"].value < 0.1
    assert measures["auroc"].patients == 30
    assert measures["auroc"].low < measures["auroc"].value < measures["auroc"].high
    better = replace(found, rule=chosen_rule(found))
    assert better.measures()["balanced_accuracy"].value > 0.6
    assert better.rule.thresholds[0] > 0.9
    grid, rate, low, high = found.roc_band()
    assert (low <= rate + 1e-9).all()
    assert (rate <= high + 1e-9).all()
    assert np.trapezoid(rate, grid) == pytest.approx(measures["auroc"].value, abs=0.04)
    # two positive patients of thirty: each repeat holds both classes
    rare = scores(logits, np.r_[1, 1, 1, 1, np.zeros(56, int)])
    assert rare.measures()["auroc"].low is not None
    json.dumps(found.data(), allow_nan=False)


def test_inputs_are_what_is_used(tmp_path):
    made = classifier()
    scan = target_scan(3, (1,))
    inputs = Inputs([scan], made.preparation, cache=tmp_path)
    exact = prepare(made.preparation, head(3, True)).x
    step = inputs[0].step
    assert (inputs[0].x() - exact).abs().max() <= 0.51 * step + 1e-6
    file = next(tmp_path.glob("*.safetensors"))
    again = Inputs([scan], made.preparation, cache=tmp_path)[0]
    assert np.array_equal(again.quantised, inputs[0].quantised)
    file.write_bytes(b"broken")
    assert np.array_equal(Inputs([scan], made.preparation, cache=tmp_path)[0].quantised, inputs[0].quantised)
    assert prepare_input(scan, made.preparation).spacing == pytest.approx((10.0, 4.0, 4.0))


def test_the_histogram_tells_blood_from_none():
    """68 HU in a brain of 32 HU is no finding for a network to be proud of."""
    train, test = ([target_scan(n, (n % 2,)) for n in part] for part in (range(24), range(24, 40)))
    found = histogram_baseline(train, test, "binary", ("bleed",))
    assert found.headline.value > 0.95
    blank = [replace(s, target=(int(n % 4 < 2),)) for n, s in enumerate(train)]
    assert histogram_baseline(blank, test, "binary", ("bleed",)).headline.value < 0.9


def test_recipes_of_labels_read(tmp_path):
    for name in ("head-triage", "head-triage-tiny", "classify", "classify-tiny"):
        assert isinstance(finetune_recipe(name), ClassificationRecipe)
    triage = finetune_recipe("head-triage")
    assert (triage.preparation, triage.hidden, triage.train.batch) == ("ct-fm-head", -1, 64)


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return write_heads(tmp_path_factory.mktemp("heads"), 16)


@pytest.fixture(scope="module")
def run(heads, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    made = finetune(
        "head-triage-tiny",
        heads,
        folder,
        init="random",
        table=heads / "labels.csv",
        changes=SMALL,
        device="cpu",
        quiet=True,
    )
    return folder, made


def test_a_run_leaves_a_classifier_and_says_what_it_is_worth(run, heads):
    folder, made = run
    assert made.patients == {"train": 8, "validation": 4, "test": 4}
    assert made.init["weights"] == "random"
    names = {"recipe.json", "split.json", "validation.jsonl", "model.safetensors", "model.json", "predictions.csv", "test.json",
             "report.html", "run.json"}  # fmt: skip
    assert names <= {p.name for p in folder.iterdir()}
    assert not (folder / "prepared").exists()
    model = load_classifier(folder, device="cpu")
    assert model.rule == made.rule
    assert model.preparation.sizing.crop == (8, 32, 32)
    # the table says what the model says, at a threshold that validation chose
    lines = [line.split(",") for line in (folder / "predictions.csv").read_text().splitlines()]
    assert lines[0] == ["id", "patient", "split", "label", "probability", "calibrated", "called"]
    assert [line[2] for line in lines[1:]] == ["validation"] * 4 + ["test"] * 4
    data = open_targets(heads, heads / "labels.csv")
    images = {scan.id: scan for scan in data.scans}
    for line in lines[1:]:
        found = model(images[line[0]].image())
        assert float(line[4]) == pytest.approx(found.probabilities["bleed"], abs=2e-6)
        assert int(line[3]) == images[line[0]].target[0]
        assert int(line[6]) == ("bleed" in found.found)
    text = "".join((folder / name).read_text() for name in names if not name.endswith("safetensors"))
    assert "head0" not in text
    assert str(heads) not in text
    assert made.baseline is not None
    assert made.baseline["classes"]["bleed"]["auroc"]["value"] is not None


def test_a_run_is_verified_and_is_something_to_begin_from(run, tmp_path):
    """Golden values tell a classifier with another head; a segmentation begins from its encoder, a classification does not from a segmenter."""
    folder = run[0]
    found = verify_model(folder / "model.safetensors")
    assert (found["architecture"], found["golden"].split()[0]) == ("encoder-head", "met")
    model = load_classifier(folder, device="cpu")
    card = replace(model.card, golden={**model.card.golden, "values": [v + 1 for v in model.card.golden["values"]]})
    save_model(replace(model, card=card), tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="misses its golden values"):
        verify_model(tmp_path / "other.safetensors")
    recipe = finetune_recipe("few-shot-tiny")
    begun = start(replace(recipe, preparation=""), ("background", "one"), folder)
    assert begun.init == {
        "model": model.card.name,
        "weights": "trained",
        "sha256": model.card.sha256,
        "kind": "encoder",
    }
    ours = begun.network.encoder.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in model.encoder.network.state_dict().items())
    _, told = begin(finetune_recipe("head-triage-tiny"), folder, None)
    assert told == {"model": model.card.name, "weights": "trained", "sha256": model.card.sha256}
    with pytest.raises(UsageError, match="begin from an encoder"):
        begin(finetune_recipe("head-triage-tiny"), Segmenter.of(begun.network, begun.card), None)


def test_a_test_of_another_step_is_made_again(run, heads, tmp_path):
    folder, made = run
    other = tmp_path / "run"
    shutil.copytree(folder, other)
    kept = json.loads((other / "test.json").read_text())
    assert kept["step"] == made.best["step"]
    (other / "test.json").write_text(json.dumps({**kept, "step": 1, "logits": [[0.0]] * len(kept["ids"])}))
    again = finetune("head-triage-tiny", heads, other, init="random", table=heads / "labels.csv", changes=SMALL, device="cpu",
                     quiet=True, report=False, baseline=False)  # fmt: skip
    assert again.test == made.test
    assert any("second look" in text for text in again.warnings)
    assert json.loads((other / "test.json").read_text()) == {**kept, "looked_at_before": [1]}
    assert "looked at 2 times" in load_classifier(other, device="cpu").card.tested_on[-1]
    assert "looked at once" in load_classifier(folder, device="cpu").card.tested_on[-1]


def test_a_network_that_diverged_is_never_the_best():
    rank = _Run.rank
    bad, good = {"auroc": float("nan"), "loss": float("nan")}, {"auroc": 0.5, "loss": 3.0}
    own = SimpleNamespace(recipe=finetune_recipe("classify-tiny"))
    assert rank(own, bad) < rank(own, good)


def test_a_killed_run_goes_on_to_the_same(run, heads, tmp_path):
    folder, made = run
    table, other = heads / "labels.csv", tmp_path / "run"
    common = {
        "init": "random",
        "table": table,
        "changes": SMALL,
        "device": "cpu",
        "quiet": True,
        "report": False,
        "baseline": False,
    }
    first = finetune("head-triage-tiny", heads, other, steps=2, **common)
    assert first.test is None
    assert not (other / "test.json").exists()
    second = finetune("head-triage-tiny", heads, other, **common)
    assert second.test == made.test
    ours, theirs = ((f / "model.safetensors").read_bytes() for f in (other, folder))
    assert ours == theirs
    with pytest.raises(SettingsError, match="begun with"):
        finetune("head-triage-tiny", heads, other, **{**common, "changes": [*SMALL, "train.seed=1"]})


def test_transfer_takes_the_threshold_along(run):
    model = load_classifier(run[0], device="cpu")
    shifted = tuple(
        replace(target_scan(n, (n % 2,)), image=lambda n=n: head(n, bool(n % 2), 5.0)) for n in range(50, 58)
    )
    found = score(model, TargetSet("other", shifted, "binary", ("haemorrhage",)))
    assert found.rule == model.rule
    assert found.threshold(0) == model.rule.thresholds[0]
    bad = replace(shifted[0], id="bad", image=lambda: read("/no/such/file.nii.gz"))
    some = score(model, [*shifted, bad])
    assert list(some.failed) == ["bad"]
    assert len(some.ids) == 8
    with pytest.raises(ContractError, match="none of 1 scans"):
        score(model, [bad])
    with pytest.raises(ContractError, match="labels are multiclass"):
        score(model, TargetSet("x", shifted, "multiclass", ("a", "b")))


def test_the_other_family_with_classes_and_frozen(heads, tmp_path):
    """FlexiCT's tiny ViT with its own preparation; three classes, a frozen encoder, few shots."""
    table = tmp_path / "t.csv"
    table.write_text(
        "scan,grade\n" + "\n".join(f"head{n:03d},{['low', 'mid', 'high'][n % 3]}" for n in range(15)) + "\n"
    )
    encoder = load_encoder("flexict-tiny", weights="random", device="cpu")
    before = {name: value.clone() for name, value in encoder.network.state_dict().items()}
    made = finetune(
        "classify-tiny", heads, tmp_path / "run", init=encoder, table=table, shots=6, device="cpu", quiet=True, report=True,
        changes=[*SMALL[1:], "size=[32,40,40]", "pool=cls", "tuning.mode=frozen", "dropout=0.2"],
    )  # fmt: skip
    assert (made.kind, made.classes) == ("multiclass", ("high", "low", "mid"))
    assert made.patients["train"] == 6
    model = load_classifier(tmp_path / "run", device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.network.state_dict().items())
    assert sum(model(head(1, True)).probabilities.values()) == pytest.approx(1)
    assert made.test["overall"]["macro_auroc"]["value"] is not None


def test_a_given_encoder_does_not_learn(heads, tmp_path):
    """Runs in a row may begin from the same object."""
    given = load_encoder("ct-fm-tiny", weights="random", device="cpu")
    before = {name: value.clone() for name, value in given.network.state_dict().items()}
    finetune("head-triage-tiny", heads, tmp_path / "run", init=given, table=heads / "labels.csv", changes=SMALL, device="cpu",
             quiet=True, report=False)  # fmt: skip
    learnt = load_classifier(tmp_path / "run", device="cpu").encoder.network.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in given.network.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in learnt.items())
    assert all(p.requires_grad for p in given.network.parameters())


def test_what_a_run_refuses(heads, tmp_path):
    table = heads / "labels.csv"
    with pytest.raises(UsageError, match="what the encoder begins with"):
        finetune("head-triage-tiny", heads, tmp_path / "r", init=None, table=table)
    with pytest.raises(SettingsError, match="not for classification"):
        finetune("whole-body-tiny", heads, tmp_path / "r", init="random", table=table)
    with pytest.raises(SettingsError, match="best step is kept"):
        finetune("head-triage-tiny", heads, tmp_path / "r", init="random", table=table, changes=["train.ema=0.9"])
    assert coded([target_scan(0, (2,))], "multiclass", 3).tolist() == [[0, 0, 1]]
