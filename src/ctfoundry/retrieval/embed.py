"""Embeddings on disk.

``OUT/parts/*.safetensors`` hold the vectors (`retrieval.parts`); ``OUT/index.parquet`` and ``OUT/matrix-*`` are derived from
them; ``OUT/card.json`` says which encoder and settings made them. A scan that is there with the same content and settings is
skipped. Any number of writers may fill one folder at once, and it can be searched meanwhile.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ctfoundry import files, identity
from ctfoundry.encoder import POOLS, WHOLE_CAP_BYTES, Encoder, Windows, roi_vectors
from ctfoundry.errors import ContractError, CTFoundryError, DiskFullError, StoreError, UsageError
from ctfoundry.geometry import to_world
from ctfoundry.infer import passes
from ctfoundry.infer.passes import Precision
from ctfoundry.ingest.rules import LeftOut
from ctfoundry.ingest.workers import Executor
from ctfoundry.preparation import Prepared
from ctfoundry.retrieval import grids, matrix, parts
from ctfoundry.retrieval.cards import (
    STANDARD,
    Settings,
    held_levels,
    how_they_differ,
    read_card,
    same_model,
)
from ctfoundry.retrieval.index import Index
from ctfoundry.retrieval.parts import Row, vector_names
from ctfoundry.retrieval.search_maps import default_levels
from ctfoundry.settings import to_data
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from torch import Tensor

PART_SCANS, PART_ROWS, PART_S = 64, 20_000, 60.0
"""A part is written when it has so many scans or vectors, or when so many seconds have gone: that much ``kill -9`` can lose,
and the scans in work. Ctrl-C and errors lose none."""
OVER_WINDOWS = "windows:"
"""``windows:min`` is the element-wise minimum over the vectors of a scan's windows (CT-FM, 3D-MIR retrieval)."""


@dataclass(frozen=True)
class Scan:
    """A scan to embed: its public id, a digest of its content (and labels), and how to read it and its labels.

    voxels : the digest of its content alone, where `digest` is of the labels too.
    """

    id: str
    digest: str
    read: Callable[[], Volume]
    labels: Callable[[], Sequence[Volume]] | None = None
    voxels: str = ""


@dataclass(frozen=True)
class ModelOf:
    """How a worker gets the encoder: what `zoo.load_encoder` takes, and the patch size of a ViT, one number or one an axis."""

    model: str
    weights: str | None = None
    device: str = "cpu"
    seed: int = 0
    patch: tuple[int, ...] | None = None

    def load(self) -> Encoder:
        """The encoder."""
        from ctfoundry import zoo

        encoder = zoo.load_encoder(self.model, weights=self.weights, device=self.device, seed=self.seed)
        if not self.patch:
            return encoder
        return zoo.with_patch(encoder, self.patch[0] if len(self.patch) == 1 else self.patch)


THIN = 0.25
"""Share of a cell below which a scan is called thin: a scan of a few slices, but no slab that somebody chose."""


@dataclass
class Outcome:
    """Ids that were embedded now, were there already, or failed with a reason; `doubtful` : of those embedded now, why their vectors may
    mean little."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    doubtful: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """The vectors of one scan, or why there are none; `doubt` : see `doubt`; `full` : there was no room for its maps."""

    rows: tuple[Row, ...] = ()
    vectors: np.ndarray | None = None
    failed: str = ""
    doubt: str = ""
    full: bool = False


@dataclass(frozen=True)
class Job:
    """One scan for a worker (`ingest.workers`), which loads the encoder once."""

    scan: Scan
    model: ModelOf
    settings: Settings
    out: Path
    memory: int = 0

    @property
    def place(self) -> str:
        """What progress calls it."""
        return self.scan.id

    def work(self) -> Made:
        """Its vectors."""
        return _made(self.scan, _loaded(self.model), self.settings, self.out)

    def lost(self, out: LeftOut) -> Made:
        """What comes of it when it is not done."""
        return Made(failed=out.reason)


@lru_cache(maxsize=1)
def _loaded(model: ModelOf) -> Encoder:
    return model.load()


def embed(
    scans: Iterable[Scan],
    encoder: Encoder,
    out: Path,
    settings: Settings = STANDARD,
    *,
    paths: Mapping[str, str] = {},
    progress: Callable[[str], None] = lambda _: None,
    executor: Executor | None = None,
    model: ModelOf | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Embed `scans` into `out`; one that cannot be read is named in the outcome and leaves the others alone.

    With an `executor` (`ingest.Local`, `ingest.cluster.Cluster`) its workers do it, each with the encoder that `model` names,
    which has to be the same as `encoder`; this process writes. `progress` is called with the id of each scan that is over.
    `paths` (id to path) goes into the folder's private file before the first vector, so that a run that is stopped leaves no scan
    without its place.

    Raises StoreError when `out` holds embeddings of another encoder or other settings, DiskFullError.
    """
    if executor is not None and model is None:
        raise UsageError("workers need to know how the encoder is loaded (model=)")
    _check_vectors(encoder, settings)
    settings = open_folder(out, encoder, settings)
    outcome = Outcome()
    pending = _Pending(out, outcome)

    def is_there(scan: Scan) -> bool:
        return there.get(scan.id) == scan.digest and not (
            settings.grids and grids.lacking(out, scan.id, settings.levels, scan.voxels or scan.digest)
        )

    def fresh() -> Iterator[Scan]:
        for scan in scans:
            if is_there(scan):
                outcome.skipped.append(scan.id)
                progress(scan.id)
            else:
                yield scan

    with parts.writing(out):
        there = parts.catalogue(out).scans()
        if paths:
            identity.write_private(out, paths)
        try:
            if executor is None:
                for scan in fresh():
                    pending.add(scan, _made(scan, encoder, settings, out))
                    progress(scan.id)
            else:
                assert model is not None
                with executor:
                    jobs = (Job(scan, model, settings, out.resolve()) for scan in fresh())
                    for job, made in executor.run(jobs, say):
                        pending.add(job.scan, made)
                        progress(job.scan.id)
        finally:  # when stopped, too
            pending.write()
        parts.write_index(out)  # before anybody may compact the parts that it reads
    return outcome


