"""``ctfoundry zoo convert`` and ``verify`` as a stranger uses them."""

from __future__ import annotations

import json

import pytest

from ctfoundry.keys import Key
from ctfoundry.models.initialisation import initialise
from ctfoundry.models.segresnet import SegResNetEncoder
from program import result, run
from zoo.sources import behind, hub_folder, saved, state_of, worn


@pytest.fixture(scope="module")
def network():
    return initialise(SegResNetEncoder(filters=8), Key.of("cli"))


def test_convert_verify_and_again(tmp_path, network):
    source = hub_folder(tmp_path / "secret-folder" / "hub", state_of(worn(network)), init_filters=8)
    made = result("zoo", "convert", source, tmp_path / "out", "--as", "ct-fm-tiny")
    assert made["weights"] == "trained"
    assert made["skipped"] is False
    assert result("zoo", "convert", source, tmp_path / "out", "--as", "ct-fm-tiny")["skipped"] is True
    checked = result("zoo", "verify", tmp_path / "out")
    assert checked["sha256"] == made["sha256"]
    assert checked["golden"].startswith("met to")
    text = (tmp_path / "out" / "run.json").read_text()
    assert "secret-folder" not in text
    record = json.loads(text)
    assert record["outputs"]["ct-fm-tiny.safetensors"] == made["sha256"]
    assert set(record["inputs"]) == {"SRC/model.safetensors", "SRC/config.json"}
    card = json.loads((tmp_path / "out" / "ct-fm-tiny.json").read_text())
    assert card["source"]["files"]["model.safetensors"] == record["inputs"]["SRC/model.safetensors"]


def test_fresh_weights_are_said_on_stderr(tmp_path):
    network = initialise(SegResNetEncoder(filters=8), Key.of("fresh"))
    source = saved(tmp_path / "a.pth", {"state_dict": behind("model.backbone.", state_of(network))})
    done = run("zoo", "convert", source, tmp_path / "out.safetensors", "--as", "ct-fm-tiny")
    assert done.returncode == 0, done.stderr
    assert "warning: the whole network looks freshly initialised" in done.stderr
    assert "random" in done.stdout
    assert not (tmp_path / "run.json").exists()


def test_errors_name_the_file_and_the_way_out(tmp_path, network):
    source = saved(tmp_path / "a.pth", state_of(network))
    for arguments, code, words in (
        (("zoo", "convert", source, tmp_path / "out", "--as", "suprem-unet"), 1, "--as ct-fm-tiny"),
        (("zoo", "convert", "hf://../x", tmp_path / "out"), 2, "no name on the hub"),
    ):
        done = run(*arguments)
        assert done.returncode == code, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) <= 2
