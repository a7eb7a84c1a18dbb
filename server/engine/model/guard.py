"""Prove at start that the model behind a backend computes what transformers computes alone, or refuse."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from server.core import PrefixKey
from server.engine.model.attention.base import AttentionBackend, Row
from server.engine.model.attention.hook import detach
from server.engine.model.forward import Forward
from server.engine.model.load import LoadedModel
from server.engine.model.network import Network
from server.engine.model.parity import compare
from server.engine.model.runner import Runner
from server.engine.model.support import refuse
from server.engine.scheduler.plan import Prefix, Span

SHORT_WINDOW = 6
"""Tokens. Sliding windows are cut to this while checking, so that every sequence is longer than they are."""

EMBEDDING_SAMPLE = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Root mean squares of the base model: of embedded tokens, and per layer of keys and values [num_layers, 2]."""

    embedding: float
    kv: Tensor


@dataclass(frozen=True, slots=True)
class _Text:
    """A sequence of the check; `cuts` end its spans, the last being its length."""

    tokens: tuple[int, ...]
    cuts: tuple[int, ...]
    blocks: tuple[int, ...]
    prefixed: bool


@dataclass(frozen=True, slots=True)
class _Script:
    """What the check runs: a prefix, and sequences of which some stand behind it."""

    prefix: tuple[int, ...]
    prefix_blocks: tuple[int, ...]
    texts: tuple[_Text, ...]

    @property
    def blocks(self) -> list[int]:
        """Every block that the check writes."""
        return [*self.prefix_blocks, *(block for text in self.texts for block in text.blocks)]


class _Watched:
    """A backend with a note of every call and of how large keys and values are."""

    def __init__(self, backend: AttentionBackend, num_layers: int) -> None:
        self.name = f"waybill_guard_{uuid.uuid4().hex}"
        self.shape = backend.shape
        self.zero, self.copy = backend.zero, backend.copy
        self.install = backend.install
        self.calls: list[tuple[int, int | None]] = []  # layer, window
        self.squares = torch.zeros((num_layers, 2), dtype=torch.float64)
        self.numbers = torch.zeros((num_layers, 1), dtype=torch.float64)
        self._backend = backend

    def begin(self, rows: Sequence[Row]) -> None:
        self.calls.clear()
        self._backend.begin(rows)

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        self.calls.append((layer, kwargs.get("sliding_window") or None))
        for part, tensor in enumerate((key, value)):
            self.squares[layer, part] += tensor.double().square().sum().cpu()
        self.numbers[layer] += key.numel()
        return self._backend.attend(module, query, key, value, attention_mask, **kwargs)


@torch.inference_mode()
def check_model(model: LoadedModel, backend: AttentionBackend) -> Calibration:
    """Compare packed, chunked forwards behind `backend` with the model's own eager attention, one text at a time.

    Uses the first blocks of the backend's memory, before anything else does, and leaves them cleared; everything it
    changes on the model it sets back. Raises UnsupportedModel when the two differ or a layer is not called exactly
    once, and ValueError when the KV memory has too few blocks to try.
    """
    script = _script(model, backend)
    watched = _Watched(backend, model.num_layers)
    attention = model.module.config._attn_implementation
    try:
        with _short_windows(model.module):
            try:
                found = _run_packed(model, Runner(model, watched), script, watched)
            finally:
                detach(model.module, watched)
                backend.zero(script.blocks)
            for text, logits in zip(script.texts, found, strict=True):
                _compare(model, logits, _run_alone(model, script, text))
    finally:
        model.module.set_attn_implementation(attention)
    return Calibration(_embedding_rms(model), (watched.squares / watched.numbers).sqrt().float())


@torch.inference_mode()
def check_network(model: LoadedModel, backend: AttentionBackend, network: Network) -> None:
    """Compare the same forwards by the compiled `network` with the model's own. Leaves everything as it was.

    Raises UnsupportedModel when they differ; the model itself can still be served.
    """
    script = _script(model, backend)
    try:
        with _short_windows(model.module):
            network.limit_windows(SHORT_WINDOW)
            found = _run_packed(model, Runner(model, backend, network), script)
            detach(model.module, backend)
            for text, logits in zip(script.texts, found, strict=True):
                _compare(model, logits, _run_alone(model, script, text))
    finally:
        network.limit_windows(None)
        backend.zero(script.blocks)


@torch.inference_mode()
def check_forward(model: LoadedModel, backend: AttentionBackend, forward: Forward) -> None:
    """Compare the same forwards by another `forward` over the backend with the model's own. Leaves all as it was.

    Raises UnsupportedModel when they differ; the model itself can still be served.
    """
    script = _script(model, backend)
    try:
        found = _run_packed(model, Runner(model, backend, forward=forward), script)
    finally:
        detach(model.module, backend)
        backend.zero(script.blocks)
    for text, logits in zip(script.texts, found, strict=True):
        _compare(model, logits, _run_alone(model, script, text))


