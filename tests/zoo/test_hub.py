"""Models by their hub names: from a server on this machine, and from the client's cache without any network."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ctfoundry import zoo
from ctfoundry.errors import UsageError, WeightsError
from ctfoundry.keys import Key
from ctfoundry.models.initialisation import initialise
from ctfoundry.models.segresnet import SegResNetEncoder
from ctfoundry.zoo import hub
from zoo.sources import hub_folder, saved, state_of, worn

CONFIG = {"spatial_dims": 3, "in_channels": 1, "init_filters": 8, "blocks_down": [1, 2, 2, 4, 4]}


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    return state_of(worn(initialise(SegResNetEncoder(filters=8), Key.of("hub", seed)), seed))


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> dict:
    root, home = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("home")
    hub_folder(root / "owner/tiny" / ("a" * 40), state(0), **CONFIG)
    hub_folder(root / "owner/tiny" / ("b" * 40), state(1), **CONFIG)
    saved(root / "owner/other" / ("a" * 40) / "weights/net.pth", state(2))
    big = root / "owner/big" / ("a" * 40) / "model.safetensors"
    big.parent.mkdir(parents=True)
    big.write_bytes(bytes(2000))
    ran = subprocess.run(
        [sys.executable, Path(__file__).with_name("hub_session.py"), root, home],
        capture_output=True,
        text=True,
        timeout=120,
        env={k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout)
    found["source"] = root / "owner/tiny" / ("a" * 40)
    return found


def test_fetched_converted_and_pinned(session):
    card = session["card"]
    assert card["hub"] == "hf://owner/tiny"
    assert card["commit"] == "a" * 40
    for file in ("model.safetensors", "config.json"):
        assert card["files"][file] == hashlib.sha256((session["source"] / file).read_bytes()).hexdigest()


def test_loaded_again_without_asking_the_hub(session):
    assert session["again"] == session["sha256"]
    assert session["requests_again"] == session["requests"]
    assert session["v1"] == "a" * 40
    assert session["moved"] == "b" * 40  # converting anew takes what the branch is now


def test_a_named_file_and_a_zoo_name(session):
    assert session["file"] == "ct-fm-tiny"
    assert session["as"] == "ct-fm-tiny"


def test_what_the_hub_has_not_is_named(session):
    errors = session["errors"]
    assert "the hub says" in errors["hf://owner/none"]
    assert "has no model.safetensors" in errors["hf://owner/other@v1"]
    assert "name the weight file" in errors["hf://owner/other@v1"]
    assert "has no missing.pth" in errors["hf://owner/tiny@v1/missing.pth"]


def test_too_large_a_file_is_not_fetched(session):
    assert "2,000 bytes, more than 1,000" in session["errors"]["big"]
    assert session["fetched_of_big"] == []


def test_a_changed_copy_is_refused(session):
    assert "the card says" in session["changed"]


def test_from_the_cache_where_there_is_no_network(tmp_path, monkeypatch):
    """The tests run with HF_HUB_OFFLINE; the client's cache is laid out by hand as its documentation says."""
    from huggingface_hub import constants

    assert constants.is_offline_mode()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("CTFOUNDRY_CACHE", str(tmp_path / "ours"))
    with pytest.raises(WeightsError, match="not in the hub's cache, and the hub cannot be reached"):
        zoo.load_encoder("hf://owner/tiny", device="cpu")
    assert not (tmp_path / "ours").exists()
    repo = tmp_path / "hub" / "models--owner--tiny"
    snapshot = hub_folder(repo / "snapshots" / ("c" * 40), state(), **CONFIG)
    (repo / "blobs").mkdir()
    for file in ("model.safetensors", "config.json"):
        (snapshot / file).rename(repo / "blobs" / file[:3])
        (snapshot / file).symlink_to(Path("../../blobs") / file[:3])
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("c" * 40)
    encoder = zoo.load_encoder("hf://owner/tiny", device="cpu")
    assert encoder.card.source["commit"] == "c" * 40
    (path,) = (tmp_path / "ours").rglob("*.safetensors")
    # converted once: the hub's cache may go
    import shutil

    shutil.rmtree(tmp_path / "hub")
    assert (
        zoo.load_encoder("hf://owner/tiny", device="cpu").card.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    )


@pytest.mark.parametrize(
    "name",
    ["hf://owner", "hf://owner/name/..", "hf://owner/../etc/passwd.pth", "hf:///etc/passwd.pth", "hf://a/b/../../c.pth",
     "hf://a/b//c.pth", "hf://a/b@..", "hf://a/b/script.py", "hf://a/b/pickle.pkl", "hf://a/b@r s", "hf://-a/b"],
)  # fmt: skip
def test_names_that_are_none(name):
    with pytest.raises(UsageError, match=r"no name on the hub|names no weight file"):
        hub.parse(name)


def test_names_that_are():
    assert hub.parse("hf://a/b") == hub.HubName("a/b")
    assert str(hub.parse("hf://a-b/c.d@v1.0/x/y.pth")) == "hf://a-b/c.d@v1.0/x/y.pth"
    assert hub.converted_folder(hub.parse("hf://a/b@v1/x.pth")).name == "a--b@v1--x.pth"
