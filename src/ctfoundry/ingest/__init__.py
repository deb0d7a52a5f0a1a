"""Raw scans into a store: found, checked, read, made canonical; what is left out is listed with its rule and reason."""

from ctfoundry.ingest.pipeline import Outcome, prepare_store
from ctfoundry.ingest.rules import Checks, LeftOut
from ctfoundry.ingest.workers import Executor, Inline, Local

__all__ = ["Checks", "Executor", "Inline", "LeftOut", "Local", "Outcome", "prepare_store"]
