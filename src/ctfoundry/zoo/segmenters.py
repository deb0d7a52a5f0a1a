"""Segmenters by name of their files, and labels of a scan in one call."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path

from ctfoundry.errors import UsageError
from ctfoundry.segmenter import Pass, Segmenter
from ctfoundry.volume import Volume
from ctfoundry.zoo.models import device_of


def load_segmenter(model: str | Path, *, device: str = "auto") -> Segmenter:
    """A segmenter ready to use, in eval mode.

    Parameters
    ----------
    model : a run folder, or a ``.safetensors`` file with its card beside it.
    device : ``auto``, ``cpu`` or ``cuda[:i]``.
    """
    from ctfoundry.zoo.files import load_segmentation_model, model_file

    place, path = device_of(device), Path(model)
    if not path.exists():
        raise UsageError(f"there is no file or folder {str(model)!r}", do="give a run folder or a .safetensors file")
    return load_segmentation_model(model_file(path), device=place)


def segment(
    volume: Volume,
    model: str | Path | Segmenter,
    *,
    labels: Sequence[str] | None = None,
    largest: bool | Collection[str] = False,
    settings: Pass | None = None,
    device: str = "auto",
) -> Volume:
    """The label map of a scan on its own grid (`Segmenter.__call__` says more).

    `model` is a segmenter, or what `load_segmenter` takes; the last one loaded is kept while its file stays the same.
    """
    if isinstance(model, Segmenter):
        ready = model
    else:
        from ctfoundry.zoo.files import model_file

        path = Path(model)
        file = model_file(path) if path.exists() else path
        stamp = file.stat() if file.is_file() else None
        ready = _kept(str(file.absolute()), (stamp.st_mtime_ns, stamp.st_size) if stamp else None, device)
    return ready(volume, labels=labels, largest=largest, settings=settings)


@lru_cache(maxsize=1)
def _kept(file: str, _stamp: tuple[int, int] | None, device: str) -> Segmenter:
    return load_segmenter(file, device=device)
