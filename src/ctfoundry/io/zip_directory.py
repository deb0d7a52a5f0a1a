"""The directory of a zip archive and its files' bytes, with every claim checked before it is acted on.

Read here (APPNOTE.TXT 4.3 and 4.5, by PKWARE) rather than by `zipfile`, which holds whatever the directory lists and unpacks
some methods without a limit: how many files there are and how large, that no two share bytes (as the bombs that swell
quadratically do), that nothing is encrypted, linked, named twice or named out of its folder.
"""

from __future__ import annotations

import hashlib
import re
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from isal import isal_zlib

from ctfoundry.errors import CTFoundryError, ReadError, TooLargeError, TruncatedError
from ctfoundry.io.stream import DEFLATE_RATIO, Stream

MEMBERS = 50_000
"""Most files in one archive."""
RATIO = 300
"""An archive that unpacks to more than this many times its size is refused, from `SMALL` bytes on. CT slices reach about 3,
slices of one value a thousand."""
SMALL = 256 << 20
"""Bytes that any archive may unpack to."""
DIRECTORY_LIMIT = 64 << 20
"""Most bytes of the archive's directory."""
OPEN_IT = "unpack it yourself if you trust it, and give the folder"
"""Advice for archives that are refused."""

_AGAIN = "copy or download the file again"
_STORED, _DEFLATED = 0, 8
_METHODS = {9: "deflate64", 12: "bzip2", 14: "LZMA", 93: "zstd", 95: "xz", 98: "PPMd"}
_UNIX = 3
_PIECE = 1 << 20


@dataclass(frozen=True)
class Member:
    """One file of an archive as its directory describes it.

    Attributes
    ----------
    name : as it is written there; for messages only.
    raw : the bytes of the name.
    size, packed : bytes unpacked and packed.
    offset : byte of the archive where its local header begins.
    method : 0 stored, 8 deflated; others are not read.
    crc : CRC-32 of the unpacked bytes.
    """

    name: str
    raw: bytes
    size: int
    packed: int
    offset: int
    method: int
    crc: int


def is_zip(start: bytes) -> bool:
    """Whether `start` begins a zip archive."""
    return start[:4] in (b"PK\3\4", b"PK\5\6")


# The directory --------------------------------------------------------------------------------------------------------


def members(path: Path) -> list[Member]:
    """The files of an archive, sorted by name, after all checks that need no unpacking.

    Raises ReadError for what is encrypted, linked, named twice, named out of its folder, overlapping or damaged,
    TooLargeError for too many files or too much to unpack, TruncatedError where the directory is not there.
    """
    with open(path, "rb") as file:
        found, begin = _listed(file, path)
    for member in found:
        _check_name(member.name, path)
        if member.method == _STORED and member.size != member.packed:
            raise ReadError("a stored file in it has two different sizes", where=path, do=_AGAIN)
        if member.method == _DEFLATED and member.size > DEFLATE_RATIO * member.packed:
            raise ReadError("a file in it is said to unpack to more than deflate can hold", where=path, do=_AGAIN)
    if len({m.raw for m in found}) != len(found):
        raise ReadError("has two files of one name", where=path, do=OPEN_IT)
    end = 0
    for member in sorted(found, key=lambda m: m.offset):
        if member.offset < end:
            raise ReadError("has files that share bytes, as zip bombs do", where=path)
        end = member.offset + 30 + len(member.raw) + member.packed
    if end > begin:
        raise ReadError("has files that reach into its directory, as zip bombs do", where=path)
    total, own = sum(m.size for m in found), path.stat().st_size
    if total > max(SMALL, RATIO * own):
        raise TooLargeError(
            f"would unpack to {total >> 20:,} MiB, {total // own:,} times its own size", where=path, do=OPEN_IT
        )
    return sorted((m for m in found if not m.name.endswith("/")), key=lambda m: m.raw)


def _listed(file: BinaryIO, path: Path) -> tuple[list[Member], int]:
    """(what the directory lists, the byte where it begins)."""

    def read(at: int, size: int) -> bytes:
        file.seek(at)
        return file.read(size)

    own = path.stat().st_size
    tail_at = max(own - 22 - 65535, 0)
    tail = read(tail_at, own - tail_at)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + 22:
        raise TruncatedError("ends before the directory of the archive", where=path, do=_AGAIN)
    end = tail_at + at
    disk, first, _, count, size, offset = struct.unpack("<4H2L", tail[at + 4 : at + 20])
    locator = read(end - 20, 20) if end >= 20 else b""
    if locator[:4] == b"PK\6\7":
        place = struct.unpack("<Q", locator[8:16])[0]
        long = read(place, 56) if place < own else b""
        if long[:4] != b"PK\6\6":
            place = end - 20 - 56  # something was put in front of the archive
            long = read(place, 56) if place >= 0 else b""
        if long[:4] != b"PK\6\6" or len(long) < 56:
            raise ReadError("has no directory where it says", where=path, do=_AGAIN)
        disk, first = struct.unpack("<2L", long[16:24])
        count, size, offset = struct.unpack("<3Q", long[32:56])
        end = place
    if disk or first:
        raise ReadError("is one part of an archive in several files", where=path, do="join them first")
    if count > MEMBERS or size > DIRECTORY_LIMIT:
        raise TooLargeError(f"lists {count:,} files, more than {MEMBERS:,}", where=path, do=OPEN_IT)
    begin = end - size
    before = begin - offset  # bytes in front of the archive, as in self-extracting ones
    if begin < 0 or before < 0:
        raise ReadError("has no directory where it says", where=path, do=_AGAIN)
    data, at = read(begin, size), 0
    found: list[Member] = []
    while at < len(data):
        if len(found) >= MEMBERS:
            raise TooLargeError(f"lists more than {MEMBERS:,} files", where=path, do=OPEN_IT)
        member, at = _entry(data, at, before, path)
        found.append(member)
    if len(found) != count:
        raise ReadError(f"says that it lists {count:,} files and lists {len(found):,}", where=path, do=_AGAIN)
    return found, begin


