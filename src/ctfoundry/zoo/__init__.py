"""Named models, their cards, and weights that load strictly or not at all."""

from __future__ import annotations

from ctfoundry.zoo.files import load_model, save_model, verify_model
from ctfoundry.zoo.models import CARDS, build, load_encoder

__all__ = ["CARDS", "build", "load_encoder", "load_model", "save_model", "verify_model"]
