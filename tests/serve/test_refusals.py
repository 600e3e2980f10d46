"""What cannot be used is refused in one line that names the field, in OpenAI's shape."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve.conftest import Running, serving

SHORT = {"model": "tiny", "prompt": "Tom", "max_tokens": 2}
USER = [{"role": "user", "content": "Who?"}]
CHAT = {"model": "tiny", "messages": USER, "max_tokens": 2}
COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [10**6]}, "prompt"),
    ({"prompt": ["a", 3]}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": "\ud800"}, "prompt"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": "x"}, "max_tokens"),
    ({"max_tokens": 2.5}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"n": 0}, "n"),
    ({"n": True}, "n"),
    ({"n": 129}, "n"),
    ({"seed": 2**64}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"logprobs": 21}, "logprobs"),
    ({"best_of": 3}, "best_of"),
    ({"suffix": "end"}, "suffix"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"nonsense": 1}, "nonsense"),
    ({"document": ""}, None),
    ({"document": "Tom", "prompt": [1, 2]}, "prompt"),
    ({"document": "Tom", "echo": True}, "echo"),
    ({"document": {"file_id": 3}}, "document"),
    ({"echo": True, "logprobs": 1, "model": "tiny:last"}, "echo"),
    ({"model": "tiny:bm25"}, None),
    ({"model": None}, "model"),
]
CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": "Who?"}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages"),
    ({"messages": [{"role": "system", "content": "a"}]}, "messages"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role"),
    ({"messages": [*USER, {"role": "assistant", "content": "a"}, *USER]}, "messages"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages.0.content.0.image_url",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "file"}]}]},
        "messages.0.content.0.file",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": "%"}}]}]},
        "messages.0.content.0.file.file_data",
    ),
    ({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}, "messages.0.tool_calls"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": 3}, "logprobs"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"stream_options": 3}, "stream_options"),
]
ASKED = [
    *(("/v1/completions", SHORT | wrong, param) for wrong, param in COMPLETIONS),
    *(("/v1/chat/completions", CHAT | wrong, param) for wrong, param in CHATS),
]


def told(found: Any, status: int = 400) -> dict[str, Any]:
    """The error of an answer, whose shape it checks."""
    assert found.status_code == status, found.text
    error = found.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and "\n" not in error["message"] and len(error["message"]) < 500
    return error


@pytest.mark.parametrize(("path", "body", "param"), ASKED, ids=lambda value: str(value)[:70])
def test_fields_that_are_refused(server: Running, path: str, body: Any, param: str) -> None:
    with server.http() as http:
        kind = {"Content-Type": "application/json"}
        for more in ({}, {"stream": True}):
            error = told(http.post(path, content=json.dumps(body | more), headers=kind))
            assert error["param"] == param, error
            assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body", [b"", b"{bad", b"[]", b"3", b"\xff", b"[" * 10**5, b"null"], ids=repr
)
def test_bodies_that_are_refused(server: Running, body: bytes) -> None:
    with server.http() as http:
        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/v1/files"):
            told(http.post(path, content=body, headers={"Content-Type": "application/json"}))
            told(http.post(path, content=body, headers={"Content-Type": "text/plain"}))


def test_paths_that_are_not_there(server: Running) -> None:
    with server.http() as http:
        told(http.get("/v1/nothing"), 404)
        told(http.get("/v1/completions"), 405)
        told(http.post("/v1/completions", json=SHORT | {"model": "other"}), 404)


def test_fields_that_ask_for_nothing(server: Running) -> None:
    """What clients send by habit is taken, whatever the server makes of it."""
    habits = {
        "user": "me", "metadata": {"a": "b"}, "tools": [], "tool_choice": "auto",
        "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "nonsense": None,
        "response_format": {"type": "text"}, "store": False, "prompt_cache_key": "k",
    }  # fmt: skip
    with server.http() as http:
        found = http.post("/v1/chat/completions", json=CHAT | habits)
        assert found.status_code == 200, found.text
        assert found.headers["x-request-id"]
        own = http.post("/v1/chat/completions", json=CHAT, headers={"X-Request-ID": "mine"})
        assert own.headers["x-request-id"] == "mine"


def test_a_lenient_server_names_what_it_ignores() -> None:
    with serving(lenient=True) as server, server.http() as http:
        found = http.post("/v1/completions", json=SHORT | {"nonsense": 1, "tools\n": ["x"]})
        assert found.status_code == 200
        assert found.headers["X-Remamba-Warning"] == "ignored: nonsense, tools?"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = sorted(
    {"document", "logprobs", "echo", "stream", "stream_options", "top_logprobs", "remamba_kept"}
    | {name for wrong, _ in [*COMPLETIONS, *CHATS] for name in wrong}
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(wrong=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), JSON, max_size=4))
def test_whatever_is_sent_is_answered(server: Running, wrong: dict[str, Any]) -> None:
    """By 200, or by an error that names what is wrong; never by a 500."""
    with server.http() as http:
        for path, body in (("/v1/completions", SHORT), ("/v1/chat/completions", CHAT)):
            sent = json.dumps(body | wrong | {"max_tokens": 2})
            found = http.post(path, content=sent, headers={"Content-Type": "application/json"})
            if found.status_code != 200:
                told(found, 404 if found.status_code == 404 else 400)
