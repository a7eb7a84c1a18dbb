"""Compiled attention: right for ragged crowds, and bitwise the same however the work is cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from server.engine.model.attention.base import KVShape, Row
from server.engine.model.attention.native import NativeBackend
from server.engine.model.attention.select import create_backend
from server.engine.native.build import usable_variants
from server.engine.native.library import load
from tests.model.crowd import Crowd, Heads, Layer, Move, shape

BLOCK = 32
ISAS = [variant.name for variant in usable_variants()]


@st.composite
def crowds(draw: st.DrawFn) -> Crowd:
    kv_heads = draw(st.integers(1, 3))
    heads = Heads(
        kv_heads * draw(st.sampled_from([1, 2, 3, 5, 8])),
        kv_heads,
        head_dim=draw(st.sampled_from([8, 20, 64, 80, 96, 128, 256])),
        window=draw(st.one_of(st.none(), st.integers(1, 200))),
        softcap=draw(st.sampled_from([None, 1.0])),
        sinks=draw(st.booleans()),
    )
    prefixes = draw(st.lists(st.integers(0, 300), min_size=1, max_size=3))
    groups = draw(st.lists(st.integers(0, len(prefixes) - 1), min_size=1, max_size=8))
    step = st.lists(
        st.builds(Move, st.integers(0, len(groups) - 1), st.one_of(st.just(1), st.integers(1, 70))),
        min_size=1,
        max_size=len(groups),
        unique_by=lambda move: move.sequence,
    )
    steps = draw(st.lists(step, min_size=1, max_size=4))
    return Crowd(
        heads, shape(heads, num_blocks=150, block_size=BLOCK), prefixes, groups, steps, seed=draw(st.integers(0, 99))
    )


@settings(max_examples=60, deadline=None)
@given(crowds(), st.sampled_from(ISAS), st.sampled_from([1, 3]))
def test_equals_the_reference(crowd: Crowd, isa: str, threads: int) -> None:
    references = crowd.play(create_backend("reference", crowd.shape))
    found = crowd.play(NativeBackend(crowd.shape, load(threads, isa)))
    for ours, expected in zip(found, references, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(crowds(), st.sampled_from(ISAS), st.sampled_from([1, 3]), st.sampled_from([1.0, 5.0, 30.0]))
def test_bfloat16_is_near_the_reference(crowd: Crowd, isa: str, threads: int, loudness: float) -> None:
    """Weights of 8 bits are off by 0.4 % at most, and so are results; values reach 4 or 5.

    Loud scores make the peak of a softmax leap from one group of keys to the next.
    """
    rounded = replace(crowd, shape=replace(crowd.shape, dtype=torch.bfloat16), loudness=loudness)
    references = rounded.play(create_backend("reference", crowd.shape))
    found = rounded.play(NativeBackend(rounded.shape, load(threads, isa)))
    for ours, expected in zip(found, references, strict=True):
        torch.testing.assert_close(ours, expected, atol=0.03, rtol=0)


class Memory:
    """A backend with a prefix in it and sequences behind, fed with the same random tokens whatever the order."""

    def __init__(self, isa: str, dtype: torch.dtype, head_dim: int, prefix: int, loudness: float = 1.0) -> None:
        kv = KVShape(1, 2, head_dim, 80, BLOCK, dtype, torch.device("cpu"))
        self.backend = NativeBackend(kv, load(2, isa))
        generator = torch.Generator().manual_seed(7)
        self.prefix = prefix
        self.prefix_blocks = tuple(range(40, 40 + -(-prefix // BLOCK)))
        self.backend.zero(self.prefix_blocks)
        self.backend.install(self.prefix_blocks, torch.randn(1, 2, 2, prefix, head_dim, generator=generator))
        self.tokens = [
            [
                (torch.randn(1, heads, 150, head_dim, generator=generator) * loud).to(dtype)
                for heads, loud in ((6, loudness), (2, 1.0), (2, 1.0))
            ]
            for _ in range(3)
        ]

    def run(self, spans: list[tuple[int, int, int]]) -> list[Tensor]:
        """Compute (sequence, start, end) spans in one packed step; return each span's [tokens, heads, head_dim]."""
        rows, offset = [], 0
        for sequence, start, end in spans:
            blocks = tuple(range(5 * sequence, 5 * sequence + 5))
            if start == 0:
                self.backend.zero(blocks)
            rows.append(Row(offset, end - start, start, blocks, self.prefix, self.prefix_blocks))
            offset += end - start
        parts = [[part[:, :, start:end] for part in self.tokens[sequence]] for sequence, start, end in spans]
        query, key, value = (torch.cat(each, dim=2) for each in zip(*parts, strict=True))
        self.backend.begin(rows)
        output, _ = self.backend.attend(Layer(0), query, key, value, None)
        return list(output[0].split([end - start for _, start, end in spans]))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("head_dim", "prefix", "loudness"),
    [(64, 0, 1.0), (64, 200, 1.0), (80, 33, 1.0), (64, 900, 1.0), (64, 900, 12.0), (64, 900, 300.0)],
)
def test_bitwise_the_same_in_chunks_and_in_company(
    isa: str, dtype: torch.dtype, head_dim: int, prefix: int, loudness: float
) -> None:
    """Loud scores leap over a peak here and there, and send all rows that meet a group on the longer way."""
    (whole,) = Memory(isa, dtype, head_dim, prefix, loudness).run([(0, 0, 150)])
    memory = Memory(isa, dtype, head_dim, prefix, loudness)
    parts: list[Tensor] = []
    crowds = (
        [(0, 0, 1)],
        [(1, 0, 90), (0, 1, 70)],
        [(2, 0, 5), (0, 70, 129), (1, 90, 91)],
        [(0, 129, 130), (1, 91, 92)],
    )
    for crowd in (*crowds, [(0, 130, 150), (2, 5, 150)]):
        outputs = memory.run(list(crowd))
        parts.append(outputs[[sequence for sequence, _, _ in crowd].index(0)])
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sick", [0, 1])
def test_a_sick_neighbour_on_the_same_prefix_hides_nothing(isa: str, sick: int) -> None:
    """Scores that are not numbers stand before or behind those of a sequence that leaps over its peak."""
    well = 1 - sick

    def memory() -> Memory:
        made = Memory(isa, torch.bfloat16, 64, 900, loudness=300.0)
        made.tokens[sick][0][:] = torch.nan
        return made

    (alone,) = memory().run([(well, 0, 6)])
    together = memory().run([(0, 0, 6), (1, 0, 6)])
    assert torch.equal(together[well], alone)
    assert together[sick].isnan().all()


