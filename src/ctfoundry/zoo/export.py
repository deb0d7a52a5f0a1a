"""Models for other tools: a folder that plain nnU-Net, MONAI or the readers of CT-FM's hub repositories use.

``export`` writes a folder whole or not at all: it is filled under another name beside its place and renamed when it is finished. In it
stand the other tool's files, ``README.md`` (what to type there), our card and ``run.json``. A file a format: `export_nnunet`,
`export_monai`, `export_hub`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ctfoundry import __version__, files
from ctfoundry.encoder import Card, Encoder
from ctfoundry.errors import UsageError
from ctfoundry.geometry import Vec3
from ctfoundry.record import Record
from ctfoundry.segmenter import Segmenter
from ctfoundry.settings import nearest, to_data

if TYPE_CHECKING:
    from torch import Tensor

Model = Encoder | Segmenter

CARD = "ctfoundry-card.json"
"""Our card in an exported folder (a hub folder has it as ``model.json``, so that it is a model of ours too)."""

ARCHITECTURES = ("segresnet-encoder", "segresnet-ds")
"""What can be exported: CT-FM's encoder, alone or with its own decoder. The others have no counterpart in these tools."""


@dataclass(frozen=True)
class Options:
    """Choices of `export` that a model does not make; all but `seed` are of nnU-Net's plans.

    dataset : name of nnU-Net's data set (``Dataset501_Liver``), written into the plans.
    patch : voxels of a training patch (default: the card's windows, else CT-FM's 96x160x160).
    spacing : millimetres, for a model whose preparation keeps each scan's own.
    batch : patches in a batch.
    seed : of the decoder that an encoder alone does not have.
    """

    dataset: str = "Dataset900_CTFoundry"
    patch: Vec3 | None = None
    spacing: tuple[float, float, float] | None = None
    batch: int = 2
    seed: int = 0


@dataclass(frozen=True)
class Exported:
    """What an export came to: the folder, its files, whether the same export stood there already, what a user should know."""

    path: Path
    files: tuple[str, ...]
    skipped: bool
    notes: tuple[str, ...]


def load(model: str | Path, *, weights: str | Path | None = None, seed: int = 0) -> Model:
    """An encoder (as `load_encoder` takes it) or a segmenter (a run folder or file with its card), on the CPU."""
    from ctfoundry.zoo import hub
    from ctfoundry.zoo.files import load_model, load_segmentation_model, model_file, read_card
    from ctfoundry.zoo.models import CARDS, load_encoder

    path = Path(model)
    if weights is not None or str(model) in CARDS or hub.is_hub(model) or not path.exists():
        return load_encoder(model, weights=weights, device="cpu", seed=seed)
    file = model_file(path)
    kind = read_card(file).kind if file.is_file() else "encoder"
    if kind not in ("encoder", "segmenter"):
        raise UsageError(f"{file.name} is a {kind}", do="export takes encoders and segmenters")
    return load_segmentation_model(file) if kind == "segmenter" else load_model(file)


def writers() -> dict[str, Callable[[Model, Path, Options], Sequence[str]]]:
    """What fills a folder, by the name of the format; each returns notes for the user."""
    from ctfoundry.zoo.export_hub import write as hub
    from ctfoundry.zoo.export_monai import write as monai
    from ctfoundry.zoo.export_nnunet import write as nnunet

    return {"nnunet": nnunet, "monai-bundle": monai, "hub": hub}


