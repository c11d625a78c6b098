"""A server under load on this machine: `python benchmarks/server.py --clients 10 --seconds 20`.

Starts `vadis serve` as a process of its own, then, all at once: clients that follow a stream in real time and change its text,
clients that read nothing, clients that are killed in the middle, malformed messages, prompts of a megabyte, requests for whole
motions, and idle connections. Then `--requests` short motions one after the other, four at a time, and `--leave` clients that
ask for a long motion and close their connection while it is made. Prints what the following clients got (a message is late when it comes after the moment its
last frame should be shown, counted from the first message), what was refused, how long the worker was still busy for clients that had left, and the
server's memory over time.
`--random` takes random weights of the bundled streaming model's size.

A long run: `--clients 50 --seconds 120 --slow 10 --killed 50 --idle 10000 --requests 2000`.
"""

import argparse
import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from websockets.asyncio.client import connect

from vadis.server.protocol import unpack

TEXTS = ("a person walks forward", "a person turns around", "a person sits down", "a person waves", "a person jumps")


def random_model(folder: Path) -> Path:
    """Random weights of the size that the recipes give the bundled model."""
    import torch
    import yaml

    from vadis.generators import MotionStreamer, MotionStreamerConfig
    from vadis.pipelines.stream import MotionStreamPipeline, StreamConfig
    from vadis.tokenizers import CausalTAE, CausalTAEConfig

    torch.manual_seed(0)
    recipes = Path(__file__).parent.parent / "src/vadis/recipes"
    sizes = [yaml.safe_load((recipes / f"mini-stream-{part}.yaml").read_text())["model"] for part in ("tae", "ar")]
    known = [{k: v for k, v in page.items() if k in asdict(c)} for page, c in zip(sizes, (CausalTAEConfig(), MotionStreamerConfig()), strict=True)]  # fmt: skip
    tokenizer, generator = CausalTAE(CausalTAEConfig(**known[0])), MotionStreamer(MotionStreamerConfig(**known[1]))
    config = StreamConfig(text_encoder="minilm")
    MotionStreamPipeline(tokenizer.eval(), generator.eval(), config=config).save_pretrained(folder)
    return folder


