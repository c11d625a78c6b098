"""The server and the live page in a headless Chromium, driven by Playwright; skipped where either is missing."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from stream_models import small_pipe

import vadis
from vadis.access import Access
from vadis.pipelines.player import Player
from vadis.pipelines.stream import MotionStreamPipeline

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


@pytest.fixture(scope="module")
def pipe(walk) -> MotionStreamPipeline:
    return small_pipe(walk)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def eventually(page: Any, test: Any, seconds: float = 90.0) -> bool:
    end = time.monotonic() + seconds
    while not test():
        if time.monotonic() > end:
            return False
        page.wait_for_timeout(50)
    return True


@contextmanager
def served_page(text: str) -> Iterator[str]:
    """The address of a page at another port of this machine."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", ["random weights", "vadis-mini-stream"])
def test_the_live_page_does_what_is_typed_and_gives_recordings(name: str, pipe, browser, tmp_path: Path) -> None:
    pytest.importorskip("viser", reason="needs the viewer extra")
    pytest.importorskip("pygltflib", reason="needs the export extra")
    from vadis.viewer.live_stream import LiveApp

    pipe = vadis.load(name) if name == "vadis-mini-stream" else pipe
    player = Player(pipe.live(seed=1)).start()
    page = browser.new_page(viewport={"width": 800, "height": 520})
    page.set_default_timeout(90_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        with LiveApp(player, port=0, access=Access(token="secret")) as app:
            page.goto(app.url)
            page.wait_for_url("**/")  # the token has left the address bar
            page.get_by_role("button", name="Do it").wait_for()
            box = page.locator("form input").first
            box.fill("a person walks")
            page.get_by_role("button", name="Record").click()
            box.press("Enter")
            assert eventually(page, lambda: player.stream.text == "a person walks")
            box.fill("a person waves")
            page.get_by_role("button", name="Do it").click()
            assert eventually(page, lambda: player.stream.text == "a person waves")
            for words in ("from text to frames: ", "a latent (133 ms of motion): "):
                assert eventually(page, lambda words=words: page.get_by_text(words).count() == 1)
            page.get_by_role("button", name="Stop recording").click()
            player.pause()
            assert eventually(page, lambda: not app.bvh.disabled)
            for suffix in ("bvh", "glb"):
                with page.expect_download() as download:
                    page.get_by_role("button", name=f"Download {suffix.upper()}").click()
                download.value.save_as(tmp_path / f"recording.{suffix}")
                assert vadis.load_motion(tmp_path / f"recording.{suffix}").num_frames == app.recorded.num_frames > 8
            assert errors == []
    finally:
        page.close()
        player.stop()


def test_the_viewer_opens_with_its_token_and_no_stranger_steers_it(walk, browser) -> None:
    """A stranger's page, itself on this machine, can neither connect to the viewer nor frame it, nor lead it elsewhere."""
    pytest.importorskip("viser", reason="needs the viewer extra")
    from vadis.viewer.live import view

    with served_page("<title>stranger</title>") as stranger, view(walk, port=0, open_browser=False, block=False,
                                                                  access=Access(token="secret")) as viewer:  # fmt: skip
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(90_000)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if "Content Security" in message.text else None)
        page.goto(viewer.url)
        page.get_by_role("button", name="Pause").click()
        assert eventually(page, lambda: not viewer.playing) and errors == []
        clients = viewer.server.get_clients
        assert eventually(page, lambda: len(clients()) == 1)
        page.reload()  # by its cookie alone
        page.get_by_role("button", name="Play").wait_for()
        bare = viewer.url.partition("?")[0]
        page.goto(stranger)
        opened = page.evaluate("""([url, protocol]) => new Promise(done => {
            const socket = new WebSocket(url.replace("http", "ws"), [protocol]);
            socket.onopen = () => done("open"); socket.onerror = () => done("refused"); })""", [bare, f"viser-v{version('viser')}"])  # fmt: skip
        assert opened == "refused"
        page.set_content(f'<iframe src="{bare}" onload="this.title = 1"></iframe>')
        page.locator("iframe[title='1']").wait_for()
        assert all(bare not in frame.url for frame in page.frames)
        page.goto(f"{bare}?websocket={stranger.replace('http', 'ws')}")
        page.get_by_role("button", name="Play").wait_for()
        assert page.url == bare
        context.close()


