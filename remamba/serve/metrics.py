"""What GET /metrics tells, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from remamba.engine.loop import EngineLoop
from remamba.engine.store import MemoryStore
from remamba.serve.limits import Admission

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one server; what others count is asked of them when it is told."""

    def __init__(self, loop: EngineLoop, store: MemoryStore, admission: Admission):
        self._loop, self._store, self._admission = loop, store, admission
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "remamba_requests", "Requests by path and status.", ["path", "code"], registry=registry
        )
        self.seconds = Histogram(
            "remamba_request_seconds", "Time of whole requests.", ["path"], buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.first = Histogram(
            "remamba_time_to_first_token_seconds", "Until a stream's first text.", buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.between = Histogram(
            "remamba_inter_token_seconds", "Between the texts of an answer in a stream.",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.prompt_tokens = Counter(
            "remamba_prompt_tokens", "Of answered requests, documents counted.", registry=registry
        )
        self.cached_tokens = Counter(
            "remamba_cached_tokens", "Of these, whose states were there.", registry=registry
        )
        self.left = Counter(
            "remamba_clients_left", "Clients that left before their answer.", registry=registry
        )
        registry.register(self)

    def told(self) -> bytes:
        """All of it, as CONTENT_TYPE."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """What the loop, the store and the admission have counted."""
        figures, counts = self._loop.figures(), self._store.counts
        gauges = {
            "running": (figures["running"], "Answers that are being written."),
            "waiting": (
                max(self._admission.answers - figures["running"], 0), "Answers without a slot yet."
            ),
            "slots": (figures["slots"], "Answers that can be written at once."),
            "waiting_tokens": (self._admission.tokens, "Tokens of all that is under way."),
        }  # fmt: skip
        for name, (value, about) in gauges.items():
            yield GaugeMetricFamily(f"remamba_{name}", about, value=value)
        totals = {
            "generated_tokens": (figures["generated_tokens"], "Tokens that were written."),
            "documents_read": (figures["read_documents"], "Documents that were read."),
            "refused": (self._admission.refused, "Answers refused as too much was under way."),
        }
        for name, (value, about) in totals.items():
            yield CounterMetricFamily(f"remamba_{name}", about, value=value)
        yield _by(
            "cancelled", "Answers that were left off.", "reason",
            {"left": figures["cancelled"], "timeout": figures["timed_out"]},
        )  # fmt: skip
        yield _by(
            "failures", "What went wrong.", "kind",
            {
                "answer": figures["failed"],
                "memory_unserved": counts["unserved"],
                "memory_unwritten": counts["unwritten"],
            },
        )  # fmt: skip
        hits = {tier: counts[f"hit_{tier}"] for tier in ("gpu", "ram", "file")}
        yield _by("memory_hits", "Documents whose memory was there.", "tier", hits)
        evicted = {tier: counts[f"evicted_{tier}"] for tier in ("gpu", "ram")}
        yield _by("memory_evictions", "Memories that had to go.", "tier", evicted)
        held = GaugeMetricFamily("remamba_memory_bytes", "Bytes of memories.", labels=["tier"])
        for tier in ("gpu", "ram"):
            held.add_metric([tier], self._store.bytes(tier))
        yield held


def _by(name: str, about: str, label: str, values: dict[str, int]) -> CounterMetricFamily:
    found = CounterMetricFamily(f"remamba_{name}", about, labels=[label])
    for key, value in values.items():
        found.add_metric([key], value)
    return found
