"""The command itself, in a process of its own: it ends in good order, and survives being killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import torch

from remamba import cli
from tests.conftest import Run
from tests.serve.conftest import endless_model, until
from tests.tiny import TEXT, tiny_tokenizer


class Process(NamedTuple):
    """`remamba serve` that has said where it answers."""

    number: int
    url: str

    def http(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=30, verify=False)

    def wait(self, seconds: float = 20) -> int:
        """Its exit code; minus a signal's number where that has ended it."""
        until(lambda: os.waitid(os.P_PID, self.number, ENDED | os.WNOWAIT) is not None, seconds)
        return os.waitstatus_to_exitcode(os.waitpid(self.number, 0)[1])


ENDED = os.WEXITED | os.WNOHANG


@contextmanager
def served(model: Path, *words: str) -> Iterator[Process]:
    """The command in a child of this process, which has imported all that takes long."""
    argv = ["serve", "--model", str(model), "--port", "0", *words]
    reading, writing = os.pipe()
    if not (number := os.fork()):
        sys.stderr = os.fdopen(writing, "w", buffering=1)
        torch.set_num_threads(1)  # as in every child: the pool of threads was not forked
        os._exit(cli.main(argv))
    os.close(writing)
    with open(reading, encoding="utf-8") as said:
        rest = None
        try:
            lines = []
            while not (found := re.search(r"answers at (http://\S+)/v1", "".join(lines))):
                lines.append(said.readline())
                assert lines[-1], "".join(lines)
            # what else it says must not fill the pipe
            rest = threading.Thread(target=said.read)
            rest.start()
            yield Process(number, found[1])
        finally:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(number, signal.SIGKILL)
                os.waitpid(number, 0)
            if rest is not None:
                rest.join()


def streamed(found: httpx2.Response, events: list[Any]) -> None:
    for line in found.iter_lines():
        if line.startswith("data: "):
            events.append(line[6:] if line == "data: [DONE]" else json.loads(line[6:]))


def test_a_server_is_killed_and_another_one_told_to_end(tmp_path: Path) -> None:
    """What is there after a kill is whole: it is served, and nothing else; SIGTERM drains."""
    model = tmp_path / "tiny"
    endless_model().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    words = ("--store", str(tmp_path), "--grace", "2", "--max-new-tokens", "10000000")
    with served(model, *words) as process:
        known = killed_amid_uploads(process)
    (tmp_path / "files" / "all" / ".file-0.part").write_bytes(b"half")
    with served(model, *words) as process:
        serves_what_is_whole(process, known)
        drains(process)


UPLOADED = [(TEXT * (20 + i)).encode() for i in range(40)]


def killed_amid_uploads(process: Process) -> list[str]:
    """The ids of files that the server said it has."""
    known: list[str] = []

    def upload() -> None:
        with process.http() as http:
            for content in UPLOADED:
                try:
                    found = http.post(
                        "/v1/files", files={"file": ("a.txt", content)},
                        data={"purpose": "user_data"},
                    )  # fmt: skip
                except httpx2.TransportError:
                    return
                known.append(found.json()["id"])

    thread = threading.Thread(target=upload)
    thread.start()
    while len(known) < 6:
        time.sleep(0.002)
    os.kill(process.number, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    thread.join()
    assert len(known) < len(UPLOADED)
    return known


def serves_what_is_whole(process: Process, known: list[str]) -> None:
    with process.http() as http:
        listed = [one["id"] for one in http.get("/v1/files").json()["data"]]
        assert set(known) <= set(listed) and len(listed) <= len(known) + 1
        for file_id in listed:
            assert http.get(f"/v1/files/{file_id}/content").content in UPLOADED
        for file_id in known[:3]:
            parts = [
                {"type": "file", "file": {"file_id": file_id}},
                {"type": "text", "text": "Who lives in Lisbon?"},
            ]
            body = {"model": "tiny", "messages": [{"role": "user", "content": parts}]}
            found = http.post("/v1/chat/completions", json=body | {"max_tokens": 8})
            assert found.json()["usage"]["completion_tokens"] > 0


def drains(process: Process) -> None:
    """Nothing new is taken; a short stream is finished, an endless one is told; exit code 0."""
    events: dict[int, list[Any]] = {60: [], 10**7: []}

    def ask(count: int) -> None:
        body = {"model": "tiny", "prompt": "Tom", "max_tokens": count, "stream": True}
        with process.http() as http, http.stream("POST", "/v1/completions", json=body) as found:
            assert found.status_code == 200
            streamed(found, events[count])

    threads = [threading.Thread(target=ask, args=(count,)) for count in events]
    with process.http() as http:
        for thread in threads:
            thread.start()
        while not all(events.values()):
            time.sleep(0.002)
        begun = time.monotonic()
        os.kill(process.number, signal.SIGTERM)
        while http.get("/ready").status_code == 200:
            time.sleep(0.002)
        found = http.post("/v1/completions", json={"model": "tiny", "prompt": "Tom"})
        assert found.status_code == 503 and found.headers["Retry-After"]
        assert http.get("/ready").json()["status"] == "draining"
    assert process.wait() == 0
    assert 1.5 < time.monotonic() - begun < 2 + 2.5
    for thread in threads:
        thread.join(5)
    *_, last, done = events[60]
    assert done == "[DONE]" and last["choices"][0]["finish_reason"] == "length"
    *_, last, done = events[10**7]
    assert done == "[DONE]" and last["error"]["code"] == "shutting_down"


def test_what_cannot_be_served_is_told_at_once(refused: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port} cannot be listened at" in refused("serve", "--port", port)
    assert "must be 65535 or below" in refused("serve", "--port", 10**6)
    assert "--no-auth" in refused("serve", "--host", "0.0.0.0", "--port", 0)
    assert "--slots 0" in refused("serve", "--slots", 0)
    assert "without a colon" in refused("serve", "--name", "a:b")
    assert "no folder" in refused("serve", "--port", 0, "--store", __file__)
