"""What every request passes before it is read: its number, its key, its origin and its size."""

from __future__ import annotations

import logging
import re
import secrets
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from remamba.serve.errors import ApiError
from remamba.serve.limits import Keys
from remamba.serve.metrics import Metrics

LOG = logging.getLogger("remamba.serve")
OPEN = ("/", "/health", "/ready")
"""Paths that need no key."""
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Gate:
    """An ASGI application before another one.

    Args:
        most_bytes: of a request's body.
        origins: whose pages may ask, besides the server's own.
        names: what the server may be called in a request; None: anything. A page whose name was
            made to mean this machine cannot ask a server that wants no key.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        most_bytes: int,
        origins: tuple[str, ...],
        names: tuple[str, ...] | None,
        metrics: Metrics,
    ):
        self._app, self._keys, self._most_bytes, self._origins = app, keys, most_bytes, origins
        self._names, self._metrics = names, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        number = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        begun, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", number.encode())]
            await send(message)

        read = _Body(receive, self._most_bytes)
        try:
            self._check(scope, headers)
            scope["remamba.client"] = self._client(scope, headers)
            await self._app(scope, read, answer)
        except ApiError as error:
            if status:
                raise
            await error.response()(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - begun
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(seconds)
            LOG.info("%s %s %r %d %.3f s", number, scope["method"], scope["path"], status, seconds)

    def _client(self, scope: Scope, headers: dict[bytes, str]) -> Any:
        address = (scope.get("client") or ("", 0))[0]
        try:
            return self._keys.client(headers.get(b"authorization"), address)
        except ApiError:
            if scope["path"] in OPEN:
                return None
            raise

    def _check(self, scope: Scope, headers: dict[bytes, str]) -> None:
        host = headers.get(b"host", "")
        if self._names is not None and _name_of(host) not in self._names:
            raise ApiError(
                403, f"this server answers for {', '.join(self._names)}, and not for {host!a}; "
                "start it with API keys, or with --no-auth",
            )  # fmt: skip
        origin = headers.get(b"origin")
        is_own = origin is None or _place_of(origin) == host.lower()
        if not is_own and "*" not in self._origins and origin not in self._origins:
            raise ApiError(
                403, f"pages of {origin!a} may not ask this server; start it with "
                "--allow-origin URL to let them",
            )  # fmt: skip
        length = headers.get(b"content-length", "0")
        if length.isdecimal() and int(length) > self._most_bytes:
            raise _too_large(self._most_bytes)


def _name_of(host: str) -> str:
    """The name in a Host header, without the port."""
    return host.lower().rpartition(":")[0] if re.search(r":\d*$", host) else host.lower()


def _place_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


class _Body:
    """The body of a request, piece by piece, as far as it may go."""

    def __init__(self, receive: Receive, most: int):
        self._receive, self._most, self._count = receive, most, 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._count += len(message.get("body", b""))
        if self._count > self._most:
            raise _too_large(self._most)
        return message


def _too_large(most: int) -> ApiError:
    return ApiError(
        413, f"the body has more than {most:,} bytes, the most that this server takes "
        "(--max-body-mb); send less", code="body_too_large",
    )  # fmt: skip
