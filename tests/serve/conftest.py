"""A real server on 127.0.0.1, in a thread, and OpenAI's own client."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pytest
import torch
import uvicorn

from remamba import Reader, ReMambaForCausalLM
from remamba.serve.app import create_app
from remamba.serve.host import Host
from remamba.serve.settings import ServeSettings
from tests.tiny import WHOLE, tiny_model, tiny_tokenizer


@dataclass
class Running:
    """A server that answers."""

    host: Host
    url: str

    def client(self, key: str = "none") -> openai.OpenAI:
        # the certificates of the world take longer to load than an answer takes here
        http = openai.DefaultHttpxClient(verify=False)
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30, http_client=http
        )

    def http(self, **headers: str) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, headers=headers, timeout=30, verify=False)


def endless_model() -> ReMambaForCausalLM:
    """A tiny model that never ends a text by itself."""
    model = tiny_model(compression=WHOLE.to_dict())
    with torch.no_grad():
        model.lm_head.weight[tiny_tokenizer().eos_token_id] = 0
    return model


def make_reader(slots: int = 4) -> Reader:
    return Reader(endless_model(), tiny_tokenizer(), slots=slots)


@contextmanager
def serving(
    reader: Reader | None = None, *, change: Callable[[Host], None] | None = None, **settings: Any
) -> Iterator[Running]:
    """A server of a tiny model named "tiny"; at the end nothing of it is left."""
    host = Host(reader or make_reader(), ServeSettings(**{"name": "tiny", "port": 0} | settings))
    if change is not None:
        change(host)
    config = uvicorn.Config(create_app(host), port=0, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Running(host, f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        host.close()
        thread.join(20)
        assert not thread.is_alive()
        assert not host.admission.answers and not host.admission.tokens
        assert host.loop.engine.is_idle and host.loop.figures()["under_way"] == 0


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """One server for the tests of a file."""
    with serving() as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with contextlib.closing(server.client()) as client:
        yield client


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)
