"""A motion as the output of a notebook's cell: a page that plays it, inside a frame, without a server or the network."""

import html
import tempfile
from pathlib import Path

from vadis.errors import VadisError
from vadis.motion import Motion

MAX_SECONDS = 60.0
"""Of what is shown; a notebook holds the whole page."""
FPS = 15.0


def player(motion: Motion) -> str:
    """HTML that plays a motion (about 1.5 MB); a line of text where the viewer is not installed or can't show it."""
    shown, note = motion, ""
    if motion.seconds > MAX_SECONDS:
        shown = motion[: int(MAX_SECONDS * motion.fps)]
        note = (
            f"<p>The first {MAX_SECONDS:g} of {motion.seconds:.0f} seconds; motion.save('motion.html') shows all.</p>"
        )
    try:
        from vadis.viewer.page import write_page

        with tempfile.TemporaryDirectory() as folder:
            page = write_page(shown, Path(folder) / "motion.html", fps=FPS).read_text("utf-8")
    except VadisError as error:  # no viewer, or a skeleton that can't be drawn
        return f"<pre>{html.escape(repr(motion))}\n{html.escape(str(error))}</pre>"
    frame = '<iframe sandbox="allow-scripts" style="width:100%;height:440px;border:0" srcdoc="'
    return f'{note}{frame}{html.escape(page)}"></iframe>'
