"""Files that lie or attack: each is refused by a named error, and nothing of it is ever executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ctfoundry import zoo
from ctfoundry.errors import CTFoundryError, TooLargeError, WeightsError
from ctfoundry.keys import Key
from ctfoundry.models.initialisation import initialise
from ctfoundry.models.segresnet import SegResNetEncoder
from ctfoundry.zoo import headers
from ctfoundry.zoo.headers import check_header, read_json
from ctfoundry.zoo.pickles import read_checkpoint
from zoo.sources import Payload, hub_folder, saved, state_of, worn


@pytest.fixture(scope="module")
def good() -> dict[str, torch.Tensor]:
    """The state of a real model, which every attack is wrapped around."""
    return state_of(worn(initialise(SegResNetEncoder(filters=8), Key.of("hostile"))))


def refused(source: Path, match: str, out: Path) -> str:
    """Refused by name, with nothing written; the message."""
    with pytest.raises(CTFoundryError, match=match) as error:
        zoo.convert(source, out, name="ct-fm-tiny")
    assert str(source.parent) in str(error.value)
    assert not out.exists()
    return str(error.value)


# ---------------------------------------------------------------------- pickles


@pytest.mark.parametrize("container", ["zip", "bare", "legacy"])
def test_a_pickle_that_runs_a_command(tmp_path, good, container):
    marker = tmp_path / "ran"
    content = {**good, "x": Payload(os.system, f"touch {marker}")}
    path = tmp_path / "evil.pth"
    if container == "bare":
        path.write_bytes(pickle.dumps({"x": Payload(os.system, f"touch {marker}")}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    said = refused(
        path,
        {"zip": "asks for posix.system", "bare": "bare pickle", "legacy": "before 1.6"}[container],
        tmp_path / "out",
    )
    assert not marker.exists()
    if container == "zip":
        assert "nothing was run" in said
        torch.load(path, weights_only=False)  # the attack is a real one
        assert marker.exists()


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (eval, "eval"),
        (exec, "exec"),
        (__import__, "__import__"),
        (getattr, "getattr"),
        (bytearray, "bytearray"),
        (open, "open"),
    ],
)
def test_calls_that_no_weights_need(tmp_path, good, function: Callable, name: str):
    """torch's own list would let bytearray(10**12) through, which takes a terabyte."""
    argument = 10**12 if function is bytearray else "1"
    refused(
        saved(tmp_path / "a.pth", {**good, "x": Payload(function, argument)}), f"asks for .*{name}", tmp_path / "out"
    )


def test_a_pickled_module_is_no_table_of_weights(tmp_path):
    said = refused(
        saved(tmp_path / "a.pth", nn.Linear(2, 2)), "asks for torch.nn.modules.linear.Linear", tmp_path / "out"
    )
    assert "save its state_dict as safetensors" in said


def edited(path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A checkpoint's archive with its files changed, written again."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    change(content)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def program(path: Path, data: bytes) -> Path:
    """The checkpoint with another pickle in it."""

    def change(content: dict[str, bytes]) -> None:
        name = next(n for n in content if n.endswith("/data.pkl"))
        content[name] = data

    return edited(path, change)


def test_a_pickle_by_another_protocol(tmp_path, good):
    path = saved(tmp_path / "a.pth", good)
    marker = tmp_path / "ran"
    attack = pickle.dumps(
        Payload(os.system, f"touch {marker}"), protocol=4
    )  # STACK_GLOBAL hides its names from simple scans
    refused(program(path, attack), "uses", tmp_path / "out")
    assert not marker.exists()


@pytest.mark.parametrize("data", [b"", b"\x80", b"not a pickle", b"\x80\x02(((((", b"\x80\x02X\xff\xff\xff\x7fabc."])
def test_a_damaged_pickle(tmp_path, good, data):
    refused(program(saved(tmp_path / "a.pth", good), data), "damaged|cannot read it safely", tmp_path / "out")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint(tmp_path, good, share):
    path = saved(tmp_path / "a.pth", good)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path, "is empty|ends before|directory", tmp_path / "out")


