"""Web pages: motions recorded into one HTML file that plays anywhere, without a server and without the network."""

import secrets
from collections.abc import Sequence
from pathlib import Path

from vadis.access import Access
from vadis.errors import VadisError
from vadis.files import atomic_write
from vadis.motion import Motion
from vadis.viewer.stage import Stage, start_server, stop_server


def write_page(motions: Motion | Sequence[Motion], path: str | Path, titles: str | Sequence[str] | None = None,
               fps: float = 30.0, skeleton: bool = False, dark: bool = False) -> Path:  # fmt: skip
    """Write a page with the mannequin playing one or several motions side by side on one floor.

    The page has a timeline to scrub, play, pause and speed; drag to orbit, scroll to zoom; the tree button at the lower
    right hides and shows bodies, skeletons and titles one by one. It holds everything it needs (about 1.5 MB).

    Args:
        motions: one motion or a list; other skeletons than smpl22 are retargeted to it.
        path: target, usually `*.html`.
        titles: one per motion, floating above the heads; None takes captions.
        fps: frames per second that are recorded, at most those of the motions.
        skeleton: show the bones instead of the bodies at first.
        dark: dark background.

    Raises MissingExtra without viser, VadisError when there is nothing to show.
    """
    motions = [motions] if isinstance(motions, Motion) else list(motions)
    if not motions:
        raise VadisError("nothing to view: give at least one motion.")
    names = [titles] if isinstance(titles, str) else titles
    nobody = Access(token=secrets.token_urlsafe())
    server = start_server("127.0.0.1", 0, nobody)  # the recorder is a server that nobody visits
    try:
        stage = Stage(server, motions, names, hidden_bones=True)
        stage.aim()
        if skeleton:
            stage.toggle(body=False, skeleton=True)
        recording = server.get_scene_serializer()
        rate = min(fps, stage.fps)
        for frame in range(int(stage.seconds * rate + 1e-6) + 1):
            stage.show(frame / rate)
            recording.insert_sleep(1 / rate)
        text = recording.as_html(dark_mode=dark)
    finally:
        stop_server(server)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)
