"""Pictures, pages and the live viewer."""

import re
import urllib.request

import numpy as np
import pytest
import torch

from vadis.errors import MissingExtra, VadisError
from vadis.viewer.sheet import contact_sheet, floor_height, titles_of


def picture(path) -> np.ndarray:
    from matplotlib import image

    return image.imread(path)[..., :3]


def test_contact_sheet_has_figures_in_every_row(walk, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the export extra")
    one = picture(contact_sheet(walk, tmp_path / "one.png", title="a walk", poses=5, width=900))
    assert one.shape[1] == 900
    two = picture(
        contact_sheet([walk, walk.mirror()], tmp_path / "two.png", title=["left", "right"], poses=5, width=900)
    )
    assert two.shape[0] == 2 * one.shape[0]
    strip = one[50:, :740]  # left of the path
    dark = (strip.min(-1) < 0.75).any(0)
    figures = np.count_nonzero(np.diff(dark.astype(int)) == 1)
    assert figures >= 4  # shadows may touch a neighbour, not all of them
    orange, blue = (strip[..., 0] - strip[..., 2] > 0.25), (strip[..., 2] - strip[..., 0] > 0.2)
    assert orange.sum() > 100 and blue.sum() > 100  # right and left hands and feet
    with pytest.raises(VadisError, match="at least one"):
        contact_sheet([], tmp_path / "none.png")


def test_contact_sheet_of_one_frame_and_of_another_skeleton(walk, mini_bvh, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the export extra")
    from vadis.io import load_motion

    contact_sheet(walk.crop(0, 1), tmp_path / "still.png", width=500)
    contact_sheet(load_motion(mini_bvh[0]), tmp_path / "cmu.png", poses=3, width=500)
    assert picture(tmp_path / "still.png").std() > 0.01
    assert picture(tmp_path / "cmu.png").std() > 0.01


def test_titles_and_floor(walk):
    from vadis.body.mannequin import build_mannequin

    assert titles_of([walk, walk.replace(meta={})], None) == ["procedural walk", "motion 2"]
    with pytest.raises(VadisError, match="1 titles for 2"):
        titles_of([walk, walk], "one")
    body = build_mannequin(walk.skeleton)
    assert -0.03 < floor_height(walk, body) < 0  # just below the joints, where the soles are
    lifted = walk.replace(root=walk.root + torch.tensor([0.0, 3.0, 0.0]))
    assert floor_height(lifted, body) == pytest.approx(floor_height(walk, body) + 3, abs=1e-4)


def test_page_is_one_file_that_needs_nothing_else(walk, tmp_path):
    pytest.importorskip("viser", reason="needs the viewer extra")
    from vadis.viewer.page import write_page

    path = write_page([walk, walk.mirror()], tmp_path / "page.html", titles=["walk", "mirrored"])
    text = path.read_text(encoding="utf-8")
    assert len(text) < 6_000_000
    assert "__VISER_EMBED_DATA__" in text
    fetched = re.findall(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)\s*=\s*["']?(?!data:)([^"'\s>]+)""", text)
    assert fetched == []
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(VadisError, match="at least one"):
        write_page([], tmp_path / "none.html")


def test_page_holds_every_frame(walk, tmp_path):
    pytest.importorskip("viser", reason="needs the viewer extra")
    import base64

    zstandard, msgspec = pytest.importorskip("zstandard"), pytest.importorskip("msgspec")
    from vadis.viewer.page import write_page

    text = write_page(walk, tmp_path / "page.html", fps=10).read_text(encoding="utf-8")
    data = base64.b64decode(re.search(r'__VISER_EMBED_DATA__="([^"]+)"', text).group(1))
    inner = zstandard.ZstdDecompressor().decompress(data[8:], max_output_size=int.from_bytes(data[:8], "little"))
    record = msgspec.msgpack.decode(inner[8 : 8 + int.from_bytes(inner[:8], "little")], strict=False)
    assert record["durationSeconds"] == pytest.approx(3.0, abs=0.11)
    moves = [when for when, message in record["messages"] if "BonePosition" in message["type"]]
    assert len(set(moves)) == 30 and len(moves) >= 30 * 22


def test_live_viewer_serves_plays_and_stops(walk):
    pytest.importorskip("viser", reason="needs the viewer extra")
    from vadis.viewer.live import view

    viewer = view([walk, walk.mirror()], port=0, open_browser=False, block=False, titles=["walk", "mirrored"])
    try:
        with urllib.request.urlopen(viewer.url, timeout=20) as answer:
            assert answer.status == 200 and b"<html" in answer.read(5000).lower()
        viewer.playing = False
        viewer.seek(1.5)
        expected = walk.positions[45].numpy()
        bones = viewer.stage.bodies[0].bones
        np.testing.assert_allclose([b.position for b in bones], expected, atol=1e-5)
        viewer.seek(99)
        assert viewer.time == viewer.stage.seconds == pytest.approx(89 / 30)
        viewer.stage.toggle(body=False, skeleton=True)
        assert not viewer.stage.bodies[1].visible and viewer.stage.bones[1].visible
        left, right = (s[0] for s in viewer.stage.shifts)
        assert left + walk.positions[..., 0].max() < right + walk.mirror().positions[..., 0].min()  # side by side
    finally:
        viewer.stop()
    viewer.stop()  # twice is harmless
    assert not viewer._thread.is_alive()


# ---- films and notebooks


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_films_last_as_long_as_the_motion(walk, tmp_path, suffix):
    from PIL import Image

    seen = []
    path = walk[:30].save(
        tmp_path / f"walk{suffix}", size=64, fps=10, progress=lambda done, of: seen.append((done, of))
    )
    assert seen[-1] == (10, 10) and path.stat().st_size > 500
    if suffix == ".gif":
        film = Image.open(path)
        spans = []
        for frame in range(film.n_frames):
            film.seek(frame)
            spans.append(film.info["duration"])
        assert film.size == (64, 64) and sum(spans) == pytest.approx(1000, abs=20)
        return
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    frames = ffmpeg.read_frames(str(path))
    about = next(frames)
    assert about["size"] == (64, 64) and about["fps"] == 10 and about["duration"] == pytest.approx(1, abs=0.05)
    pictures = [np.frombuffer(frame, np.uint8).reshape(64, 64, 3) for frame in frames]
    assert len(pictures) == 10 and np.abs(pictures[0].astype(int) - pictures[-1]).max() > 40  # it moves


def test_films_that_cannot_be_made(walk, tmp_path, monkeypatch):
    for options, message in (({"size": 8}, "64 to 2160 pixels"), ({"fps": 0}, "1 to 120 frames per second")):
        with pytest.raises(VadisError, match=message):
            walk.save(tmp_path / "a.mp4", **options)
    monkeypatch.setattr("vadis.viewer.film.MAX_FRAMES", 20)
    with pytest.raises(VadisError, match=r"at most 20 are drawn. Cut it"):
        walk.save(tmp_path / "a.gif", fps=30)
    assert not list(tmp_path.iterdir())


def test_a_motion_plays_in_a_notebook(walk, monkeypatch):
    import html

    page = walk._repr_html_()
    assert page.startswith('<iframe sandbox="allow-scripts"') and page.endswith("</iframe>")
    inside = html.unescape(page.split('srcdoc="')[1].rsplit('"></iframe>', 1)[0])
    assert inside.lower().startswith("<!doctype html>") and len(page) < 3_000_000
    monkeypatch.setattr("vadis.viewer.notebook.MAX_SECONDS", 1.0)
    assert "The first 1 of" in walk._repr_html_()

    def missing(*_, **__):
        raise MissingExtra("the viewer needs viser: pip install 'vadis[viewer]'")

    monkeypatch.setattr("vadis.viewer.page.write_page", missing)
    assert "pip install &#x27;vadis[viewer]&#x27;" in walk._repr_html_() and "<iframe" not in walk._repr_html_()
