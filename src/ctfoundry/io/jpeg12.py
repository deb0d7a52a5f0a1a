"""JPEG Extended with 12 bits: sequential Huffman-coded DCT of one component (ITU-T T.81, Annexes A, F and C).

pydicom's decoders take this coding with 8 bits only, and the others known decode it under licences that this package does not
accept. It stands alone because `decoder_child` does. About a third of a second for a slice of 512x512.
"""

from __future__ import annotations

import numpy as np

_START, _END, _TABLES, _QUANTA, _RESTART, _SCAN = 0xD8, 0xD9, 0xC4, 0xDB, 0xDD, 0xDA
_EXTENDED = 0xC1
_BITS = 12


def is_jpeg12(stream: bytes) -> bool:
    """Whether the stream is extended sequential with 12 bits."""
    at = 2
    while at + 9 < len(stream) and stream[at] == 0xFF:
        if stream[at + 1] == _EXTENDED:
            return stream[at + 4] == _BITS
        if 0xC0 <= stream[at + 1] <= 0xCF and stream[at + 1] not in (_TABLES, 0xC8, 0xCC):
            return False
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return False


def decode(stream: bytes, rows: int, columns: int) -> np.ndarray:
    """The numbers 0..4095 (rows, columns) as uint16.

    Raises ValueError or IndexError for anything but one such image of that size, and for a stream that ends early.
    """
    quanta: dict[int, np.ndarray] = {}
    codes: dict[int, list[int]] = {}
    interval, table, at = 0, -1, 2
    if stream[:2] != b"\xff\xd8":
        raise ValueError("does not begin as JPEG")
    while True:
        if stream[at] != 0xFF:
            raise ValueError("a marker is missing")
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        body, at = stream[at + 4 : at + 2 + length], at + 2 + length
        if marker == _QUANTA:
            _read_quanta(body, quanta)
        elif marker == _TABLES:
            _read_codes(body, codes)
        elif marker == _RESTART:
            interval = int.from_bytes(body[:2], "big")
        elif marker == _EXTENDED:
            size = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            if body[0] != _BITS or body[5] != 1 or size != (rows, columns):
                raise ValueError(f"is an image of {body[0]} bits, {size} and {body[5]} components")
            table = body[8]
        elif marker == _SCAN:
            if table < 0 or body[0] != 1:
                raise ValueError("its scan has no frame, or several components")
            dc, ac = codes[body[2] >> 4], codes[16 | body[2] & 15]
            break
        elif 0xC0 <= marker <= 0xCF or marker in (_START, _END):
            raise ValueError(f"uses a coding (marker {marker:02x}) that is not extended sequential")
    down, across = -(-rows // 8), -(-columns // 8)
    blocks = _blocks(stream[at:], down * across, interval, dc, ac) * quanta[table]
    spread = np.zeros((len(blocks), 64))
    spread[:, _zigzag()] = blocks
    basis = _basis()
    image = basis.T @ spread.reshape(-1, 8, 8) @ basis
    image = image.reshape(down, across, 8, 8).swapaxes(1, 2).reshape(down * 8, across * 8)[:rows, :columns]
    return np.clip(np.rint(image + (1 << (_BITS - 1))), 0, (1 << _BITS) - 1).astype(np.uint16)


def _read_quanta(body: bytes, quanta: dict[int, np.ndarray]) -> None:
    at = 0
    while at < len(body):
        wide, number = body[at] >> 4, body[at] & 15
        size = 128 if wide else 64
        quanta[number] = np.frombuffer(body[at + 1 : at + 1 + size], ">u2" if wide else "u1").astype(np.float64)
        if len(quanta[number]) != 64:
            raise ValueError("a quantisation table is cut")
        at += 1 + size


def _read_codes(body: bytes, codes: dict[int, list[int]]) -> None:
    """Huffman tables (T.81 C.2), each as a list over the next 16 bits: length << 8 | symbol, 0 for no code."""
    at = 0
    while at < len(body):
        number, counts = body[at], body[at + 1 : at + 17]
        symbols = body[at + 17 : at + 17 + sum(counts)]
        table: list[int] = []
        symbol = iter(symbols)
        for length, count in enumerate(counts, 1):
            for _ in range(count):
                table += [length << 8 | next(symbol, 0)] * (1 << (16 - length))
        if len(table) > 1 << 16 or len(symbols) != sum(counts):
            raise ValueError("a Huffman table is garbled")
        codes[(number >> 4) * 16 | number & 15] = table + [0] * ((1 << 16) - len(table))
        at += 17 + sum(counts)


def _blocks(data: bytes, count: int, interval: int, dc: list[int], ac: list[int]) -> np.ndarray:
    """Coefficients (count, 64) in zigzag order, not yet multiplied."""
    where: list[int] = []
    values: list[int] = []
    done = 0
    for segment in _segments(data):
        last = min(count, done + interval) if interval else count
        padded = np.frombuffer(segment + bytes(8), np.uint8).astype(np.uint32)
        # the 32 bits that begin at each byte, so that any 16 bits are one shift away
        window = (padded[:-3] << 24 | padded[1:-2] << 16 | padded[2:-1] << 8 | padded[3:]).tolist()
        at, level, end = 0, 0, len(segment) * 8
        for block in range(done, last):
            found = dc[window[at >> 3] >> (16 - (at & 7)) & 0xFFFF]
            at += found >> 8
            size = found & 0xFF
            if size:
                level += _extended(window[at >> 3] >> (32 - (at & 7) - size), size)
                at += size
            where.append(block * 64)
            values.append(level)
            k = 1
            while k < 64:
                found = ac[window[at >> 3] >> (16 - (at & 7)) & 0xFFFF]
                if found == 0 or at > end:
                    raise ValueError("its code is garbled or cut")
                at += found >> 8
                size = found & 0x0F
                run = found >> 4 & 0x0F
                if size == 0:
                    if run != 15:
                        break
                    k += 16
                    continue
                k += run
                if k > 63:
                    raise ValueError("a block has too many coefficients")
                where.append(block * 64 + k)
                values.append(_extended(window[at >> 3] >> (32 - (at & 7) - size), size))
                at += size
                k += 1
        done = last
        if done == count:
            break
    if done < count:
        raise ValueError("ends early")
    out = np.zeros(count * 64)
    out[where] = values
    return out.reshape(count, 64)


def _segments(data: bytes) -> list[bytes]:
    """Entropy-coded bytes between restart markers, without the zeros that are stuffed behind 0xFF."""
    segments, start, at = [], 0, 0
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            segments.append(data[start:])
            break
        following = data[at + 1]
        if 0xD0 <= following <= 0xD7 or following not in (0, 0xFF):
            segments.append(data[start:at])
            if not 0xD0 <= following <= 0xD7:
                break
            start = at + 2
        at += 2 if following else 1
    return [segment.replace(b"\xff\x00", b"\xff") for segment in segments]


def _extended(bits: int, size: int) -> int:
    """A coefficient of `size` bits: those that begin with 0 are negative (T.81 F.2.2.1)."""
    value = bits & (1 << size) - 1
    return value if value >> (size - 1) else value - (1 << size) + 1


def _zigzag() -> np.ndarray:
    """Place in the block, row by row, of each coefficient of the stream."""
    places = sorted(((v, u) for v in range(8) for u in range(8)), key=lambda p: (sum(p), p[0] if sum(p) % 2 else p[1]))
    return np.array([8 * v + u for v, u in places])


def _basis() -> np.ndarray:
    """The cosines of T.81 A.3.3: row u, sample x."""
    u, x = np.mgrid[:8, :8]
    return np.where(u == 0, np.sqrt(0.5), 1.0) * np.cos((2 * x + 1) * u * np.pi / 16) / 2
