"""The application: what there is at which path."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from remamba.provenance import package_version
from remamba.serve import errors
from remamba.serve.answering import unless_left
from remamba.serve.asked import Asked, prompts_of
from remamba.serve.file_routes import file_routes
from remamba.serve.gate import Gate
from remamba.serve.host import MEGA, Host
from remamba.serve.limits import Client, Ticket
from remamba.serve.metrics import CONTENT_TYPE
from remamba.serve.page import page
from remamba.serve.replies import Reply
from remamba.serve.schemas import (
    Body,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Sampled,
    TokenizeRequest,
)
from remamba.serve.settings import LOOPBACK
from remamba.text import encode

LEFT = 499
"""What is noted of a client that has left; it never hears it."""


class EventStream(Response):
    """Server-sent events, written as they come; the client's leaving ends them."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[str],
        close: Callable[[], None],
        note_left: Callable[[], None],
        headers: dict[str, str],
    ):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"} | headers)
        del self.headers["content-length"]
        self._events, self._close, self._note_left = events, close, note_left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write() -> bool:
            # an error before the first event has a status of its own
            first = await anext(self._events)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send(send, first)
            async for event in self._events:
                await self._send(send, event)
            await send({"type": "http.response.body", "body": b""})
            return True

        try:
            if await unless_left(receive, write()) is None:
                self._note_left()
        finally:
            self._close()

    @staticmethod
    async def _send(send: Send, event: str) -> None:
        body = event.encode()
        await send({"type": "http.response.body", "body": body, "more_body": True})


def create_app(host: Host) -> FastAPI:
    """The application of a host, whole: any ASGI server can run it."""
    app = FastAPI(
        title="remamba", version=package_version("remamba") or "0", docs_url=None, redoc_url=None
    )
    errors.install(app)
    settings = host.settings
    app.add_middleware(
        Gate, keys=host.keys, most_bytes=settings.max_body_mb * MEGA,
        origins=settings.allow_origin, metrics=host.metrics,
        names=None if host.keys.are_needed or settings.no_auth else (*LOOPBACK, "[::1]"),
    )  # fmt: skip
    if settings.allow_origin:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.allow_origin, allow_methods=["*"],
            allow_headers=["*"],
        )  # fmt: skip
    _add_state(app, host)
    _add_models(app, host)
    _add_answers(app, host)
    _add_tokens(app, host)
    app.include_router(file_routes(host.uploads, host.files))
    return app


def client_of(request: Request) -> Client:
    """Who asks, as the gate has found."""
    return request.scope["remamba.client"]


def _add_state(app: FastAPI, host: Host) -> None:
    text, headers = page()

    @app.get("/", include_in_schema=False)
    async def the_page() -> Response:
        return HTMLResponse(text, headers=headers)

    @app.get("/health")
    async def health() -> Response:
        """200 while the engine runs."""
        is_alive = host.loop.is_alive
        return JSONResponse({"status": "ok" if is_alive else "failed"}, 200 if is_alive else 503)

    @app.get("/ready")
    async def ready() -> Response:
        """200 while a request would be let in."""
        return JSONResponse(host.told(), 200 if host.is_ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters and times, in Prometheus' format."""
        return Response(host.metrics.told(), headers={"Content-Type": CONTENT_TYPE})


def _add_models(app: FastAPI, host: Host) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model, and its ways of reading."""
        names = host.models.listed()
        return {"object": "list", "data": [host.models.told(n, host.started) for n in names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        return host.models.told(name, host.started)


def _add_answers(app: FastAPI, host: Host) -> None:
    @app.post("/v1/completions")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Prompts are continued; or questions about a document answered, as they stand."""
        return await answer(request, body, host.asking.completion, len(prompts_of(body)))

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Response:
        """A chat's last question is answered, from its documents if it has some."""
        return await answer(request, body, host.asking.chat, 1)

    async def answer(
        request: Request, body: Sampled, make: Callable[[Any, Client], Asked], items: int
    ) -> Response:
        client = client_of(request)
        headers = checked(body, host)
        ticket = host.admission.enter(client, items * (body.n or 1))
        try:
            asked = await asyncio.to_thread(make, body, client)
            ticket.weigh(asked.tokens)
        except BaseException as error:
            ticket.close()
            raise _of_client(error) from error
        return await respond(request, body, asked, ticket, headers)

    async def respond(
        request: Request, body: Sampled, asked: Asked, ticket: Ticket, headers: dict[str, str]
    ) -> Response:
        answering = host.answering(asked, ticket)
        reply = Reply(
            answering, host.words, is_chat=isinstance(body, ChatRequest),
            tells_kept=bool(body.remamba_kept),
        )  # fmt: skip
        try:
            if body.stream:
                events = reply.events(body.wants_usage)
                return EventStream(events, answering.close, host.metrics.left.inc, headers)

            async def whole() -> dict[str, Any]:
                await answering.finish()
                return await asyncio.to_thread(reply.whole)

            found = await unless_left(request.receive, whole())
        except Exception as error:
            answering.close()
            raise _of_client(error) from error
        answering.close()
        if found is None:
            host.metrics.left.inc()
            return Response(status_code=LEFT)
        return JSONResponse(found, headers=headers)


def _add_tokens(app: FastAPI, host: Host) -> None:
    tokenizer = host.reader.tokenizer

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """The tokens of a text."""
        checked(body, host)
        begins = body.add_special_tokens is not False
        found = await asyncio.to_thread(encode, tokenizer, body.prompt, begins=begins)
        most = host.settings.max_prompt_tokens
        return {"count": len(found.ids), "max_model_len": most, "tokens": found.ids}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        """The text of tokens, special ones as they are written."""
        checked(body, host)
        largest = host.models.vocab_size - 1
        if body.tokens and max(body.tokens) > largest:
            raise errors.refused(
                f"tokens has {max(body.tokens)}, and the model knows 0 to {largest}", "tokens"
            )
        text = await asyncio.to_thread(tokenizer.decode, body.tokens, skip_special_tokens=False)
        return {"prompt": text}

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, Any]:
        """The special tokens and the chat template."""
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        special = {name: getattr(tokenizer, name, None) for name in names}
        template = getattr(tokenizer, "chat_template", None)
        kind = type(tokenizer).__name__
        return {"tokenizer_class": kind, **special, "chat_template": template}


def checked(body: Body, host: Host) -> dict[str, str]:
    """The headers that warn of fields that are not known; where that is not allowed, an error."""
    unknown = body.unknown()
    if unknown and not host.settings.lenient:
        body.check_known()
    if not unknown:
        return {}
    names = ", ".join(name.encode("ascii", "replace").decode() for name in [*unknown][:20])
    names = "".join(c if c.isprintable() else "?" for c in names)
    return {"X-Remamba-Warning": f"ignored: {names[:500]}"}


def _of_client(error: BaseException) -> BaseException:
    return errors.as_api_error(error) if isinstance(error, Exception) else error
