"""The compiled decoder: transformers' logits for every family that it takes, and the same bits alone and in a crowd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from server.engine.model.attention.native import NativeBackend
from server.engine.model.guard import check_network
from server.engine.model.load import LoadedModel, from_module
from server.engine.model.network import FAMILIES, Network, NotNative
from server.engine.model.runner import Runner
from server.engine.model.support import UnsupportedModel
from server.engine.native.build import usable_variants
from server.engine.native.library import load
from server.engine.scheduler.plan import Span
from tests.tiny_models import VOCAB_SIZE, tiny_model

ISAS = [variant.name for variant in usable_variants()]
MODELS = ("llama", "llama_gqa3", "mistral", "qwen2", "qwen3")


def runner_of(name: str, dtype: torch.dtype = torch.float32, isa: str = ISAS[0], threads: int = 2) -> Runner:
    model = from_module(tiny_model(name).to(dtype), max_model_len=200)
    backend = NativeBackend(model.kv_shape(num_blocks=40, block_size=32), load(threads, isa))
    return Runner(model, backend, Network(model, backend))


def ids_of(length: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def test_there_is_a_tiny_model_of_every_family() -> None:
    assert {tiny_model(name).config.model_type for name in MODELS} == FAMILIES


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_transformers(name: str, isa: str) -> None:
    ids = ids_of(150, seed=1)
    with torch.inference_mode():
        expected = tiny_model(name)(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    runner = runner_of(name, isa=isa)
    logits, _ = runner.forward([Span(0, 0, ids, (1, 2, 3, 4, 5), rows=tuple(range(150)))])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitwise_the_same_in_chunks_and_in_company(dtype: torch.dtype, isa: str) -> None:
    ids, other = ids_of(90, seed=2), ids_of(70, seed=3)
    whole = runner_of("qwen3", dtype, isa)
    expected = whole.forward([Span(0, 0, ids, (1, 2, 3), rows=tuple(range(90)))])[0].clone()
    crowd, rows = runner_of("qwen3", dtype, isa, threads=3), []
    for start, end in ((0, 33), (33, 34), (34, 90)):
        mine = Span(0, start, ids[start:end], (7, 8, 9), rows=tuple(range(end - start)))
        beside = Span(1, start // 2, other[start // 2 : end // 2], (4, 5, 6), samples=True)
        logits, which = crowd.forward([beside, mine])
        rows.append(logits[[index for index, (sequence, _) in enumerate(which) if sequence == 0]].clone())
    assert torch.equal(torch.cat(rows), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_some_rows_of_several_sequences_or_none_are_those_among_all(dtype: torch.dtype, isa: str) -> None:
    runner = runner_of("llama_gqa3", dtype, isa)
    ids = [ids_of(length, seed=length) for length in (70, 5, 33)]
    blocks = ((1, 2, 3), (4,), (5, 6))
    wanted = [(0, 7, 8, 31, *range(40, 52), 69), (), (3, 32)]
    every = [Span(i, 0, ids[i], blocks[i], rows=tuple(range(len(ids[i])))) for i in range(3)]
    expected, place = runner.forward(every)
    expected = expected.clone()
    for chosen in (wanted, [(), (4,), ()], [(), (), ()]):
        some = [Span(i, 0, ids[i], blocks[i], rows=rows) for i, rows in enumerate(chosen)]
        logits, rows = runner.forward(some)
        assert rows == [(i, row) for i, kept in enumerate(chosen) for row in kept]
        assert torch.equal(logits, expected[[place.index(row) for row in rows]])


def test_peaks_are_those_of_the_logits() -> None:
    runner = runner_of("llama")
    spans = [Span(0, 0, ids_of(40, 4), (1, 2), rows=tuple(range(40))), Span(1, 0, ids_of(5, 5), (3,), samples=True)]
    logits, rows = runner.forward(spans)
    expected = logits.clone()
    peaks, same = runner.forward_best(spans)
    assert rows == same
    assert torch.equal(peaks.values, expected.amax(dim=1))
    assert torch.equal(peaks.ids.long(), expected.argmax(dim=1))
    assert bool(peaks.finite.all())


def test_a_row_that_is_not_finite_is_told_from_its_neighbours() -> None:
    runner = runner_of("llama")
    table = torch.full((1, runner.model.hidden_size), float("nan"))
    spans = [Span(0, 0, (5, VOCAB_SIZE), (1,), samples=True)]
    healthy = Span(1, 0, (5, 6), (2,), samples=True)
    peaks, _ = runner.forward_best([*spans, healthy], table=table)
    assert peaks.finite.tolist() == [False, True]


class Tampered:
    """A network whose answers are a little off."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def limit_windows(self, tokens: int | None) -> None:
        self._network.limit_windows(tokens)

    def forward(self, embeddings: Tensor, keep: list[int], *, wants_logits: bool) -> tuple[Tensor, object]:
        logits, peaks = self._network.forward(embeddings, keep, wants_logits=wants_logits)
        return logits + 0.01, peaks


@pytest.mark.parametrize("name", MODELS)
def test_the_start_up_check_accepts_a_right_network_and_finds_a_wrong_one(name: str) -> None:
    model: LoadedModel = from_module(tiny_model(name), max_model_len=200)
    backend = NativeBackend(model.kv_shape(num_blocks=40, block_size=32), load(1))
    network = Network(model, backend)
    check_network(model, backend, network)
    with pytest.raises(UnsupportedModel, match="logits differ"):
        check_network(model, backend, Tampered(network))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "phi3"])
def test_other_families_are_left_to_transformers(name: str) -> None:
    model = from_module(tiny_model(name), max_model_len=200)
    backend = NativeBackend(model.kv_shape(num_blocks=4, block_size=32), load(1))
    with pytest.raises(NotNative, match="llama"):
        Network(model, backend)
