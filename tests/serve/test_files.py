"""Uploaded files and the memories that stand for them: a hit equals no hit, keys share nothing."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from remamba import Ask
from remamba.engine.sampling import SamplingOptions
from remamba.serve.limits import Client
from tests.serve.conftest import Running, make_reader, serving, until
from tests.tiny import TEXT

DOCUMENT = TEXT * 5
QUESTION = "Who lives in Lisbon?"


def upload(client: openai.OpenAI, text: str = DOCUMENT, **more: Any) -> Any:
    return client.files.create(file=("a.txt", text.encode()), purpose="user_data", **more)


def ask(client: openai.OpenAI, file_id: str, model: str = "tiny", **more: Any) -> Any:
    parts = [{"type": "file", "file": {"file_id": file_id}}, {"type": "text", "text": QUESTION}]
    return client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": parts}], max_tokens=12, **more
    )  # type: ignore


def told(done: Any) -> tuple[str, str | None]:
    """The answer, and where its memory came from."""
    return done.choices[0].message.content, done.remamba["answers"][0]["memory"]


def processed(client: openai.OpenAI, file_id: str) -> None:
    until(lambda: client.files.retrieve(file_id).status == "processed")


@pytest.fixture(scope="module")
def answer() -> str:
    options = SamplingOptions(max_new_tokens=12)
    return make_reader().answer([Ask(DOCUMENT, QUESTION, options=options)])[0].text


def test_a_file_from_upload_to_removal(tmp_path: Path, answer: str) -> None:
    with serving(store=str(tmp_path)) as server, server.client() as client:
        begun = time.time()
        file = upload(client)
        assert (file.filename, file.bytes, file.purpose) == (
            "a.txt",
            len(DOCUMENT.encode()),
            "user_data",
        )
        assert begun - 2 < file.created_at < time.time() + 2
        processed(client, file.id)
        done = ask(client, file.id)
        assert told(done) == (answer, "ram")
        details, count = done.usage.prompt_tokens_details, len(make_reader().tokenizer(DOCUMENT)[0])
        assert (details.cached_tokens, details.cache_write_tokens) == (count, 0)
        assert told(ask(client, file.id, "tiny:plain"))[1] == "ram"
        assert told(ask(client, file.id, "tiny:chunks"))[1] == "read"
        assert client.files.content(file.id).read() == DOCUMENT.encode()
        assert upload(client).id == file.id and len(list(client.files.list())) == 1
        server.host.store.flush()
        assert len([*(tmp_path / "memories").iterdir()]) == 2
        assert client.files.delete(file.id).deleted
        assert not [*(tmp_path / "memories").iterdir()] and not [
            *(tmp_path / "files/all").iterdir()
        ]
        assert not server.host.store.bytes("ram")
        for call in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError):
                call(file.id)
        with pytest.raises(openai.NotFoundError, match="no file 'file-"):
            ask(client, file.id)


def test_a_file_that_is_read_by_its_first_question(answer: str) -> None:
    with serving() as server, server.client() as client:
        file = upload(client, extra_query={"read": False})
        assert client.files.retrieve(file.id).status == "uploaded"
        assert told(ask(client, file.id)) == (answer, "read")
        assert client.files.retrieve(file.id).status == "processed"
        assert told(ask(client, file.id)) == (answer, "ram")
        done = client.completions.create(
            model="tiny", prompt=f"\n\nQuestion: {QUESTION}\nAnswer:", max_tokens=12,
            extra_body={"document": {"file_id": file.id}},
        )  # fmt: skip
        assert done.choices[0].text == answer
        assert done.usage.prompt_tokens_details.cached_tokens > 0  # type: ignore[union-attr]


def test_lists_go_page_by_page(server: Running, client: openai.OpenAI) -> None:
    made = {upload(client, f"{TEXT} {i}", extra_query={"read": False}).id for i in range(5)}
    found = [file.id for file in client.files.list(limit=2)]
    assert set(found) == made and len(found) == 5
    assert [file.id for file in client.files.list(limit=2, order="asc")] == found[::-1]
    assert [*client.files.list(purpose="assistants")] == []


def test_a_hit_equals_no_hit(tmp_path: Path, answer: str) -> None:
    """After a restart, after eviction, with a damaged file, and for a server that shares the place;
    from whichever door, a document is one memory."""
    sources = []
    with serving(store=str(tmp_path), ram_mb=0) as server, server.client() as client:
        file = upload(client)
        processed(client, file.id)
        server.host.store.flush()
        for _ in range(2):
            sources.append(told(ask(client, file.id)))
        with serving(store=str(tmp_path)) as other, other.client() as second:
            sources.append(told(ask(second, file.id)))
            sources.append(told(ask(second, file.id)))
    assert sources == [(answer, "file")] * 3 + [(answer, "ram")]
    with serving(store=str(tmp_path)) as server, server.client() as client:
        assert client.files.retrieve(file.id).status == "processed"
        marked = [
            {"type": "text", "text": DOCUMENT, "prompt_cache_breakpoint": {"mode": "explicit"}},
            {"type": "text", "text": QUESTION},
        ]
        done = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": marked}], max_tokens=12
        )  # type: ignore
        assert told(done) == (answer, "file")
    (memory,) = (tmp_path / "memories").iterdir()
    data = bytearray(memory.read_bytes())
    for damage in (data[: len(data) // 2], data[:8] + b"{}" + data[10:], b""):
        memory.write_bytes(damage)
        with serving(store=str(tmp_path)) as server, server.client() as client:
            with pytest.warns(UserWarning, match="the document is read anew"):
                assert told(ask(client, file.id)) == (answer, "read")
            assert server.host.store.counts["unserved"] == 1
    (document,) = (tmp_path / "files" / "all").glob("*.document")
    document.write_bytes(document.read_bytes()[:-1])
    with serving(store=str(tmp_path)) as server, server.client() as client:
        with pytest.raises(openai.NotFoundError):
            ask(client, file.id)
        assert [*client.files.list()] == []


def test_two_keys_share_nothing(tmp_path: Path, answer: str) -> None:
    keys = ("first-key", "second-key")
    with serving(store=str(tmp_path), api_key=keys) as server, ExitStack() as stack:
        one, other = (stack.enter_context(server.client(key)) for key in keys)
        file = upload(one)
        processed(one, file.id)
        assert [*other.files.list()] == []
        for call in (other.files.retrieve, other.files.content, other.files.delete):
            with pytest.raises(openai.NotFoundError):
                call(file.id)
        with pytest.raises(openai.NotFoundError):
            ask(other, file.id)
        own = upload(other, extra_query={"read": False})
        assert own.id != file.id
        assert told(ask(other, own.id)) == (answer, "read")
        assert told(ask(one, file.id)) == (answer, "ram")
        assert server.host.store.counts["read"] == 2
        other.files.delete(own.id)
        assert told(ask(one, file.id)) == (answer, "ram")
        server.host.store.flush()
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert not any(key.encode() in written for key in keys)


@pytest.mark.parametrize(
    ("content", "purpose", "message"),
    [
        (b"", "user_data", "is empty"),
        (b" \n", "user_data", "is empty"),
        (b"a\0b", "user_data", "binary file"),
        (b"\xff\xfe", "user_data", "not UTF-8"),
        (b"text", "fine-tune", "purpose"),
        (b"text " * 200, "user_data", "at most 100 are read"),
    ],
    ids=["empty", "blank", "binary", "bytes", "purpose", "long"],
)
def test_files_that_are_refused(content: bytes, purpose: Any, message: str) -> None:
    with serving(max_prompt_tokens=100) as server, server.client() as client:
        with pytest.raises(openai.BadRequestError, match=message):
            client.files.create(file=("a.txt", content), purpose=purpose)
        assert [*client.files.list()] == []


def test_uploads_have_limits() -> None:
    with serving(max_files_mb=1, max_body_mb=1) as server, server.client() as client:
        text = TEXT * 3500
        upload(client, text, extra_query={"read": False})
        with pytest.raises(openai.APIStatusError, match="delete some first") as found:
            upload(client, text + "b", extra_query={"read": False})
        assert found.value.status_code == 413
        with pytest.raises(openai.APIStatusError, match="--max-body-mb") as found:
            upload(client, text * 2)
        assert found.value.status_code == 413


@pytest.mark.parametrize("name", ["../../etc/passwd", "file-../x", "file-" + "0" * 40, "%2e%2e"])
def test_names_are_no_paths(server: Running, name: str) -> None:
    with server.http() as http:
        for path in (f"/v1/files/{name}", f"/v1/files/{name}/content"):
            found = http.get(path)
            assert found.status_code == 404 and found.json()["error"]["message"]


def test_a_full_disk_stops_no_answer(small_disk: Path, answer: str) -> None:
    with serving(store=str(small_disk)) as server, server.client() as client:
        file = upload(client, extra_query={"read": False})
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as out, pytest.raises(OSError, match="No space"):
            while True:
                out.write(bytes(4096))
        with pytest.warns(UserWarning, match="not kept in a file"):
            assert told(ask(client, file.id)) == (answer, "read")
            until(lambda: server.host.store.counts["unwritten"] == 1)
        with pytest.raises(openai.APIStatusError, match="disk is full") as found:
            upload(client, DOCUMENT * 2)
        assert found.value.status_code == 507
        assert told(ask(client, file.id)) == (answer, "ram")
        with server.http() as http:
            metrics = http.get("/metrics").text
        assert 'remamba_failures_total{kind="memory_unwritten"} 1.0' in metrics
        filler.unlink()


def test_half_an_upload_leaves_nothing(server: Running) -> None:
    address, anybody = httpx2.URL(server.url), Client("", "")
    before = server.host.files.all(anybody)
    with socket.create_connection((address.host, address.port)) as half:  # type: ignore[arg-type]
        head = b"POST /v1/files HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n"
        kind = b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc'
        half.sendall(head + kind + part)
        time.sleep(0.1)
    with server.http() as http:
        assert http.get("/health").status_code == 200
    assert server.host.files.all(anybody) == before