class _Pending:
    """Vectors that wait to be written as one part."""

    def __init__(self, out: Path, outcome: Outcome) -> None:
        self._out, self._outcome = out, outcome
        self._rows: list[Row] = []
        self._vectors: list[np.ndarray] = []
        self._ids: list[str] = []
        self._since = time.monotonic()

    def add(self, scan: Scan, made: Made) -> None:
        """Take in what came of a scan; writes when it is time. Raises DiskFullError."""
        if made.full:  # no other scan would fare better
            raise DiskFullError(made.failed, where=self._out, do=files.FULL)
        if made.vectors is None:
            self._outcome.failed[scan.id] = made.failed
        else:
            self._rows += made.rows
            self._vectors.extend(made.vectors)
            self._ids.append(scan.id)
            if made.doubt:
                self._outcome.doubtful[scan.id] = made.doubt
        full = len(self._ids) >= PART_SCANS or len(self._rows) >= PART_ROWS
        if full or time.monotonic() - self._since >= PART_S:
            self.write()

    def write(self) -> None:
        """Write what waits."""
        if self._rows:
            parts.write(self._out, self._rows, np.stack(self._vectors))
            self._outcome.done += self._ids
        self._rows, self._vectors, self._ids = [], [], []
        self._since = time.monotonic()


def fits(out: Path, encoder: Encoder, settings: Settings = STANDARD) -> bool:
    """Whether `out` is new, or holds embeddings of this encoder with these settings."""
    if not (out / "card.json").is_file():
        return True
    there = read_card(out)
    same = same_model(there["model"], to_data(encoder.card))
    return same and there["settings"] == to_data(_settled(out, encoder, settings))


def _settled(out: Path, encoder: Encoder, settings: Settings) -> Settings:
    """The settings with the vectors and levels that were left open. Raises UsageError for levels without maps, ContractError for
    unknown ones."""
    vectors = settings.vectors or (encoder.card.vector,)
    if not settings.grids:
        if settings.levels:
            raise UsageError("levels are those of stored maps", where="--levels", do="give --grids too")
        return replace(settings, vectors=vectors)
    if not encoder.levels:
        raise UsageError(f"{encoder.card.name} has no maps to store", where="--grids")
    there = held_levels(read_card(out)) if (out / "card.json").is_file() else ()
    wanted = settings.levels or there or (*default_levels(encoder), encoder.card.level)
    for name in wanted:
        encoder.level(name)
    return replace(settings, vectors=vectors, levels=tuple(v.name for v in encoder.levels if v.name in wanted))


