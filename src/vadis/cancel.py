"""Stopping work that nobody waits for any more.

Whoever runs the work says `with cancellable(event):` in the thread that does it; every loop over tokens, latents or pieces calls
`stop_if_cancelled()` once a step, which raises `Cancelled` when the event is set. Without `cancellable` that costs a look-up.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_event: ContextVar[threading.Event | None] = ContextVar("vadis_cancelled", default=None)


class Cancelled(BaseException):
    """Nobody waits for this work. It is no failure of the work, so that `except Exception` lets it pass."""


@contextmanager
def cancellable(event: threading.Event) -> Iterator[None]:
    """Work inside, in this thread, stops at its next step once `event` is set."""
    token = _event.set(event)
    try:
        yield
    finally:
        _event.reset(token)


def stop_if_cancelled() -> None:
    """Raises Cancelled when the work that this thread does is cancelled."""
    event = _event.get()
    if event is not None and event.is_set():
        raise Cancelled
