"""The main job end to end: CT files in; an encoder, searchable embeddings and a report out."""

from __future__ import annotations

from ctfoundry.quickstart.run import quickstart

__all__ = ["quickstart"]
