"""Text before it is shown: from outside (file names, headers), and numbers of progress."""

from __future__ import annotations

import re

_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""Control characters (NUL pads DICOM strings), marks that turn the order of what follows, halves of characters (undecodable
file names): browsers, XML or UTF-8 refuse them, or they make a text look like another."""


def visible(text: str) -> str:
    """The text with each character that cannot be shown, or that hides others, replaced by U+FFFD.

    >>> visible("CHEST\\x00")
    'CHEST�'
    """
    return _UNSEEN.sub("\ufffd", text)


def rate(number: float) -> str:
    """How many a second, without powers of ten where it is fast.

    >>> rate(460.0), rate(0.05)
    ('460', '0.05')
    """
    return f"{number:.2g}" if number < 10 else f"{number:,.0f}"
