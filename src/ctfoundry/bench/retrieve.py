"""``ctfoundry bench retrieve``: the ten nearest of 148,000 vectors of 512 numbers, against NumPy and faiss, all exact.

Ours reads a memory-mapped folder of embeddings (bfloat16, decided in float64), the others have float32 in memory. Vectors are
made: "alike" has what pooled features have, a common direction (cosines above 0.9), 32 latent numbers and noise; "random" is
noise alone. Seconds are those of one query; `max_error` is the largest difference of a similarity from float64, over the ten
nearest of every query, so a lost neighbour would show.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from ctfoundry import files
from ctfoundry.bench.baselines import retrieve as baselines
from ctfoundry.keys import Key
from ctfoundry.retrieval import parts
from ctfoundry.retrieval.index import Index
from ctfoundry.retrieval.matrix import open_matrix

COUNT, CHANNELS, K, BATCH = 148_000, 512, 10, 64
THREADS = (2, 1)


def run(*, repeats: int = 5, count: int = COUNT, channels: int = CHANNELS) -> list[dict[str, Any]]:
    """Rows of {name, ours_s, other_s, ratio, max_error, threads, dtype, recall}; medians of alternating repeats."""
    rows = []
    for kind in ("alike", "random"):
        vectors, queries = made(kind, count, channels)
        with tempfile.TemporaryDirectory(prefix="ctfoundry-bench-") as place:
            index = filled(Path(place), vectors)
            others = {"numpy": baselines.Plain(vectors), "faiss flat": baselines.Flat(vectors)}
            for threads in THREADS:
                for batch in (1, BATCH):
                    rows += _rows(kind, index, others, queries, batch, threads, repeats)
    return rows


def made(kind: str, count: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors, and queries of the same kind."""
    key = Key.of("bench", "retrieve", kind)
    total = count + BATCH
    found = key("noise").normal((total, channels)).astype(np.float32)
    if kind == "alike":
        latent = key("latent").normal((total, 32)) @ key("basis").normal((32, channels)) / np.sqrt(32)
        found = (5 * np.abs(key("common").normal((1, channels))) + latent + 0.3 * found).astype(np.float32)
    return found[:count], found[count:]


def filled(place: Path, vectors: np.ndarray, size: int = 8192) -> Index:
    """The vectors as an embeddings folder, opened as `load_index` does."""
    (place / "parts").mkdir()
    for start in range(0, len(vectors), size):
        block = vectors[start : start + size]
        rows = [parts.Row(f"s{start + i:06d}", files.digest(start), "mean") for i in range(len(block))]
        parts.write(place, rows, block)
    return Index.from_matrix(open_matrix(place, "mean"), "mean")


def _rows(
    kind: str, index: Index, others: dict[str, Any], queries: np.ndarray, batch: int, threads: int, repeats: int
) -> list[dict[str, Any]]:
    blocks = [queries[i : i + batch] for i in range(0, len(queries), batch)][:16]
    tensors = [torch.from_numpy(block) for block in blocks]
    seconds: dict[str, list[float]] = {"ours": [], **{name: [] for name in others}}
    found: dict[str, list[np.ndarray]] = {}
    with baselines.threads(threads):
        for _ in range(repeats + 1):
            start = time.perf_counter()
            found["ours"] = [np.stack([rows for rows, _ in index.top(block, K)]) for block in tensors]
            seconds["ours"].append(time.perf_counter() - start)
            for name, other in others.items():
                start = time.perf_counter()
                found[name] = [other.search(block, K) for block in blocks]
                seconds[name].append(time.perf_counter() - start)
    asked = np.concatenate(blocks)
    each = {name: median(values[1:]) / len(asked) for name, values in seconds.items()}
    truth = _similarities(others["numpy"].rows, asked)
    best = -np.sort(-truth, axis=1)[:, :K]
    ours = np.take_along_axis(truth, np.concatenate(found["ours"]), 1)
    return [
        {
            "name": f"{kind}, {'one query' if batch == 1 else f'a query of {batch}'}, against {name}",
            "ours_s": each["ours"],
            "other_s": each[name],
            "ratio": each[name] / each["ours"],
            "max_error": float(np.abs(ours - best).max()),
            "threads": threads,
            "dtype": "bf16, decided in f64 / f32",
            "recall": float((ours >= best[:, -1:] - 1e-12).mean()),
        }
        for name in others
    ]


def _similarities(unit: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Cosines in float64, block by block."""
    asked = queries.astype(np.float64) / np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    found = np.empty((len(queries), len(unit)))
    for start in range(0, len(unit), 16384):
        rows = unit[start : start + 16384].astype(np.float64)
        found[:, start : start + 16384] = asked @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
    return found
