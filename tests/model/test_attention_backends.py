"""Every attention backend computes what first principles say, for ragged crowds over shared prefixes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.gpu.interpreter import hasten
from server.engine.model.attention.base import Row
from server.engine.model.attention.select import block_size, create_backend
from server.engine.model.attention.triton import TritonBackend
from tests.model.crowd import Crowd, Heads, Layer, Move, shape

hasten()

BACKENDS = {"reference": 4, "cpu": 4, "native": 32, "triton": 16}
"""With the tokens of a block; the native backend knows one size, the others take any."""
HEADS = {
    "grouped by 3": Heads(6, 2),
    "one kv head": Heads(4, 1),
    "not grouped": Heads(3, 3),
    "window": Heads(2, 1, window=5),
    "window over blocks": Heads(2, 1, window=11),
    "softcap": Heads(2, 1, softcap=0.5),
    "sinks": Heads(2, 1, sinks=True),
    "all flags": Heads(6, 2, window=6, softcap=1.0, sinks=True),
}

SIZES = [(64, 9, 3), (80, 5, 1), (96, 7, 1), (128, 4, 2), (256, 3, 3)]
"""Head sizes, with query heads and key heads."""


# Sequences 0 to 5 share a prefix of several blocks, 6 and 7 a short one, 8 has none.
MIXED = [
    [Move(0, 7), Move(6, 1), Move(8, 5)],
    [Move(1, 1), Move(2, 4), Move(0, 1), Move(7, 3)],
    [Move(i, 1) for i in (3, 8, 0, 4, 6, 5, 1, 2, 7)],
    [Move(8, 9), Move(3, 1), Move(4, 2), Move(0, 1), Move(1, 1), Move(2, 1)],
    [Move(i, 1) for i in range(9)],
]


def mixed(heads: Heads, backend: str, steps: int = len(MIXED)) -> Crowd:
    """All of them against one backend. Triton's interpreter is slow: it does without the last step."""
    steps = min(steps, 4) if backend == "triton" else steps
    return Crowd(
        heads,
        shape(heads, num_blocks=100, block_size=BACKENDS[backend]),
        prefixes=(17, 3, 0),
        groups=(0, 0, 0, 0, 0, 0, 1, 1, 2),
        steps=MIXED[:steps],
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS.keys())
def test_mixed_batches_equal_first_principles(backend: str, heads: Heads) -> None:
    crowd = mixed(heads, backend)
    for found, expected in zip(crowd.play(create_backend(backend, crowd.shape)), crowd.expected(), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("heads", [HEADS["grouped by 3"], HEADS["all flags"]], ids=["grouped by 3", "all flags"])
def test_prefixes_that_are_read_for_their_rows_together(heads: Heads) -> None:
    crowd = mixed(heads, "triton")
    for found, expected in zip(crowd.play(TritonBackend(crowd.shape, long_prefix=1)), crowd.expected(), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("dim", "num_heads", "num_kv_heads"), SIZES)
def test_head_sizes_that_models_have(dim: int, num_heads: int, num_kv_heads: int) -> None:
    heads = Heads(num_heads, num_kv_heads, dim, window=19, softcap=2.0, sinks=True)
    steps = [[Move(0, 5), Move(1, 18)], [Move(1, 1), Move(0, 1)]]
    memory = shape(heads, num_blocks=8, block_size=16)
    crowd = Crowd(heads, memory, prefixes=(21,), groups=(0, 0), steps=steps)
    for found, expected in zip(crowd.play(TritonBackend(memory, long_prefix=1)), crowd.expected(), strict=True):
        torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)


@st.composite
def crowds(draw: st.DrawFn, block_sizes: tuple[int, ...] = (1, 4, 16), most: int = 10) -> Crowd:
    kv_heads = draw(st.integers(1, 2))
    heads = Heads(
        kv_heads * draw(st.integers(1, 3)),
        kv_heads,
        window=draw(st.one_of(st.none(), st.integers(1, 20))),
        softcap=draw(st.sampled_from([None, 1.0])),
        sinks=draw(st.booleans()),
    )
    prefixes = draw(st.lists(st.integers(0, 20), min_size=1, max_size=3))
    groups = draw(st.lists(st.integers(0, len(prefixes) - 1), min_size=1, max_size=most))
    step = st.lists(
        st.builds(Move, st.integers(0, len(groups) - 1), st.one_of(st.just(1), st.integers(1, 9))),
        min_size=1,
        max_size=len(groups),
        unique_by=lambda move: move.sequence,
    )
    steps = draw(st.lists(step, min_size=1, max_size=4))
    size = draw(st.sampled_from(block_sizes))
    return Crowd(heads, shape(heads, block_size=size), prefixes, groups, steps, seed=draw(st.integers(0, 99)))


@settings(max_examples=150, deadline=None)
@given(crowds())
def test_cpu_equals_reference(crowd: Crowd) -> None:
    references = crowd.play(create_backend("reference", crowd.shape))
    for found, expected in zip(crowd.play(create_backend("cpu", crowd.shape)), references, strict=True):
        torch.testing.assert_close(found, expected, atol=3e-6, rtol=0)


