"""What crosses between the API process and the engine process: length-prefixed JSON of plain dataclasses.

To the engine: `Configure` first, then `Submit`, `Abort`, `Check`, `Verify`, `Forget`, `Pin`. From it: `Hello` or
`Refused` once, then a `StepReport` per step (one batched message), a `CheckResult` per check and a `VerifyResult` per
verification. A frame is a 4-byte big-endian length and that many bytes of UTF-8 JSON. A step's events, the bulk of all
traffic, are bare lists: `[sequence, token]`, and the other fields of `TokenEvent` behind them where one is set.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from server.core import (
    AdapterKind,
    AdapterSource,
    BaseModel,
    EngineConfig,
    FinishReason,
    Parity,
    PrefixKey,
    PromptScores,
    SamplingParams,
    Scoring,
    TokenEvent,
)

HEADER = struct.Struct(">I")
MAX_FRAME = 256 * 1024 * 1024
"""Bytes. Far above any real message; a longer one means the stream is broken."""


@dataclass(frozen=True, slots=True)
class Configure:
    """The engine's settings; the first message."""

    config: EngineConfig


@dataclass(frozen=True, slots=True)
class Submit:
    """Run a sequence. `tokens` come after the adapter's prefix; ids from `vocab_size` on name rows of its table.

    Sequences with the same `salt` may reuse what others have computed for the same start; one without
    shares nothing.
    """

    sequence: int
    tokens: tuple[int, ...]
    params: SamplingParams
    adapter: AdapterSource | None = None
    salt: str | None = None
    scoring: Scoring | None = None


@dataclass(frozen=True, slots=True)
class Abort:
    """End a sequence now and free its memory. Unknown ids are ignored: it may just have finished."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Check:
    """Judge an adapter's values: finite before and after the cast, sane magnitude, a canary forward."""

    check: int
    adapter: AdapterSource


@dataclass(frozen=True, slots=True)
class Verify:
    """Compare what is served for `tokens` behind an adapter, and `max_tokens` greedy ones, with the model run alone."""

    verify: int
    tokens: tuple[int, ...]
    max_tokens: int
    adapter: AdapterSource


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop every prefix of this adapter digest once no sequence uses it."""

    adapter: str


@dataclass(frozen=True, slots=True)
class Pin:
    """Evict the prefixes of this adapter digest last of all; or, with `pinned` False, as any other."""

    adapter: str
    pinned: bool = True


@dataclass(frozen=True, slots=True)
class Hello:
    """The engine is up. Sizes as measured, not as asked for."""

    max_model_len: int
    num_blocks: int
    block_size: int  # tokens
    prefix_blocks: int
    dtype: str
    device: str
    attention: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The engine will not run with this model or these settings, and ends."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A sequence that ended with an error. `code` is one of `server.errors`."""

    sequence: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Started:
    """A sequence got its first span. Milliseconds: waiting for room, and of that for its adapter to be read.

    `cached_tokens` of its prompt were computed for an earlier sequence.
    """

    sequence: int
    queue_ms: float
    load_ms: float
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StepStats:
    """Gauges after one step, and what that step held."""

    running: int
    waiting: int
    batch_sequences: int
    batch_tokens: int
    batch_adapters: int  # distinct adapters in the packed forward
    batch_kinds: int  # distinct kinds in it; base-only rows count as one kind
    blocks_used: int
    blocks_total: int
    prefix_blocks_used: int
    resident_adapters: int
    cold_loads: int  # since start
    preemptions: int  # since start
    asked_tokens: int  # since start: prompt tokens of sequences that may reuse what others computed
    cached_tokens: int  # since start: of these, tokens that were reused
    step_ms: float


@dataclass(frozen=True, slots=True)
class Moved:
    """A prefix that came into KV memory, or left it."""

    key: PrefixKey
    resident: bool


@dataclass(frozen=True, slots=True)
class StepReport:
    """Everything one step has to tell."""

    events: tuple[TokenEvent, ...] = ()
    failures: tuple[Failure, ...] = ()
    started: tuple[Started, ...] = ()
    scores: tuple[PromptScores, ...] = ()  # told before the sequence's first event
    moved: tuple[Moved, ...] = ()
    stats: StepStats | None = None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The verdict on a `Check`; `code`, one of `server.errors`, and `message` are empty when the adapter is fit."""

    check: int
    code: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What a `Verify` found, or why it found nothing: `code`, one of `server.errors`, and `message`."""

    verify: int
    parity: Parity | None = None
    code: str = ""
    message: str = ""


ToEngine = Configure | Submit | Abort | Check | Verify | Forget | Pin
FromEngine = Hello | Refused | StepReport | CheckResult | VerifyResult
Message = ToEngine | FromEngine

_NESTED: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        Configure, Submit, Abort, Check, Verify, Forget, Pin, Hello, Refused, StepReport, CheckResult, VerifyResult,
        Failure, Started, Moved, StepStats, SamplingParams, AdapterSource, PrefixKey, EngineConfig, BaseModel, Scoring,
        PromptScores, Parity,
    )
}  # fmt: skip
_ENUMS: dict[tuple[str, str], type[StrEnum]] = {
    ("AdapterSource", "kind"): AdapterKind,
}


def encode(message: Message) -> bytes:
    """Return the frame of one message, header included."""
    body = json.dumps(_to_wire(message), separators=(",", ":")).encode()
    return HEADER.pack(len(body)) + body


def decode(body: bytes | bytearray | memoryview) -> Message:
    """Return the message in one frame's body (without its header). Raises ValueError on anything else."""
    message = _from_wire(json.loads(bytes(body)))
    if not isinstance(message, Message):
        raise ValueError(f"not a message: {type(message).__name__}")
    return message


def _to_wire(value: Any) -> Any:
    """A dataclass becomes {"": its name, field: value}; defaults are left out to keep step reports short."""
    name = type(value).__name__
    if name in _NESTED:
        wire: dict[str, Any] = {"": name}
        for field in fields(value):
            item = getattr(value, field.name)
            if item != field.default:
                wire[field.name] = [_bare(event) for event in item] if field.name == "events" else _to_wire(item)
        return wire
    if isinstance(value, tuple):
        if value and type(value[0]) is int:
            return value
        return [_to_wire(item) for item in value]
    return value


def _bare(event: TokenEvent) -> list[Any]:
    if event.finish is None and event.logprob is None:
        return [event.sequence, event.token]
    return [event.sequence, event.token, event.finish, event.logprob, event.top_logprobs]


def _event(bare: list[Any]) -> TokenEvent:
    if len(bare) == 2:
        return TokenEvent(bare[0], bare[1])
    sequence, token, finish, logprob, top = bare
    reason = None if finish is None else FinishReason(finish)
    return TokenEvent(sequence, token, reason, logprob, tuple((int(i), float(p)) for i, p in top))


def _from_wire(value: Any) -> Any:
    if isinstance(value, dict):
        name = value.pop("")
        cls = _NESTED[name]
        events = value.pop("events", None)
        made = {key: _from_wire(item) for key, item in value.items()}
        if events is not None:
            made["events"] = tuple(_event(bare) for bare in events)
        for (owner, key), enum in _ENUMS.items():
            if owner == name and made.get(key) is not None:
                made[key] = enum(made[key])
        return cls(**made)
    if isinstance(value, list):
        if value and type(value[0]) is int:
            return tuple(value)
        return tuple(_from_wire(item) for item in value)
    return value
