"""One WebSocket on `/stream`: what the client says goes to the engine, what the engine makes goes to the client."""

import asyncio
import contextlib
import json
import logging
import time
from typing import Any, Literal

from starlette.websockets import WebSocket, WebSocketDisconnect

from vadis.errors import VadisError
from vadis.server.limits import ServerSettings, Throttle, error_page
from vadis.server.metrics import Metrics
from vadis.server.protocol import (
    CLOSE_ERROR,
    CLOSE_IDLE,
    CLOSE_PROTOCOL,
    CLOSE_SLOW,
    HEADER,
    VERSION,
    Frames,
    Pause,
    Resume,
    SetText,
    Stop,
    as_json,
    pack,
    read_message,
    skeleton_page,
)
from vadis.server.streams import LiveStream, Pace, StreamEngine
from vadis.skeleton import smpl22

log = logging.getLogger("vadis.server")
MAX_MALFORMED = 20
"""Messages of one stream that can't be understood before it is closed."""
End = tuple[int, str]
"""Close code and reason; 0 when the connection is gone already."""


class Session:
    """A stream and its socket, until either ends."""

    def __init__(
        self,
        socket: WebSocket,
        engine: StreamEngine,
        encode: Any,
        settings: ServerSettings,
        metrics: Metrics,
        form: Literal["binary", "json"],
    ) -> None:
        """`encode`: coroutine function from a text to its vector."""
        self.socket, self.engine, self.encode, self.form = socket, engine, encode, form
        self.settings, self.metrics = settings, metrics
        self.deliveries: asyncio.Queue[Frames | VadisError] = asyncio.Queue()
        self.texts = 0
        self.live: LiveStream

    async def run(self, model: str, seed: int | None, pace: Pace, text: str | None) -> None:
        """Serve until the client leaves, the model fails or a limit is met."""
        loop = asyncio.get_running_loop()
        self.metrics.add("vadis_streams_opened_total")
        self.live = self.engine.open(
            lambda item: loop.call_soon_threadsafe(self.deliveries.put_nowait, item), seed, pace
        )
        tasks: list[asyncio.Task[End]] = []
        code, reason = 0, "gone"
        try:
            await self.socket.accept()
            await self._say(self._ready(model, pace))
            if text is not None:
                await self._text(SetText(type="text", text=text))
            tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            code, reason = next(iter(done)).result()
        except WebSocketDisconnect:
            pass
        except VadisError as error:  # the first text could not be read
            code, reason = await self._apologise(str(error))
        except Exception as error:  # the text encoder failed; other streams have nothing to do with it
            log.exception("a stream failed and was closed")
            code, reason = await self._apologise(f"this stream failed ({type(error).__name__}): open a new one.")
        finally:
            self.live.close()
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)
            self.metrics.add("vadis_streams_closed_total", reason=str(code or "gone"))
        if code:
            await self._close(code, reason)

    def _ready(self, model: str, pace: Pace) -> dict[str, Any]:
        tokenizer = self.engine.pipeline.tokenizer
        return {
            "type": "ready",
            "version": VERSION,
            "model": model,
            "format": self.form,
            "pace": pace,
            "fps": float(tokenizer.fps),
            "frames_per_message": tokenizer.frames_per_token,
            "header_bytes": HEADER.size,
            "lead_seconds": self.engine.lead,
            **skeleton_page(smpl22()),
        }

    async def _write(self) -> End:
        """Send what the engine delivers."""
        while True:
            item = await self.deliveries.get()
            if isinstance(item, VadisError):
                return await self._apologise(str(item))
            try:
                async with asyncio.timeout(self.settings.slow_seconds):
                    if self.form == "binary":
                        await self.socket.send_bytes(pack(item))
                    else:
                        await self._say(as_json(item))
            except TimeoutError:
                return CLOSE_SLOW, "nothing was read for too long"
            except WebSocketDisconnect:
                return 0, "gone"
            self.live.taken()

    async def _read(self) -> End:
        """Do what the client says."""
        throttle, malformed = Throttle(self.settings.messages_per_second), 0
        while True:
            try:
                message = await self._receive()
                if message is None:
                    return CLOSE_IDLE, "idle for too long"
                await throttle.wait()
                match read_message(message):
                    case SetText() as order:
                        await self._text(order)
                    case Pause():
                        self.live.pause()
                    case Resume():
                        self.live.pause(False)
                    case Stop():
                        return 1000, "as asked for"
            except WebSocketDisconnect:
                return 0, "gone"
            except VadisError as error:
                malformed += 1
                self.metrics.add("vadis_refused_total", reason="message")
                if malformed > MAX_MALFORMED:
                    return CLOSE_PROTOCOL, "too many messages that can't be understood"
                try:
                    await self._say({"type": "error", **error_page("message", str(error))})
                except WebSocketDisconnect:
                    return 0, "gone"

    async def _receive(self) -> str | None:
        """The next message; None when the stream has been without motion and messages for too long."""
        while True:
            try:
                async with asyncio.timeout(self.settings.idle_seconds):
                    message = await self.socket.receive()
            except TimeoutError:
                if self.live.text and not self.live.paused:
                    continue
                return None
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            if message.get("text") is None:
                raise VadisError("binary messages are not understood: send JSON as text.")
            return message["text"]

    async def _text(self, order: SetText) -> None:
        started = time.perf_counter()
        vector = await self.encode(order.text)
        self.texts += 1
        self.metrics.observe("vadis_text_seconds", time.perf_counter() - started)
        self.metrics.add("vadis_texts_total")
        await self._say({"type": "text", "number": self.texts, "text": order.text})
        self.live.push(self.texts, vector, order.queue)

    async def _apologise(self, message: str) -> End:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):  # gone already, or stuck
            async with asyncio.timeout(1.0):
                await self._say({"type": "error", **error_page("model", message)})
        return CLOSE_ERROR, "the model failed"

    async def _say(self, page: dict[str, Any]) -> None:
        await self.socket.send_text(json.dumps(page, ensure_ascii=False, separators=(",", ":")))

    async def _close(self, code: int, reason: str) -> None:
        """Close politely; a reader that is stuck is cut off."""
        abort = self.socket.scope.get("state", {}).get("abort")
        try:
            async with asyncio.timeout(1.0):
                await self.socket.close(code, reason)
        except (TimeoutError, RuntimeError, WebSocketDisconnect):  # full buffers, or closed from the other side
            if abort is not None:
                abort()
            return
        if abort is not None:
            asyncio.get_running_loop().call_later(5.0, abort)  # when the farewell is never read
