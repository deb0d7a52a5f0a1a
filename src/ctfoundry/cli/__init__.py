"""The command line: one module a group of verbs, heavy imports inside the commands."""

from __future__ import annotations

from ctfoundry.cli.common import main

__all__ = ["main"]
