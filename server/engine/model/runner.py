"""Run the spans of a step through the model as one packed row of tokens."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from server.core import PrefixKey
from server.engine.model.attention.base import AttentionBackend, Row
from server.engine.model.attention.hook import attach
from server.engine.model.load import LoadedModel
from server.engine.model.network import Network, Peaks
from server.engine.scheduler.plan import PENDING, Span

LogitRow = tuple[int, int]
"""Whose logits a row holds: sequence id, and position of the token in segment B."""


class Runner:
    """The model with a backend behind it, or the compiled `network` that stands in for its layers.

    Making a Runner attaches the backend; the model serves one at a time. With a network the result of every row is the
    same whoever shares the forward, and the head finds the likeliest token of each row by the way (`forward_best`).
    """

    def __init__(self, model: LoadedModel, backend: AttentionBackend, network: Network | None = None) -> None:
        self.model = model
        self.backend = backend
        self.network = network
        self._slices = "logits_to_keep" in inspect.signature(model.module.forward).parameters
        attach(model.module, backend)

    @torch.inference_mode()
    def forward(
        self,
        spans: Sequence[Span],
        tables: Mapping[PrefixKey, Tensor] | None = None,
        carried: Mapping[int, int] | None = None,
        *,
        table: Tensor | None = None,
    ) -> tuple[Tensor, list[LogitRow]]:
        """Compute the spans' keys and values and the wanted logits.

        An id below the vocabulary's size names a row of the base embedding, a larger one a row of the sequence's
        adapter table [num_virtual_tokens, hidden_size]: `tables[span.prefix.key]`, or `table` for a span without a
        prefix (an adapter that is being compiled). `carried` holds, by sequence, the ids that stand for PENDING.

        Returns float32 logits [num_rows, vocab_size] and what each row is: span by span its `rows` in their order,
        then its last row if it samples and is not among them. Where no row is wanted the head does not run.
        Raises ValueError when a virtual id has no table, and KeyError when a PENDING id was not carried.
        """
        embeddings, rows = self._begin(spans, tables, carried, table)
        wanted, keep = _wanted(spans, rows)
        if self.network is not None:
            logits, _ = self.network.forward(embeddings[0], keep, wants_logits=True)
            return logits, wanted
        positions = [row.prefix_len + row.start + index for row in rows for index in range(row.count)]
        return self._call(embeddings, torch.tensor([positions], device=self.model.device), keep), wanted

    @torch.inference_mode()
    def forward_best(
        self,
        spans: Sequence[Span],
        tables: Mapping[PrefixKey, Tensor] | None = None,
        carried: Mapping[int, int] | None = None,
        *,
        table: Tensor | None = None,
    ) -> tuple[Peaks, list[LogitRow]]:
        """Like `forward`, for rows of which only the likeliest token is wanted. Needs a network."""
        assert self.network is not None, "only the compiled decoder finds peaks"
        embeddings, rows = self._begin(spans, tables, carried, table)
        wanted, keep = _wanted(spans, rows)
        _, peaks = self.network.forward(embeddings[0], keep, wants_logits=False)
        return peaks, wanted

    def _begin(
        self,
        spans: Sequence[Span],
        tables: Mapping[PrefixKey, Tensor] | None,
        carried: Mapping[int, int] | None,
        table: Tensor | None,
    ) -> tuple[Tensor, list[Row]]:
        tokens = [_carry(span, carried or {}) for span in spans]
        rows = list(_attention_rows(spans))
        self.backend.begin(rows)
        return self._embed(spans, tokens, tables or {}, table), rows

    def _embed(
        self,
        spans: Sequence[Span],
        tokens: Sequence[tuple[int, ...]],
        tables: Mapping[PrefixKey, Tensor],
        table: Tensor | None,
    ) -> Tensor:
        """Return [1, num_tokens, hidden_size]; virtual rows stand in as they are, after any scale of the base's."""
        vocab = self.model.vocab_size
        flat = [token for run in tokens for token in run]
        ids = torch.tensor([flat], device=self.model.device)
        if max(flat) < vocab:
            return self.model.embed(ids)  # type: ignore[no-any-return]
        embeddings: Tensor = self.model.embed(ids.where(ids < vocab, 0))
        offset = 0
        for span, run in zip(spans, tokens, strict=True):
            virtual = [(offset + i, token - vocab) for i, token in enumerate(run) if token >= vocab]
            offset += len(run)
            if not virtual:
                continue
            source = table if span.prefix is None else tables.get(span.prefix.key)
            if source is None:
                raise ValueError(f"sequence {span.sequence} has virtual tokens and no table for them")
            where, which = zip(*virtual, strict=True)
            embeddings[0, list(where)] = source[list(which)].to(embeddings)
        return embeddings

    def _call(self, embeddings: Tensor, positions: Tensor, keep: list[int]) -> Tensor:
        module = self.model.module
        inputs = {"inputs_embeds": embeddings, "position_ids": positions, "use_cache": False}
        if not keep:
            module.base_model(**inputs)
            return embeddings.new_zeros((0, self.model.vocab_size), dtype=torch.float32)
        index = torch.tensor(keep, device=embeddings.device)
        if self._slices:
            logits: Tensor = module(**inputs, logits_to_keep=index).logits[0]
        else:
            logits = module(**inputs).logits[0, index]
        return logits.float()


def _carry(span: Span, carried: Mapping[int, int]) -> tuple[int, ...]:
    if PENDING not in span.tokens:
        return span.tokens
    return tuple(carried[span.sequence] if token == PENDING else token for token in span.tokens)


def _attention_rows(spans: Sequence[Span]) -> Iterator[Row]:
    offset = 0
    for span in spans:
        count = len(span.tokens)
        prefix_len, prefix_blocks = (span.prefix.length, span.prefix.blocks) if span.prefix else (0, ())
        yield Row(offset, count, span.start, span.blocks, prefix_len, prefix_blocks)
        offset += count


def _wanted(spans: Sequence[Span], rows: Sequence[Row]) -> tuple[list[LogitRow], list[int]]:
    """Return what each row of logits is, and its index in the packed row."""
    wanted: list[LogitRow] = []
    keep: list[int] = []
    for span, row in zip(spans, rows, strict=True):
        last = row.count - 1
        offsets = span.rows if not span.samples or last in span.rows else (*span.rows, last)
        wanted += [(span.sequence, span.start + offset) for offset in offsets]
        keep += [row.offset + offset for offset in offsets]
    return wanted, keep
