"""The API process's side of the seam: `EngineClient`, what it promises, and the real one that owns a process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from server.core import AdapterSource, SamplingParams, TokenEvent
from server.engine.messages import Hello, Started, StepReport


class SequenceStream(Protocol):
    """The tokens of one submitted sequence, in order.

    Iterating yields `TokenEvent`s; the last has `finish` set. It raises a `server.errors.WaybillError` where the
    sequence failed: `EngineFault`, `AdapterRejected`, or `EngineRestarting` when the engine process died.
    """

    started: Started | None
    """Set before the first event is yielded."""

    def __aiter__(self) -> AsyncIterator[TokenEvent]: ...

    def abort(self) -> None:
        """End the sequence and free its memory. Safe at any time, also twice and after the end."""
        ...


class EngineClient(Protocol):
    """What the service needs of an engine."""

    @property
    def ready(self) -> bool:
        """Whether the engine takes sequences now."""
        ...

    @property
    def hello(self) -> Hello:
        """What the engine said when it last came up. Raises EngineRestarting before that."""
        ...

    async def start(self) -> None:
        """Start the engine and wait until it is ready. Raises RuntimeError with its reason when it refuses."""
        ...

    async def wait_ready(self, seconds: float) -> None:
        """Return once the engine is ready. Raises EngineRestarting when it is not within `seconds`."""
        ...

    async def close(self) -> None:
        """End the engine. Open sequences fail with EngineRestarting."""
        ...

    def submit(
        self, tokens: tuple[int, ...], params: SamplingParams, adapter: AdapterSource | None = None
    ) -> SequenceStream:
        """Queue one sequence. Raises EngineRestarting when the engine is down."""
        ...

    async def check(self, adapter: AdapterSource) -> None:
        """Judge an adapter's values on the engine. Raises AdapterRejected with the reason."""
        ...

    def forget(self, digest: str) -> None:
        """Drop what the engine holds of this adapter digest, once no sequence uses it."""
        ...

    def on_report(self, listener: Callable[[StepReport], None]) -> None:
        """Call `listener` with every step's report (for metrics)."""
        ...
