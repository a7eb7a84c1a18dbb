"""Steps of single tokens at few fixed sizes, on static buffers: what a GPU can capture once and replay without Python.

A step of n rows is padded to the next size of `sizes_up_to`. Ids, places and results lie in buffers that are always the
same; padding rows write and read a block that no sequence has. On a CPU the same function runs on the same buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from server.engine.model.attention.base import AttentionBackend, Row
from server.engine.model.forward import Forward
from server.engine.model.likeliest import finite_rows, likeliest
from server.engine.model.load import LoadedModel
from server.engine.model.uploads import Uploads

CARRIED = -1
"""Stands for an id that an earlier step drew, and which the device alone may know yet."""


PREPARED = (1, 257, 513, 769)
"""Tokens of context for which every size is captured at start: each is one more split of keys in the GPU's kernels.

Longer ones, and prefixes that are read for their rows together, are captured when they are first met."""


def sizes_up_to(rows: int) -> list[int]:
    """Return the numbers of rows that steps are padded to."""
    small = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 32), *range(256, rows + 1, 64)]
    return sorted({size for size in small if size < rows} | {rows})


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """One row for each single token. The tensors are overwritten by the next step."""

    logits: Tensor  # [rows, vocab_size] float32
    tokens: Tensor  # [rows] int64, the likeliest
    finite: Tensor  # [rows] bool: whether the whole row is


class DecodeGraphs:
    """Computes single tokens of many rows. `trash` is a block of the backend that nobody else uses.

    `drawn` [2 * max_rows + 1] holds tokens of earlier steps: a step takes those that are CARRIED from there, and leaves
    its own likeliest ones. The last place is nobody's.
    """

    def __init__(
        self, model: LoadedModel, backend: AttentionBackend, forward: Forward, *, trash: int, max_rows: int
    ) -> None:
        self.max_rows = max_rows
        self.nobody = 2 * max_rows
        self.drawn = torch.zeros(2 * max_rows + 1, dtype=torch.int64, device=model.device)
        self._model, self._backend, self._forward, self._trash = model, backend, forward, trash
        self._captures = model.device.type == "cuda"
        self._sizes = sizes_up_to(max_rows)
        self._given = Uploads(4 * max_rows, torch.int64, model.device)
        self._keep = torch.arange(max_rows, device=model.device)
        self._logits = torch.zeros((max_rows, model.vocab_size), dtype=torch.float32, device=model.device)
        self._tokens = torch.zeros(max_rows, dtype=torch.int64, device=model.device)
        self._finite = torch.zeros(max_rows, dtype=torch.bool, device=model.device)
        self._graphs: dict[tuple[int, Hashable], Any] = {}
        self._pool: Any = None

    @torch.inference_mode()
    def prepare(self) -> None:
        """Run every size, and capture it where that can be done, so that no request waits for it.

        The backend must be attached to the model. Every row is padding; the largest size comes first, so that the
        others find room in its memory.
        """
        block_size = self._backend.shape.block_size
        # Without captures nothing depends on the context.
        lengths = [length for length in PREPARED if length <= self._model.max_model_len] if self._captures else [1]
        for size in reversed(self._sizes):
            for length in lengths:
                blocks = (self._trash,) * -(-length // block_size)
                self.run([Row(number, 1, length - 1, blocks) for number in range(size)], [0] * size)

    @torch.inference_mode()
    def run(
        self, rows: Sequence[Row], ids: Sequence[int], reads: Sequence[int] = (), writes: Sequence[int] = ()
    ) -> Decoded:
        """Compute one token of each of `rows`, at most `max_rows`, and its likeliest successor.

        `ids` are the tokens, or CARRIED: then `reads` say where in `drawn` they stand. `writes` say where successors
        go. Both default to nowhere.
        """
        count = len(rows)
        size = next(size for size in self._sizes if size >= count)
        padding = [Row(number, 1, 0, (self._trash,)) for number in range(count, size)]
        self._backend.begin([*rows, *padding])
        self._give(size, rows, ids, reads, writes)
        key = size, self._launch_key()
        graph = self._graphs.get(key)
        if graph is not None:
            graph.replay()
        else:
            # What compiles or loads code does so here, before the capture; the next step of this kind is replayed.
            self._step(size)
            if self._captures:
                self._graphs[key] = self._capture(lambda: self._step(size))
        return Decoded(self._logits[:count], self._tokens[:count], self._finite[:count])

    def _give(
        self, size: int, rows: Sequence[Row], ids: Sequence[int], reads: Sequence[int], writes: Sequence[int]
    ) -> None:
        """Send ids, positions and places, one column of `max_rows` after the other."""
        given = self._given.take().view(4, self.max_rows)
        columns = (ids, [row.prefix_len + row.start for row in rows], reads, writes)
        for column, values, padding in zip(given, columns, (0, 0, self.nobody, self.nobody), strict=True):
            column[:size] = padding
            column[: len(values)] = torch.tensor(values, dtype=torch.int64)
        self._given.send(given.numel())

    def _step(self, size: int) -> None:
        """What is captured: nothing here may wait for the device or depend on what it holds."""
        ids, positions, reads, writes = self._given.there.view(4, self.max_rows)[:, :size]
        ids = torch.where(ids == CARRIED, self.drawn[reads], ids)
        logits = self._logits[:size]
        logits.copy_(self._forward(self._model.embed(ids), positions, self._keep[:size]))
        tokens = likeliest(logits)
        self._tokens[:size].copy_(tokens)
        self._finite[:size].copy_(finite_rows(logits))
        self.drawn.index_copy_(0, writes, tokens)

    def _launch_key(self) -> Hashable:
        key: Callable[[], Hashable] | None = getattr(self._backend, "launch_key", None)
        return None if key is None else key()

    def _capture(self, step: Callable[[], None]) -> Any:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            step()
        return graph
