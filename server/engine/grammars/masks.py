"""What each sequence's grammar allows next, found on other threads while the model computes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from server.errors import EngineFault, InvalidRequest, WaybillError
from server.grammar import load_llguidance, parser_limits

if TYPE_CHECKING:
    import llguidance

Mask = NDArray[np.uint8]
"""One bit a token, the lowest bit of the first byte first, in whole words of 32: 1 is allowed."""


REMEMBERED = 64
"""Grammars that are kept as they were read, the latest used: requests come with the same ones again and again."""


@dataclass(frozen=True, slots=True)
class Start:
    """A sequence's grammar, read, and what it allows first."""

    matcher: llguidance.LLMatcher
    mask: Mask


class Masks:
    """Keeps one matcher for each sequence that has a grammar, and the mask of its next token.

    `prepare` reads a grammar on a thread; its `done` is called there. All else belongs to the thread that runs the
    engine: `begin` with what was prepared, or `known`, then for every token `take` before it is drawn and `advance`
    after, which only starts the work that the next `take` waits for. A preempted sequence keeps its mask until it draws
    again.
    `read_vocabulary` is called once, for the first grammar.
    """

    def __init__(self, read_vocabulary: Callable[[], llguidance.LLTokenizer], *, threads: int) -> None:
        self._read_vocabulary = read_vocabulary
        self._threads = threads
        self._builder = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._masker = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._vocabulary: llguidance.LLTokenizer | None = None
        self._executor: llguidance.LLExecutor | None = None
        self._known: OrderedDict[str, Start] = OrderedDict()  # used under the lock
        self._lock = threading.Lock()
        self._held: dict[int, Start | WaybillError] = {}
        self._under_way: tuple[list[int], Future[list[Start | WaybillError]]] | None = None

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._held

    def __len__(self) -> int:
        return len(self._held)

    def prepare(self, grammar: str, done: Callable[[Start | WaybillError], None]) -> None:
        """Read a grammar and find its first mask, then call `done` from that thread: InvalidRequest if it is bad."""
        self._builder.submit(self._prepare, grammar, done)

    def known(self, grammar: str) -> Start | None:
        """Return the start of a grammar that was read before, without waiting; None where it must be prepared."""
        with self._lock:
            known = self._known.get(grammar)
            if known is None:
                return None
            self._known.move_to_end(grammar)
        return Start(known.matcher.deep_copy(), known.mask)  # so that two sequences never share a matcher

    def begin(self, sequence: int, start: Start) -> None:
        """Take in a sequence whose grammar is ready."""
        self._held[sequence] = start

    def take(self, sequences: Iterable[int]) -> dict[int, Mask | WaybillError]:
        """Return the next mask of those of `sequences` that have a grammar, or why there is none."""
        self._collect()
        return {
            sequence: held.mask if isinstance(held, Start) else held
            for sequence in sequences
            if (held := self._held.get(sequence)) is not None
        }

    def advance(self, drawn: Mapping[int, int]) -> None:
        """Begin to find the masks after these tokens, by sequence; those without a grammar are passed over."""
        self._collect()
        matchers = {sequence: held.matcher for sequence in drawn if isinstance(held := self._held.get(sequence), Start)}
        if matchers:
            work = [(matcher, drawn[sequence]) for sequence, matcher in matchers.items()]
            self._under_way = list(matchers), self._masker.submit(self._advance, work)

    def forget(self, sequence: int) -> None:
        """Drop a sequence. Safe for one that is not known."""
        self._held.pop(sequence, None)

    def _collect(self) -> None:
        """Wait for the work that is under way."""
        if self._under_way is None:
            return
        (sequences, work), self._under_way = self._under_way, None
        for sequence, outcome in zip(sequences, work.result(), strict=True):
            if sequence in self._held:
                self._held[sequence] = outcome

    def _prepare(self, grammar: str, done: Callable[[Start | WaybillError], None]) -> None:
        """Runs on the builder's thread."""
        try:
            done(self._start(grammar))
        except WaybillError as error:
            done(error)
        except Exception as error:  # a thread must answer whatever happens, or its sequence would wait for ever
            done(_fault(error))

    def _start(self, grammar: str) -> Start:
        if (known := self.known(grammar)) is not None:  # another sequence brought it meanwhile
            return known
        fresh = self._read(grammar)
        with self._lock:
            self._known[grammar] = fresh
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return Start(fresh.matcher.deep_copy(), fresh.mask)

    def _read(self, grammar: str) -> Start:
        library = load_llguidance()
        if self._vocabulary is None:
            self._vocabulary = self._read_vocabulary()
            self._executor = library.LLExecutor(self._threads)
        matcher = library.LLMatcher(self._vocabulary, grammar, log_level=0, limits=parser_limits())
        mask = np.zeros(_width(self._vocabulary), dtype=np.uint8)
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, len(mask))
        outcome = _judged(matcher, mask)
        if isinstance(outcome, WaybillError):
            raise outcome
        return outcome

    def _advance(self, work: list[tuple[llguidance.LLMatcher, int]]) -> list[Start | WaybillError]:
        """Runs on the masks' thread; llguidance spreads the work over its own and lets Python go on meanwhile."""
        assert self._vocabulary is not None, "there is a matcher"
        assert self._executor is not None, "there is a matcher"
        width = _width(self._vocabulary)
        masks = np.zeros((len(work), width), dtype=np.uint8)
        matchers = [(matcher, row) for row, (matcher, _) in enumerate(work)]
        try:
            self._executor.consume_token_par(work)
            self._executor.unsafe_compute_mask_ptr(matchers, masks.ctypes.data, width, len(work))
            return [_judged(matcher, masks[row]) for matcher, row in matchers]
        except Exception as error:  # these sequences fail, and the engine goes on
            return [_fault(error)] * len(work)


def _width(vocabulary: llguidance.LLTokenizer) -> int:
    """Return a mask's bytes."""
    return (vocabulary.vocab_size + 31) // 32 * 4


def _fault(error: Exception) -> EngineFault:
    return EngineFault(f"following the grammar failed: {type(error).__name__}")


def _judged(matcher: llguidance.LLMatcher, mask: Mask) -> Start | WaybillError:
    """Tell a mask from an error: llguidance then gives a mask that allows the end of the sequence."""
    if not matcher.is_error() and (not matcher.is_stopped() or matcher.is_accepting()) and mask.any():
        return Start(matcher, mask)
    reason = matcher.get_error().partition("\n")[0] or matcher.stop_reason()
    if reason in ("NoExtension", "NoExtensionBias"):
        return InvalidRequest("no text matches the grammar")
    return InvalidRequest(f"the grammar cannot be followed: {reason[:200]}")