def _script(model: LoadedModel, backend: AttentionBackend) -> _Script:
    """Texts of several lengths, cut where a span starts inside and outside a block, blocks in no order."""
    size, limit = backend.shape.block_size, model.max_model_len
    prefix = min(21, limit // 2)
    longest = min(size + 5, 69, limit)
    behind = min(19, limit - prefix)
    few = min(5, behind)
    lengths = (prefix, behind, longest, few)
    counts = [-(-length // size) for length in lengths]
    if sum(counts) > backend.shape.num_blocks:
        raise ValueError(f"the KV memory has {backend.shape.num_blocks} blocks, the start-up check needs {sum(counts)}")
    free = iter(range(sum(counts) - 1, -1, -1))
    taken = [tuple(next(free) for _ in range(count)) for count in counts]
    generator = torch.Generator().manual_seed(0)
    first = min(3, model.vocab_size - 1)  # ids below are often padding and other specials
    ids = [tuple(torch.randint(first, model.vocab_size, (n,), generator=generator).tolist()) for n in lengths]
    texts = (
        _Text(ids[1], _cuts(behind, 7), taken[1], prefixed=True),
        _Text(ids[2], _cuts(longest, longest * 3 // 5), taken[2], prefixed=False),
        _Text(ids[3], _cuts(few, few - 1), taken[3], prefixed=True),
    )
    return _Script(ids[0], taken[0], texts)


def _cuts(length: int, first: int) -> tuple[int, ...]:
    """A first chunk, a second, and one token alone, as far as the length allows."""
    return tuple(sorted({min(max(first, 1), length), max(length - 1, 1), length}))


def _run_packed(model: LoadedModel, runner: Runner, script: _Script, watched: _Watched | None = None) -> list[Tensor]:
    """Return every text's logits [length, vocab_size] from forwards that mix the texts' chunks."""
    runner.forward([Span(0, 0, script.prefix, script.prefix_blocks)])
    if watched is not None:
        _require_all_called(model, watched)
    prefix = Prefix(PrefixKey("", ""), len(script.prefix), script.prefix_blocks)
    parts: list[list[Tensor]] = [[] for _ in script.texts]
    done = [0] * len(script.texts)
    for step in range(max(len(text.cuts) for text in script.texts)):
        spans = []
        for index, text in enumerate(script.texts):
            if step < len(text.cuts):
                tokens = text.tokens[done[index] : text.cuts[step]]
                behind = prefix if text.prefixed else None
                spans.append(Span(index, done[index], tokens, text.blocks, behind, rows=tuple(range(len(tokens)))))
                done[index] = text.cuts[step]
        logits, _ = runner.forward(spans)
        if watched is not None:
            _require_all_called(model, watched)
        sizes = [len(span.tokens) for span in spans]
        for span, part in zip(spans, torch.split(logits, sizes), strict=True):
            parts[span.sequence].append(part.clone())
    return [torch.cat(part) for part in parts]


def _run_alone(model: LoadedModel, script: _Script, text: _Text) -> Tensor:
    """Return the text's logits [length, vocab_size] as the model computes them without us."""
    tokens = (*script.prefix, *text.tokens) if text.prefixed else text.tokens
    logits: Tensor = model.module(input_ids=torch.tensor([tokens], device=model.device), use_cache=False).logits
    return logits[0, -len(text.tokens) :].float()


def _require_all_called(model: LoadedModel, watched: _Watched) -> None:
    """Every layer once, with the window that the shortened model should have."""
    if [layer for layer, _ in watched.calls] != list(range(model.num_layers)):
        reason = (
            f"its {model.num_layers} layers called the attention interface {len(watched.calls)} times, not once each"
        )
        raise refuse(model.family, reason)
    windows = [window for _, window in watched.calls]
    if windows != [None if window is None else min(window, SHORT_WINDOW) for window in model.windows]:
        raise refuse(model.family, "its sliding windows cannot be shortened, so they cannot be checked")


def _compare(model: LoadedModel, found: Tensor, expected: Tensor) -> None:
    if not bool(expected.isfinite().all()):
        raise refuse(model.family, "its own logits are not finite")
    parity = compare(found, expected, model.dtype)
    if not parity.holds:
        raise refuse(
            model.family,
            f"in one packed batch its logits differ from the model's own by {parity.error:.2g}, and "
            f"{parity.allowed:.2g} is allowed for {model.dtype}",
        )


def _embedding_rms(model: LoadedModel) -> float:
    count = min(model.vocab_size, EMBEDDING_SAMPLE)
    ids = torch.linspace(0, model.vocab_size - 1, count, device=model.device).long()
    return float(model.embed(ids).double().square().mean().sqrt())


@contextmanager
def _short_windows(module: nn.Module) -> Iterator[None]:
    """Cut every sliding window to `SHORT_WINDOW`, in configurations (they make the eager masks) and in modules."""
    holders: dict[int, Any] = {}
    for part in module.modules():
        config = getattr(part, "config", part)
        holders |= {id(part): part, id(config): config}
    windows = [(holder, getattr(holder, "sliding_window", None)) for holder in holders.values()]
    windows = [(holder, window) for holder, window in windows if isinstance(window, int) and window > SHORT_WINDOW]
    try:
        for holder, _ in windows:
            holder.sliding_window = SHORT_WINDOW
        yield
    finally:
        for holder, window in windows:
            holder.sliding_window = window