def open_folder(out: Path, encoder: Encoder, settings: Settings) -> Settings:
    """Make the folder, or check that it is for this encoder and these settings; returns them with nothing left open.

    Raises StoreError, also where there are parts and no card says whose they are.
    """
    if out.exists() and not out.is_dir():
        raise StoreError("is a file, not a folder for embeddings", where=out, do="choose another name")
    settled = _settled(out, encoder, settings)
    card = {"model": to_data(encoder.card), "settings": to_data(settled)}
    if not (out / "card.json").is_file():
        if parts.names(out) and not (out / "card.json").is_file():  # looked for again: somebody may just have begun
            raise StoreError(
                "holds embeddings, but no card.json that says which model and settings made them",
                where=out,
                do="put its card.json back (a folder of the same model and settings has the same), or choose another folder",
            )
        files.create_once(out / "card.json", (json.dumps(card, indent=1, allow_nan=False) + "\n").encode())
    if not fits(out, encoder, settings):
        there = read_card(out)
        if not same_model(there["model"], card["model"]):
            what, do = how_they_differ(there["model"], card["model"])
            raise StoreError(what, where=out, do=f"{do}, or choose another folder")
        kept, asked = there["settings"], card["settings"]
        other = "; ".join(
            f"{name} {_plain(kept[name])}, not {_plain(asked[name])}" for name in kept if kept[name] != asked[name]
        )
        raise StoreError(f"was made with other settings: {other}", where=out, do="choose another folder")
    (out / "parts").mkdir(exist_ok=True)
    return settled


def _plain(value: Any) -> str:
    """A setting as a person would write it."""
    if isinstance(value, list):
        return ("x" if all(isinstance(v, int) for v in value) else "+").join(map(str, value)) or "none"
    return (
        {True: "yes", False: "no", None: "none"}.get(value, str(value)) if not isinstance(value, float) else str(value)
    )


def _check_vectors(encoder: Encoder, settings: Settings) -> None:
    for name in settings.vectors:
        if name.startswith(OVER_WINDOWS):
            if settings.window is None or name.removeprefix(OVER_WINDOWS) not in POOLS:
                raise UsageError(f"{name!r} needs --windows, and is one of windows:mean, windows:max, windows:min")
        elif name not in encoder.vectors:
            raise UsageError(
                f"{encoder.card.name} has no vector {name!r}", do=f"choose among {', '.join(encoder.vectors)}"
            )
    if settings.roi and not encoder.levels:
        raise UsageError(f"{encoder.card.name} has no map to pool regions from", where="--roi")


def _made(scan: Scan, encoder: Encoder, settings: Settings, out: Path) -> Made:
    """All vectors of one scan; an error that was raised on purpose is its result, any other one too."""
    try:
        volume = scan.read()
        found = list(_vectors(scan, volume, encoder, settings, out))
    except CTFoundryError as error:
        # not where: that is a path, and this goes into run.json
        return Made(failed=error.what, full=isinstance(error, DiskFullError))
    except Exception as error:  # a defect in reading one scan must not take the others with it
        text = str(error).partition("\n")[0]  # unless it may hold a path
        return Made(failed=type(error).__name__ + (f": {text}" if text and "/" not in text else ""))
    vectors = np.stack([vector.detach().cpu().float().numpy() for _, vector in found])
    return Made(tuple(row for row, _ in found), vectors, doubt=doubt(volume, encoder))


def doubt(volume: Volume, encoder: Encoder) -> str:
    """What to say of a scan that along an axis fills less than `THIN` of one cell, such as a localiser or one whose voxels have their size in
    other units; "" of any other."""
    if not encoder.levels:
        return ""
    resampling = encoder.preparation.resampling
    turned = volume.reorient(resampling.orientation) if resampling.orientation else volume
    stride = encoder.level(encoder.card.level).stride
    for n, own, steps, spacing in zip(turned.shape, turned.spacing, stride, resampling.spacing, strict=True):
        cell = steps * (spacing or own)
        if n * own < THIN * cell and not (encoder.extent.mode == "slices" and n == 1):
            return (
                f"{n} voxels of {own:.3g} mm along an axis fill little of one cell of {cell:.3g} mm, so its vectors are mostly of padding; "
                "are the sizes of its voxels right?"
            )
    return ""


