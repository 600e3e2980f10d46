"""A hub that cannot be reached is told within two seconds, also where packets vanish."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from remamba import InputError, Reader, ReMambaForCausalLM, pretrained
from remamba.checkpoints.convert import convert
from remamba.pretrained import hub_options_for, is_hub_away
from tests.conftest import Run

MOST = 2.0
"""Seconds until a first contact has failed."""


@pytest.fixture(autouse=True)
def _no_contacts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "_contacts", {})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for spelt in (name, name.upper()):
            monkeypatch.delenv(spelt, raising=False)


@contextlib.contextmanager
def listening(backlog: int) -> Iterator[tuple[socket.socket, str]]:
    """A socket on this machine, and its address as a hub's."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(backlog)
        yield server, f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """An address where connections are neither taken nor refused: its queue is full."""
    with listening(0) as (server, address), contextlib.ExitStack() as waiting:
        for _ in range(4):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(server.getsockname())
        with socket.socket() as probe:
            probe.settimeout(0.3)
            with pytest.raises(TimeoutError):
                probe.connect(server.getsockname())
        yield address


def timed(action: Any) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def refused_names(tmp_path: Path) -> dict[str, Any]:
    return {
        "from_pretrained": lambda: ReMambaForCausalLM.from_pretrained("nobody/nothing"),
        "Reader": lambda: Reader("nobody/nothing", device="cpu"),
        "convert": lambda: convert("nobody/nothing", tmp_path / "out"),
    }


@pytest.mark.parametrize("name", ["from_pretrained", "Reader", "convert"])
def test_a_network_that_drops_packets_is_not_waited_for(
    name: str, silent: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load() -> None:
        with pytest.raises(InputError, match="nobody/nothing") as caught:
            refused_names(tmp_path)[name]()
        assert "\n" not in str(caught.value)

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    load()  # what is imported late is there now
    monkeypatch.setattr(constants, "ENDPOINT", silent)
    # one first contact, however many parts of a load ask
    assert pretrained.PATIENCE <= timed(load) < pretrained.PATIENCE + MOST


def test_a_command_with_a_hub_name_ends_where_packets_are_dropped(
    silent: str, monkeypatch: pytest.MonkeyPatch, refused: Run, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", silent)
    words = ("generate", "--model", "nobody/nothing", "--prompt", "Tom")
    assert "the hub cannot be reached" in refused(*words)


def test_the_first_contact_has_an_upper_bound(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", silent)
    assert timed(lambda: hub_options_for("nobody/nothing")) < MOST
    assert hub_options_for("nobody/nothing") == {"local_files_only": True}
    # remembered: a load asks several times
    assert timed(is_hub_away) < 0.1
    monkeypatch.setattr(pretrained, "REMEMBERED", 0.0)
    assert timed(is_hub_away) > 1


def test_a_hub_that_is_slow_or_refuses_a_page_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection; what it answers, and when, is for the hub's own client."""
    with listening(8) as (server, address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert not is_hub_away()
        pretrained._contacts.clear()

        def answer() -> None:
            for _ in range(2):
                one, _ = server.accept()
                with one:
                    one.recv(4096)
                    one.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        assert not is_hub_away()


def test_a_proxy_is_who_is_asked(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(8) as (_, address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setenv("http_proxy", silent)
        assert is_hub_away()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        pretrained._contacts.clear()
        assert not is_hub_away()


def test_an_address_that_refuses_is_away_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert timed(is_hub_away) < 1 and is_hub_away()
