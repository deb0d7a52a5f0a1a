"""ctfoundry: the whole life of a computed-tomography foundation model.

>>> import ctfoundry as ct
>>> sorted(ct.__all__)
['Volume', 'find', 'load_classifier', 'load_encoder', 'load_segmenter', 'read', 'segment', 'write']
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"
__all__ = ["Volume", "find", "load_classifier", "load_encoder", "load_segmenter", "read", "segment", "write"]

if TYPE_CHECKING:
    from ctfoundry.io import read, write
    from ctfoundry.retrieval.search import find
    from ctfoundry.volume import Volume
    from ctfoundry.zoo import load_classifier, load_encoder, load_segmenter, segment

_PLACES = {
    "read": "ctfoundry.io",
    "write": "ctfoundry.io",
    "load_classifier": "ctfoundry.zoo",
    "load_encoder": "ctfoundry.zoo",
    "load_segmenter": "ctfoundry.zoo",
    "segment": "ctfoundry.zoo",
    "find": "ctfoundry.retrieval.search",
    "Volume": "ctfoundry.volume",
}
"""Where the public names live; imported on first use, so that ``import ctfoundry`` and ``--help`` stay instant."""


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'ctfoundry' has no attribute {name!r}")
