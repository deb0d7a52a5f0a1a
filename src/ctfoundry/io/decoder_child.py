"""Run as a program by `decoding`: decodes compressed slices whose paths it is told, one a line.

It stands alone (no import of ctfoundry, which would bring torch) because a decoder written in C++ may end its process on
damaged bytes. Answer to each path: a line of JSON, and behind it the bytes of the array when there is one.
"""

from __future__ import annotations

import json
import sys
import warnings

MEMORY = 4 << 30
"""Address space for decoding one slice, in bytes: a codestream that declares more than that fails here."""


def main() -> None:
    """Answer until the input ends."""
    import numpy as np
    import pydicom
    from pydicom.pixels import pixel_array

    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # not on this system, or it is lower already
        pass
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        try:
            numbers = np.ascontiguousarray(pixel_array(pydicom.dcmread(json.loads(line), force=True), raw=True))
            answer, body = {"dtype": numbers.dtype.str, "shape": numbers.shape}, numbers.tobytes()
        except Exception as error:  # decoders raise many types; the parent names the file
            answer, body = {"error": (str(error) or type(error).__name__).splitlines()[0][:300]}, b""
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + body)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
