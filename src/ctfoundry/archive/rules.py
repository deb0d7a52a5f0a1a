"""Rules by which scans are chosen from the archive's index: data, not code; presets are YAML files beside this one."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from ctfoundry.errors import SettingsError
from ctfoundry.settings import from_data, nearest

Licence = Literal["open", "commercial", "any"]
Thin = Literal["none", "reconstructions", "study", "patient"]


@dataclass(frozen=True)
class Source:
    """A data set that a published corpus names, and where it can be had.

    Attributes
    ----------
    name : as published.
    collections : its collections in the Imaging Data Commons; empty where it is not there.
    adapter : the reader of its published folder layout (`ctfoundry.archive.adapters`), "" where there is none.
    licence : as its own source states it; "unknown" where we have not read that. Archive collections: the index says.
    note : what is not certain.
    """

    name: str
    collections: tuple[str, ...] = ()
    adapter: str = ""
    licence: str = "unknown"
    note: str = ""


@dataclass(frozen=True)
class Rules:
    """What a series must be to enter a cohort. A rule that is None is not asked.

    Attributes
    ----------
    name : of the cohort.
    origin : where the rules come from.
    version : the archive as of this release; None: as the installed index has it. A series that was revised later is taken as
        it was, one that was withdrawn later is taken too.
    instances : fewest and most instances (slices) of a series.
    thickness_mm : least and largest Slice Thickness. Not in the bundled index: see `needs_headers`.
    unique_positions : every instance at a position of its own. Not in the bundled index.
    no_localizer : no instance with LOCALIZER in its Image Type. Not in the bundled index.
    collections, exclude_collections : collection ids; empty `collections` means all.
    licence : "commercial": CC BY or CC0, which allow commercial use; "open": any Creative Commons licence, so also CC BY-NC;
        "any": whatever terms the series has.
    description_has, description_lacks : words in the series description, any case: one of the first, none of the second.
    body_parts : Body Part Examined, any of these; empty means all.
    per_patient, per_collection : at most so many series, drawn by a hash of the series UID (the same draw for all).
    thin : which series that show the same thing are left out. "reconstructions": series of one study with the same number of
        instances and the same size to 5 % are taken for reconstructions of one acquisition, the one with the softest kernel by
        its description stays, else the lowest series number; "study", "patient": the largest series of each.
    exclude_benchmarks : leave out patients of known evaluation sets (``benchmarks.csv`` says which and why).
    sources : what a published corpus names, where it is more than collections of the archive.
    """

    name: str
    origin: str = ""
    version: int | None = None
    modality: str = "CT"
    instances: tuple[int, int | None] = (1, None)
    thickness_mm: tuple[float, float] | None = None
    unique_positions: bool = False
    no_localizer: bool = False
    collections: tuple[str, ...] = ()
    exclude_collections: tuple[str, ...] = ()
    licence: Licence = "any"
    description_has: tuple[str, ...] = ()
    description_lacks: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    per_patient: int | None = None
    per_collection: int | None = None
    thin: Thin = "none"
    exclude_benchmarks: bool = False
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        if self.instances[0] < 1 or (self.instances[1] is not None and self.instances[1] < self.instances[0]):
            raise ValueError(f"instances run from the fewest (1 or more) to the most, not {self.instances}")
        if self.thickness_mm is not None and not 0 <= self.thickness_mm[0] <= self.thickness_mm[1]:
            raise ValueError(f"thickness_mm runs from the least to the largest, not {self.thickness_mm}")
        for name in ("per_patient", "per_collection"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is at least 1, not {value}")

    @property
    def needs_headers(self) -> tuple[str, ...]:
        """Rules that the bundled index cannot answer: Slice Thickness, positions and Image Type are not in it."""
        asked = {
            "thickness_mm": self.thickness_mm is not None,
            "unique_positions": self.unique_positions,
            "no_localizer": self.no_localizer,
        }
        return tuple(name for name, yes in asked.items() if yes)


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    folder = resources.files("ctfoundry.archive") / "presets"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_rules(preset: str | Path) -> Rules:
    """The rules of a preset by name, or of a YAML file; raises SettingsError for anything it does not know."""
    path = Path(preset)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise SettingsError("no such file", where=path, do=f"known presets: {', '.join(preset_names())}")
        text, where = path.read_text(), str(path)
    else:
        if str(preset) not in preset_names():
            raise SettingsError(f"no preset is called {str(preset)!r}; {nearest(str(preset), preset_names())}")
        text = (resources.files("ctfoundry.archive") / "presets" / f"{preset}.yaml").read_text()
        where = f"preset {preset}"
    return from_data(Rules, _yaml(text, where), where)


def _yaml(text: str, where: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"is not YAML: {error}".replace("\n", " "), where=where) from error
