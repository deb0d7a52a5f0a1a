"""`Classifier`: an encoder, a head, classes and thresholds. A scan in, probabilities out.

The network sees the whole prepared scan in one pass, at one size that its preparation fixes; what it says of a scan does not depend on
any other scan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from ctfoundry.encoder import WHOLE_CAP_BYTES, Card, Encoder
from ctfoundry.errors import ContractError
from ctfoundry.geometry import Vec3
from ctfoundry.infer import passes
from ctfoundry.infer.passes import Precision
from ctfoundry.models.heads import ClassificationHead
from ctfoundry.preparation import Preparation, prepare
from ctfoundry.settings import from_data, nearest, to_data
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Float, Float64
    from torch import Tensor

Kind = Literal["binary", "multiclass", "multilabel"]
ARCHITECTURE = "encoder-head"
POOLED = ("mean", "max")


@dataclass(frozen=True)
class Rule:
    """How logits become probabilities and calls.

    Attributes
    ----------
    kind : ``binary`` (one class, there or not) and ``multilabel`` (several, each there or not): a sigmoid each; ``multiclass``: a softmax.
    thresholds : a scan is called positive for a class from its probability on; none for ``multiclass``, where the most probable counts.
    temperature : logits are divided by it for calibrated probabilities; thresholds are those of the others.
    """

    kind: Kind
    thresholds: tuple[float, ...] = ()
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.kind == "multiclass" and self.thresholds:
            raise ValueError("several classes that exclude each other have no threshold")
        if not self.temperature > 0 or any(not 0 <= t <= 1 for t in self.thresholds):
            raise ValueError("a temperature is above 0, and thresholds are probabilities")

    def probabilities(
        self, logits: Float64[np.ndarray, "... k"], *, calibrated: bool = False
    ) -> Float64[np.ndarray, "... k"]:
        """Probabilities of logits, as they are or at the temperature."""
        z = np.asarray(logits, dtype=np.float64) / (self.temperature if calibrated else 1.0)
        if self.kind != "multiclass":
            return 0.5 * (1 + np.tanh(z / 2))  # the logistic function without overflow
        power = np.exp(z - z.max(-1, keepdims=True))
        return np.asarray(power / power.sum(-1, keepdims=True))


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one scan, by class.

    Attributes
    ----------
    probabilities : of the network as it is; `calibrated` : at the temperature found on validation scans.
    found : the classes that are called: those at or above their threshold, or the most probable one of several.
    logits : before any of this.
    """

    probabilities: dict[str, float]
    calibrated: dict[str, float]
    found: tuple[str, ...]
    logits: dict[str, float]


@dataclass(frozen=True, eq=False, repr=False)
class Classifier:
    """An encoder and a head with classes, a rule and a card. Always in eval mode.

    Parameters
    ----------
    encoder : its network is used as it is; its own preparation is not.
    head : logits of the pooled vector.
    preparation : of this classifier; it gives every scan one size.
    pool : mean or max over all cells of the encoder's level, padding among them (as published), or a token of its network.
    classes : names of the outputs.
    """

    encoder: Encoder
    head: ClassificationHead
    preparation: Preparation
    pool: str
    classes: tuple[str, ...]
    rule: Rule
    card: Card

    def __post_init__(self) -> None:
        check_pool(self.encoder, self.pool)
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise ContractError("a classifier names its classes, each once")
        if (self.rule.kind == "binary" and len(self.classes) != 1) or (
            self.rule.kind != "binary" and len(self.classes) < 2
        ):
            raise ContractError(f"{len(self.classes)} classes are not {self.rule.kind}")
        if self.rule.thresholds and len(self.rule.thresholds) != len(self.classes):
            raise ContractError(f"{len(self.rule.thresholds)} thresholds for {len(self.classes)} classes")
        if self.preparation.sizing.crop is None:
            raise ContractError(
                f"preparation {self.preparation.name!r} leaves scans their size",
                do="fix it: `fixed_size(preparation, size)`",
            )
        self.network.eval()

    def __repr__(self) -> str:
        weights = sum(p.numel() for p in self.network.parameters())
        return (
            f"Classifier({self.card.name}, {self.card.weights} weights, {weights:,} parameters, prepared as "
            f"{self.preparation.name}, {self.rule.kind}: {', '.join(self.classes[:6])}{', ...' * (len(self.classes) > 6)})"
        )

    @cached_property
    def network(self) -> nn.ModuleDict:
        """``encoder`` and ``head``: all that has weights."""
        return nn.ModuleDict({"encoder": self.encoder.network, "head": self.head})

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.device

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k"]:
        """Logits of prepared scans, differentiable, in the modules' current mode."""
        return self.head(pooled(self.encoder, x, self.pool))

    def with_rule(self, rule: Rule) -> Classifier:
        """The same network with another rule, in the card too."""
        return replace(
            self, rule=rule, card=replace(self.card, arguments={**self.card.arguments, "rule": to_data(rule)})
        )

    @torch.no_grad()
    def logits(self, x: Float[Tensor, "c d h w"], precision: Precision = "fp32") -> Float64[np.ndarray, "k"]:
        """Logits of one prepared scan, alone in its pass."""
        with passes.autocast(self.device, precision):
            found = self.forward(x[None].to(self.device, next(self.network.parameters()).dtype))
        return np.asarray(found[0].double().cpu().numpy())

    def predict(self, logits: Float64[np.ndarray, "k"]) -> Prediction:
        """What some logits mean."""
        p, better = self.rule.probabilities(logits), self.rule.probabilities(logits, calibrated=True)
        if self.rule.kind == "multiclass":
            found: tuple[str, ...] = (self.classes[int(p.argmax())],)
        else:
            limits = self.rule.thresholds or (0.5,) * len(self.classes)
            found = tuple(name for name, v, limit in zip(self.classes, p, limits, strict=True) if v >= limit)

        def named(values: np.ndarray) -> dict[str, float]:
            return dict(zip(self.classes, map(float, values), strict=True))

        return Prediction(named(p), named(better), found, named(logits))

    def __call__(self, volume: Volume, *, precision: Precision = "fp32") -> Prediction:
        """What is said of one scan. Raises ContractError for a volume that the preparation was not made for."""
        return self.predict(self.logits(prepare(self.preparation, volume, device=self.device).x, precision))


