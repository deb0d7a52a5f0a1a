"""Run as a program by `decoding`: decodes the compressed slices that it is told of, one a line.

It stands alone (no import of ctfoundry, which would bring torch) because a decoder written in C++ may end its process on
damaged bytes. Answer to each request: a line of JSON, and behind it the bytes of the array when there is one.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any

JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
MEMORY = 4 << 30
"""Address space for decoding one slice, in bytes: a codestream that declares more than that fails here."""


def decode(request: dict[str, Any]) -> Any:
    """The stored numbers (h, w) of one frame: `path`, its `pieces` [(byte, length)], `syntax` and what the header declares."""
    with open(request["path"], "rb") as file:
        pieces = []
        for at, length in request["pieces"]:
            file.seek(at)
            pieces.append(file.read(length))
    stream, pixels = b"".join(pieces), request["pixels"]
    if request["syntax"] == JPEG_EXTENDED:
        jpeg12 = _beside("jpeg12")
        if jpeg12.is_jpeg12(stream):
            numbers = jpeg12.decode(stream, pixels["rows"], pixels["columns"])
            return (numbers << 4).view("int16") >> 4 if pixels["pixel_representation"] else numbers

    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    numbers, _ = get_decoder(request["syntax"]).as_array(
        encapsulate([stream], has_bot=False),
        raw=True,
        index=0,
        decoding_plugin=request.get("plugin", ""),
        number_of_frames=1,
        samples_per_pixel=1,
        photometric_interpretation="MONOCHROME2",  # either kind of grey is decoded alike
        pixel_keyword="PixelData",
        **pixels,
    )
    return numbers


def _beside(name: str) -> Any:
    """The module in the file beside this one."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Answer until the input ends."""
    import numpy as np

    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # not on this system, or it is lower already
        pass
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        try:
            numbers = np.ascontiguousarray(decode(json.loads(line)))
            answer, body = {"dtype": numbers.dtype.str, "shape": numbers.shape}, numbers.tobytes()
        except Exception as error:  # decoders raise many types; the parent names the file
            answer, body = {"error": " ".join((str(error) or type(error).__name__).split())[:300]}, b""
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + body)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
