"""Errors of training."""

from ctfoundry.errors import CTFoundryError


class TrainingError(CTFoundryError):
    """A run cannot go on: too many steps in a row without finite gradients."""