def pooled(encoder: Encoder, x: Float[Tensor, "b c d h w"], pool: str) -> Float[Tensor, "b e"]:
    """One vector for each prepared scan: mean or max over all cells of the encoder's level, or a token; differentiable."""
    maps, tokens = encoder.raw(x, (encoder.card.level,) if pool in POOLED else ())
    if pool not in POOLED:
        return tokens[pool].float()
    cells = maps[encoder.card.level].float().flatten(2)
    return cells.mean(2) if pool == "mean" else cells.amax(2)


def check_pool(encoder: Encoder, pool: str) -> None:
    """Raise ContractError for a way of pooling that the encoder does not have."""
    known = (*POOLED, *(name for name in encoder.vectors if name not in (*POOLED, "min")))
    if pool not in known:
        raise ContractError(
            f"{encoder.card.name} has no vector {pool!r} for a head; {nearest(pool, known)}", where="pool"
        )


def fixed_size(preparation: Preparation, size: Vec3) -> Preparation:
    """The preparation that pads (with the lowest value) and centre-crops every scan to `size` voxels."""
    crop = preparation.sizing.crop
    if crop == size and preparation.sizing.minimum == size:
        return preparation
    sizing = replace(preparation.sizing, minimum=size, crop=size, pad="min", at="centre")
    return replace(preparation, name=f"{preparation.name}-{'x'.join(map(str, size))}", sizing=sizing)


def check_memory(encoder: Encoder, preparation: Preparation) -> None:
    """Raise ContractError where one pass over a scan of the preparation's size would take more than 16 GiB."""
    size = preparation.sizing.crop
    assert size is not None
    stacked = preparation.intensity.stack == "axis0"
    shape: Vec3 = (size[0] * (len(preparation.intensity.windows) if stacked else 1), size[1], size[2])
    slices = encoder.extent.mode == "slices"
    need = int(encoder.network.peak_bytes((1, *shape[1:]) if slices else shape))  # type: ignore[operator]
    if need > WHOLE_CAP_BYTES:
        raise ContractError(
            f"one pass over {shape} voxels takes about {need / 2**30:.0f} GiB",
            do="choose a coarser preparation, or a smaller size (--set size=[D,H,W])",
        )


def make_card(
    name: str,
    encoder: Card,
    preparation: Preparation,
    pool: str,
    classes: tuple[str, ...],
    rule: Rule,
    *,
    hidden: int = -1,
    dropout: float = 0.0,
) -> Card:
    """The card of a classifier around an encoder; ``arguments`` hold the encoder's architecture and arguments, the head and the rule."""
    return Card(
        name=name,
        kind="classifier",
        architecture=ARCHITECTURE,
        arguments={
            "encoder": {
                "name": encoder.name,
                "architecture": encoder.architecture,
                "arguments": to_data(encoder.arguments),
                "preparation": to_data(encoder.preparation),
                "extent": to_data(encoder.extent),
                "level": encoder.level,
                "vector": encoder.vector,
            },
            "pool": pool,
            "hidden": hidden,
            "dropout": dropout,
            "rule": to_data(rule),
        },
        preparation=preparation,
        extent=passes.Extent("whole"),
        level="",
        vector="",
        weights="trained",
        origin=encoder.origin,
        licence=encoder.licence,
        names=classes,
    )


def encoder_card(card: Card) -> Card:
    """The card of the encoder inside a classifier. Raises ContractError for a card that holds none."""
    inner: Any = card.arguments.get("encoder")
    needed = {"name", "architecture", "arguments", "preparation", "extent", "level", "vector"}
    if card.architecture != ARCHITECTURE or not isinstance(inner, dict) or set(inner) != needed:
        raise ContractError(f"card {card.name!r} describes no classifier of an encoder and a head")
    return from_data(Card, {**inner, "kind": "encoder", "weights": card.weights}, f"{card.name}: encoder")


def assemble(card: Card, encoder: Encoder) -> Classifier:
    """The classifier that a card describes around an encoder's network, its head not loaded yet."""
    extra = set(card.arguments) - {"encoder", "pool", "hidden", "dropout", "rule"}
    if extra:
        raise ContractError(f"card {card.name!r} has the unknown argument {sorted(extra)[0]!r}")
    pool = str(card.arguments["pool"])
    check_pool(encoder, pool)
    head = ClassificationHead(
        vector_width(encoder, pool), len(card.names), int(card.arguments["hidden"]), float(card.arguments["dropout"])
    )
    rule = from_data(Rule, card.arguments["rule"], f"{card.name}: rule")
    return Classifier(encoder, head.to(encoder.device), card.preparation, pool, card.names, rule, card)


def vector_width(encoder: Encoder, pool: str) -> int:
    """Numbers in a pooled vector, told by one pass over the smallest input in eval mode."""
    if pool in POOLED:
        return encoder.level(encoder.card.level).channels
    size = [max(level.stride[axis] for level in encoder.levels) for axis in range(3)]
    channels = (
        max(len(encoder.preparation.intensity.windows), 1) if encoder.preparation.intensity.stack == "channel" else 1
    )
    with torch.no_grad():
        return int(pooled(encoder, torch.zeros(1, channels, *size, device=encoder.device), pool).shape[1])
