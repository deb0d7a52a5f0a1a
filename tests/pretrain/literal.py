"""The losses as the papers and the public code write them, one number at a time, in float64, for tests."""

from __future__ import annotations

from torch import Tensor


def pairs(z: Tensor) -> list[list[tuple[Tensor, Tensor]]]:
    """(b, m, 2, c) as scans of crops of (first view, second view)."""
    return [[(crop[0], crop[1]) for crop in scan] for scan in z]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())


def nt_xent(crops: list[tuple[Tensor, Tensor]], temperature: float, *, symmetric: bool) -> Tensor:
    """SimCLR, equation 1: each anchor against its partner and all views of the other crops."""
    total, count = 0.0, 0
    for i, crop in enumerate(crops):
        for view in (0, 1) if symmetric else (0,):
            anchor = crop[view]
            positive = (cosine(anchor, crop[1 - view]) / temperature).exp()
            negatives = sum(
                (cosine(anchor, other[v]) / temperature).exp()
                for j, other in enumerate(crops)
                if j != i
                for v in (0, 1)
            )
            total = total - (positive / (positive + negatives)).log()
            count += 1
    return total / count


def simsiam(z: list[tuple[Tensor, Tensor]], p: list[tuple[Tensor, Tensor]], *, stop_gradient: bool = True) -> Tensor:
    """SimSiam, algorithm 1: L = D(p1, z2)/2 + D(p2, z1)/2, D the negative cosine to a constant."""
    total = 0.0
    for (z1, z2), (p1, p2) in zip(z, p, strict=True):
        if stop_gradient:
            z1, z2 = z1.detach(), z2.detach()
        total = total - cosine(p1, z2) / 2 - cosine(p2, z1) / 2
    return total / len(z)


def vicreg(crops: list[tuple[Tensor, Tensor]], weights: tuple[float, float, float] = (25, 25, 1)) -> Tensor:
    """VICReg, equations 1 to 6, with lightly's halves: the variance of the two branches is averaged, the covariance summed."""
    n, c = len(crops), len(crops[0][0])
    invariance = sum((a[k] - b[k]) ** 2 for a, b in crops for k in range(c)) / (n * c)
    variance, covariance = 0.0, 0.0
    for view in (0, 1):
        means = [sum(crop[view][k] for crop in crops) / n for k in range(c)]

        def cov(j: int, k: int, view: int = view, means: list[Tensor] = means) -> Tensor:
            return sum((crop[view][j] - means[j]) * (crop[view][k] - means[k]) for crop in crops) / (n - 1)

        variance = variance + sum((1 - (cov(k, k) + 1e-4).sqrt()).clamp_min(0) for k in range(c)) / c / 2
        covariance = covariance + sum(cov(j, k) ** 2 for j in range(c) for k in range(c) if j != k) / c
    return weights[0] * invariance + weights[1] * variance + weights[2] * covariance
