"""SCAN on the command line: a file, a DICOM folder, ``FOLDER#UID``, ``STORE#ID``, a store, or a folder of scans."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from ctfoundry import files, identity, io
from ctfoundry.errors import CTFoundryError, UsageError
from ctfoundry.io.glance import is_label
from ctfoundry.io.places import place_of
from ctfoundry.retrieval.cards import how_they_differ, patch_of, read_card, same_model
from ctfoundry.retrieval.embed import Scan
from ctfoundry.retrieval.index import Index
from ctfoundry.retrieval.regions import Regions
from ctfoundry.store import Store, open_store
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Source:
    """A scan and the private path it comes from."""

    scan: Scan
    path: str
    series: str = ""


@dataclass(frozen=True)
class FromStore:
    """Reads one scan of a store, which a process opens once for all of them."""

    store: Path
    id: str

    def __call__(self) -> Volume:
        """The scan."""
        return _opened(self.store).volume(self.id)


@lru_cache(maxsize=4)
def _opened(path: Path) -> Store:
    return open_store(path)


@dataclass
class Sources:
    """Scans by the order given; `failed` says by id what could not be opened and why, `failed_paths` where it is; label maps
    are counted, never taken for scans, and so are files passed over, by the reason."""

    scans: list[Source] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    failed_paths: dict[str, str] = field(default_factory=dict)
    labels: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def paths(self) -> dict[str, str]:
        """Where each scan is, those too that could not be opened, from whatever folder it is asked. Private."""
        given = {source.scan.id: source.path for source in self.scans} | self.failed_paths
        return {id: os.path.abspath(path) for id, path in given.items()}

    def passed_over(self) -> str:
        """What was no scan, such as ``40 x label map, 20 x single slice``; empty where everything was one."""
        passed = self.skipped + Counter({"label map": self.labels})
        return ", ".join(f"{count} x {reason}" for reason, count in passed.most_common(5))

    def fail(self, path: str, reason: str, id: str = "") -> None:
        """Note what could not be opened."""
        id = id or identity.name("scan", path)
        self.failed[id], self.failed_paths[id] = reason, path

    def one(self, text: str) -> Scan:
        """The only scan; raises UsageError when there are none or several."""
        if len(self.scans) != 1:
            raise UsageError(
                f"{text!r} names {len(self.scans)} scans, one is needed",
                do="name one file, FOLDER#SeriesInstanceUID or STORE#ID",
            )
        return self.scans[0].scan


def resolve(texts: Sequence[str], *, series: Collection[str] | None = None) -> Sources:
    """The scans that the arguments name; each byte content once. Raises UsageError for what is not there.

    series : only scans of these DICOM series (of a cohort file); a store knows them from its provenance.
    """
    sources = Sources()
    seen: set[str] = set()
    for text in texts:
        for source in _resolve(text, sources):
            if source.scan.id not in seen and (series is None or source.series in series):
                seen.add(source.scan.id)
                sources.scans.append(source)
    if not sources.scans and not sources.failed:
        why = sources.passed_over()
        raise UsageError(f"no CT scan among: {', '.join(texts)}" + (f" ({why})" if why else ""))
    return sources


def in_folder(folder: Path, ids: Iterable[str]) -> Iterator[tuple[str, Volume | str]]:
    """The scans of an embeddings folder, read where its private list says they are; for one that cannot be read, the reason, which
    names neither its place nor its series."""
    place = folder / identity.PRIVATE
    known = json.loads(place.read_text()) if place.is_file() else {}
    for id in dict.fromkeys(ids):
        if id not in known:
            yield id, "the folder's private list does not say where it is"
            continue
        try:
            scan = resolve([known[id]]).one(known[id])
            yield id, scan.read() if scan.id == id else "another scan lies there now"
        except CTFoundryError as error:
            yield id, without_paths(error, known[id]).what
        except OSError as error:
            yield id, f"its file cannot be read ({error.strerror})"


def without_paths(error: CTFoundryError, text: str) -> CTFoundryError:
    """The same error for those who are not told where a scan lies: without the place that `text`, a SCAN, names, and without its series."""
    place, name = place_of(text)
    said = [what.replace(text, "the file").replace(str(place), "the file") for what in (error.what, error.do or "")]
    if name:
        said = [what.replace(name, "the series") for what in said]
    return type(error)(said[0], do=said[1] or None)


def with_regions(sources: Sources, regions: Regions) -> None:
    """Give each scan its label maps; their content becomes part of its digest. A scan without any is left as it is."""
    for k, source in enumerate(sources.scans):
        maps = regions.of(source.scan.id, source.path)
        if maps is not None:
            digest = identity.sealed(f"{source.scan.digest} {maps.digest()}")
            sources.scans[k] = replace(
                source, scan=replace(source.scan, digest=digest, labels=maps, voxels=source.scan.digest)
            )


def _resolve(text: str, sources: Sources) -> list[Source]:
    path, name = place_of(text)
    if path.is_dir() and (path / "store.json").is_file():
        return _from_store(path, None if name is None else [name])
    if name is not None:
        found = io.discover(path).named(name)
        if len(found) != 1:
            raise UsageError(
                f"holds {len(found)} volumes {name!r}" + "".join(f"; {i.name}" for i in found[:8]),
                where=path,
                do="name one of them" if found else "check the series",
            )
        return [_source(found[0].hashes(), found[0].read, text, found[0].series)]
    if path.is_dir() or io.is_listing(path):
        return _from_tree(path, sources)
    if path.is_file():
        # the folder of a file is not searched below: that may be somebody's whole home
        listed = [i for i in io.discover(path.parent, deep=False).found if path in i.paths]
        if not listed or len(listed[0].paths) > 1:
            return [_source([files.sha256(path)], partial(io.read, path), text)]
        return [_source(listed[0].hashes(), listed[0].read, text, listed[0].series)]
    raise UsageError("no such file or folder", where=text)


def _source(hashes: Sequence[str], read: Callable[[], Volume], path: str, series: str | None = None) -> Source:
    digest = identity.digest_of(hashes)
    return Source(Scan(identity.name("scan", digest), identity.sealed(digest), read), path, series or "")


def _from_store(path: Path, names: Sequence[str] | None) -> list[Source]:
    store = open_store(path)
    ids = list(names) if names is not None else [entry.id for entry in store.entries]
    for id in ids:
        if id not in store:
            raise UsageError(f"the store has no scan {id!r}", where=path)
    found = []
    for id in ids:
        sidecar = store.sidecar(id)
        scan = Scan(id, sidecar.voxels_sha256, FromStore(path.resolve(), id))
        found.append(Source(scan, f"{path}#{id}", str(sidecar.provenance.get("series", ""))))
    return found


def _from_tree(path: Path, sources: Sources) -> list[Source]:
    found = []
    seen = io.discover(path)
    sources.skipped.update(seen.passed_over)
    for lost in seen.missing:
        sources.fail(str(lost.place), lost.told, identity.name("lost", str(lost.place), lost.reason))
    for item in seen.found:
        if item.is_label:
            sources.labels += 1
            continue
        if item.problem is not None:
            sources.fail(item.name, item.problem.what)
            continue
        try:
            label = item.format != "dicom" and is_label(item)
        except CTFoundryError as error:
            sources.fail(item.name, error.what)
            continue
        if label:
            sources.labels += 1
        else:
            found.append(_source(item.hashes(), item.read, item.name, item.series))
    return found


def query_in_index(
    folder: Path, index: Index, query: str, model: str | None, weights: str | None, device: str, seed: int
) -> tuple[Float[Tensor, "c"], list[str]]:
    """The query's vector, and the ids that are the query itself: an id of the index, or a scan embedded with `model`.

    In an index of windows or slices an id stands for the mean of its rows.
    """
    from ctfoundry import zoo
    from ctfoundry.retrieval.embed import ModelOf
    from ctfoundry.settings import to_data

    known = set(index.ids)
    if query in known:
        return index.of_id(query).mean(0), [query]
    place = place_of(query)[0]
    if not place.exists():
        raise UsageError(f"is neither an id of the index {folder} nor a file or folder", where=query)
    scan = resolve([query]).one(query)
    if scan.id in known:
        return index.of_id(scan.id).mean(0), [scan.id]
    if model is None:
        raise UsageError(f"is not in the index {folder}", where=query, do="give --model, the one that made the index")
    encoder = ModelOf(model, weights, device, seed).load()
    card = read_card(folder)
    patch, given = patch_of(card["model"]), patch_of(to_data(encoder.card))
    if patch is not None and given is not None and patch != given:  # embedded with --patch
        encoder = zoo.with_patch(encoder, patch)
    if not same_model(card["model"], to_data(encoder.card)):
        what, do = how_they_differ(card["model"], to_data(encoder.card))
        raise UsageError(what, where=folder, do=do)
    name = index.vector or card["settings"]["vectors"][0]
    if name not in encoder.vectors:
        raise UsageError(
            f"a scan has no vector {name!r} of its own",
            where=folder,
            do="embed it into the index and give its id, or another --vector",
        )
    return encoder(a_scan(scan, query), levels=(), vectors=(name,)).vectors[name].cpu(), [scan.id]


def a_scan(scan: Scan, text: str) -> Volume:
    """The volume that `text` names on the command line. Raises UsageError, with that text, for a label map."""
    volume = scan.read()
    if volume.kind == "label":
        raise UsageError("is a label map", where=text, do="give the scan that it was drawn on")
    return volume
