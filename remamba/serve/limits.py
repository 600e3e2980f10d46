"""Who may ask, and how much at once: API keys, and what is under way."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from remamba.serve.errors import ApiError


class Client(NamedTuple):
    """Who asks."""

    owner: str
    """Whose files and memories may be used: made of the API key, "" where there are no keys."""
    name: str
    """Whose turn it is: the owner, or the address where there are no keys."""


class Keys:
    """The API keys, of which only digests are kept; without one everybody may ask."""

    def __init__(self, keys: Sequence[str]):
        self._digests = [_digest(key) for key in keys]

    @property
    def are_needed(self) -> bool:
        """Whether only those may ask who have a key."""
        return bool(self._digests)

    def client(self, authorization: str | None, address: str) -> Client:
        """Who sends this header.

        Raises:
            ApiError: 401, there are keys and this is none of them.
        """
        if not self._digests:
            return Client("", address)
        scheme, _, given = (authorization or "").partition(" ")
        digest = _digest(given.strip())
        # every key is compared, whichever it is, so that the time tells nothing
        known = [hmac.compare_digest(digest, one) for one in self._digests]
        if scheme.lower() != "bearer" or not any(known):
            raise ApiError(
                401, "the API key is missing, or is none of this server's; send the header "
                "'Authorization: Bearer KEY'", code="invalid_api_key",
            )  # fmt: skip
        return Client(digest[:32], digest[:32])


def _digest(key: str) -> str:
    """What stands for a key: also the name of its owner's folder of files."""
    return hashlib.sha256(b"remamba serve\0" + key.encode("utf-8", "replace")).hexdigest()


class Admission:
    """What is under way, and whether more may come.

    Args:
        most: answers under way at once.
        most_tokens: tokens of their prompts and documents.
        most_each: answers of one client.
    """

    def __init__(self, most: int, most_tokens: int, most_each: int | None):
        self._most, self._most_tokens, self._most_each = most, most_tokens, most_each
        self.answers = 0
        self.tokens = 0
        self.refused = 0
        """Answers that were refused since the start."""
        self.is_draining = False
        self._of: Counter[str] = Counter()

    @property
    def has_room(self) -> bool:
        return self.answers < self._most and self.tokens < self._most_tokens

    def enter(self, client: Client, count: int = 1) -> Ticket:
        """Let so many answers in.

        Raises:
            ApiError: 429 or 503, they have to come again; 400, they are too many ever.
        """
        if self.is_draining:
            raise ApiError(
                503, "the server is shutting down; ask again later", code="shutting_down"
            )
        most = self._most if self._most_each is None else min(self._most, self._most_each)
        if count > most:
            raise ApiError(
                400, f"{count} answers are asked for at once, and at most {most} can be under way; "
                "ask for fewer", param="n",
            )  # fmt: skip
        if self.answers + count > self._most:
            self._refuse(count, f"{self.answers} answers are under way already, of {self._most}")
        if self._of[client.name] + count > most:
            self._refuse(
                count, f"{self._of[client.name]} answers of yours are under way, of {most}"
            )
        self.answers += count
        self._of[client.name] += count
        return Ticket(self, client, count)

    def _refuse(self, count: int, why: str) -> None:
        self.refused += count
        raise ApiError(429, f"{why}; ask again later", code="queue_full")

    def weigh(self, tokens: int, count: int) -> None:
        """Count the tokens of what was let in.

        Raises:
            ApiError: 429, as `enter`. What finds nothing under way is always let in.
        """
        if self.tokens and self.tokens + tokens > self._most_tokens:
            self._refuse(
                count,
                f"prompts of {self.tokens:,} tokens are under way, of {self._most_tokens:,}",
            )
        self.tokens += tokens

    def leave(self, client: Client, count: int, tokens: int) -> None:
        self.answers -= count
        self.tokens -= tokens
        self._of[client.name] -= count
        if not self._of[client.name]:
            del self._of[client.name]


class Ticket(AbstractContextManager["Ticket"]):
    """The place of a request among what is under way, until it is closed."""

    def __init__(self, admission: Admission, client: Client, count: int):
        self._admission, self._client, self._count = admission, client, count
        self._tokens = 0
        self._is_open = True

    def weigh(self, tokens: int) -> None:
        """See `Admission.weigh`."""
        self._admission.weigh(tokens, self._count)
        self._tokens += tokens

    def close(self) -> None:
        """Leave, once."""
        if self._is_open:
            self._is_open = False
            self._admission.leave(self._client, self._count, self._tokens)

    def __exit__(self, *_: Any) -> None:
        self.close()
