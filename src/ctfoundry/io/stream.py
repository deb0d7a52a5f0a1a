"""Bytes of untrusted files: exactly as many as were asked for, never more.

A header says how many bytes follow; the caller has compared that with its cap. So nothing here reads "to the end": a
compressed file that would swell to any size stops where its own header says that the voxels end.
"""

from __future__ import annotations

import bz2
import os
from types import TracebackType
from typing import Any, Literal

from isal import isal_zlib

from ctfoundry.errors import ReadError, TooLargeError, TruncatedError

Packing = Literal["raw", "gzip", "zlib", "deflate", "bzip2"]
"""How bytes lie in a file: as they are, or as a gzip, zlib, bare deflate or bzip2 stream."""

CAP = 8 << 30
"""Largest size of one decoded volume, in bytes, unless the caller says otherwise: 8 GiB, sixteen times 512x512x1000 of int16."""

DEFLATE_RATIO = 1032
"""No byte of a deflate stream stands for more bytes than this: a match of 258 bytes takes two bits."""

GZIP_LEVEL = 1
"""ISA-L's fastest level that still finds matches."""

_WINDOW = {
    "gzip": 31,
    "zlib": 47,
    "deflate": -15,
}  # zlib's names for the wrappers; 47 takes zlib and gzip, as MetaIO does
_MAGIC = {"gzip": b"\x1f\x8b", "bzip2": b"BZh"}  # of a further member or stream behind the first
_CHUNK = 1 << 18
_DAMAGE: tuple[Any, ...] = (isal_zlib.error, OSError, EOFError)


def check_cap(declared: int, cap: int, where: str | os.PathLike[str]) -> None:
    """Raise TooLargeError when a header declares more than `cap` bytes; called before anything is allocated."""
    if declared > cap:
        raise TooLargeError(
            f"declares {_mib(declared)} MiB of voxels, over the cap of {_mib(cap)} MiB",
            where=where,
            do="pass a larger cap (bytes) if the size is true",
        )


def _mib(size: int) -> str:
    """Mebibytes for a message, short however absurd the number is."""
    return f"{-(-size >> 20):,}" if size < 1 << 80 else f"2**{size.bit_length() - 21}"


def check_ratio(unpacked: int, packed: int, packing: Packing, where: str | os.PathLike[str]) -> None:
    """Raise TruncatedError when `packed` bytes of a deflate stream cannot hold the `unpacked` ones that a header declares."""
    if packing in ("gzip", "zlib", "deflate") and unpacked > DEFLATE_RATIO * packed:
        raise TruncatedError(
            f"its {packed:,} packed bytes cannot hold the {unpacked:,} that its header declares",
            where=where,
            do="copy or download the file again",
        )


