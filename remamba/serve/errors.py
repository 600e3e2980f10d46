"""Errors as OpenAI's clients read them: a status, and a message with the value and the mend."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from remamba.engine.stream import Busy, Closed, TimedOut
from remamba.errors import InputError
from remamba.fields import shown

LOG = logging.getLogger("remamba.serve")
TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "not_found_error", 405: "invalid_request_error", 408: "timeout_error",
    413: "invalid_request_error", 429: "rate_limit_error", 500: "server_error",
    503: "service_unavailable_error", 507: "server_error",
}  # fmt: skip
RETRY_SECONDS = 1
"""When to ask again, told to who asks too much at once."""


class ApiError(HTTPException):
    """What ends a request, with the HTTP status that tells it."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str = ""):
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code or None

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error")
        # a message may quote what a client sent, halves of surrogate pairs among it
        message = self.message.encode("utf-8", "backslashreplace").decode()
        param = self.param and self.param.encode("utf-8", "backslashreplace").decode()
        return {"error": {"message": message, "type": kind, "param": param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status in (429, 503):
            headers["Retry-After"] = str(RETRY_SECONDS)
        return JSONResponse(self.body, self.status, headers)


def refused(message: str, param: str | None = None, code: str = "") -> ApiError:
    """The error of a request that cannot be used."""
    return ApiError(400, message, param=param, code=code)


def as_api_error(error: BaseException) -> ApiError:
    """Any error as a client is told it: nothing of the server's inside."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InputError):
        return refused(" ".join(str(error).split()))
    if isinstance(error, Busy):
        return ApiError(429, str(error), code="queue_full")
    if isinstance(error, Closed):
        return ApiError(503, "the server is shutting down; ask again later", code="shutting_down")
    if isinstance(error, TimedOut | TimeoutError | asyncio.TimeoutError):  # two before 3.11
        return ApiError(
            408, "it was not answered in the time that a request is given; ask for fewer tokens, "
            "or start the server with a longer --request-timeout", code="request_timeout",
        )  # fmt: skip
    LOG.error("a request failed", exc_info=error)
    if isinstance(error, RuntimeError | MemoryError) and "memory" in str(error).lower():
        return ApiError(
            503, "the machine's memory was too small for this beside all else; ask again later",
            code="out_of_memory",
        )  # fmt: skip
    return ApiError(500, "the server failed at this; its log tells why", code="internal_error")


def install(app: FastAPI) -> None:
    """Every error of the application in this shape."""

    @app.exception_handler(ApiError)
    async def _told(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return invalid(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        path, message = shown(request.url.path), str(error.detail)
        if error.status_code == 404:
            message = f"there is nothing at {path}; see /openapi.json for what there is"
        elif error.status_code == 405:
            message = f"{request.method} is not for {path}; see /openapi.json"
        elif error.status_code == 400:
            message = f"the body cannot be read: {message}"
        made = ApiError(error.status_code, message).response()
        made.headers.update(error.headers or {})
        return made

    @app.exception_handler(Exception)
    async def _other(_: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()


def invalid(errors: Sequence[Any]) -> ApiError:
    """What is wrong with a request, as pydantic told it: the first field that is."""
    first = errors[0]
    if first["type"] == "json_invalid":
        why = first.get("ctx", {}).get("error", "")
        return refused(f"the body is not JSON ({why}); send one JSON object")
    names = _names(first["loc"])
    if not names:
        return refused("the body must be one JSON object")
    param = ".".join(names)
    if first["type"] == "missing":
        return refused(f"{param} is missing", param)
    # a field that may be of several kinds has a complaint for each
    own = [one for one in errors if _names(one["loc"])[:1] == names[:1]]
    whys = dict.fromkeys(_lowered(one["msg"]) for one in own)
    value = first["input"]
    if len(whys) > 1:
        param = names[0]
        return refused(f"{param} cannot be read: {', or '.join([*whys][:4])}", param)
    return refused(f"{param} = {shown(value)}: {next(iter(whys))}", param)


def _names(place: Sequence[Any]) -> list[str]:
    """A field's path in the body: without its source, and the kinds that pydantic tried."""
    names = [str(part) for part in place[1:]]
    kinds = ("str", "int", "list[", "constrained", "function-", "nullable")
    return names[:1] + [name for name in names[1:] if not name.startswith(kinds)]


def _lowered(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
