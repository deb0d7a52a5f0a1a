"""Bytes of untrusted files: exactly as many as were asked for, never more.

A header says how many bytes follow; the caller has compared that with its cap. So nothing here reads "to the end": a
compressed file that would swell to any size stops where its own header says that the voxels end.
"""

from __future__ import annotations

import os
import zlib
from types import TracebackType
from typing import Literal

from ctfoundry.errors import ReadError, TooLargeError, TruncatedError

Packing = Literal["raw", "gzip", "zlib", "deflate"]
"""How bytes lie in a file: as they are, or as a gzip, zlib or bare deflate stream."""

CAP = 8 << 30
"""Largest size of one decoded volume, in bytes, unless the caller says otherwise: 8 GiB, sixteen times 512x512x1000 of int16."""

_WINDOW = {
    "gzip": 31,
    "zlib": 47,
    "deflate": -15,
}  # zlib's names for the wrappers; 47 takes zlib and gzip, as MetaIO does
_CHUNK = 1 << 20


def check_cap(declared: int, cap: int, where: str | os.PathLike[str]) -> None:
    """Raise TooLargeError when a header declares more than `cap` bytes; called before anything is allocated."""
    if declared > cap:
        raise TooLargeError(
            f"declares {declared / 2**20:,.0f} MiB of voxels, over the cap of {cap / 2**20:,.0f} MiB",
            where=where,
            do="pass a larger cap (bytes) if the size is true",
        )


class Stream:
    """The bytes of a file from `start` on, unpacked on demand. Raises ReadError for a damaged stream."""

    def __init__(self, path: str | os.PathLike[str], packing: Packing = "raw", start: int = 0) -> None:
        self.path, self.packing = path, packing
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  closed by __exit__
        self._file.seek(start)
        self._inflate = None if packing == "raw" else zlib.decompressobj(_WINDOW[packing])
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

    def _unpacked(self, limit: int) -> bytes:
        """Up to `limit` unpacked bytes; empty at the end of the stream."""
        assert self._inflate is not None
        while True:
            if self._inflate.eof:
                # Writers that work in parallel (bgzip, pigz) put several gzip members behind each other.
                self._waiting = self._inflate.unused_data or self._waiting
                if len(self._waiting) < 2:
                    self._waiting += self._file.read(_CHUNK) or b""
                if self.packing != "gzip" or not self._waiting.startswith(b"\x1f\x8b"):
                    return b""
                self._inflate = zlib.decompressobj(_WINDOW["gzip"])
            data = self._waiting or self._file.read(_CHUNK) or b""
            if not data:
                return b""
            try:
                piece = self._inflate.decompress(data, limit)
            except zlib.error as error:
                raise ReadError(
                    f"its compressed data are damaged ({error})", where=self.path, do="copy or download the file again"
                ) from error
            self._waiting = self._inflate.unconsumed_tail
            if piece:
                return piece

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


def start_of(path: str | os.PathLike[str], size: int) -> bytes:
    """The first `size` bytes of a file, unpacked where it is a gzip file; fewer when it is shorter."""
    with open(path, "rb", buffering=0) as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    with Stream(path, "gzip" if gzipped else "raw") as stream:
        return stream.take(size)