class Stream:
    """The bytes of a file from `start` on, unpacked on demand. Raises ReadError for a damaged stream."""

    def __init__(self, path: str | os.PathLike[str], packing: Packing = "raw", start: int = 0) -> None:
        self.path, self.packing = path, packing
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  closed by __exit__
        self._file.seek(start)
        self._inflate = None if packing == "raw" else _unpacker(packing)
        self._waiting = b""

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def readinto(self, target: memoryview) -> int:
        """Fill `target` (bytes) as far as the stream goes; returns how many bytes were there."""
        done = 0
        while done < len(target):
            if self._inflate is None:
                count = self._file.readinto(target[done:]) or 0
            else:
                piece = self._unpacked(min(len(target) - done, 4 * _CHUNK))
                count = len(piece)
                target[done : done + count] = piece
            if count == 0:
                break
            done += count
        return done

    @property
    def ended(self) -> bool:
        """Whether a packed stream has come to its own end, its checksum included."""
        return self._inflate is not None and bool(self._inflate.eof)

    @property
    def consumed(self) -> int:
        """Byte of the file behind a packed stream that has `ended`."""
        assert self._inflate is not None
        return self._file.tell() - len(self._inflate.unused_data)

    def _unpacked(self, limit: int) -> bytes:
        """Up to `limit` unpacked bytes; empty at the end of the stream."""
        assert self._inflate is not None
        while True:
            if self._inflate.eof:
                # Writers that work in parallel (bgzip, pigz, pbzip2) put several members behind each other.
                self._waiting = self._inflate.unused_data or self._waiting
                magic = _MAGIC.get(self.packing)
                if magic is None:
                    return b""
                if len(self._waiting) < len(magic):
                    self._waiting += self._file.read(_CHUNK) or b""
                if not self._waiting.startswith(magic):
                    return b""
                self._inflate = _unpacker(self.packing)
            hungry = not self._waiting and getattr(self._inflate, "needs_input", True)
            data = self._waiting or (self._file.read(_CHUNK) if hungry else b"") or b""
            try:
                piece: bytes = self._inflate.decompress(data, limit)
            except _DAMAGE as error:
                raise ReadError(
                    f"its compressed data are damaged ({error})", where=self.path, do="copy or download the file again"
                ) from error
            self._waiting = self._inflate.unconsumed_tail
            if piece or (hungry and not data and not self._inflate.eof):
                return piece
            if data and len(self._waiting) == len(data) and not self._inflate.eof:  # no progress: never turn in circles
                raise ReadError(
                    "its compressed data are damaged", where=self.path, do="copy or download the file again"
                )

    def take(self, size: int) -> bytes:
        """The next `size` bytes, or fewer at the end."""
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def skip(self, size: int) -> int:
        """Pass over `size` bytes; returns how many were there."""
        if self._inflate is None:
            left = os.fstat(self._file.fileno()).st_size - self._file.tell()
            self._file.seek(size, os.SEEK_CUR)
            return min(size, max(left, 0))
        passed = 0
        while passed < size:
            count = len(self._unpacked(min(size - passed, _CHUNK)))
            if count == 0:
                break
            passed += count
        return passed

    def fill(self, target: memoryview, offset: int = 0) -> None:
        """Fill all of `target` with the bytes from `offset` on; raises TruncatedError when the stream ends before."""
        passed = self.skip(offset)
        have = self.readinto(target) if passed == offset else 0
        if have < len(target):
            raise TruncatedError(
                f"ends after {passed + have:,} of the {offset + len(target):,} bytes that its header declares",
                where=self.path,
                do="copy or download the file again",
            )
        # Asking for one byte more unpacks the trailer where the stream ends here, which checks its checksum.
        if self._inflate is not None and not self.take(1) and not self._inflate.eof:
            raise TruncatedError(
                "ends before the checksum of its compressed data",
                where=self.path,
                do="copy or download the file again",
            )


class _Bzip2:
    """Python's bzip2 unpacker with the attributes of zlib's; it keeps unread input itself."""

    unconsumed_tail = b""

    def __init__(self) -> None:
        self._inner = bz2.BZ2Decompressor()

    def decompress(self, data: bytes, limit: int) -> bytes:
        """As zlib's."""
        return self._inner.decompress(data, limit)

    def __getattr__(self, name: str) -> Any:  # eof, unused_data, needs_input
        return getattr(self._inner, name)


def _unpacker(packing: Packing) -> Any:
    return _Bzip2() if packing == "bzip2" else isal_zlib.decompressobj(_WINDOW[packing])


def gzipped(*parts: bytes | memoryview) -> bytes:
    """One gzip member of all `parts`, without a time or name, so that the same voxels give the same bytes."""
    pack = isal_zlib.compressobj(GZIP_LEVEL, wbits=31)
    out = []
    for part in parts:
        view = memoryview(part).cast("B")
        out += [pack.compress(view[k : k + 4 * _CHUNK]) for k in range(0, len(view), 4 * _CHUNK)]
    return b"".join([*out, pack.flush()])


def start_of(path: str | os.PathLike[str], size: int) -> bytes:
    """The first `size` bytes of a file, unpacked where it is a gzip file; fewer when it is shorter."""
    with open(path, "rb", buffering=0) as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    with Stream(path, "gzip" if gzipped else "raw") as stream:
        return stream.take(size)