def _entry(data: bytes, at: int, before: int, path: Path) -> tuple[Member, int]:
    """One entry of the directory and the byte behind it."""
    if data[at : at + 4] != b"PK\1\2" or len(data) < at + 46:
        raise ReadError("its directory is damaged", where=path, do=_AGAIN)
    by, _, flags, method, _, _, crc, packed, size, n, m, k, _, _, mode, offset = struct.unpack(
        "<6H3L5H2L", data[at + 4 : at + 46]
    )
    raw, extra, behind = data[at + 46 : at + 46 + n], data[at + 46 + n : at + 46 + n + m], at + 46 + n + m + k
    if behind > len(data):
        raise ReadError("its directory is damaged", where=path, do=_AGAIN)
    if flags & 0x2041 or method == 99:
        raise ReadError("is encrypted", where=path, do="unpack it with its password, and give the folder")
    if by >> 8 == _UNIX and stat.S_IFMT(mode >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a link" if stat.S_ISLNK(mode >> 16) else "a device or pipe"
        raise ReadError(f"holds {what}", where=path, do=OPEN_IT)
    if 0xFFFFFFFF in (packed, size, offset):
        size, packed, offset = _long(extra, size, packed, offset, path)
    name = raw.decode("utf-8" if flags & 0x800 else "cp437", "replace")
    return Member(name, raw, size, packed, offset + before, method, crc), behind


def _long(extra: bytes, size: int, packed: int, offset: int, path: Path) -> tuple[int, int, int]:
    """Sizes and offset of 64 bits, each where the short one is all ones (APPNOTE.TXT 4.5.3)."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack("<2H", extra[at : at + 4])
        if tag == 1:
            count = min(length, len(extra) - at - 4) // 8
            words = iter(struct.unpack_from(f"<{count}Q", extra, at + 4))
            values = [next(words, -1) if v == 0xFFFFFFFF else v for v in (size, packed, offset)]
            if min(values) < 0 or max(values) >= 1 << 62:
                break
            return values[0], values[1], values[2]
        at += 4 + length
    raise ReadError("its directory is damaged", where=path, do=_AGAIN)


def _check_name(name: str, path: Path) -> None:
    parts = re.split(r"[/\\]", name)
    if not name or name[0] in "/\\" or re.match("[A-Za-z]:", name) or ".." in parts or "\0" in name:
        raise ReadError("names a file outside of its own folder", where=path, do="do not unpack it")


# The files ------------------------------------------------------------------------------------------------------------


def pieces(path: Path, member: Member, limit: int | None = None) -> Iterator[bytes]:
    """The unpacked bytes of a file (the first `limit`), piece by piece; whole ones are compared with size and checksum.

    Raises ReadError for a file that is not what the directory says, TruncatedError for one that ends too early.
    """
    where = f"{path}#{member.name}"
    if member.method not in (_STORED, _DEFLATED):
        raise ReadError(f"is packed as {_METHODS.get(member.method, member.method)}", where=where, do=OPEN_IT)
    start = _start(path, member, where)
    left, crc = member.size if limit is None else min(limit, member.size), 0
    whole = left == member.size
    try:
        with Stream(path, "deflate" if member.method == _DEFLATED else "raw", start) as stream:
            while left:
                piece = stream.take(min(left, _PIECE))
                if not piece:
                    raise TruncatedError("ends before the size that the archive gives", where=where, do=_AGAIN)
                left, crc = left - len(piece), isal_zlib.crc32(piece, crc)
                yield piece
            if not whole:
                return
            if member.method == _DEFLATED:
                if stream.take(1):
                    raise ReadError(f"unpacks to more than the {member.size:,} bytes given", where=where, do=_AGAIN)
                if not stream.ended or stream.consumed != start + member.packed:
                    raise ReadError("is not packed as the archive says", where=where, do=_AGAIN)
    except CTFoundryError as error:
        raise type(error)(error.what, where=where, do=error.do) from error
    if crc != member.crc:
        raise ReadError("has another checksum than the archive gives", where=where, do=_AGAIN)


def _start(path: Path, member: Member, where: str) -> int:
    """The byte where the packed data of a file begin: behind its local header, which must agree with the directory."""
    with open(path, "rb") as file:
        file.seek(member.offset)
        head = file.read(30)
        if len(head) < 30 or head[:4] != b"PK\3\4":
            raise ReadError("is not where the archive says", where=where, do=_AGAIN)
        n, m = struct.unpack("<2H", head[26:30])
        if file.read(n) != member.raw or struct.unpack("<H", head[8:10])[0] != member.method:
            raise ReadError("is another file than the archive says", where=where, do=_AGAIN)
    return member.offset + 30 + n + m


def sha256(path: Path, names: Sequence[str]) -> list[str]:
    """SHA-256 of files of the archive, as of the same files on a disk."""
    table = {m.name: m for m in members(path)}
    result = []
    for name in names:
        digest = hashlib.sha256()
        for piece in pieces(path, member_of(table, name, path)):
            digest.update(piece)
        result.append(digest.hexdigest())
    return result


def member_of(table: dict[str, Member], name: str, path: Path) -> Member:
    """The file `name` of an archive; raises ReadError where it has none."""
    if name not in table:
        raise ReadError(f"has no file {name!r}", where=path)
    return table[name]
