"""Keys, limits, and clients that leave: nobody's request outlives them, and nobody is starved."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx2
import openai
import pytest

from remamba.errors import InputError
from remamba.serve.settings import ServeSettings
from tests.serve.conftest import Running, make_reader, serving, until
from tests.tiny import TEXT

ENDLESS = {"model": "tiny", "prompt": "Tom", "max_tokens": 10**6}
SHORT = {"model": "tiny", "prompt": "Tom", "max_tokens": 4}


def test_keys() -> None:
    with serving(api_key=("right", "also right")) as server:
        with server.client("right") as client:
            assert client.completions.create(**SHORT).choices[0].text
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic right"}):
            with server.http(**headers) as http:
                for path in ("/v1/models", "/v1/files", "/metrics", "/nothing"):
                    found = http.get(path)
                    assert found.status_code == 401
                    assert found.json()["error"]["code"] == "invalid_api_key"
                    assert "right" not in found.text and found.headers["WWW-Authenticate"]
                # not even a body that cannot be read is read before
                assert http.post("/v1/completions", content=b"{").status_code == 401
                assert http.get("/health").status_code == 200
                assert http.get("/ready").status_code == 200


def test_who_may_be_served_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("REMAMBA_API_KEY", raising=False)
    with pytest.raises(InputError, match=r"--host 0\.0\.0\.0 can be reached by others"):
        ServeSettings(host="0.0.0.0").keys()
    assert ServeSettings(host="0.0.0.0", no_auth=True).keys() == ()
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    assert ServeSettings(host="0.0.0.0", api_key_file=str(file)).keys() == ("one", "two")
    monkeypatch.setenv("REMAMBA_API_KEY", "three")
    assert ServeSettings(api_key=("one",)).keys() == ("one", "three")
    for wrong, message in (
        ({"no_auth": True}, "contradicts"),
        ({"api_key": (" ",)}, "empty"),
        ({"api_key_file": str(tmp_path / "none")}, "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            ServeSettings(**wrong).keys()  # type: ignore[arg-type]


def test_foreign_pages_may_not_ask() -> None:
    with serving(allow_origin=("https://chat.example.org",)) as server, server.http() as http:
        own = http.get("/health", headers={"Origin": server.url})
        assert own.status_code == 200
        found = http.post("/v1/completions", json=SHORT, headers={"Origin": "https://evil.example"})
        assert found.status_code == 403 and "--allow-origin" in found.text
        asked = {
            "Origin": "https://chat.example.org",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        allowed = http.options("/v1/completions", headers=asked)
        assert allowed.status_code == 200
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        origin = {"Origin": "https://chat.example.org"}
        done = http.post("/v1/completions", json=SHORT, headers=origin)
        assert done.status_code == 200
        assert done.headers["access-control-allow-origin"] == "https://chat.example.org"


def test_names_that_were_made_to_mean_this_machine(server: Running) -> None:
    with server.http() as http:
        for name in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
            assert http.get("/health", headers={"Host": name}).status_code == 403
        for name in ("localhost", "LOCALHOST:1", "127.0.0.1:", "[::1]:8000"):
            assert http.get("/health", headers={"Host": name}).status_code == 200
        assert http.get("/health", headers={"Origin": "http://[half"}).status_code == 403
    for settings in ({"no_auth": True}, {"api_key": ("a",)}):
        with serving(**settings) as other, other.http() as http:
            assert http.get("/health", headers={"Host": "chat.example"}).status_code == 200


def test_over_the_limit_only_200_and_429() -> None:
    """At most 2 + 3 are under way; the others are told when to come again, and none is lost."""
    with serving(make_reader(slots=2), max_waiting=3) as server:
        codes: Counter[int] = Counter()

        def ask(_: int) -> None:
            with server.http() as http:
                found = http.post("/v1/completions", json=SHORT | {"max_tokens": 12})
            codes[found.status_code] += 1
            if found.status_code == 429:
                assert found.headers["Retry-After"] == "1"
                assert found.json()["error"]["code"] == "queue_full"
            else:
                assert found.json()["usage"]["completion_tokens"] == 12

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(ask, range(64)))
        assert set(codes) == {200, 429} and sum(codes.values()) == 64
        assert server.host.loop.figures()["finished"] == codes[200]
        assert server.host.admission.refused == codes[429]
        with server.client() as client, pytest.raises(openai.BadRequestError, match="at most 5"):
            client.completions.create(**SHORT, n=6)
        # OpenAI's client comes again by itself
        with ThreadPoolExecutor(8) as pool, server.client() as client:
            patient = client.with_options(max_retries=20)
            done = list(pool.map(lambda _: patient.completions.create(**SHORT), range(8)))
        assert len({one.choices[0].text for one in done}) == 1


def test_a_key_has_a_limit_of_its_own() -> None:
    with (
        serving(api_key=("a", "b"), max_per_key=2, max_new_tokens=10**6) as server,
        ExitStack() as stack,
    ):
        one, other = (
            stack.enter_context(server.client("a")),
            stack.enter_context(server.client("b")),
        )
        streams = [one.completions.create(**ENDLESS, stream=True) for _ in range(2)]
        with pytest.raises(openai.RateLimitError, match="of yours"):
            one.completions.create(**SHORT)
        assert other.completions.create(**SHORT).choices[0].text
        for stream in streams:
            stream.close()
        until(lambda: not server.host.admission.answers)
        assert one.completions.create(**SHORT).choices[0].text


def test_tokens_have_limits() -> None:
    settings = {"max_prompt_tokens": 50, "max_waiting_tokens": 60, "max_new_tokens": 10**6}
    with serving(**settings) as server, server.client() as client:
        for prompt in (TEXT * 3, [5] * 51, "a" * 10**5):
            with pytest.raises(openai.BadRequestError, match="--max-prompt-tokens") as found:
                client.completions.create(model="tiny", prompt=prompt)
            assert found.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError, match="--max-new-tokens"):
            client.completions.create(model="tiny", prompt="a", max_tokens=10**6 + 1)
        with client.completions.create(**ENDLESS | {"prompt": [5] * 40}, stream=True) as stream:
            next(iter(stream))
            with pytest.raises(openai.RateLimitError, match="prompts of 40 tokens are under way"):
                client.completions.create(model="tiny", prompt=[5] * 30)
        until(lambda: not server.host.admission.tokens)
        assert client.completions.create(model="tiny", prompt=[5] * 30).choices[0].text


def test_bodies_have_a_limit() -> None:
    with serving(max_body_mb=1) as server, server.http() as http:
        large = b'{"model": "tiny", "prompt": "' + b"a" * 1_000_000 + b'"}'

        def pieces() -> Any:
            for i in range(0, len(large), 65536):
                yield large[i : i + 65536]

        kind = {"Content-Type": "application/json"}
        for body in (large, pieces()):  # a length that is told, and one that is not
            found = http.post("/v1/completions", content=body, headers=kind)
            assert found.status_code == 413 and "--max-body-mb" in found.json()["error"]["message"]


def test_a_request_takes_no_longer_than_it_may() -> None:
    with serving(request_timeout=0.3, max_new_tokens=10**6) as server, server.client() as client:
        with pytest.raises(openai.APIStatusError, match="--request-timeout") as found:
            client.completions.create(**ENDLESS)
        assert found.value.status_code == 408
        with pytest.raises(openai.APIError, match="--request-timeout"):  # amid a stream
            for _ in client.completions.create(**ENDLESS, stream=True):
                pass
        until(lambda: server.host.loop.engine.running == 0)
        assert client.completions.create(**SHORT).choices[0].text


def test_who_leaves_frees_the_slot() -> None:
    """Leavers of whole answers and of streams, at any moment; those who stay get all of theirs."""
    with serving(make_reader(slots=3), max_new_tokens=10**6) as server:
        chance = random.Random(3)
        with server.client() as client:
            wanted = client.completions.create(**SHORT | {"max_tokens": 30}).choices[0].text

        def leave(number: int) -> None:
            seconds = chance.uniform(0.0, 0.15)
            with server.http() as http:
                if number % 2:
                    with pytest.raises(httpx2.ReadTimeout):
                        http.post("/v1/completions", json=ENDLESS, timeout=0.02 + seconds)
                else:
                    asked = ENDLESS | {"stream": True, "n": 1 + number % 3}
                    with http.stream("POST", "/v1/completions", json=asked) as stream:
                        time.sleep(seconds)
                        assert stream.status_code == 200

        def stay(_: int) -> str:
            with server.client() as client:
                return client.completions.create(**SHORT | {"max_tokens": 30}).choices[0].text

        with ThreadPoolExecutor(8) as pool:
            leaving = [pool.submit(leave, number) for number in range(24)]
            staying = list(pool.map(stay, range(8)))
            for one in leaving:
                one.result()
        assert staying == [wanted] * 8
        until(lambda: not server.host.admission.answers)
        until(lambda: server.host.loop.engine.is_idle)
        figures = server.host.loop.figures()
        assert figures["finished"] == 9 and figures["running"] == figures["waiting"] == 0
        with server.http() as http:
            assert "remamba_clients_left_total 24.0" in http.get("/metrics").text


def test_who_leaves_a_reading_ends_it() -> None:
    """Unless another waits for it."""
    parts = [
        {"type": "text", "text": TEXT * 1500, "prompt_cache_breakpoint": {"mode": "explicit"}},
        {"type": "text", "text": "Who?"},
    ]
    body = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": parts}]}
    with serving() as server:
        loop = server.host.loop

        async def leave() -> None:
            async with httpx2.AsyncClient(base_url=server.url, timeout=60, verify=False) as http:
                asking = asyncio.create_task(http.post("/v1/chat/completions", json=body))
                while not loop._readings:
                    assert not asking.done()
                    await asyncio.sleep(0.002)
                await asyncio.sleep(0.05)
                assert not asking.done()
                asking.cancel()

        asyncio.run(leave())
        until(lambda: loop.engine.is_idle and not loop.figures()["under_way"])
        assert loop.figures()["read_documents"] == 0
        with ThreadPoolExecutor(1) as pool, server.http() as http:
            staying = pool.submit(http.post, "/v1/chat/completions", json=body, timeout=60)
            until(lambda: bool(loop._readings))
            asyncio.run(leave())
            assert staying.result().json()["usage"]["completion_tokens"] == 4
        assert loop.figures()["read_documents"] == 1


def test_a_long_document_stops_no_stream() -> None:
    with serving(max_new_tokens=10**6) as server, server.client() as client:
        with client.completions.create(**ENDLESS, stream=True) as stream:
            texts = iter(stream)
            next(texts)
            file = client.files.create(
                file=("a", (TEXT * 200).encode()), purpose="user_data", extra_query={"read": True}
            )
            count = 0
            while not server.host.loop.figures()["read_documents"]:
                next(texts)
                count += 1
        assert count > 20
        assert client.files.retrieve(file.id).bytes == len((TEXT * 200).encode())


def test_metrics_and_states(server: Running) -> None:
    with server.http() as http, server.client() as client:
        client.completions.create(**SHORT)
        list(client.completions.create(**SHORT, stream=True))
        text = http.get("/metrics").text
        for line in (
            'remamba_requests_total{code="200",path="/v1/completions"} 2.0',
            "remamba_generated_tokens_total 8.0",
            "remamba_prompt_tokens_total 2.0",
            "remamba_time_to_first_token_seconds_count 1.0",
            "remamba_running 0.0",
            "remamba_waiting 0.0",
            "remamba_slots 4.0",
        ):
            assert f"{line}\n" in text, line
        assert http.get("/health").json() == {"status": "ok"}
        state = {"status": "ready", "model": "tiny", "running": 0, "waiting": 0, "slots": 4}
        assert http.get("/ready").json() == state
