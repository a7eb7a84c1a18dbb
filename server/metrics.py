"""Every metric, named once: vLLM's names where vLLM has one, else `waybill_*`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from server.engine.messages import StepReport, StepStats

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_COUNTS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_SMALL = (0, 1, 2, 3, 4, 5, 6, 7)
_TOKENS = (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Metrics:
    """One server's metrics, in a registry of its own. `model` is the base model's name."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self._model = model
        self._last: StepStats | None = None
        self._make_requests()
        self._make_engine()

    def render(self) -> bytes:
        """Return the exposition in Prometheus's text format."""
        return generate_latest(self.registry)

    def observe_http(self, route: str, status: int) -> None:
        """One answered HTTP request; `route` is the path's template, never the path."""
        self._http.labels(route, str(status)).inc()

    def observe_gap(self, seconds: float) -> None:
        """The time between two tokens of one sequence."""
        self._gap.observe(seconds)

    def observe_answer(
        self,
        *,
        prompt_tokens: int,
        completion_tokens: int,
        virtual_tokens: int,
        finish_reasons: tuple[str, ...],
        queue: float,
        ttft: float,
        total: float,
    ) -> None:
        """One generate call that ended, however it ended. Seconds; `ttft` and `queue` count only with a token."""
        self._prompt_tokens.inc(prompt_tokens)
        self._generation_tokens.inc(completion_tokens)
        self._virtual_tokens.inc(virtual_tokens)
        for reason in finish_reasons:
            self._finished.labels(self._model, reason).inc()
        if completion_tokens:
            self._ttft.observe(ttft)
            self._queue.observe(queue)
        self._total.observe(total)

    def observe_publish(self, outcome: str) -> None:
        """One upload: `created`, `existing`, `checked` (a dry run) or `refused`."""
        self._uploads.labels(outcome).inc()

    def observe_engine_death(self) -> None:
        """The engine process ended by itself."""
        self._engine_deaths.inc()

    def observe_step(self, report: StepReport) -> None:
        """One engine step."""
        stats = report.stats
        if stats is None:
            return
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        self._kv_usage.set(stats.blocks_used / stats.blocks_total if stats.blocks_total else 0.0)
        self._blocks_used.set(stats.blocks_used)
        self._blocks_total.set(stats.blocks_total)
        self._prefix_blocks.set(stats.prefix_blocks_used)
        self._resident.set(stats.resident_adapters)
        if stats.batch_sequences:
            self._batch_tokens.observe(stats.batch_tokens)
            self._batch_size.observe(stats.batch_sequences)
            self._batch_adapters.observe(stats.batch_adapters)
            self._batch_kinds.observe(stats.batch_kinds)
            self._step_seconds.observe(stats.step_ms / 1000)
        self._count(stats)

    def _count(self, stats: StepStats) -> None:
        """The engine counts since its start: a count that fell belongs to a new engine."""
        last, self._last = self._last, stats
        for counter, now, before in (
            (self._cold_loads, stats.cold_loads, last.cold_loads if last else 0),
            (self._preemptions, stats.preemptions, last.preemptions if last else 0),
            (self._cache_queries, stats.asked_tokens, last.asked_tokens if last else 0),
            (self._cache_hits, stats.cached_tokens, last.cached_tokens if last else 0),
        ):
            counter.inc(now - before if now >= before else now)

    def _make_requests(self) -> None:
        self._http = Counter(
            "waybill_requests", "HTTP requests by route and status.", ["route", "status"], registry=self.registry
        )
        self._uploads = Counter("waybill_uploads", "Adapters offered, by outcome.", ["outcome"], registry=self.registry)
        self._virtual_tokens = self._counter("waybill_virtual_tokens", "Virtual tokens of all prompts.")
        self._prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens, virtual ones not counted.")
        self._generation_tokens = self._counter("vllm:generation_tokens", "Generated tokens.")
        self._finished = Counter(
            "vllm:request_success",
            "Finished sequences by reason.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self._ttft = self._histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.", _SECONDS)
        self._gap = self._histogram("vllm:inter_token_latency_seconds", "Between two tokens.", _GAPS)
        self._total = self._histogram("vllm:e2e_request_latency_seconds", "From arrival to the end.", _SECONDS)
        self._queue = self._histogram(
            "vllm:request_queue_time_seconds", "Waiting for the engine, its adapter included.", _SECONDS
        )

    def _make_engine(self) -> None:
        self._engine_deaths = self._counter("waybill_engine_deaths", "Times that the engine process ended by itself.")
        self._running = self._gauge("vllm:num_requests_running", "Sequences that run.")
        self._waiting = self._gauge("vllm:num_requests_waiting", "Sequences that wait.")
        self._kv_usage = self._gauge("vllm:kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1.")
        self._preemptions = self._counter("vllm:num_preemptions", "Sequences whose KV was taken back.")
        self._cache_queries = self._counter(
            "vllm:prefix_cache_queries", "Prompt tokens looked for among those computed before."
        )
        self._cache_hits = self._counter("vllm:prefix_cache_hits", "Prompt tokens found there, and not computed again.")
        self._batch_tokens = self._histogram("vllm:iteration_tokens_total", "Tokens of one step.", _TOKENS)
        self._blocks_used = self._gauge("waybill_kv_blocks_used", "KV blocks in use, prefixes included.")
        self._blocks_total = self._gauge("waybill_kv_blocks_total", "KV blocks there are.")
        self._prefix_blocks = self._gauge("waybill_prefix_blocks_used", "KV blocks that hold prefixes.")
        self._resident = self._gauge("waybill_resident_adapters", "Adapters whose prefix is in memory.")
        self._cold_loads = self._counter("waybill_cold_loads", "Prefixes read or compiled.")
        self._batch_size = self._histogram("waybill_batch_sequences", "Sequences of one step.", _COUNTS)
        self._batch_adapters = self._histogram("waybill_batch_adapters", "Distinct adapters of one step.", _COUNTS)
        self._batch_kinds = self._histogram(
            "waybill_batch_kinds", "Distinct kinds of one step; rows of the base model are one.", _SMALL
        )
        self._step_seconds = self._histogram("waybill_step_seconds", "Duration of one step.", _GAPS)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, ["model_name"], registry=self.registry).labels(self._model)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, ["model_name"], registry=self.registry).labels(self._model)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        metric = Histogram(name, text, ["model_name"], registry=self.registry, buckets=buckets)
        return metric.labels(self._model)