def test_the_page_of_the_server_needs_nobody_else(pipe, browser, tmp_path: Path) -> None:
    """/docs: the operations, a request, a file, a stream; no request leaves the server, no policy is violated."""
    pytest.importorskip("fastapi", reason="needs the server extra")
    from servers import serving

    page = browser.new_page(viewport={"width": 900, "height": 1100})
    page.set_default_timeout(90_000)
    hosts: set[str] = set()
    complaints: list[str] = []
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    with serving({"tiny": pipe}, token="secret") as served:
        try:
            answer = page.goto(f"{served.http}/docs")
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            page.get_by_text("This server asks for its token.").wait_for()
            page.get_by_label("Token").fill("wrong")
            page.get_by_label("Token").press("Enter")
            page.get_by_text("This is not the token.").wait_for()
            assert complaints and all("401" in complaint for complaint in complaints)  # Chromium notes it
            complaints.clear()
            page.get_by_label("Token").fill("secret")
            page.get_by_label("Token").press("Enter")
            page.locator("h2", has_text="POST /generate").wait_for()
            assert page.locator("section h2").all_text_contents() == [
                "GET /models", "GET /health", "GET /metrics", "POST /generate", "WS /stream",
            ]  # fmt: skip
            models = page.locator("section").nth(0)
            models.get_by_role("button", name="Send").click()
            models.get_by_text('"name": "tiny"').wait_for()
            generate = page.locator("section").nth(3)
            body = generate.get_by_role("textbox")
            assert body.input_value() == '{\n "prompt": "a person walks in a circle"\n}'
            body.fill('{"prompt": "walk", "seconds": 1, "format": "bvh"}')
            generate.get_by_role("button", name="Send").click()
            with page.expect_download() as download:
                generate.get_by_text("Save motion.bvh").click()
            download.value.save_as(tmp_path / "motion.bvh")
            assert vadis.load_motion(tmp_path / "motion.bvh").num_frames == 30
            page.get_by_role("button", name="Say it").click()
            page.get_by_text("text 1 · ").wait_for()
            page.get_by_role("button", name="Say it").click()
            page.get_by_text("text 2 · ").wait_for()
            page.get_by_role("button", name="Stop").click()
            page.get_by_text("closed with 1000").wait_for()
            assert hosts - {""} == {f"127.0.0.1:{served.port}"} and complaints == []
        finally:
            page.close()


def test_the_documented_javascript_reads_the_stream(pipe, browser) -> None:
    pytest.importorskip("fastapi", reason="needs the server extra")
    from servers import free_port

    from vadis.server.run import make_server

    port = free_port()
    server = make_server({"tiny": pipe}, port=port)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    page = browser.new_page()
    text = (Path(__file__).parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
    script = text.split("```js")[1].partition("```")[0].replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    try:
        assert eventually(page, lambda: server.started)
        page.goto(f"http://127.0.0.1:{port}/health")
        page.add_script_tag(content=f"const seen = []; const show = (...frame) => seen.push(frame);\n{script}")
        assert eventually(page, lambda: page.evaluate("seen.length") >= 20)
        rows = page.evaluate("seen.slice(0, 20).map(([t, p, r]) => [t, p, r.map(q => Array.from(q))])")
    finally:
        page.close()
        server.should_exit = True
        thread.join(60)
    assert [row[0] for row in rows] == pytest.approx([k / 30 for k in range(20)], abs=1e-6)
    lengths = torch.tensor([row[2] for row in rows]).norm(dim=-1)
    assert lengths.shape == (20, 22)
    torch.testing.assert_close(lengths, torch.ones(20, 22), atol=1e-5, rtol=0)