@settings(max_examples=8, deadline=None)
@given(crowds(block_sizes=(16,), most=4), st.sampled_from([1, 512]))
def test_triton_equals_reference(crowd: Crowd, long_prefix: int) -> None:
    references = crowd.play(create_backend("reference", crowd.shape))
    for found, expected in zip(
        crowd.play(TritonBackend(crowd.shape, long_prefix=long_prefix)), references, strict=True
    ):
        torch.testing.assert_close(found, expected, atol=3e-6, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_block_size_of_the_backend_works_at_its_borders(backend: str) -> None:
    size = block_size(backend)
    heads = Heads(4, 2, window=size)
    steps = [[Move(0, size), Move(1, size - 1)], [Move(0, 1), Move(1, 1)], [Move(0, 1), Move(1, 1)]]
    memory = shape(heads, num_blocks=8, block_size=size)
    crowd = Crowd(heads, memory, prefixes=(size, size + 1), groups=(0, 1), steps=steps)
    for found, expected in zip(crowd.play(create_backend(backend, memory)), crowd.expected(), strict=True):
        torch.testing.assert_close(found, expected, atol=3e-6, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_other_holders_left_in_the_memory_changes_nothing(backend: str) -> None:
    crowd = mixed(HEADS["all flags"], backend)
    clean, poisoned = create_backend(backend, crowd.shape), create_backend(backend, crowd.shape)
    everything = range(crowd.shape.num_blocks)
    poisoned.install(everything, torch.full((1, 2, 2, len(everything) * BACKENDS[backend], 8), float("nan")))
    for found, expected in zip(crowd.play(poisoned), crowd.play(clean), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_is_not_changed_by_its_neighbours(backend: str) -> None:
    crowd = mixed(Heads(4, 2), backend, steps=3)
    healthy = crowd.play(create_backend(backend, crowd.shape))[2]
    found = replace(crowd, sick=3).play(create_backend(backend, crowd.shape))[2]
    order = [move.sequence for move in MIXED[2]]
    for index, sequence in enumerate(order):
        assert bool(found[index].isnan().any()) == (sequence in (6, 7))
        if sequence not in (6, 7):
            torch.testing.assert_close(found[index], healthy[index], atol=2e-6, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_keep_their_own_keys(backend: str) -> None:
    heads = Heads(4, 2)
    crowd = Crowd(
        heads,
        shape(heads, num_layers=2, block_size=BACKENDS[backend]),
        (9,),
        (0, 0),
        [[Move(0, 3), Move(1, 1)], [Move(0, 1), Move(1, 1)]],
    )
    made = create_backend(backend, crowd.shape)
    first = crowd.play(made, layer=0)
    second = crowd.play(made, layer=1)
    assert not torch.allclose(first[1], second[1])
    assert torch.equal(first[1], crowd.play(made, layer=0)[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_zeroed_blocks_hold_zeros(backend: str) -> None:
    heads = Heads(2, 2)
    size = BACKENDS[backend]
    made = create_backend(backend, shape(heads, num_blocks=4, block_size=size))
    made.install((1, 2), torch.ones(1, 2, 2, 2 * size, 8))
    made.zero((2,))
    row = Row(offset=0, count=1, start=0, blocks=(3,), prefix_len=2 * size, prefix_blocks=(1, 2))
    made.begin([row])
    nothing = torch.zeros(1, 2, 1, 8)
    output, _ = made.attend(Layer(0), nothing, nothing, nothing, None)
    torch.testing.assert_close(output, torch.full_like(output, size / (2 * size + 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_copied_start_holds_what_its_source_does_and_nothing_else(backend: str, dtype: torch.dtype) -> None:
    heads = Heads(4, 2)
    size = BACKENDS[backend]
    generator = torch.Generator().manual_seed(5)
    made = create_backend(backend, replace(shape(heads, num_layers=2, num_blocks=5, block_size=size), dtype=dtype))
    whole, other = torch.randn(2, 2, 2, 2, size, 8, generator=generator).to(dtype)
    query, key, value = (torch.randn(1, n, 1, 8, generator=generator).to(dtype) for n in (4, 2, 2))

    def seen(block: int) -> list[Tensor]:
        """What a query finds in the whole block, in both layers."""
        made.zero((4,))
        made.begin([Row(0, 1, 0, (4,), size, (block,))])
        return [made.attend(Layer(layer), query, key, value, None)[0] for layer in range(2)]

    every = 5 if backend == "triton" else 1  # its interpreter is slow
    for tokens in range(1, size, every):
        made.zero((3,))
        made.install((0,), whole), made.install((1, 2), torch.cat([other, other], dim=3))
        made.install((3,), whole[:, :, :, :tokens])
        expected = seen(3)
        made.copy(0, 1, tokens), made.copy(0, 0, tokens)
        for block in (1, 0):
            assert all(torch.equal(found, wanted) for found, wanted in zip(seen(block), expected, strict=True))
        made.install((3,), other)
        assert all(torch.equal(found, wanted) for found, wanted in zip(seen(2), seen(3), strict=True))


def test_an_unknown_backend_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'quantum'.*reference, cpu, native"):
        create_backend("quantum", shape(Heads(1, 1)))