def export(
    model: Model, form: str, out: str | Path, *, options: Options | None = None, command: Sequence[str] = ()
) -> Exported:
    """Write `model` for another tool into the new folder `out`.

    Parameters
    ----------
    form : ``nnunet``, ``monai-bundle`` or ``hub``.
    command : for ``run.json``; without paths.

    The same export is not made again. Raises UsageError for anything else in `out`, a network that the format cannot hold, or a
    preparation that the other tool has no equal of; nothing is left behind then.
    """
    table, options, target = writers(), options or Options(), Path(out)
    if form not in table:
        raise UsageError(f"no format is called {form!r}; {nearest(form, table)}")
    card = model.card
    if card.architecture not in ARCHITECTURES:
        raise UsageError(
            f"{card.name} is a {card.architecture}; formats of other tools hold {' and '.join(ARCHITECTURES)}"
        )
    asked = {
        "format": form,
        "model": fingerprint(model.network.state_dict()),
        "card": files.digest(to_data(card)),
        "options": json.loads(json.dumps(asdict(options))),
    }
    there = _finished(target, asked)
    if there is not None:
        return there
    record = Record(command=tuple(command) or ("export", card.name, "--format", form))
    record.inputs = {"model": card.sha256} if card.sha256 else {}
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.parent / f".{target.name}.part-{os.getpid()}"
    part.mkdir()
    try:
        notes = [*_said(card), *table[form](model, part, options)]
        names = sorted(str(p.relative_to(part)) for p in part.rglob("*") if p.is_file())
        record.results = {"asked": asked, "notes": notes}
        record.write(part, names)
        if target.exists():
            target.rmdir()  # an empty folder: anything else was refused
        part.rename(target)
        files.flush_folder(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Exported(target, (*names, "run.json"), False, tuple(notes))


def _finished(target: Path, asked: dict[str, Any]) -> Exported | None:
    """The same export, where it stands already; raises UsageError over anything else."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    record = target / "run.json"
    try:
        done = json.loads(record.read_text())
        found, outputs = done["results"], done["outputs"]
        same = found["asked"] == asked and all(files.sha256(target / n) == digest for n, digest in outputs.items())
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise UsageError(f"{target}: something else lies there", do="name a new folder, or remove that one")
    return Exported(target, (*outputs, "run.json"), True, tuple(found["notes"]))


def fingerprint(state: dict[str, Tensor]) -> str:
    """SHA-256 over names and bytes of all tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _said(card: Card) -> list[str]:
    return [f"the weights of {card.name} are random"] if card.weights == "random" else []


def write_card(model: Model, folder: Path, name: str = CARD) -> None:
    """Our card as it is."""
    files.write_json(folder / name, to_data(model.card))


def tensors(model: Model) -> dict[str, Tensor]:
    """The state by name, each tensor its own and in plain memory order."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in model.network.state_dict().items()}


def about(model: Model) -> str:
    """Origin, licence, input and tests of a model, for a README."""
    card, prep = model.card, model.preparation
    spacing = " x ".join("as scanned" if mm is None else f"{mm:g}" for mm in prep.resampling.spacing)
    low, high = prep.intensity.clip
    rows = [
        ("Model", f"{card.name} ({card.kind}, {card.architecture}, {card.weights} weights)"),
        ("Origin", card.origin or "not stated"),
        ("Licence of the weights", card.licence or "not stated in the card: ask whoever gave them to you"),
        ("Input", f"CT in HU, axes {prep.resampling.orientation}, {spacing} mm, {low:g}..{high:g} HU to 0..1"),
        ("Tested on", "; ".join(card.tested_on) or "not stated"),
        ("Not tested on", "; ".join(card.not_tested_on) or "not stated"),
        ("Notes", "; ".join(card.notes) or "none"),
        ("Exported by", f"ctfoundry {__version__}"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in rows)]) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def shape_of(model: Model) -> tuple[int, int, list[int], list[int], int]:
    """(input channels, filters, blocks, blocks up, depth) of a SegResNet; an encoder's decoder would be CT-FM's."""
    arguments = model.card.arguments
    blocks = list(arguments.get("blocks", (1, 2, 2, 4, 4)))
    up = list(arguments.get("blocks_up", [1] * (len(blocks) - 1)))
    return arguments.get("in_channels", 1), arguments.get("filters", 32), blocks, up, arguments.get("depth", len(up))