def test_a_storage_that_is_shorter_than_its_tensor(tmp_path, good):
    def cut(content: dict[str, bytes]) -> None:
        name = max(content, key=lambda n: len(content[n]))
        content[name] = content[name][:100]

    # torch, with its file mapped, reads on into the bytes of the next tensor and says nothing
    path = edited(saved(tmp_path / "a.pth", good), cut)
    refused(path, "claims 1,769,472 bytes for storage .* the archive has 100 bytes", tmp_path / "out")


def test_a_storage_that_is_not_there(tmp_path, good):
    def drop(content: dict[str, bytes]) -> None:
        del content[max(content, key=lambda n: len(content[n]))]

    refused(edited(saved(tmp_path / "a.pth", good), drop), "the archive has nothing", tmp_path / "out")


def test_a_flipped_bit_among_the_numbers(tmp_path, good):
    """torch reads it without a word; the archive's checksum knows."""
    path = saved(tmp_path / "a.pth", good)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert torch.load(path, weights_only=True)
    refused(path, "another checksum", tmp_path / "out")


def test_a_tensor_that_claims_more_than_the_file_holds(tmp_path, good):
    """The pickle says 2 billion numbers of a storage that has 216."""
    path = saved(tmp_path / "a.pth", {"conv_init.weight": good["conv_init.weight"].clone()})

    def lie(content: dict[str, bytes]) -> None:
        name = next(n for n in content if n.endswith("/data.pkl"))
        before, small = content[name], b"K\xd8"  # BININT1 216: the count of the storage
        assert before.count(small) == 1
        content[name] = before.replace(small, b"J\x00\x00\x00\x7f")

    refused(
        edited(path, lie), "claims 8,522,825,728 bytes for storage '0', the archive has 864 bytes", tmp_path / "out"
    )


def test_a_view_beyond_its_storage(tmp_path, good):
    """The storage is as long as claimed, and the tensor on it is longer."""
    path = saved(tmp_path / "a.pth", {"conv_init.weight": torch.zeros(77)})

    def lie(content: dict[str, bytes]) -> None:
        name = next(n for n in content if n.endswith("/data.pkl"))
        at = content[name].rindex(b"K\x4d")  # BININT1 77: the size of the tensor, behind that of the storage
        content[name] = content[name][:at] + b"J\x00\x00\x00\x7f" + content[name][at + 2 :]

    refused(edited(path, lie), "cannot read it safely", tmp_path / "out")


def test_a_shape_without_memory(tmp_path, good):
    """A tensor of 16 TB made of one number by strides of 0 is compared by shape before anything touches it."""
    huge = torch.zeros(1).expand(2**21, 2**21)
    refused(
        saved(tmp_path / "a.pth", {**good, "conv_init.weight": huge}), "of another shape: conv_init", tmp_path / "out"
    )


@pytest.mark.parametrize("name", ["../evil", "archive/../../evil", "/etc/evil", "C:\\evil"])
def test_an_archive_with_names_that_lead_out(tmp_path, good, name):
    path = saved(tmp_path / "deep" / "a.pth", good)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    refused(path, "outside of its own folder", tmp_path / "out")
    assert not (tmp_path / "evil").exists()


def test_an_archive_with_packed_files(tmp_path, good):
    path = saved(tmp_path / "a.pth", good)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/zeros", bytes(1 << 20))
    refused(path, "packed files", tmp_path / "out")


def test_an_archive_that_is_none_of_torch(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(path, "none of torch.save", tmp_path / "out")


def test_a_torchscript_program(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # the layout of torch.jit.save
        for name in ("a/data.pkl", "a/code/__torch__.py", "a/constants.pkl", "a/version"):
            archive.writestr(name, b"x")
    refused(path, "TorchScript program", tmp_path / "out")


def test_a_tar_archive(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        entry = tarfile.TarInfo("pickle")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"\x80\x02."))
    refused(path, "tar archive", tmp_path / "out")


@pytest.mark.parametrize(
    "data", [b"\x89HDF\r\n\x1a\n" + bytes(99), b"<html>404</html>", b"version https://git-lfs.github.com"]
)
def test_files_of_other_kinds(tmp_path, data):
    (tmp_path / "a.pth").write_bytes(data)
    refused(tmp_path / "a.pth", "HDF5|neither a safetensors file", tmp_path / "out")


@pytest.mark.parametrize(
    "content", [[1, 2], {"state_dict": {"a": 1}}, {"epoch": 3}, {}, {"net": {"a": torch.zeros(2).to_sparse()}}]
)
def test_checkpoints_without_a_table_of_weights(tmp_path, content):
    refused(
        saved(tmp_path / "a.pth", content), "table of weights|asks for torch._utils._rebuild_sparse", tmp_path / "out"
    )


# ---------------------------------------------------------------------- safetensors


def tensors(header: object, body: bytes = bytes(64), length: int | None = None) -> bytes:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(data) if length is None else length) + data + body


