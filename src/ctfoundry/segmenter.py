"""`Segmenter`: a network that names every voxel, with its preparation, its extent and its names. A scan in, labels on its own grid out.

The logits of a whole scan never exist at once (`infer.onto`): what is held is as many slices of the network's output as one window is thick.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ctfoundry import geometry
from ctfoundry.encoder import Card, fast_layout
from ctfoundry.errors import ContractError
from ctfoundry.infer import onto, passes
from ctfoundry.infer.components import keep_largest
from ctfoundry.infer.passes import Extent, Precision
from ctfoundry.preparation import Preparation, Prepared, air_value, prepare
from ctfoundry.settings import nearest
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    Progress = Callable[[int, int], None]
    """Told the windows done and the windows in all."""

Axis = Literal[0, 1, 2]


@dataclass(frozen=True)
class Pass:
    """How a scan goes through a network; the defaults are the card's extent in float32.

    extent : another extent than the card's.
    mirror : axes of the prepared scan to flip too: outputs are means over all combinations (eight for three axes). Each flip is undone
        before the mean, so nothing moves; the axis from left to right is refused where names tell sides (`Segmenter.mirrors`).
    precision : of the network; outputs are blended in float32.
    batch : windows in one pass (default: `infer.passes.WINDOW_BATCH_VOXELS`).
    """

    extent: Extent | None = None
    mirror: tuple[Axis, ...] = ()
    precision: Precision = "fp32"
    batch: int | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Segmenter:
    """A network with its preparation, extent, names and card. Always in eval mode.

    The network gives logits (b, k, d, h, w) for (b, c, d, h, w), or, where it has them, `trunk` and a linear `head` of its own
    (`models.segresnet_ds`). ``names[v]`` is the structure whose label value is v; ``names[0]`` is the background.
    """

    network: torch.nn.Module
    preparation: Preparation
    extent: Extent
    names: tuple[str, ...]
    card: Card

    def __post_init__(self) -> None:
        outputs = getattr(self.network, "classes", len(self.names))
        if len(self.names) != outputs:
            raise ContractError(f"{len(self.names)} names for a network of {outputs} outputs")
        if len(self.names) < 2 or len(set(self.names)) != len(self.names):
            raise ContractError("a segmenter names the background and at least one structure, each once")
        if len(self.names) > np.iinfo(np.uint16).max:
            raise ContractError(f"{len(self.names)} structures; label maps hold 65,535")
        if self.extent.mode not in ("whole", "windows"):
            raise ContractError(f"a segmenter sees the whole scan or windows of it, not {self.extent.mode!r}")
        if self.preparation.intensity.stack == "axis0":
            raise ContractError("windows stacked along axis 0 are several voxels for one of the scan")

    @classmethod
    def of(cls, network: torch.nn.Module, card: Card) -> Segmenter:
        """The segmenter that `card` describes, around `network`, which it takes over (eval mode, memory layout)."""
        if card.kind != "segmenter":
            raise ContractError(f"card {card.name!r} is that of an {card.kind}, not of a segmenter")
        fast_layout(network)
        return cls(network.eval(), card.preparation, card.extent, card.names, card)

    def __repr__(self) -> str:
        weights = sum(p.numel() for p in self.network.parameters())
        return (
            f"Segmenter({self.card.name}, {self.card.weights} weights, {weights:,} parameters, "
            f"prepared as {self.preparation.name}, {self.extent.mode}, {len(self.names) - 1} structures)"
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def values(self, labels: Sequence[str]) -> list[int]:
        """The label values of some structures; raises ContractError for one that it does not know."""
        for name in labels:
            if name not in self.names[1:]:
                raise ContractError(
                    f"{self.card.name} has no structure {name!r}; {nearest(name, self.names[1:])}", where="labels"
                )
        return [self.names.index(name) for name in labels]

    def mirrors(self) -> tuple[Axis, ...]:
        """The axes of the prepared scan that test-time flips may use: all, but not left to right where names tell sides.

        Raises ContractError where the preparation fixes no orientation, so that the axis from left to right differs from scan to scan.
        """
        axes: tuple[Axis, ...] = (0, 1, 2)
        if not any(map(side_of, self.names)):
            return axes
        code = self.preparation.resampling.orientation
        if code is None:
            raise ContractError(
                f"{self.card.name} tells left from right and its preparation fixes no orientation, so no axis is known to be safe to flip",
                do="give the axes in Pass(mirror=...), or go without",
            )
        return tuple(axis for axis in axes if code[axis] not in "LR")

    def __call__(
        self,
        volume: Volume,
        *,
        labels: Sequence[str] | None = None,
        largest: bool | Collection[str] = False,
        settings: Pass | None = None,
        progress: Progress | None = None,
    ) -> Volume:
        """The label map of a scan on its own grid; voxels that the preparation cut off are background.

        Parameters
        ----------
        labels : the structures to return (default: all), the others become background. A voxel's label is the largest of all logits, so
            the others have to be computed too: the result is the full map's, with fewer names.
        largest : keep the largest connected part of each structure, or of those named, alone.
        settings : windows, mirroring, precision.
        progress : told the windows done and the windows in all.
        """
        return self.both(volume, (), labels=labels, largest=largest, settings=settings, progress=progress)[0]

    def probabilities(
        self,
        volume: Volume,
        labels: Sequence[str],
        *,
        settings: Pass | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Volume]:
        """The probability of each asked structure on the scan's own grid: the softmax over all of the network's outputs of the resampled
        logits, float32, 0 where the preparation cut the scan off. Only the asked ones are held."""
        values = self.values(labels)
        found, notes = self._reduced(volume, partial(onto.decide, classes=values), settings or Pass(), progress)
        return self._shares(volume, labels, found, notes)

    def both(
        self,
        volume: Volume,
        probabilities: Sequence[str],
        *,
        labels: Sequence[str] | None = None,
        largest: bool | Collection[str] = False,
        settings: Pass | None = None,
        progress: Progress | None = None,
    ) -> tuple[Volume, dict[str, Volume]]:
        """The label map (as `__call__`) and the probabilities of some structures (as `probabilities`), the network run once for both."""
        wanted = self.values(labels) if labels is not None else list(range(1, len(self.names)))
        filtered = wanted if largest is True else self.values(list(largest)) if largest else []
        kept = [value in wanted for value in range(len(self.names))]
        classes = self.values(probabilities)
        made, notes = self._reduced(
            volume, partial(onto.decide, kept=kept, classes=classes), settings or Pass(), progress
        )
        found, shares = made.labels, self._shares(volume, probabilities, made, notes)
        assert found is not None
        if filtered:
            found, lost = keep_largest(found, filtered)
            notes += tuple(f"{self.names[v]}: {n} voxels in smaller parts removed" for v, n in lost.items())
        names = {v: self.names[v] for v in wanted}
        return Volume(found, volume.affine, "label", names, source=volume.source, notes=notes), shares

    def _shares(
        self, volume: Volume, labels: Sequence[str], found: onto.Decided, notes: tuple[str, ...]
    ) -> dict[str, Volume]:
        return {
            name: Volume(share, volume.affine, "other", source=volume.source, notes=notes)
            for name, share in zip(labels, found.shares, strict=True)
        }

    def _reduced(
        self,
        volume: Volume,
        decide: Callable[[onto.Slabs, onto.Onto, onto.Head], onto.Decided],
        settings: Pass,
        progress: Progress | None,
    ) -> tuple[onto.Decided, tuple[str, ...]]:
        """Prepare, run, reduce; a device without enough memory is used for one window at a time, and all else is done on the CPU."""
        try:
            return self._attempt(volume, decide, settings, progress, self.device), ()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # outside the handler: the error would keep the attempt's tensors alive
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        said = f"out of memory on {self.device}: one window at a time, stitched on the CPU"
        warnings.warn(f"{volume.source or self.card.name}: {said}", RuntimeWarning, stacklevel=3)
        try:
            small = replace(settings, batch=1)
            return self._attempt(volume, decide, small, progress, torch.device("cpu")), (said,)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise ContractError(
                f"not even one window at a time fits into the memory of {self.device}",
                where=volume.source or None,
                do="use smaller windows or a device with more memory",
            ) from error

    @torch.no_grad()
    def _attempt(
        self,
        volume: Volume,
        decide: Callable[[onto.Slabs, onto.Onto, onto.Head], onto.Decided],
        settings: Pass,
        progress: Progress | None,
        where: torch.device,
    ) -> onto.Decided:
        prepared = prepare(self.preparation, volume, device=where)
        self._check_mirror(prepared, settings)
        shape = (prepared.x.shape[1], prepared.x.shape[2], prepared.x.shape[3])
        place = onto.onto(prepared.affine, shape, prepared.source)
        trunk, head = self._split(where)
        slabs = passes.dense(
            self._mirrored(trunk, settings),
            prepared.x,
            settings.extent or self.extent,
            air=self._air(prepared),
            batch=settings.batch,
            slab=place.slab,
            progress=progress,
        )
        return decide(slabs, place, head)

    def _check_mirror(self, prepared: Prepared, settings: Pass) -> None:
        across = next(axis for axis, (world, _) in enumerate(geometry.world_axes(prepared.affine)) if world == 0)
        if across in settings.mirror and any(map(side_of, self.names)):
            raise ContractError(
                f"{self.card.name} names left and right structures, and axis {across} runs from one side to the other: in a flipped body the "
                "network calls a left kidney right, so the mean over flips would mix the two",
                where="mirror",
                do=f"flip other axes: {', '.join(str(a) for a in range(3) if a != across)}",
            )

    def _split(self, where: torch.device) -> tuple[Callable[[Tensor], Tensor], onto.Head]:
        """The network up to what is blended, and what makes logits of it: its last layer where that makes them more."""
        network: Any = self.network
        head = getattr(network, "head", None)
        if (
            not hasattr(network, "trunk")
            or not isinstance(head, torch.nn.Conv3d)
            or head.kernel_size != (1, 1, 1)
            or head.groups != 1
            or head.in_channels >= head.out_channels
        ):
            return network, onto.Head()
        bias = None if head.bias is None else head.bias.detach().to(where, torch.float32)
        return network.trunk, onto.Head(head.weight.detach().flatten(1).to(where, torch.float32).contiguous(), bias)

    def _mirrored(self, trunk: Callable[[Tensor], Tensor], settings: Pass) -> Callable[[Tensor], Tensor]:
        flips = list(_subsets(tuple(axis + 2 for axis in sorted(set(settings.mirror)))))

        def forward(windows: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d h w"]:
            x = windows.to(self.device)
            total: Tensor | None = None
            with passes.autocast(self.device, settings.precision):
                for axes in flips:
                    found = trunk(x.flip(axes)).flip(axes).float() if axes else trunk(x).float()
                    total = found if total is None else total.add_(found)
            assert total is not None
            return total if len(flips) == 1 else total.div_(len(flips))

        return forward

    def _air(self, prepared: Prepared) -> float:
        pad = self.preparation.sizing.pad
        return (
            float(prepared.x.min()) if pad == "min" else air_value(self.preparation.intensity) if pad == "air" else pad
        )


def side_of(name: str) -> Literal["left", "right"] | None:
    """The side of the body that a structure's name tells.

    >>> side_of("rib_left_3"), side_of("Right kidney"), side_of("outright")
    ('left', 'right', None)
    """
    found = re.search(r"(?<![a-z])(left|right)(?![a-z])", name.lower())
    return None if found is None else "left" if found.group(1) == "left" else "right"


def _subsets(axes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for bits in range(2 ** len(axes)):
        yield tuple(axis for i, axis in enumerate(axes) if bits >> i & 1)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch's own, the CPU allocator's (a plain RuntimeError), NumPy's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )
