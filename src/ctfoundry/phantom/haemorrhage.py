"""Blood within the skull."""

from __future__ import annotations

from ctfoundry.phantom.anatomy import Body
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.place import Atlas
from ctfoundry.phantom.spec import Lesion


def paint_haemorrhage(canvas: Canvas, body: Body, lesion: Lesion, mark: int, chart: Atlas) -> None:
    """Epidural, subdural or parenchymal blood."""
