"""Counter-based random numbers: a draw is a pure function of where it is made.

A `Key` names a place (seed, epoch, scan, crop, view ...). Its numbers come from Philox-4x64 (Salmon et al., SC 2011) keyed
by a hash of that name, so no generator carries state: any draw can be made again, in any order, in any process, and a killed
run continues exactly.

>>> key = Key.of("seed", 7)
>>> bool(key("crop", 3).uniform() == key("crop", 3).uniform())
True
>>> bool(key("crop", 3).uniform() == key("crop", 4).uniform())
False
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64

Shape = int | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Key:
    """The name of one place where random decisions are made; 128 bits."""

    digest: bytes

    @classmethod
    def of(cls, *path: int | str) -> Key:
        """The key of a path such as ``Key.of("pretrain", seed)``."""
        return cls(b"")(*path)

    def __call__(self, *path: int | str) -> Key:
        """The key of a place below this one: ``key(epoch, sample, "view", 1)``."""
        name = repr(tuple(p if isinstance(p, str) else int(p) for p in path)).encode()
        return Key(blake2b(name, digest_size=16, key=self.digest).digest())

    def _raw(self, shape: Shape) -> np.ndarray:
        bits = np.random.Philox(key=int.from_bytes(self.digest, "little"))
        return np.asarray(bits.random_raw(int(np.prod(shape))), dtype=np.uint64).reshape(shape)

    def uniform(self, low: float = 0.0, high: float = 1.0, shape: Shape = ()) -> Float64[np.ndarray, "..."]:
        """Uniform in [low, high), from the top 53 bits of each word."""
        return low + (high - low) * ((self._raw(shape) >> np.uint64(11)) * 2.0**-53)

    def integers(self, low: int, high: int, shape: Shape = ()) -> Int64[np.ndarray, "..."]:
        """Integers in [low, high). For ranges below 2**40 the bias is under 2**-13 of one count in a range."""
        if high <= low:
            raise ValueError(f"empty range [{low}, {high})")
        return low + np.floor(self.uniform(shape=shape) * (high - low)).astype(np.int64)

    def normal(self, shape: Shape = ()) -> Float64[np.ndarray, "..."]:
        """Standard normal, by Box and Muller from two words each."""
        u = self.uniform(shape=(2, *((shape,) if isinstance(shape, int) else shape)))
        return np.asarray(np.sqrt(-2 * np.log1p(-u[0])) * np.cos(2 * np.pi * u[1]))

    def permutation(self, n: int) -> Int64[np.ndarray, "n"]:
        """A random order of range(n)."""
        return np.argsort(self._raw(n), kind="stable")

    def seed(self) -> int:
        """63 bits for a library that insists on a seed of its own."""
        return int.from_bytes(self.digest[:8], "little") >> 1
