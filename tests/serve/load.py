"""Figures of a server under load: python -m tests.serve.load URL [crowd|limit|leavers|kept ...].

Run it against `remamba serve` in another process; docs/SERVING.md tells what was found.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2

DOCUMENT = Path(__file__).parents[2] / "examples" / "demo_document.txt"
QUESTION = "What is the occupation of William Talbot?"


class Load:
    """What many clients ask of one server."""

    def __init__(self, url: str, model: str):
        limits = httpx2.Limits(max_connections=None)
        self.http = httpx2.AsyncClient(base_url=url, timeout=300, limits=limits, verify=False)
        self.body = {"model": f"{model}:plain", "prompt": "Tom Hill lives in"}

    async def stream(self, tokens: int) -> tuple[float, float]:
        """Seconds until the first text, and until the last."""
        begun, first = time.perf_counter(), 0.0
        body = self.body | {"max_tokens": tokens, "stream": True}
        async with self.http.stream("POST", "/v1/completions", json=body) as found:
            assert found.status_code == 200, await found.aread()
            async for line in found.aiter_lines():
                first = first or time.perf_counter() - begun
                assert '"error"' not in line, line
        return first, time.perf_counter() - begun

    async def crowd(self, clients: int = 200, tokens: int = 16) -> str:
        begun = time.perf_counter()
        found = await asyncio.gather(*(self.stream(tokens) for _ in range(clients)))
        firsts = sorted(first for first, _ in found)
        p99 = firsts[int(0.99 * len(firsts))]
        return (
            f"{clients} clients, {tokens} tokens each: all answered in "
            f"{time.perf_counter() - begun:.1f} s; first text median "
            f"{statistics.median(firsts):.1f} s, 99 % {p99:.1f} s"
        )

    async def limit(self, requests: int = 2000) -> str:
        codes: Counter[int] = Counter()

        async def ask() -> None:
            body = self.body | {"max_tokens": 16}
            codes[(await self.http.post("/v1/completions", json=body)).status_code] += 1

        begun = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(requests)))
        return f"{requests} at once: {dict(codes)} in {time.perf_counter() - begun:.1f} s"

    async def leavers(self, count: int = 1000, beside: int = 16) -> str:
        chance = random.Random(1)
        room = asyncio.Semaphore(beside)

        async def leave() -> None:
            async with room:
                body = self.body | {"max_tokens": 500, "stream": chance.random() < 0.7}
                with contextlib.suppress(asyncio.TimeoutError):
                    ask = self.http.post("/v1/completions", json=body)
                    await asyncio.wait_for(ask, chance.uniform(0.0, 0.6))

        begun = time.perf_counter()
        await asyncio.gather(*(leave() for _ in range(count)))
        await asyncio.sleep(0.5)
        state = (await self.http.get("/ready")).json()
        seconds = time.perf_counter() - begun
        return f"{count} leavers in {seconds:.0f} s: afterwards {json.dumps(state)}"

    async def kept(self, questions: int = 100) -> str:
        text = DOCUMENT.read_text(encoding="utf-8")
        files = {"file": ("demo.txt", text.encode())}
        found = await self.http.post("/v1/files", files=files, data={"purpose": "user_data"})
        file_id = found.json()["id"]
        while (await self.http.get(f"/v1/files/{file_id}")).json()["status"] != "processed":
            await asyncio.sleep(0.1)
        model = self.body["model"].removesuffix(":plain")

        async def ask(part: dict[str, Any]) -> float:
            parts = [part, {"type": "text", "text": QUESTION}]
            messages = [{"role": "user", "content": parts}]
            body = {"model": model, "messages": messages, "max_tokens": 8}
            begun = time.perf_counter()
            found = await self.http.post("/v1/chat/completions", json=body)
            assert found.status_code == 200, found.text
            return time.perf_counter() - begun

        known = [
            await ask({"type": "file", "file": {"file_id": file_id}}) for _ in range(questions)
        ]
        # another text each time, so that nothing is known of it
        sent = [await ask({"type": "text", "text": f"{i}. {text}"}) for i in range(5)]
        fast, slow = statistics.median(known), statistics.median(sent)
        return (
            f"{questions} questions of one file: median {fast:.3f} s ({min(known):.3f} to "
            f"{max(known):.3f}); with the text sent each time, 5 of them: {slow:.2f} s "
            f"({min(sent):.2f} to {max(sent):.2f}): {slow / fast:.0f} times"
        )


async def main(url: str, names: list[str]) -> None:
    async with httpx2.AsyncClient(base_url=url, verify=False) as http:
        model = (await http.get("/v1/models")).json()["data"][0]["id"]
    load = Load(url, model)
    for name in names or ["crowd", "limit", "leavers", "kept"]:
        sys.stdout.write(f"{name}: {await getattr(load, name)()}\n")
        sys.stdout.flush()
    await load.http.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
