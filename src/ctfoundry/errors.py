"""Errors that a user can act on.

Every error of the package says where, what is wrong and what to do, in one or two lines. The command line prints exactly
that and exits with 1; a traceback appears only with ``--debug``.
"""

from __future__ import annotations

from os import PathLike


class CTFoundryError(Exception):
    """Base of all errors raised on purpose.

    Parameters
    ----------
    what : what is wrong.
    where : the file, folder, setting or tensor it is wrong with.
    do : what the user can do about it.
    """

    def __init__(self, what: str, *, where: str | PathLike[str] | None = None, do: str | None = None) -> None:
        self.what, self.where, self.do = what, None if where is None else str(where), do
        place = f"{self.where}: " if self.where else ""
        advice = f"\n  -> {do}" if do else ""
        super().__init__(f"{place}{what}{advice}")


class UsageError(CTFoundryError):
    """The command or call itself is wrong (exit code 2)."""


class SettingsError(CTFoundryError):
    """A recipe, card or option has an unknown key or a value of the wrong type."""


class GeometryError(CTFoundryError):
    """An affine, spacing or set of slice positions cannot describe one regular grid."""


class MissingSlicesError(GeometryError):
    """A series has gaps along its normal; the error names the positions."""


class DuplicateSlicesError(GeometryError):
    """Two slices of a series lie at one position; the error names the positions."""


class IrregularSpacingError(GeometryError):
    """The distances between slices differ by more than the tolerance."""


class ReadError(CTFoundryError):
    """A file is not what its header says, or cannot be decoded."""


class TruncatedError(ReadError):
    """A file ends before the data that its header declares."""


class TooLargeError(ReadError):
    """A declared size is over the cap; nothing was allocated."""


class NotAScanError(ReadError):
    """The file is readable but is not one CT volume (a label map, a 4D series, a localizer, a report ...)."""


class DiskFullError(CTFoundryError):
    """There is no room for what has to be written; `what` holds no path."""


class ContractError(CTFoundryError):
    """A volume or a tensor breaks what a preparation or an encoder was made for."""


class StoreError(CTFoundryError):
    """A store breaks one of its invariants (docs/store-format.md)."""


class WeightsError(CTFoundryError):
    """Weights are missing, unexpected, mis-shaped, or not those that the card names."""
