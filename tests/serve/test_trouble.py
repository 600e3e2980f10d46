"""What goes wrong inside ends one request, in words that tell nothing of the inside."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from remamba.serve import answering
from tests.engine.test_failures import out_of_memory
from tests.serve.conftest import make_reader, serving
from tests.tiny import TEXT

SHORT = {"model": "tiny", "prompt": "Tom", "max_tokens": 20}


def test_a_reading_shows_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments with the share that was read, which clients pass over; then the answer."""
    monkeypatch.setattr(answering, "HEARTBEAT", 0.02)
    parts = [
        {"type": "text", "text": TEXT * 400, "prompt_cache_breakpoint": {"mode": "explicit"}},
        {"type": "text", "text": "Who?"},
    ]
    body = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": parts}]}
    with serving() as server, server.http() as http, server.client() as client:
        asked = body | {"stream": True}
        with http.stream("POST", "/v1/chat/completions", json=asked) as found:
            lines = [line for line in found.iter_lines() if line]
        comments = [line for line in lines if line.startswith(":")]
        shares = [int(line[10:-1]) for line in comments if line.endswith("%")]
        assert len(set(shares)) > 2, lines
        assert shares == sorted(shares) and shares[-1] <= 100
        assert lines[: len(comments)] == comments and lines[-1] == "data: [DONE]"
        pieces = client.chat.completions.create(**asked)  # type: ignore[call-overload]
        text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        events = [json.loads(line[6:]) for line in lines[len(comments) : -1]]
        assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == text


def test_too_little_memory_for_one() -> None:
    """It is told so, whole and streamed; the others are answered as if nothing was."""
    reader = make_reader()
    with serving(reader) as server, server.client() as client:
        wanted = client.completions.create(**SHORT).choices[0].text

        def ask(number: int) -> str:
            if number % 3:
                return client.completions.create(**SHORT).choices[0].text
            long = SHORT | {"prompt": TEXT * 9, "stream": number % 2 == 0}
            with pytest.raises(openai.APIStatusError, match="memory was too small") as found:
                client.completions.create(**long)
            assert found.value.status_code == 503 and found.value.code == "out_of_memory"
            return wanted

        with out_of_memory(reader.model, width=100), ThreadPoolExecutor(6) as pool:
            assert set(pool.map(ask, range(12))) == {wanted}


def test_a_fault_tells_nothing_of_the_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("the inside")

    with serving() as server, server.http() as http:
        monkeypatch.setattr(server.host.asking, "completion", fail)
        found = http.post("/v1/completions", json=SHORT)
        assert found.status_code == 500 and "inside" not in found.text
        assert found.json()["error"]["code"] == "internal_error"
        assert http.get("/ready").json()["status"] == "ready"
