"""Run the spans of a step through the model as one packed row of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from server.core import PrefixKey
from server.engine.model.attention.base import AttentionBackend, Row
from server.engine.model.attention.hook import attach
from server.engine.model.forward import Forward, PlainForward
from server.engine.model.graphs import CARRIED, DecodeGraphs
from server.engine.model.launches import Drawn, Launch, Places
from server.engine.model.likeliest import finite_rows, likeliest
from server.engine.model.load import LoadedModel
from server.engine.model.network import Network, Peaks
from server.engine.model.uploads import upload
from server.engine.scheduler.plan import PENDING, Span

LogitRow = tuple[int, int]
"""Whose logits a row holds: sequence id, and position of the token in segment B."""


class Runner:
    """The model with a backend behind it, or what stands in for its layers.

    Making a Runner attaches the backend; the model serves one at a time. `forward` is what computes packed rows, the
    model itself unless said otherwise. With `graphs`, single tokens go through those instead, and `launch` draws
    without waiting for the device. With a `network` the result of every row is the same whoever shares the forward, and
    the head finds the likeliest token of each row by the way (`forward_best`).
    """

    def __init__(
        self,
        model: LoadedModel,
        backend: AttentionBackend,
        network: Network | None = None,
        *,
        forward: Forward | None = None,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self.model = model
        self.backend = backend
        self.network = network
        self.graphs = graphs
        self._packed = forward or PlainForward(model)
        self._places = Places(graphs.max_rows if graphs is not None else 0)
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
        if self.network is not None:
            embeddings, rows = self._begin(spans, tables, carried, table)
            wanted, keep = _wanted(spans, rows)
            logits, _ = self.network.forward(embeddings[0], keep, wants_logits=True)
            return logits, wanted
        parts: list[Tensor] = []
        found: list[LogitRow] = []
        single, others = self._apart(spans)
        if single:
            assert self.graphs is not None, "single tokens stand apart only for graphs"
            rows = list(_attention_rows(single))
            logits = self.graphs.run(rows, [_carry(span, carried or {})[0] for span in single]).logits
            picked = [index for index, span in enumerate(single) if span.samples or span.rows]
            parts.append(logits if len(picked) == len(single) else logits[picked])
            found += [(single[index].sequence, single[index].start) for index in picked]
        if others or not parts:
            logits, wanted = self._pack(others, tables, carried, table)
            parts.append(logits)
            found += wanted
        if len(parts) == 1:
            return parts[0], found
        order = {row: index for index, row in enumerate(found)}
        wanted, _ = _wanted(spans, list(_attention_rows(spans)))
        return torch.cat(parts)[[order[row] for row in wanted]], wanted

    @torch.inference_mode()
    def launch(self, spans: Sequence[Span], tables: Mapping[PrefixKey, Tensor] | None = None) -> Launch:
        """Compute the spans, and let each that samples draw its likeliest token, without waiting for the device.

        PENDING ids are those that the launch before drew. Needs graphs.
        """
        assert self.graphs is not None, "only static buffers carry tokens from launch to launch"
        launch, places = Launch(self.model.device), self._places
        places.begin()
        single, others = self._apart(spans)
        if single:
            ids = [CARRIED if span.tokens[0] == PENDING else span.tokens[0] for span in single]
            nobody = self.graphs.nobody
            reads = [places.read(span.sequence) if span.tokens[0] == PENDING else nobody for span in single]
            writes = [places.write(span.sequence) if span.samples else nobody for span in single]
            drawn = self.graphs.run(list(_attention_rows(single)), ids, reads, writes)
            picked = [index for index, span in enumerate(single) if span.samples]
            launch.add([single[index].sequence for index in picked], Drawn(drawn.tokens, drawn.finite), picked)
        if others:
            logits, _ = self._pack(others, tables, None, None)
            sampling = [span.sequence for span in others if span.samples]
            if sampling:
                tokens = likeliest(logits)
                behind = upload([places.write(sequence) for sequence in sampling], self.model.device)
                self.graphs.drawn.index_copy_(0, behind, tokens)
                launch.add(sampling, Drawn(tokens, finite_rows(logits)), None)
        launch.read_back()
        return launch

    def _apart(self, spans: Sequence[Span]) -> tuple[list[Span], list[Span]]:
        """Return the single tokens that graphs compute, and the other spans."""
        if self.graphs is None:
            return [], list(spans)
        vocab = self.model.vocab_size
        single: list[Span] = []
        others: list[Span] = []
        for span in spans:
            alone = len(span.tokens) == 1 and span.tokens[0] < vocab and span.sequence >= 0
            (single if alone and len(single) < self.graphs.max_rows else others).append(span)
        return single, others

    def _pack(
        self,
        spans: Sequence[Span],
        tables: Mapping[PrefixKey, Tensor] | None,
        carried: Mapping[int, int] | None,
        table: Tensor | None,
    ) -> tuple[Tensor, list[LogitRow]]:
        """Compute spans as one packed row."""
        embeddings, rows = self._begin(spans, tables, carried, table)
        wanted, keep = _wanted(spans, rows)
        positions = [row.prefix_len + row.start + index for row in rows for index in range(row.count)]
        device = self.model.device
        index, places = upload(keep, device), upload(positions, device)
        return self._packed(embeddings[0], places, index).float(), wanted

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
        ids = upload(flat, self.model.device)[None]
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
