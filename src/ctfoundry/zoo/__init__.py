"""Named models, their cards, and weights that load strictly or not at all."""

from __future__ import annotations

from ctfoundry.zoo.classifiers import load_classifier
from ctfoundry.zoo.convert import Converted, convert
from ctfoundry.zoo.files import load_model, model_file, save_model, verify_model
from ctfoundry.zoo.looks import looks
from ctfoundry.zoo.models import CARDS, build, load_encoder, register, with_patch
from ctfoundry.zoo.pairs import load_vision_language
from ctfoundry.zoo.segmenters import convert_segmenter, load_segmenter, segment

__all__ = [
    "CARDS",
    "Converted",
    "build",
    "convert",
    "convert_segmenter",
    "load_classifier",
    "load_encoder",
    "load_model",
    "load_segmenter",
    "load_vision_language",
    "looks",
    "model_file",
    "register",
    "save_model",
    "segment",
    "verify_model",
    "with_patch",
]
