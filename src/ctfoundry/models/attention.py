"""Attention between the tokens of one input, by the kernel that is faster on this machine.

torch's fused kernel is right nearly everywhere. In bfloat16 on a CPU without AMX tiles it multiplies without packing, so it is no
faster than in float32, while a plain matrix product is: there, and without gradients, scores are made and used a part at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

SCORE_BYTES = 8 * 2**20
"""Scores that `in_parts` holds at a time, and as much again for their softmax, whatever the number of tokens. With a quarter of it
1,029 to 4,101 tokens took 1.2 times as long (short rows), with twice as much up to 1.7 times (fresh memory)."""


def _has(feature: str) -> bool:
    """What torch says of this CPU; False where another torch does not say it."""
    return bool(getattr(torch.cpu, f"_is_{feature}_supported", bool)())


PLAIN_BF16 = _has("avx512_bf16") and not _has("amx_tile")
"""Whether this CPU multiplies bfloat16, but not in tiles. By the kind of machine, never by a timing, so that a machine's answer is
always the same one."""


def attend(
    q: Float[Tensor, "b heads n k"], k: Float[Tensor, "b heads m k"], v: Float[Tensor, "b heads m k"]
) -> Float[Tensor, "b heads n k"]:
    """softmax(q k' / sqrt(width)) v: plain products for bfloat16 without gradients where `PLAIN_BF16`, else torch's fused kernel."""
    learns = q.requires_grad or k.requires_grad or v.requires_grad
    if PLAIN_BF16 and q.device.type == "cpu" and q.dtype == torch.bfloat16 and not learns:
        return in_parts(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def in_parts(
    q: Float[Tensor, "b heads n k"], k: Float[Tensor, "b heads m k"], v: Float[Tensor, "b heads m k"]
) -> Float[Tensor, "b heads n k"]:
    """The same in plain products, some heads or some rows of one head at a time (`SCORE_BYTES`); without gradients.

    Products add up in float32 and the softmax is computed in float32, but scores are rounded to the type of `q` in between. In
    bfloat16 one attention alone is then as near to the exact one as the fused kernel's where scores deviate by 0.3, and six times as
    far where they deviate by 4. In a network all else is rounded too: a unit CLS token of the published size was 0.00096 off instead
    of 0.00084 (`ctfoundry bench vit`'s weights).
    """
    b, heads, n, width = q.shape
    m, many = k.shape[2], b * heads
    q, k, v = (t.reshape(many, t.shape[2], width) for t in (q, k, v))
    cells = SCORE_BYTES // q.element_size()
    group = max(1, min(many, cells // (n * m)))  # heads at a time
    parts = -(-n // max(1, min(n, cells // m)))
    rows = -(-n // parts)  # of one head at a time; as many in each part
    nothing = q.new_zeros(())
    # the same memory for all parts: fresh pages cost as much as a product
    scores, shares = q.new_empty(group * rows * m), q.new_empty(group * rows * m)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for i in range(0, many, group):
        part = slice(i, i + group)
        for j in range(0, n, rows):
            some = q[part, j : j + rows]
            shape = (*some.shape[:2], m)
            s, p = (t[: shape[0] * shape[1] * m].view(shape) for t in (scores, shares))
            # alpha is applied before the one rounding; beta=0 ignores the first tensor
            torch.baddbmm(nothing, some, k[part].transpose(1, 2), beta=0, alpha=width**-0.5, out=s)
            torch.softmax(s, -1, out=p)
            torch.bmm(p, v[part], out=out[part, j : j + rows])
    return out.view(b, heads, n, width)