def _vectors(
    scan: Scan, volume: Volume, encoder: Encoder, settings: Settings, out: Path
) -> Iterator[tuple[Row, Tensor]]:
    chosen = settings.vectors or (encoder.card.vector,)
    own = tuple(name for name in chosen if not name.startswith(OVER_WINDOWS))
    levels = tuple(dict.fromkeys((*settings.levels, *((encoder.card.level,) if settings.roi else ()))))
    features = windows = None
    if own or levels:
        prepared = encoder.prepare(volume)
        _check_maps(encoder, prepared, levels)
        features = encoder(prepared, vectors=own, levels=levels, precision=settings.precision)
    if settings.window is not None:
        windows = encoder.windows(volume, settings.window, settings.overlap, precision=settings.precision)
    for name in chosen:
        if name in own:
            assert features is not None
            yield Row(scan.id, scan.digest, name), features.vectors[name]
        else:
            assert windows is not None
            yield Row(scan.id, scan.digest, name), _over(windows.vectors, name.removeprefix(OVER_WINDOWS))
    if settings.roi:
        assert features is not None
        if scan.labels is None:
            raise ContractError("has no label map", do="see --roi")
        of_regions = features.maps[encoder.card.level]
        regions = {name: v for labels in scan.labels() for name, v in roi_vectors(of_regions, labels).items()}
        for name, vector in regions.items():
            yield Row(scan.id, scan.digest, name), vector
    if windows is not None:
        yield from _places(scan, "window", windows)
    if settings.slices:
        yield from _places(scan, "slice", slices(encoder, volume, precision=settings.precision))
    if settings.grids:
        assert features is not None
        grids.write(out, scan.id, [features.maps[name] for name in settings.levels], scan.voxels or scan.digest)


def _check_maps(encoder: Encoder, prepared: Prepared, levels: Sequence[str]) -> None:
    """Raise ContractError before maps are made that one pass in pieces could, but memory could not hold."""
    cells = [
        [-(-n // s) for n, s in zip(prepared.x.shape[1:], encoder.level(name).stride, strict=True)] for name in levels
    ]
    # a number takes 4 bytes while the scan passes and 2 as it is written; one level stands twice while its pieces are put together
    need = sum(8 * encoder.level(name).channels * math.prod(n) for name, n in zip(levels, cells, strict=True))
    if encoder.extent.mode in ("windows", "slices") and need > WHOLE_CAP_BYTES:
        raise ContractError(
            f"its maps of {', '.join(levels)} take about {need / 2**30:.0f} GiB while they are made",
            do="give fewer or coarser --levels, or leave --grids out",
        )


def _over(vectors: Tensor, how: str) -> Tensor:
    return vectors.mean(0) if how == "mean" else vectors.amax(0) if how == "max" else vectors.amin(0)


def _places(scan: Scan, name: str, found: Windows) -> Iterator[tuple[Row, Tensor]]:
    for vector, (x, y, z), start in zip(
        found.vectors.cpu(), found.centres.tolist(), found.starts.tolist(), strict=True
    ):
        yield Row(scan.id, scan.digest, name, (x, y, z), (*start, *found.size)), vector


def slices(encoder: Encoder, volume: Volume, *, vector: str | None = None, precision: Precision = "fp32") -> Windows:
    """Each slice along axis 0 of the prepared scan embedded alone; slices without a measured voxel are left out.

    Raises ContractError for a network that takes no single slice, and for preparations that lay windows one after the other.
    """
    if encoder.preparation.intensity.stack == "axis0":
        raise ContractError(
            f"preparation {encoder.preparation.name!r} lays windows one after the other: no slice is one"
        )
    prepared = encoder.prepare(volume)
    depth, height, width = prepared.x.shape[1:]
    starts = [(k, 0, 0) for k in range(depth) if bool(prepared.valid[k].any())]
    size = (1, height, width)
    try:
        found = [
            encoder.embed(batch, vector or encoder.card.vector, precision)
            for _, batch in passes.window_batches(prepared.x, size, starts)
        ]
    except (RuntimeError, ValueError, ContractError) as error:
        raise ContractError(
            f"{encoder.card.name} cannot embed a single slice", do="take an encoder of slices, or windows"
        ) from error
    corner = np.array(starts, dtype=np.int64).reshape(-1, 3)
    centres = to_world(prepared.affine, corner + (np.array(size) - 1) / 2)
    return Windows(torch.cat(found), centres, corner, size, prepared.affine)


def rows(out: Path) -> list[dict[str, Any]]:
    """All rows of an embeddings folder that count, each with its part and its place in it."""
    return list(parts.rows(out))


def load_index(out: Path, vector: str | None = None) -> Index:
    """The index over one kind of vector (default: the encoder's own) of an embeddings folder, as far as it is filled now.

    The matrix beside the parts is extended by what came since it was last used. Raises StoreError for a folder that is none, a
    broken part, and a vector that it does not hold.
    """
    card = read_card(out)
    wanted: str = vector or card["settings"]["vectors"][0]
    found = matrix.open_matrix(out, wanted)
    index = Index.from_matrix(found, wanted)
    if not len(index):
        if not parts.catalogue(out).scans():
            raise StoreError(
                "holds no scan: all were taken out" if parts.names(out) else "holds no scan yet",
                where=out,
                do="embed scans into it",
            )
        held = ", ".join(vector_names(out))
        raise StoreError(f"holds no vector {wanted!r}", where=out, do=f"it holds {held}" if held else None)
    return index
