"""`vadis stream`, `vadis live`, `vadis benchmark stream`, `vadis serve` and the player behind them, on a small random model."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vadis
from vadis.cli import main
from vadis.errors import VadisError
from vadis.generators import MotionStreamer, MotionStreamerConfig
from vadis.pipelines.player import Player, join
from vadis.pipelines.stream import MotionStreamPipeline, StreamConfig
from vadis.representations import representation
from vadis.server import protocol
from vadis.tokenizers import CausalTAE, CausalTAEConfig

pytest.importorskip("transformers", reason="needs the text extra")


@pytest.fixture(scope="module")
def folder(walk, tmp_path_factory) -> Path:
    """A saved streaming model whose texts MiniLM reads."""
    torch.manual_seed(0)
    tokenizer = CausalTAE(CausalTAEConfig(width=16, latent_dim=4)).eval()
    features = representation("ms272").encode(walk)
    tokenizer.set_statistics(features.mean(0), features.std(0).clamp_min(0.01))
    sizes = dict(
        n_layer=1, n_head=2, n_embd=16, block_size=14, text_dim=384, latent_dim=4, head_layers=1, head_width=16
    )
    generator = MotionStreamer(MotionStreamerConfig(**sizes)).eval()
    for name, parameter in generator.named_parameters():
        if "adaLN" in name or "final_layer" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("models") / "tiny"
    config = StreamConfig(steps=4, min_latents=2, text_encoder="minilm")
    MotionStreamPipeline(tokenizer, generator, config=config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipe(folder: Path) -> MotionStreamPipeline:
    return vadis.load(folder)


def run(*words: Any) -> int:
    return main([str(word) for word in words])


def eventually(test: Any, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not test():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


# ---- the player


def test_a_player_plays_the_stream(pipe: MotionStreamPipeline) -> None:
    pieces: list[Any] = []
    player = Player(pipe.live(seed=3), pieces.append, realtime=False, limit=40)
    player.record(True)
    assert player.now() is None
    player.push("walk")
    assert player.start().wait(60)
    expected = [p for p, _ in zip(pipe.live("walk", seed=3), range(10), strict=False)]
    assert [p.start for p in pieces] == list(range(0, 40, 4))
    whole = player.record(False)
    torch.testing.assert_close(whole.root, join([e.motion for e in expected]).root)
    assert whole.num_frames == 40 and len(player.latents) == 10 and len(player.answers) == 1
    assert player.record(True) is None and player.record(False) is None
    piece, frame = player.now()
    assert 0 <= frame < 4 and piece.start in range(0, 40, 4)


def test_a_player_keeps_time_and_pauses(pipe: MotionStreamPipeline) -> None:
    pieces: list[Any] = []
    player = Player(pipe.live(seed=3), pieces.append, lead=0.2)
    started = time.perf_counter()
    player.push("walk")
    player.start()
    assert eventually(lambda: len(pieces) >= 6)
    made = pieces[-1].start  # in real time no frame is made earlier than its lead before it is due
    assert made <= (time.perf_counter() - started + 0.2) * 30
    player.pause()
    time.sleep(0.3)
    count = len(pieces)
    time.sleep(0.3)
    assert len(pieces) == count
    player.pause(False)
    assert eventually(lambda: len(pieces) > count)
    assert [p.start for p in pieces] == list(range(0, 4 * len(pieces), 4))
    with pytest.raises(VadisError, match="empty"):
        player.push(" ")
    player.stop()
    player.stop()
    assert player.wait()


def test_a_player_says_what_stopped_it(pipe: MotionStreamPipeline, monkeypatch) -> None:
    stream = pipe.live("walk", seed=3)

    def fail() -> Any:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(stream, "next_frames", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        Player(stream).start().wait(60)


# ---- vadis stream


def stream(folder: Path, typed: str, *words: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vadis", "stream", "--model", str(folder), *map(str, words)]
    return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=300)


def test_prompts_at_fixed_times_go_to_files(folder: Path, tmp_path: Path) -> None:
    out, frames = tmp_path / "out.npz", tmp_path / "out.vds"
    done = stream(folder, "", "walk", "sit", "--every", 2, "--seconds", 4, "--fast", "-o", out, "-o", frames)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(out), str(frames)]
    assert "0.00 s  walk" in done.stderr and "2.00 s  sit" in done.stderr
    motion, data = vadis.load_motion(out), frames.read_bytes()
    assert motion.num_frames == 120
    size = protocol.HEADER.size + 4 * 4 * 91
    pieces = [protocol.unpack(data[i : i + size]) for i in range(0, len(data), size)]
    assert [p.start for p in pieces] == list(range(0, 120, 4))
    assert [p.text for p in pieces] == [1] * 15 + [2] * 15
    np.testing.assert_allclose(np.concatenate([p.root for p in pieces]), motion.root.numpy(), atol=1e-5)
    live = vadis.load(folder).live("walk", seed=0)
    expected = [live.next_frames() for _ in range(15)]
    live.push_text("sit")
    expected += [live.next_frames() for _ in range(15)]
    torch.testing.assert_close(motion.root, join([e.motion for e in expected]).root, atol=1e-5, rtol=0)


def test_typed_sentences_move_the_body(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "typed.bvh"
    command = [sys.executable, "-m", "vadis", "stream", "--model", str(folder), "-o", str(out)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as p:
        assert p.stdin is not None and p.stdout is not None and p.stderr is not None
        p.stdin.write("a person walks\n")
        p.stdin.flush()
        assert any("a person walks" in line for line in p.stderr)
        p.stdin.write("/what\n\n+\n/pause\n/resume\na person jumps\n")
        p.stdin.flush()
        seen = ""
        for line in p.stderr:
            seen += line
            if "a person jumps" in line:
                break
        assert "/pause /resume /quit" in seen and "the prompt is empty" in seen
        p.stdin.write("/quit\n")
        p.stdin.flush()
        assert p.wait(timeout=120) == 0
        assert p.stdout.read().strip() == str(out)
    assert vadis.load_motion(out).num_frames >= 8


def test_wrong_uses_are_said(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    import io

    for words, text in (
        (("--fast",), "never end"),
        (("--fast", "--seconds", 2, "--view"), "leave out --fast"),
        (("--seconds", 0), "--seconds must be"),
        (("-o", "walk.exe"), "suffix"),
        (("--model", folder / "tokenizer"), "one part of a model"),
        (("--model", "vadis-mini"), "use one that can, such as vadis-mini-stream"),
    ):
        assert run("stream", *words) == 2
        assert text in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert run("stream", "--model", folder, "--seconds", 1) == 2
    assert "no text was given" in capsys.readouterr().err


# ---- vadis benchmark stream


def test_the_benchmark_counts_what_it_says(folder: Path, capsys) -> None:
    threads = torch.get_num_threads()
    try:
        assert run("benchmark", "stream", "--model", folder, "--texts", 2, "--latents", 3, "--json") == 0
    finally:
        torch.set_num_threads(threads)
    page = json.loads(capsys.readouterr().out)
    assert page["latent_ms"]["count"] == 6 and page["answer_ms"]["count"] == 2
    assert page["latent_of_motion_ms"] == pytest.approx(133.33, abs=0.01)
    assert 0 < page["latent_ms"]["p50"] <= page["latent_ms"]["p95"] <= page["latent_ms"]["max"]
    assert page["answer_ms"]["max"] > page["latent_ms"]["p50"]


# ---- vadis live


def test_the_live_page(pipe: MotionStreamPipeline, tmp_path: Path) -> None:
    pytest.importorskip("viser", reason="needs the viewer extra")
    from vadis.viewer.live_stream import LiveApp

    player = Player(pipe.live(seed=1)).start()
    app = LiveApp(player, port=0)
    try:
        with app:
            with urllib.request.urlopen(app.url, timeout=20) as answer:
                assert answer.status == 200 and b"<html" in answer.read(5000).lower()
            app.push("  ")
            assert eventually(lambda: "empty" in app.readout.content)
            with pytest.raises(VadisError, match="nothing was recorded"):
                app.file("bvh")
            app.record()
            app.push("a person walks")
            assert eventually(lambda: player.stream.frames >= 80)
            assert eventually(lambda: "from text to frames" in app.readout.content)
            assert eventually(lambda: "recording" in app.readout.content)
            app.record()
            assert not app.bvh.disabled and app.recorder.label == "Record"
            path = tmp_path / "recording.bvh"
            path.write_bytes(app.file("bvh"))
            assert vadis.load_motion(path).num_frames == app.recorded.num_frames >= 8
            app.pause()
            assert player.stream.paused and app.hold.label == "Go on"

            def bones() -> np.ndarray:
                return np.array([bone.position for bone in app.body.bones])

            def as_the_player_says() -> bool:  # in a moment: a latent may be on its way, a picture half drawn
                piece, frame = player.now()
                expected, shown = piece.motion.positions[frame].numpy(), bones()
                return np.allclose(shown - shown[0], expected - expected[0], atol=1e-5)

            assert eventually(as_the_player_says)
            shown = bones()
            assert abs(shown[0, 0]) < 1e-6 and abs(shown[0, 2]) < 1e-6  # the floor moves instead
            app.pause()
            assert not player.stream.paused
    finally:
        player.stop()


# ---- vadis serve


def test_serve_until_terminated(folder: Path) -> None:
    pytest.importorskip("fastapi", reason="needs the server extra")
    httpx = pytest.importorskip("httpx", reason="needs httpx")
    client = pytest.importorskip("websockets.sync.client", reason="needs the server extra")
    command = [sys.executable, "-m", "vadis", "serve", "--model", f"tiny={folder}", "--port", "0"]
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    environment = os.environ | {"VADIS_TOKEN": "secret"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=listen, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:")
            assert eventually(lambda: _up(httpx, url))
            assert httpx.get(f"{url}/models").status_code == 401
            bearer = {"authorization": "Bearer secret"}
            body = {"prompt": "a person walks", "seconds": 1.0, "seed": 0, "format": "bvh"}
            answer = httpx.post(f"{url}/generate", json=body, headers=bearer, timeout=60)
            assert answer.status_code == 200 and answer.text.startswith("HIERARCHY")
            address = url.replace("http", "ws") + "/stream?token=secret&text=walk"
            with client.connect(address, compression=None, open_timeout=30) as socket:
                messages = [socket.recv(30) for _ in range(3)]
                assert isinstance(messages[2], bytes) and protocol.unpack(messages[2]).start == 0
                process.send_signal(signal.SIGINT)
                assert process.wait(timeout=60) in (0, 130, -signal.SIGINT)
        finally:
            process.kill()


def _up(httpx: Any, url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_serve_checks_its_flags(folder: Path, capsys) -> None:
    for words, text in (
        (("--port", 70000), "--port must be"),
        (("--max-streams", 0), "--max-streams must be"),
        (("--model", "no-such-model"), "no model"),
        (("--model", f"a={folder}", "--model", f"a={folder}"), "two models"),
        (("--model", folder / "tokenizer"), "one part of a model"),
    ):
        assert run("serve", *words) == 2
        assert text in capsys.readouterr().err
