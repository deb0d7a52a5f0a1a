"""The largest connected part of each label."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Integer


def keep_largest(
    labels: Integer[np.ndarray, "d h w"], which: Collection[int] | None = None
) -> tuple[Integer[np.ndarray, "d h w"], dict[int, int]]:
    """Each label without its smaller parts (connected by faces; of equal ones the first stays), and how many voxels each lost.

    `which` names the labels to filter (default: all but 0); what is removed becomes 0. Only each label's box is looked at.
    """
    from scipy import ndimage

    found, lost = labels.copy(), {}
    for value, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None or (which is not None and value not in which):
            continue
        mask = labels[box] == value
        parts, count = ndimage.label(mask)
        if count < 2:
            continue
        sizes = np.bincount(parts.ravel())
        dropped = mask & (parts != 1 + int(np.argmax(sizes[1:])))
        found[box][dropped] = 0
        lost[value] = int(dropped.sum())
    return found, lost
