"""Named models, their cards, and weights that load strictly or not at all."""

from __future__ import annotations

from ctfoundry.zoo.classifiers import load_classifier
from ctfoundry.zoo.convert import Converted, convert
from ctfoundry.zoo.files import load_model, model_file, save_model, verify_model
from ctfoundry.zoo.looks import looks
from ctfoundry.zoo.models import CARDS, build, load_encoder, register, with_patch
from ctfoundry.zoo.pairs import load_vision_language
from ctfoundry.zoo.segmenters import (
    SUPREM,
    WHOLE_BODY,
    convert_segmenter,
    load_any,
    load_segmenter,
    segment,
    whole_body,
)

__all__ = [
    "CARDS",
    "SUPREM",
    "WHOLE_BODY",
    "Converted",
    "build",
    "convert",
    "convert_segmenter",
    "load_any",
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
    "whole_body",
    "with_patch",
]
