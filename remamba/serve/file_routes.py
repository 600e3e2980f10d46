"""The routes of uploaded files."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from starlette.responses import Response

from remamba.serve.files import Files
from remamba.serve.limits import Client
from remamba.serve.uploads import Uploads


def file_routes(uploads: Uploads, files: Files) -> APIRouter:
    """POST, GET and DELETE below /v1/files."""
    routes = APIRouter()

    def client_of(request: Request) -> Client:
        return request.scope["remamba.client"]

    @routes.post("/v1/files")
    async def upload(
        request: Request,
        file: Annotated[UploadFile, File()],
        purpose: Annotated[str, Form()],
        read: Annotated[bool, Query()] = True,
    ) -> dict[str, Any]:
        """A text (UTF-8) is kept, and read; `read=false` leaves that to the first question."""
        content = await file.read()
        name = file.filename or "document.txt"
        return await uploads.take(client_of(request), name, purpose, content, read)

    @routes.get("/v1/files")
    async def listed(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
        after: str | None = None,
        order: Literal["asc", "desc"] = "desc",
        purpose: str | None = None,
    ) -> dict[str, Any]:
        """The client's own files."""
        return await asyncio.to_thread(
            uploads.listed, client_of(request), limit, after, order, purpose
        )

    @routes.get("/v1/files/{file_id}")
    async def one(request: Request, file_id: str) -> dict[str, Any]:
        """A file; its status is processed once questions go on from its memory."""
        client = client_of(request)
        record = await asyncio.to_thread(files.get, client, file_id)
        return await asyncio.to_thread(uploads.told, client, record)

    @routes.get("/v1/files/{file_id}/content")
    async def content(request: Request, file_id: str) -> Response:
        """The file as it was uploaded."""
        found = await asyncio.to_thread(files.content, client_of(request), file_id)
        headers = {"X-Content-Type-Options": "nosniff", "Content-Disposition": "attachment"}
        return Response(found, media_type="text/plain; charset=utf-8", headers=headers)

    @routes.delete("/v1/files/{file_id}")
    async def delete(request: Request, file_id: str) -> dict[str, Any]:
        """The file goes, and its memories with it."""
        return await uploads.delete(client_of(request), file_id)

    return routes
