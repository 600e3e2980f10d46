"""The server's process: it listens, and ends in good order."""

from __future__ import annotations

import asyncio
import socket
import time
from types import FrameType

import uvicorn

from remamba.errors import InputError
from remamba.serve.app import create_app
from remamba.serve.host import Host
from remamba.serve.settings import ServeSettings

FAREWELL = 1
"""Seconds for connections to take in what has been written to them, before they are closed."""


class Server(uvicorn.Server):
    """uvicorn's, which goes on answering what is under way after a first SIGTERM or SIGINT."""

    def __init__(self, config: uvicorn.Config, host: Host):
        super().__init__(config)
        self._host = host
        self._draining: asyncio.Future[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal: nothing new is taken. The second one ends all at once."""
        if self._host.admission.is_draining:
            self.should_exit = self.force_exit = True
            return
        self._host.admission.is_draining = True
        self._ends = time.monotonic() + self._host.settings.grace

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether it is time to end."""
        if self._host.admission.is_draining and not self.should_exit:
            self._host.uploads.stop()
            is_over = time.monotonic() >= self._ends
            if is_over or not self._host.admission.answers:
                # who still waits is told so, as the loop ends
                await asyncio.to_thread(self._host.loop.close)
                self.should_exit = True
        return await super().on_tick(counter)


def listen(settings: ServeSettings) -> socket.socket:
    """The socket to listen at: before a model is loaded, so that a port in use is told at once.

    Raises:
        InputError: the address or port cannot be used.
    """
    listening = None
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, number, _, address = found[0]
        listening = socket.socket(family, kind, number)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        return listening
    except (OSError, UnicodeError) as error:
        if listening is not None:
            listening.close()
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--host {settings.host} --port {settings.port} cannot be listened at ({reason}); give "
            "another port, or 0 for a free one"
        ) from error


def serve(host: Host, listening: socket.socket) -> None:
    """Answer requests until SIGTERM or SIGINT, and then what is under way."""
    config = uvicorn.Config(
        create_app(host),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=FAREWELL,
    )
    try:
        Server(config, host).run(sockets=[listening])
    finally:
        host.close()


def address_of(listening: socket.socket) -> str:
    """The URL of a socket that listens."""
    name, port = listening.getsockname()[:2]
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
