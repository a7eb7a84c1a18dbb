"""What every workload works with: the servers, scratch space, how often to repeat, and measuring in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.adapters import Recipe, Workshop
from benchmarks.asks import Ask, prompts
from benchmarks.peers import PeerError, vllm_home
from benchmarks.results import Comparison, Turn, compare, turn_of
from benchmarks.servers import Server, start_vllm, start_waybill, vocab_size

PROMPT = 64
"""Tokens of a prompt, where a workload does not say otherwise."""

PATIENCE = 60.0
"""Seconds after which a comparison starts no other pair of turns: a slow processor gets fewer of them."""

WARM_TOKENS = 8
WARM_REQUESTS = 16


@dataclass(frozen=True, slots=True)
class Options:
    """How thorough to be. `attention` is our server's setting of that name."""

    repeats: int = 5
    quick: bool = False
    attention: str = "auto"

    def of(self, repeats: int) -> int:
        """Return how often something is measured that a full run measures `repeats` times of five."""
        return 1 if self.quick else max(1, round(repeats * self.repeats / 5))


@dataclass(slots=True)
class Bench:
    """One run of the suite. `folder` is scratch space, `said` is told what happens."""

    model: Path
    folder: Path
    peers: Path
    options: Options
    said: Callable[[str], None]
    stack: ExitStack
    workshop: Workshop
    _ours: Server | None = None
    _vllm: Server | None = None
    _peer_failure: str | None = None
    _turns: int = 0
    _published: int = 0
    vocab_size: int = field(init=False)

    def __post_init__(self) -> None:
        self.vocab_size = vocab_size(self.model)
        self.store.mkdir(parents=True, exist_ok=True)

    @property
    def store(self) -> Path:
        """Where the main server looks for adapters; it sees what is written while it runs."""
        return self.folder / "store"

    def ours(self) -> Server:
        """Return our server, started when it is first needed."""
        if self._ours is None:
            self.said("starting waybill")
            self._ours = start_waybill(self.model, self.store, self.folder, *self.flags())
            self.stack.callback(self._ours.stop)
        return self._ours

    def vllm(self) -> Server:
        """Return vLLM's server, installed and started when it is first needed. Raises PeerError, each time the same."""
        if self._peer_failure is not None:
            raise PeerError(self._peer_failure)
        if self._vllm is None:
            try:
                home = vllm_home(self.peers, self.said)
                self.said("starting vLLM")
                self._vllm = start_vllm(home, self.model, self.folder)
            except Exception as error:
                self._peer_failure = str(error)
                raise PeerError(self._peer_failure) from error
            self.stack.callback(self._vllm.stop)
        return self._vllm

    @contextmanager
    def own(self, store: Path, *flags: str, label: str = "waybill") -> Iterator[Server]:
        """Give a server of ours with other settings, for one workload."""
        self.said(f"starting {label} with {' '.join(flags)}")
        server = start_waybill(self.model, store, self.folder, *self.flags(), *flags, label=label)
        try:
            yield server
        finally:
            server.stop()

    def many_adapters(self, count: int) -> Path:
        """Return a store with at least the `count` soft prompts of 32 tokens that `soft_prompt` names."""
        store = self.folder / "many"
        if count > self._published:
            self.said(f"publishing {count - self._published:,} adapters")
            self.workshop.publish(store, [Recipe(soft_prompt(i), 32, i) for i in range(self._published, count)])
            self._published = count
        return store

    def flags(self) -> list[str]:
        """Return the flags that every server of ours gets."""
        return [] if self.options.attention == "auto" else ["--attention", self.options.attention]

    def prompts(self, count: int, length: int, *seed: object) -> list[tuple[int, ...]]:
        return prompts(count, length, self.vocab_size, seed)

    def side(
        self,
        server: Server,
        asks: Callable[[int], list[Ask]],
        clients: int,
        *,
        warm: list[Ask] | None = None,
        label: str = "",
    ) -> Side:
        """Return one side of a comparison: closed-loop clients that work through `asks(turn)`, and fresh warming."""
        return Side(label or server.label, lambda turn: self.measure(server, asks(turn), clients, warm))

    def measure(self, server: Server, asks: list[Ask], clients: int, warm: list[Ask] | None = None) -> Turn:
        """Let closed-loop clients work through `asks` while everybody else is paused.

        Before the clock starts `warm` is sent, by default a short request from each of a few clients, so that no turn
        pays for having been paused.
        """
        if warm is None:
            fresh = self.prompts(min(clients, len(asks), WARM_REQUESTS), PROMPT, "warm", self._turns)
            warm = [Ask(prompt, WARM_TOKENS) for prompt in fresh]
        self._turns += 1
        with server.awake():
            return turn_of(server.send(asks, self.folder, clients=clients, warm=warm))

    def compare(
        self, name: str, ours: Side, theirs: Side, *, repeats: int = 5, target: float | None = None
    ) -> Comparison:
        """Measure two sides in turns; who goes first changes each time, so that a drifting machine favours neither."""
        pairs: list[tuple[Turn, Turn]] = []
        began = time.monotonic()
        for turn in range(self.options.of(repeats)):
            if pairs and time.monotonic() - began > PATIENCE:
                break
            if turn % 2 == 0:
                mine = ours.measure(turn)
                other = theirs.measure(turn)
            else:
                other = theirs.measure(turn)
                mine = ours.measure(turn)
            pairs.append((mine, other))
            self.said(f"{name}: {mine.rate:,.0f} against {other.rate:,.0f} tok/s")
        return compare(name, ours.label, theirs.label, pairs, target)


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: what it is called, and how it is measured in turn *n*."""

    label: str
    measure: Callable[[int], Turn]


def soft_prompt(number: int) -> str:
    """Return the name of one of the many adapters."""
    return f"soft-{number}"
