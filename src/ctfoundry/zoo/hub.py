"""Models by their names on the Hugging Face hub: ``hf://owner/name[@revision][/file]``.

Only ``config.json``, ``model.safetensors`` or the one file that the name says is fetched, nothing is executed, and where there
is no network the client's own cache answers. What was converted once is used from then on, whatever happens to the branch it came
from: its card pins the commit and the SHA-256.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctfoundry.errors import TooLargeError, UsageError, WeightsError
from ctfoundry.zoo.headers import FILE_CAP_BYTES, JSON_CAP_BYTES

PREFIX = "hf://"
WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt", ".torch", ".bin")
"""Endings of files that are fetched when they are named."""

_NAME = re.compile(
    r"hf://(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(@(?P<revision>[\w.-]{1,100}))?(/(?P<file>[\w./-]{1,300}))?"
)

KNOWN = {
    "project-lighter/ct_fm_feature_extractor": "ct-fm",
    "project-lighter/ct_fm_segresnet": "ct-fm",
    "project-lighter/whole_body_segmentation": "ct-fm-whole-body",
}
"""What public repositories are; a name that is not here is found by its keys."""


@dataclass(frozen=True)
class HubName:
    """A model on the hub: repository, revision (a branch, tag or commit; None: the main branch), one file or None for the usual two."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.repo}{at}{'/' + self.file if self.file else ''}"


@dataclass(frozen=True)
class Fetched:
    """A hub model on this disk: the snapshot's folder or the named file in it, and the commit."""

    path: Path
    commit: str


def is_hub(name: str | os.PathLike[str]) -> bool:
    """Whether a model's name is one of the hub."""
    return str(name).startswith(PREFIX)


def parse(name: str) -> HubName:
    """The parts of a hub name; raises UsageError for what is none.

    >>> parse("hf://owner/name@v1/weights/a.pth")
    HubName(repo='owner/name', revision='v1', file='weights/a.pth')
    """
    match = _NAME.fullmatch(name)
    if match is None or any(".." in (part or "") for part in match.groupdict().values()):
        raise UsageError(
            f"{name!r} is no name on the hub", do="write hf://owner/name, hf://owner/name@revision or .../file.pth"
        )
    file = match["file"]
    if file is not None and (not file.endswith(WEIGHTS) or "//" in file or file.startswith("/")):
        raise UsageError(f"{name!r} names no weight file", do=f"files end in {', '.join(WEIGHTS)}")
    return HubName(match["repo"], match["revision"], file)


def fetch(name: HubName) -> Fetched:
    """Bring a hub model to this disk, or find it in the client's cache; raises WeightsError when neither is possible."""
    if name.file is not None:
        path = _one(name, name.file, FILE_CAP_BYTES)
        assert path is not None
        depth = name.file.count("/")
        return Fetched(path, path.parents[depth].name)
    weights = _one(name, "model.safetensors", FILE_CAP_BYTES)
    assert weights is not None
    commit = weights.parent.name
    _one(HubName(name.repo, commit), "config.json", JSON_CAP_BYTES, optional=True)
    return Fetched(weights.parent, commit)


def _one(name: HubName, file: str, cap: int, *, optional: bool = False) -> Path | None:
    try:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError as error:
        raise WeightsError(
            "the hub's client is not installed", where=str(name), do="pip install 'ctfoundry[hub]'"
        ) from error
    where: dict[str, Any] = {"repo_id": name.repo, "filename": file, "revision": name.revision}
    try:
        if not constants.is_offline_mode():
            promised = hf_hub_download(**where, dry_run=True)
            if promised.file_size is not None and promised.file_size > cap:
                raise TooLargeError(f"its {file} has {promised.file_size:,} bytes, more than {cap:,}", where=str(name))
        path = Path(hf_hub_download(**where))
    except LocalEntryNotFoundError as error:  # a kind of EntryNotFoundError, so it comes first
        if optional:
            return None
        raise WeightsError(
            f"its {file} is not in the hub's cache, and the hub cannot be reached",
            where=str(name),
            do="run it once where there is a network, or copy the cache (HF_HOME) here",
        ) from error
    except EntryNotFoundError as error:
        if optional:
            return None
        raise WeightsError(
            f"has no {file}", where=str(name), do="name the weight file: hf://owner/name/FILE"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        text = str(error).strip().splitlines()
        raise WeightsError(
            f"the hub says: {text[0][:200] if text else type(error).__name__}", where=str(name)
        ) from error
    if path.stat().st_size > cap:
        raise TooLargeError(f"its {file} has {path.stat().st_size:,} bytes, more than {cap:,}", where=str(name))
    return path


def converted_folder(name: HubName) -> Path:
    """Where the converted model of a hub name is kept: in ``CTFOUNDRY_CACHE``, or ``ctfoundry`` of the user's cache folder."""
    base = os.environ.get("CTFOUNDRY_CACHE")
    home = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ctfoundry"
    flat = str(name).removeprefix(PREFIX).replace("/", "--")
    return home / "models" / flat
