"""What a survey gathers on its way: findings that grow, texts that are judged at the end, and what is known of the patients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Group = Literal[
    "patient", "name", "date", "number", "place", "device", "trial", "text", "looks identifying", "private", "picture",
    "document", "face", "header", "file name", "uid",
]  # fmt: skip
"""What kind of thing a finding is: what the DICOM profile lists (`tags`), names, dates and UIDs wherever they stand, texts outside
the profile that look identifying or repeat what another element says of the patient, private elements, pictures and documents,
faces, headers of other formats, names of files and folders."""

GROUPS: tuple[Group, ...] = (
    "patient", "name", "date", "number", "place", "device", "trial", "text", "looks identifying", "private", "picture",
    "document", "face", "header", "file name", "uid",
)  # fmt: skip
"""The order in which findings are listed."""

KEPT = 200
"""Different values of one element that are kept; that there are more is said."""
LARGE = 1 << 16
"""A value longer than this is not read: it is named by its length."""
_TEXTS = 10_000  # different values of one text element that are judged
_CACHE = 200_000


@dataclass(frozen=True)
class Finding:
    """One element or place, and what stands there.

    Attributes
    ----------
    group : what kind of thing it is.
    where : the element, (gggg,eeee) behind the sequences around it, or the field, key or kind of name.
    name : its name for people.
    why : why it may identify somebody.
    times : how often it is there and not empty (in sequences several times a file).
    values : up to KEPT different values, as they are. Private.
    more : whether there are more different values than are kept.
    """

    group: Group
    where: str
    name: str
    why: str
    times: int
    values: tuple[str, ...]
    more: bool = False


def masked(value: str) -> str:
    """The first letter and the length, nothing else; of one or two letters the length alone.

    >>> masked("DOE^JOHN"), masked("M")
    ('D… (8)', '… (1)')
    """
    return f"{value[0] if len(value) > 2 else ''}… ({len(value)})"


@dataclass
class Tally:
    """How often something was met."""

    times: int = 0


@dataclass
class Entry(Tally):
    """One finding while it grows."""

    values: dict[str, None] = field(default_factory=dict)
    more: bool = False

    def add(self, value: str = "", times: int = 1) -> Entry:
        """Count a value that was met so often."""
        self.times += times
        if value and value not in self.values:
            if len(self.values) < KEPT:
                self.values[value] = None
            else:
                self.more = True
        return self


@dataclass
class Text:
    """The values of one text element outside the profile."""

    name: str
    values: dict[str, Tally] = field(default_factory=dict)


@dataclass
class Notes:
    """What a survey has gathered.

    Attributes
    ----------
    entries : (group, where, name, why) to what was met.
    texts : element to its texts, judged when all names and numbers of the patients are known.
    names, numbers : lower-case words of persons' names, and IDs, that the headers hold.
    files, unread : formats and reasons to numbers of files.
    members : names of the files in archives.
    cache : elements met before, byte for byte, and what they count in: the slices of a series share most of theirs.
    """

    entries: dict[tuple[Group, str, str, str], Entry] = field(default_factory=dict)
    texts: dict[str, Text] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    numbers: set[str] = field(default_factory=set)
    files: dict[str, int] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    members: list[str] = field(default_factory=list)
    cache: dict[tuple[str, str, bytes], list[Tally]] = field(default_factory=dict)

    def entry(self, group: Group, where: str, name: str, why: str) -> Entry:
        """The finding of that place, made where there is none."""
        return self.entries.setdefault((group, where, name, why), Entry())

    def text(self, where: str, name: str, value: str) -> Tally:
        """Keep a text for the end."""
        values = self.texts.setdefault(where, Text(name)).values
        tally = values.get(value)
        if tally is None:
            tally = Tally()
            if len(values) < _TEXTS:
                values[value] = tally
        tally.times += 1
        return tally

    def remember(self, key: tuple[str, str, bytes], tallies: list[Tally]) -> None:
        """What the element `key` counts in."""
        if len(self.cache) > _CACHE:
            self.cache.clear()
        self.cache[key] = tallies

    def findings(self) -> Iterator[Finding]:
        """All findings, in no order."""
        for (group, where, name, why), entry in self.entries.items():
            yield Finding(group, where, name, why, entry.times, tuple(entry.values), entry.more)
