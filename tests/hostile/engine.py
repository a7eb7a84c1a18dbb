"""The fake engine with the real judge of values; what it says with an adapter is what it read of the adapter's file."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from server.core import AdapterSource, BaseModel, SamplingParams, Scoring
from server.engine.prefixes.magnitude import require_sane_magnitude
from server.engine.prefixes.read import AdapterTensors, read_adapter
from tests.fakes import FakeEngine, FakeStream

EMBEDDING_RMS, KV_RMS = 0.1, 1.0
"""Root mean squares that a base model could have."""


@dataclass(frozen=True)
class BaseScale:
    """The base's own size; see `server.engine.prefixes.magnitude.Scale`."""

    embedding: float
    kv: Tensor


class JudgingEngine(FakeEngine):
    """Judges values as an engine in float32 does, then as one in bfloat16 does.

    A request with an adapter is answered with the `fingerprint` of the adapter's tensors; a probe is answered as by the
    fake.
    """

    def __init__(self, base: BaseModel) -> None:
        super().__init__()
        self._base = base
        self._scale = BaseScale(EMBEDDING_RMS, torch.full((base.num_layers, 2), KV_RMS))

    async def check(self, adapter: AdapterSource) -> None:
        await super().check(adapter)
        await asyncio.to_thread(self._judge, adapter)
        self.checked.clear()  # thousands come

    def submit(
        self,
        tokens: tuple[int, ...],
        params: SamplingParams,
        adapter: AdapterSource | None = None,
        salt: str | None = None,
        scoring: Scoring | None = None,
    ) -> FakeStream:
        self.submitted[:] = self.running
        stream = super().submit(tokens, params, adapter, salt, scoring)
        if adapter is not None and salt is not None:  # a probe has no tenant's salt
            stream.says = fingerprint(read_adapter(adapter, self._base, torch.float32)).encode()
        return stream

    def _judge(self, adapter: AdapterSource) -> None:
        tensors = [read_adapter(adapter, self._base, dtype) for dtype in (torch.float32, torch.bfloat16)]
        require_sane_magnitude(tensors[0], self._scale)


def fingerprint(tensors: AdapterTensors) -> str:
    """The sha256 of the soft prompt, or of the prefix KV, in float32."""
    values = tensors.table if tensors.kv is None else tensors.kv
    assert values is not None
    return hashlib.sha256(values.float().contiguous().numpy().tobytes()).hexdigest()
