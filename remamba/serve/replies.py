"""Answers as OpenAI's clients read them: whole ones, and the chunks of a stream."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from remamba.engine.likelihoods import TokenLogprob
from remamba.serve.answering import Answering, Grown
from remamba.serve.asked import Prompt, Question
from remamba.serve.errors import as_api_error
from remamba.text import UNFINISHED

REASONS = {"eos": "stop", "stop": "stop", "length": "length", "cancelled": "stop"}
DONE = "data: [DONE]\n\n"


class Words:
    """The texts of single tokens."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def of(self, token: int) -> str | None:
        """A token's text, special ones as they are written; None of a part of a character."""
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        return None if UNFINISHED in text else text

    def named(self, token: int) -> str:
        """A token's text, or its number, so that no two parts of characters have one name."""
        text = self.of(token)
        return f"token_id:{token}" if text is None else text


class Reply:
    """How one request is answered.

    Args:
        is_chat: a chat's shape; else a completion's.
        tells_kept: also which words were kept.
    """

    def __init__(self, answering: Answering, words: Words, *, is_chat: bool, tells_kept: bool):
        self._answering, self._asked = answering, answering.asked
        self._words, self._is_chat, self._tells_kept = words, is_chat, tells_kept
        self._created = int(time.time())
        self._id = f"{'chatcmpl' if is_chat else 'cmpl'}-{secrets.token_hex(12)}"

    # whole

    def whole(self) -> dict[str, Any]:
        """All answers in one object."""
        count = len(self._asked.items) * self._asked.count
        return {
            **self._head("chat.completion" if self._is_chat else "text_completion"),
            "choices": [self._choice(number) for number in range(count)],
            "usage": self._usage(),
            "remamba": self._told([*range(count)]),
        }

    def _choice(self, number: int) -> dict[str, Any]:
        done = self._answering.completions[number]
        tokens = done.logprobs if done.logprobs is not None else None
        ends = {"index": number, "finish_reason": REASONS[done.finish_reason]}
        if self._is_chat:
            message = {"role": "assistant", "content": done.text, "refusal": None}
            return {**ends, "message": message, "logprobs": self._chat_logprobs(tokens)}
        text, before = done.text, ""
        silent = self._asked.is_silent
        if silent:
            text, tokens = "", None if tokens is None else []
        told: Sequence[TokenLogprob | None] | None = tokens
        item = self._asked.items[number // self._asked.count]
        if self._asked.echo and isinstance(item, Prompt):
            before = item.text
            if tokens is not None:
                told = [*self._of_prompt(item, done.prompt_logprobs or []), *tokens]
        ids = [*item.encoded.ids, *done.token_ids] if isinstance(item, Prompt) else done.token_ids
        return {
            **ends,
            "text": before + text,
            "logprobs": self._completion_logprobs(told, ids if before else done.token_ids, 0),
        }

    @staticmethod
    def _of_prompt(
        item: Prompt, told: Sequence[TokenLogprob | None]
    ) -> Sequence[TokenLogprob | None]:
        return told or [None] * len(item.encoded.ids)

    # streamed

    async def events(self, wants_usage: bool) -> AsyncIterator[str]:
        """The server-sent events of a stream, DONE at its end.

        Raises:
            ApiError: something is wrong before the first event; later this is an event itself.
        """
        opened: set[int] = set()
        lengths: dict[int, int] = {}
        has_begun = False
        try:
            async for grown in self._answering.grow():
                has_begun = True
                if grown is None:
                    share = await asyncio.to_thread(self._answering.progress)
                    yield ": reading\n\n" if share is None else f": reading {share:.0%}\n\n"
                    continue
                if grown.number not in opened:
                    opened.add(grown.number)
                    if (first := self._first(grown.number)) is not None:
                        lengths[grown.number] = len(first["choices"][0].get("text", ""))
                        yield _event(first)
                for chunk in self._chunks(grown, lengths):
                    yield _event(chunk)
            if wants_usage:
                yield _event({**self._chunk_head(), "choices": [], "usage": self._usage()})
        except Exception as error:
            told = as_api_error(error)
            if not has_begun:
                raise told from error
            yield _event(told.body)
        yield DONE

    def _first(self, number: int) -> dict[str, Any] | None:
        """What a stream begins with: the role; or the prompt, where it is to be told."""
        if self._is_chat:
            delta = {"role": "assistant", "content": "", "refusal": None}
            return self._chunk({"index": number, "delta": delta, "finish_reason": None})
        item = self._asked.items[number // self._asked.count]
        if not (self._asked.echo and isinstance(item, Prompt)):
            return None
        logprobs = None
        if self._asked.options.logprobs is not None:
            (stream,) = self._answering.streams[number // self._asked.count :][:1]
            told = self._of_prompt(item, stream.prompt_logprobs or [])
            logprobs = self._completion_logprobs(told, item.encoded.ids, 0)
        return self._chunk(
            {"index": number, "text": item.text, "logprobs": logprobs, "finish_reason": None}
        )

    def _chunks(self, grown: Grown, lengths: dict[int, int]) -> list[dict[str, Any]]:
        number, piece = grown
        is_last, found = piece.finish_reason is not None, []
        text, logprobs = piece.text, piece.logprobs or None
        if self._asked.is_silent:
            text, logprobs = "", None
        if text or logprobs or (not is_last and not self._is_chat):
            choice: dict[str, Any] = {"index": number}
            if self._is_chat:
                choice["delta"] = {"content": text}
                choice["logprobs"] = self._chat_logprobs(logprobs)
            else:
                begin = lengths.get(number, 0)
                choice["text"] = text
                choice["logprobs"] = self._completion_logprobs(logprobs, piece.token_ids, begin)
                lengths[number] = begin + len(text)
            found.append(self._chunk({**choice, "finish_reason": None}))
        if is_last:
            assert piece.finish_reason is not None
            own: dict[str, Any] = {"delta": {}} if self._is_chat else {"text": ""}
            choice = {"index": number, **own, "logprobs": None}
            end = self._chunk({**choice, "finish_reason": REASONS[piece.finish_reason]})
            found.append({**end, "remamba": self._told([number])})
        return found

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._chunk_head(), "choices": [choice]}

    def _chunk_head(self) -> dict[str, Any]:
        return self._head("chat.completion.chunk" if self._is_chat else "text_completion")

    # what both have

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id, "object": kind, "created": self._created, "model": self._asked.model
        }  # fmt: skip

    def _usage(self) -> dict[str, Any]:
        usage = self._answering.usage
        return {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.completion,
            "total_tokens": usage.prompt + usage.completion,
            "prompt_tokens_details": {
                "cached_tokens": usage.cached, "cache_write_tokens": usage.written
            },
        }  # fmt: skip

    def _told(self, numbers: Sequence[int]) -> dict[str, Any]:
        """What OpenAI's shape has no place for: how it was read, from what, in what time."""
        found = []
        sources = self._answering.sources()
        for number in numbers:
            item = number // self._asked.count
            stream, own = self._answering.streams[item], number % self._asked.count
            done = stream.completion(own)
            told: dict[str, Any] = {
                "index": number,
                "method": self._asked.items[item].method.name,
                "memory": sources[item],
                "seconds": {name: round(value, 6) for name, value in done.seconds.items()},
            }
            if self._tells_kept:
                told |= self._kept(number)
            found.append(told)
        return {"answers": found}

    def _kept(self, number: int) -> dict[str, Any]:
        words, answer = self._answering.kept(number)
        item = self._asked.items[number // self._asked.count]
        first = item.start if isinstance(item, Question) else 0
        told: dict[str, Any] = {"kept": None, "passages": None}
        if words is not None:
            told["kept"] = [
                {"text": w.text, "start": w.start - first, "end": w.stop - first, "score": w.score}
                for w in words
                if w.start >= first
            ]
        if answer is not None and answer.passages is not None:
            told["passages"] = [
                {"start": max(p.start - first, 0), "end": p.stop - first}
                for p in answer.passages
                if p.stop > first
            ]
        return told

    def _chat_logprobs(self, told: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        if told is None:
            return None

        def one(token: int, logprob: float) -> dict[str, Any]:
            text = self._words.of(token)
            whole = None if text is None else [*text.encode()]
            return {"token": self._words.named(token), "logprob": logprob, "bytes": whole}

        content = [
            {**one(each.token_id, each.logprob), "top_logprobs": [one(*t) for t in each.likeliest]}
            for each in told
        ]
        return {"content": content, "refusal": None}

    def _completion_logprobs(
        self, told: Sequence[TokenLogprob | None] | None, ids: Sequence[int], begin: int
    ) -> dict[str, Any] | None:
        """The likelihoods of tokens whose text begins at a character of the answer."""
        if told is None:
            return None
        offsets = []
        for token in ids[: len(told)]:
            offsets.append(begin)
            begin += len(self._words.of(token) or "")
        likeliest: list[dict[str, float] | None] = []
        for each in told:
            if each is None:
                likeliest.append(None)
                continue
            found: dict[str, float] = {}
            for one, logprob in (*each.likeliest, (each.token_id, each.logprob)):
                found.setdefault(self._words.named(one), logprob)
            likeliest.append(found)
        return {
            "tokens": [self._words.named(token) for token in ids[: len(told)]],
            "token_logprobs": [None if each is None else each.logprob for each in told],
            "top_logprobs": likeliest,
            "text_offset": offsets,
        }


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