def entry(shape: list, offsets: list, kind: str = "F32") -> dict:
    return {"dtype": kind, "shape": shape, "data_offsets": offsets}


LIES = {
    "no length": (b"\x01\x02", "cannot hold the length"),
    "length beyond the file": (tensors({}, b"", 10**6), "does not fit"),
    "length of 16 EiB": (tensors({}, b"", 2**64 - 1), "over the cap"),
    "no JSON": (tensors(b"hello"), "not JSON"),
    "no object": (tensors(b"[1]"), "expected an object"),
    "no UTF-8": (tensors(b'{"\xff": 1}'), "not JSON"),
    "a key twice": (tensors(b'{"a": 1, "a": 2}'), "stands in it twice"),
    "nested too deeply": (tensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested too deeply"),
    "shape beyond the bytes": (tensors({"a": entry([16, 2], [0, 64])}), "needs 128 bytes, not 64"),
    "a shape that overflows": (tensors({"a": entry([2**32, 2**32, 2**32], [0, 64])}), "needs .* bytes, not 64"),
    "a negative shape": (tensors({"a": entry([-16], [0, 64])}), "no whole numbers"),
    "a shape of text": (tensors({"a": entry(["16"], [0, 64])}), "no whole numbers"),
    "a shape of truth": (tensors({"a": entry([True], [0, 4])}), "no whole numbers"),
    "offsets that overlap": (tensors({"a": entry([8], [0, 32]), "b": entry([12], [16, 64])}), "overlaps with another"),
    "the same bytes twice": (tensors({"a": entry([16], [0, 64]), "b": entry([16], [0, 64])}), "overlaps with another"),
    "a hole": (tensors({"a": entry([8], [0, 32]), "b": entry([4], [48, 64])}), "leaves a hole"),
    "offsets behind the end": (tensors({"a": entry([16], [64, 128])}), "leaves a hole|end at byte"),
    "offsets reversed": (tensors({"a": entry([16], [64, 0])}), "needs 64 bytes, not -64"),
    "more than the file": (tensors({"a": entry([32], [0, 128])}), "end at byte 128 of 64"),
    "bytes left over": (tensors({"a": entry([8], [0, 32])}), "end at byte 32 of 64"),
    "an unknown type": (tensors({"a": entry([16], [0, 64], "F33")}), "unknown type 'F33'"),
    "no type": (tensors({"a": {"shape": [16], "data_offsets": [0, 64]}}), "not exactly a type"),
    "something more": (tensors({"a": {**entry([16], [0, 64]), "run": "rm"}}), "not exactly a type"),
    "forty axes": (tensors({"a": entry([1] * 40, [0, 4])}, bytes(4)), "no whole numbers"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_safetensors_header_that_lies(tmp_path, lie):
    data, match = LIES[lie]
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"is no whole safetensors file.*" + match):
        check_header(path)
    refused(path, match, tmp_path / "out")


def test_a_header_over_the_cap_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(tensors({f"t{i}": entry([0], [0, 0]) for i in range(1000)}, b""))
    assert len(check_header(path)) == 1000
    monkeypatch.setattr(headers, "TENSORS", 999)
    with pytest.raises(WeightsError, match="lists 1,000 tensors"):
        check_header(path)
    monkeypatch.setattr(headers, "HEADER_CAP_BYTES", 1000)
    with pytest.raises(WeightsError, match="over the cap of 1,000"):
        check_header(path)


def test_a_file_over_the_cap_is_not_opened(tmp_path):
    path = tmp_path / "a.safetensors"
    with open(path, "wb") as file:
        file.truncate(headers.FILE_CAP_BYTES + 1)  # a hole: no disk is taken
    with pytest.raises(TooLargeError, match="32 GiB are not read"):
        check_header(path)
    path.rename(tmp_path / "a.pth")
    with pytest.raises(TooLargeError, match="32 GiB are not read"):
        read_checkpoint(tmp_path / "a.pth")


def test_our_check_and_the_librarys_agree(tmp_path):
    """What our check lets through the library reads, with the same shapes; what the library refuses, we refuse."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = tmp_path / "a.safetensors"
    for header in ({"a": entry([16], [0, 64])}, {"a": entry([4, 2], [0, 32]), "b": entry([16], [32, 64], "BF16")}):
        path.write_bytes(tensors(header))
        assert check_header(path) == {k: tuple(v.shape) for k, v in load_file(path).items()}
    for lie, (data, _) in LIES.items():
        path.write_bytes(data)
        try:
            load_file(path)
        except (SafetensorError, RecursionError, ValueError, OverflowError):
            continue
        # stricter than the library, knowingly
        assert lie in ("a key twice", "something more", "forty axes", "a shape of truth"), lie


# ---------------------------------------------------------------------- folders and their JSON


def test_a_link_out_of_the_folder(tmp_path, good):
    secret = tmp_path / "secret.json"
    secret.write_text('{"init_filters": 8}')
    folder = hub_folder(tmp_path / "hub", good, spatial_dims=3)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(secret)
    said = refused(folder, "its config.json is a link out of the folder", tmp_path / "out")
    assert "init_filters" not in said
    (folder / "config.json").unlink()
    real = (folder / "model.safetensors").rename(tmp_path / "weights.safetensors")
    (folder / "model.safetensors").symlink_to(real)
    refused(folder, "its model.safetensors is a link out", tmp_path / "out")


def test_links_within_a_hub_cache_are_followed(tmp_path, good):
    """The hub's client keeps content in ``blobs`` and links to it from each snapshot."""
    repo = tmp_path / "models--owner--name"
    snapshot = hub_folder(repo / "snapshots" / ("a" * 40), good, init_filters=8)
    (repo / "blobs").mkdir()
    for file in ("model.safetensors", "config.json"):
        (snapshot / file).rename(repo / "blobs" / file[:3])
        (snapshot / file).symlink_to(Path("../../blobs") / file[:3])
    assert zoo.convert(snapshot, tmp_path / "out").card.name == "ct-fm-tiny"
    # but not anywhere else
    (snapshot / "config.json").unlink()
    (tmp_path / "c.json").write_text("{}")
    (snapshot / "config.json").symlink_to(tmp_path / "c.json")
    refused(snapshot, "link out of the folder", tmp_path / "other")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("not JSON", "is not JSON"),
        ("[1, 2]", "expected an object, got list"),
        ('{"a": NaN}', "no number of JSON"),
        ('{"a": 1, "a": 2}', "stands in it twice"),
        ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ("", "is not JSON"),
    ],
    ids=["text", "list", "nan", "twice", "deep", "empty"],
)
def test_json_that_is_none(tmp_path, good, text, match):
    folder = hub_folder(tmp_path / "hub", good)
    (folder / "config.json").write_text(text)
    refused(folder, match, tmp_path / "out")


def test_json_that_is_too_large(tmp_path):
    path = tmp_path / "config.json"
    with open(path, "wb") as file:
        file.truncate(headers.JSON_CAP_BYTES + 1)
    with pytest.raises(TooLargeError, match="bytes of JSON"):
        read_json(path)


def test_folders_without_weights(tmp_path, good):
    saved(tmp_path / "hub" / "other.pth", good)
    with pytest.raises(WeightsError, match=r"has no model.safetensors; there are other.pth"):
        zoo.convert(tmp_path / "hub", tmp_path / "out")
    (tmp_path / "hub" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsError, match="split over several files"):
        zoo.convert(tmp_path / "hub", tmp_path / "out")
    (tmp_path / "hub" / "model.safetensors").mkdir()
    with pytest.raises(WeightsError, match="is no file"):
        zoo.convert(tmp_path / "hub", tmp_path / "out")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(WeightsError, match="no such file"):
        zoo.convert(tmp_path / "pipe.pth", tmp_path / "out")