class Load:
    """The clients of one run and what became of them."""

    def __init__(self, url: str, process: int, options: argparse.Namespace) -> None:
        self.url, self.process, self.options = url, process, options
        self.ws = url.replace("http", "ws") + "/stream"
        self.end = time.monotonic() + options.seconds
        self.count: Counter[str] = Counter()
        self.followers: list[dict[str, Any]] = []
        self.memory: list[float] = []

    async def run(self) -> None:
        o = self.options
        jobs = [self.follow(k) for k in range(o.clients)] + [self.read_nothing() for _ in range(o.slow)]
        jobs += [self.killed(k) for k in range(o.killed)]
        jobs += [self.babble(), self.large(), self.whole(), self.watch(), self.idle()]
        await asyncio.gather(*jobs)

    async def follow(self, number: int) -> None:
        await asyncio.sleep(2.0 * number / max(self.options.clients, 1))  # people don't come at the same instant
        late, gaps, ms, messages, first, last = 0, [], [], 0, 0.0, 0.0
        try:
            async with connect(f"{self.ws}?seed={number}&text=walk", compression=None, open_timeout=60) as stream:
                changed = time.monotonic()
                async for message in stream:
                    now = time.monotonic()
                    if now > self.end:
                        break
                    if isinstance(message, str):
                        continue
                    frames = unpack(message)
                    first, messages = first or now - frames.start / frames.fps, messages + 1
                    late += now > first + (frames.start + len(frames.root)) / frames.fps + 0.3
                    if last:
                        gaps.append(now - last)
                    last = now
                    ms.append(frames.ms)
                    if now - changed > 3.0:
                        changed = now
                        await stream.send(json.dumps({"type": "text", "text": TEXTS[(messages + number) % len(TEXTS)]}))
        except Exception as error:
            self.count[f"followers lost: {type(error).__name__} {str(error)[:80]}"] += 1
        self.followers.append({"messages": messages, "late": late, "gap": max(gaps, default=0.0), "ms": ms})

    async def read_nothing(self) -> None:
        sock = await self._raw("pace=fast&format=json&text=walk", 4096)
        await asyncio.sleep(max(0.0, self.end - time.monotonic()))
        sock.close()

    async def killed(self, number: int) -> None:
        await asyncio.sleep(self.options.seconds * number / max(self.options.killed, 1))
        sock = await self._raw("pace=fast&text=walk", 65536)
        await asyncio.sleep(1.0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
        self.count["killed"] += 1

    async def _raw(self, query: str, buffer: int) -> socket.socket:
        """A WebSocket that nobody reads."""
        loop, sock = asyncio.get_running_loop(), socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        host, port = self.url.removeprefix("http://").split(":")
        await loop.sock_connect(sock, (host, int(port)))
        head = f"GET /stream?{query} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        await loop.sock_sendall(sock, (head + key).encode())
        return sock

    async def babble(self) -> None:
        """Messages that can't be understood, until the server has had enough."""
        while time.monotonic() < self.end:
            try:
                async with connect(self.ws, compression=None, open_timeout=60) as stream:
                    for k in range(40):
                        await stream.send(os.urandom(50) if k % 2 else '{"type": "dance"}')
                    async for _ in stream:
                        pass
                self.count["babblers let go"] += 1
            except Exception as error:
                closed = getattr(getattr(error, "rcvd", None), "code", type(error).__name__)
                self.count[f"babblers closed: {closed}"] += 1
            await asyncio.sleep(1.0)

    async def large(self) -> None:
        """Prompts of a megabyte, by both doors."""
        body = {"prompt": "walk " * 200_000}
        async with httpx.AsyncClient(timeout=60) as client:
            while time.monotonic() < self.end:
                self.count[f"large prompts {await self.post(client, body)}"] += 1
                try:
                    async with connect(self.ws, compression=None, open_timeout=60) as stream:
                        await stream.send(json.dumps({"type": "text", "text": body["prompt"]}))
                        async for _ in stream:
                            pass
                except Exception as error:
                    closed = getattr(getattr(error, "rcvd", None), "code", type(error).__name__)
                    self.count[f"large messages closed: {closed}"] += 1
                await asyncio.sleep(1.0)

    async def whole(self) -> None:
        async with httpx.AsyncClient(timeout=120) as client:
            while time.monotonic() < self.end:
                self.count[f"motions {await self.post(client, {'prompt': 'walk', 'seconds': 2.0})}"] += 1
                await asyncio.sleep(5.0)

    async def post(self, client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        try:
            return f"answered {(await client.post(f'{self.url}/generate', json=body)).status_code}"
        except httpx.TransportError as error:
            return f"failed with {type(error).__name__}"

    async def idle(self) -> None:
        """Connections that ask for nothing; one answered with 503 has been refused politely."""
        await asyncio.sleep(0.3 * self.options.seconds)

        async def one(start: float) -> None:
            await asyncio.sleep(start)
            try:
                reader, writer = await asyncio.open_connection(*self.url.removeprefix("http://").split(":"))
            except OSError as error:
                self.count[f"idle connections not accepted: {error.strerror}"] += 1
                return
            try:
                async with asyncio.timeout(max(1.0, self.end - time.monotonic())):
                    answer = await reader.read(1000)
                kind = "refused with 503" if b" 503 " in answer else "closed" if not answer else "answered"
            except TimeoutError:
                kind = "kept"
            except ConnectionError:
                kind = "reset"
            self.count[f"idle connections {kind}"] += 1
            writer.close()

        await asyncio.gather(
            *(one(0.3 * self.options.seconds * k / self.options.idle) for k in range(self.options.idle))
        )

    async def watch(self) -> None:
        """The server's memory once a second, until everyone has left."""
        while time.monotonic() < self.end:
            self.memory.append(resident(self.process))
            await asyncio.sleep(1.0)


async def request(url: str, process: int, count: int) -> tuple[Counter[str], list[float]]:
    """Statuses of `count` short motions, and the server's memory at ten moments on the way."""
    statuses: Counter[str] = Counter()
    memory = [resident(process)]

    async def some(client: httpx.AsyncClient, numbers: range) -> None:
        for number in numbers:
            order = {"prompt": TEXTS[number % len(TEXTS)], "seconds": 0.2 + 0.1 * (number % 8), "seed": number}
            statuses[str((await client.post(f"{url}/generate", json=order)).status_code)] += 1
            if sum(statuses.values()) % max(count // 10, 1) == 0:
                memory.append(resident(process))

    async with httpx.AsyncClient(timeout=120) as client:
        await asyncio.gather(*(some(client, range(k, count, 4)) for k in range(4)))
    return statuses, memory


def leave(url: str, count: int) -> list[float]:
    """Seconds from the moment that a client leaves in the middle of its motion until the server works for nobody."""
    address, found = url.removeprefix("http://").split(":"), []
    body = json.dumps({"prompt": TEXTS[0], "seconds": 60.0}).encode()
    head = f"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with httpx.Client(timeout=60) as client:
        for number in range(count):
            with socket.create_connection((address[0], int(address[1]))) as sock:
                sock.sendall(head.encode() + body)
                time.sleep(0.2 + 0.17 * (number % 10))
            left = time.perf_counter()
            while client.get(f"{url}/health").json()["requests"]:
                time.sleep(0.002)
            found.append(time.perf_counter() - left)
    return found


def allow_sockets(wanted: int) -> None:
    """Let this process open so many. Raises SystemExit where the system doesn't."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise SystemExit(f"{wanted} sockets are needed and {hard} allowed: raise `ulimit -Hn`, or take fewer --idle.")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def resident(process: int) -> float:
    """Megabytes."""
    with open(f"/proc/{process}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def follow_up(url: str) -> dict[str, Any]:
    """What the server says of itself once it is left alone."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        page = httpx.get(f"{url}/health", timeout=30).json()
        if page["streams"] == 0 and page["requests"] == 0:
            break
        time.sleep(0.5)
    lines = httpx.get(f"{url}/metrics", timeout=30).text.splitlines()
    kept = ("vadis_refused", "vadis_streams_closed", "vadis_latents", "vadis_late_", "vadis_latent_seconds_sum",
            "vadis_latent_seconds_count")  # fmt: skip
    return {"health": page, "metrics": [line for line in lines if line.startswith(kept)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vadis-mini-stream")
    parser.add_argument("--random", action="store_true", help="random weights of the bundled model's size")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--slow", type=int, default=2, help="clients that read nothing")
    parser.add_argument("--killed", type=int, default=5, help="clients that are killed after a second")
    parser.add_argument("--idle", type=int, default=1000, help="connections that ask for nothing")
    parser.add_argument("--requests", type=int, default=0, help="short motions, four at a time, after the others")
    parser.add_argument("--leave", type=int, default=0, help="clients that leave while their motion is made")
    parser.add_argument("--max-connections", type=int, default=256)
    options = parser.parse_args()
    allow_sockets(options.idle + options.clients + options.slow + options.killed + 200)
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(Path(folder) / "model") if options.random else options.model
        room = str(options.clients + options.slow + options.killed + 4)
        words = [sys.executable, "-m", "vadis", "serve", "--model", f"model={model}", "--port", "0", "--max-streams", room,
                 "--max-streams-per-client", room, "--max-connections", str(options.max_connections)]  # fmt: skip
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            while True:
                try:
                    httpx.post(f"{url}/generate", json={"prompt": "walk", "seconds": 1.0}, timeout=60)
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            before = resident(process.pid)
            load = Load(url, process.pid, options)
            try:
                asyncio.run(load.run())
                page = follow_up(url)
                after = resident(process.pid)
                statuses, memory = asyncio.run(request(url, process.pid, options.requests))
                freed = leave(url, options.leave)
                stopping = time.monotonic()
                process.send_signal(signal.SIGTERM)
                process.wait(60)
                stopped = time.monotonic() - stopping
            finally:
                process.kill()
    report(load, page, before, after, stopped)
    if options.requests:
        print(f"{options.requests} motions: {dict(statuses)}; memory {', '.join(f'{m:.0f}' for m in memory)} MB")
    if freed:
        print(
            f"workers of {len(freed)} who left: free after {1000 * np.median(freed):.0f} ms, {1000 * max(freed):.0f} at most"
        )


def report(load: Load, page: dict[str, Any], before: float, after: float, stopped: float) -> None:
    messages = [f["messages"] for f in load.followers]
    ms = np.concatenate([f["ms"] for f in load.followers if f["ms"]] or [np.zeros(1)])
    late = sum(f["late"] for f in load.followers)
    print(
        f"followers: {len(messages)}; messages each {min(messages)} … {max(messages)}, late {late} of {sum(messages)}"
    )
    print(f"longest gap {1000 * max(f['gap'] for f in load.followers):.0f} ms")
    print(f"one step of the batch: p50 {np.percentile(ms, 50):.0f} ms, p95 {np.percentile(ms, 95):.0f} ms")
    for name, count in sorted(load.count.items()):
        print(f"{name}: {count}")
    middle = load.memory[len(load.memory) // 4 :] or [before]
    print(f"memory: {before:.0f} MB before, {middle[0]:.0f} … {max(middle):.0f} MB under load, {after:.0f} MB after")
    print(f"stopped in {stopped:.1f} s; {json.dumps(page['health'])}")
    print("\n".join(page["metrics"]))


if __name__ == "__main__":
    main()
