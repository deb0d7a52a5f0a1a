"""Golden values: what a network must answer to one input that anybody can make again.

The card holds a few numbers of an encoder's vector, or of the logits of a segmenter or a classifier, for a small input of counted noise. A network that loads without an error
and still is another one (another norm, another order of keys, another patch size) answers differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ctfoundry.classifier import Classifier
from ctfoundry.encoder import Encoder
from ctfoundry.errors import WeightsError
from ctfoundry.keys import Key
from ctfoundry.segmenter import Segmenter

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

KEPT = 16
"""Numbers of the vector, or of the logits, that a card holds, evenly spread."""
LOGITS = "logits"


def golden_input(shape: tuple[int, ...]) -> Float[Tensor, "1 c d h w"]:
    """Noise of 0..1 that depends on its shape alone."""
    return torch.from_numpy(Key.of("golden", *shape).uniform(0, 1, shape)).float()


def golden_of(encoder: Encoder | Segmenter | Classifier) -> dict[str, Any]:
    """The golden values of a model, as the card holds them. Run on the CPU in float32."""
    arguments: Mapping[str, Any] = encoder.card.arguments
    if not isinstance(encoder, Encoder):
        arguments = arguments.get("encoder", {}).get("arguments", arguments)
    if isinstance(encoder, Classifier):
        stride = [max(level.stride[axis] for level in encoder.encoder.levels) for axis in range(3)]
        slices, vector = encoder.encoder.extent.mode == "slices", LOGITS
    elif isinstance(encoder, Segmenter):
        network: Any = encoder.network
        stride, slices, vector = list(getattr(network, "multiple", (16, 16, 16))), False, LOGITS
    else:
        stride = [max(level.stride[axis] for level in encoder.levels) for axis in range(3)]
        slices, vector = encoder.extent.mode == "slices", encoder.card.vector
    arguments = arguments.get("vision", arguments)
    channels = int(arguments.get("in_channels", 1))
    depth = 1 if slices else max(16, 2 * stride[0])
    shape = (1, channels, depth, max(16, 2 * stride[1]), max(16, 2 * stride[2]))
    values = _answer(encoder, shape, vector)
    # Rotary tables in bfloat16 move by thread count and kernel; all else by the order of sums alone.
    share = 2e-2 if arguments.get("rotary") == "bfloat16" else 1e-3
    scale = max((abs(v) for v in values), default=0.0)
    return {"input": list(shape), "vector": vector, "values": values, "tolerance": share * scale + 1e-6}


def check_golden(encoder: Encoder | Segmenter | Classifier) -> float | None:
    """The largest difference from the card's golden values, or None where it has none; raises WeightsError over the tolerance."""
    golden: Mapping[str, Any] = encoder.card.golden
    if not golden:
        return None
    try:
        shape, vector = tuple(int(n) for n in golden["input"]), str(golden["vector"])
        expected, tolerance = [float(v) for v in golden["values"]], float(golden["tolerance"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"the golden values of card {encoder.card.name!r} cannot be read: {error}") from error
    known = encoder.vectors if isinstance(encoder, Encoder) else (LOGITS,)
    if len(shape) != 5 or vector not in known or max(shape) > 512:
        raise WeightsError(
            f"the golden values of card {encoder.card.name!r} are of input {shape} and vector {vector!r}"
        )
    found = _answer(encoder, shape, vector)
    worst = max((abs(a - b) for a, b in zip(found, expected, strict=False)), default=0.0)
    if len(found) != len(expected) or not worst <= tolerance:
        raise WeightsError(
            f"the network of card {encoder.card.name!r} misses its golden values by {worst:.3g}; {tolerance:.3g} is allowed",
            do="the arguments of the card or this version of the network are not those of the weights",
        )
    return worst


@torch.no_grad()
def _answer(encoder: Encoder | Segmenter | Classifier, shape: tuple[int, ...], vector: str) -> list[float]:
    x = golden_input(shape).to(encoder.device)
    if isinstance(encoder, Segmenter):
        found = encoder.network(x).flatten().double().cpu()
        # as many places as classes and more, never in step with an axis
        step = max(len(found) // KEPT - 7, 1)
        return [float(v) for v in found[::step][:KEPT]]
    if isinstance(encoder, Classifier):
        return [float(v) for v in encoder.forward(x)[0].double().cpu()[:KEPT]]
    found = encoder.embed(x, vector)[0].double().cpu()
    step = -(-len(found) // KEPT)
    return [float(v) for v in found[::step]]