@pytest.mark.parametrize("isa", ISAS)
def test_bfloat16_stays_close_to_float32(isa: str) -> None:
    (exact,) = Memory(isa, torch.float32, 64, 200).run([(0, 0, 150)])
    (rounded,) = Memory(isa, torch.bfloat16, 64, 200).run([(0, 0, 150)])
    assert float((rounded.float() - exact).abs().max()) < 0.02 * float(exact.abs().max())


def test_shapes_that_the_kernels_do_not_know_are_refused() -> None:
    for wrong in ({"block_size": 16}, {"head_dim": 512}, {"dtype": torch.float16}):
        fine = {"num_layers": 1, "num_kv_heads": 1, "head_dim": 8, "num_blocks": 1, "block_size": BLOCK}
        fine |= {"dtype": torch.float32, "device": torch.device("cpu")}
        with pytest.raises(ValueError, match="native backend"):
            NativeBackend(KVShape(**(fine | wrong)))  # type: ignore[arg-type]


def test_a_prefix_that_does_not_fit_its_blocks_is_refused() -> None:
    backend = NativeBackend(shape(Heads(1, 1), num_blocks=4, block_size=BLOCK))
    with pytest.raises(ValueError, match="hold a prefix of 33"):
        backend.install((1,), torch.zeros(1, 2, 1, 33, 8))
