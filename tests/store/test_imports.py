"""A bare GPU machine trains from a store: torch, numpy, blosc2 and safetensors (and what they need) are enough."""

from __future__ import annotations

import subprocess
import sys

import pytest

_BARE = """
import builtins, sys
import blosc2, numpy, safetensors.torch, torch  # with whatever they need themselves
blocked = set("nibabel SimpleITK pydicom scipy duckdb yaml matplotlib typer rich jinja2 monai jaxtyping PIL".split())
real = builtins.__import__
def bare(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and name.split(".")[0] in blocked:
        caller = (globals or {}).get("__name__", "")
        if caller.split(".")[0] == "ctfoundry" or name.split(".")[0] not in sys.modules:
            raise ModuleNotFoundError(f"{caller} imports {name}")
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = bare
module = __import__(sys.argv[1])
assert not [m for m in ("nibabel", "SimpleITK", "pydicom", "scipy", "matplotlib", "monai") if m in sys.modules]
"""


@pytest.mark.parametrize("module", ["store", "preparation", "encoder"])
def test_imports_with_the_bare_packages(module):
    done = subprocess.run(
        [sys.executable, "-c", _BARE, f"ctfoundry.{module}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
