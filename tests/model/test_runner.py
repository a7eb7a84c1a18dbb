"""Packed spans give the logits that transformers gives each sequence alone, virtual tokens included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from server.core import PrefixKey
from server.engine.model.attention.select import create_backend
from server.engine.model.load import from_module
from server.engine.model.runner import Runner
from server.engine.scheduler.plan import PENDING, Prefix, Span
from tests.tiny_models import VOCAB_SIZE, tiny_model

FAMILIES = ("llama", "mistral", "gemma3", "gpt2", "opt", "gpt_neox", "biogpt", "granite")
V = VOCAB_SIZE
SOFT = PrefixKey("base", "soft", length=9)
MIDDLE = PrefixKey("base", "middle")


class Bench:
    """A runner, and the same model alone under its own attention."""

    def __init__(self, family: str, backend: str = "cpu") -> None:
        self.alone = tiny_model(family)
        model = from_module(tiny_model(family), max_model_len=128)
        self.runner = Runner(model, create_backend(backend, model.kv_shape(num_blocks=40, block_size=4)))
        generator = torch.Generator().manual_seed(0)
        self.soft, self.middle = (torch.randn(9, model.hidden_size, generator=generator) for _ in range(2))

    @torch.inference_mode()
    def expected(self, ids: tuple[int, ...], table: Tensor) -> Tensor:
        """Logits [num_tokens, vocab_size] of a sequence whose ids from V on name rows of the table."""
        embed = self.alone.get_input_embeddings()
        rows = [table[token - V] if token >= V else embed(torch.tensor(token)) for token in ids]
        logits: Tensor = self.alone(inputs_embeds=torch.stack(rows)[None], use_cache=False).logits[0]
        return logits


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_spans_equal_each_sequence_alone(family: str, backend: str) -> None:
    bench = Bench(family, backend)
    forward = bench.runner.forward
    tables = {SOFT: bench.soft, MIDDLE: bench.middle}
    virtual = tuple(range(V, V + 9))

    # A prefix compiled in two chunks, of which no logits are wanted.
    for start, end in ((0, 5), (5, 9)):
        logits, rows = forward([Span(9, start, virtual[start:end], (30, 20, 10))], table=bench.soft)
        assert logits.shape == (0, V)
        assert rows == []

    behind = Prefix(SOFT, 9, (30, 20, 10))
    text = (5, 17, 230, 41, 8, 99, 7, 120)
    around = (11, V, V + 1, 12, V + 5, 13, 14, V + 8)
    plain = (3, 4, 5, 6, 7)
    first = [
        Span(1, 0, text[:3], (1, 2), behind, rows=(1,)),
        Span(2, 0, around[:6], (3, 4), Prefix(MIDDLE, 0, ()), rows=(5, 0, 3)),
        Span(3, 0, plain, (5, 6), samples=True),
    ]
    second = [
        Span(3, 5, (PENDING,), (5, 6), samples=True, rows=(0,)),
        Span(2, 6, around[6:], (3, 4), Prefix(MIDDLE, 0, ()), rows=(0,), samples=True),
        Span(1, 3, text[3:], (1, 2), behind, rows=tuple(range(5))),
    ]
    expected = {
        1: bench.expected(virtual + text, bench.soft)[9:],
        2: bench.expected(around, bench.middle),
        3: bench.expected((*plain, 77), bench.soft),
    }
    wanted = [
        [(1, 1), (2, 5), (2, 0), (2, 3), (3, 4)],
        [(3, 5), (2, 6), (2, 7), (1, 3), (1, 4), (1, 5), (1, 6), (1, 7)],
    ]
    for spans, expected_rows in zip((first, second), wanted, strict=True):
        logits, rows = forward(spans, tables, {3: 77})
        assert rows == expected_rows
        assert logits.dtype == torch.float32
        for found, (sequence, position) in zip(logits, rows, strict=True):
            torch.testing.assert_close(found, expected[sequence][position], atol=1e-5, rtol=0)


def test_the_head_runs_on_wanted_rows_only() -> None:
    bench = Bench("llama")
    seen: list[int] = []
    bench.runner.model.module.lm_head.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    bench.runner.forward([Span(1, 0, (5, 6, 7), (1,), samples=True), Span(2, 0, (5, 6), (2,), rows=(0,))])
    bench.runner.forward([Span(1, 3, (5, 6, 7), (1, 3))])
    assert seen == [2]


def test_every_adapter_has_its_own_table() -> None:
    bench = Bench("llama")
    keys = [PrefixKey("base", "a"), PrefixKey("base", "b")]
    spans = [Span(i, 0, (V, 5), (i,), Prefix(key, 0, ()), samples=True) for i, key in enumerate(keys)]
    logits, _ = bench.runner.forward(spans, dict(zip(keys, (bench.soft, bench.middle), strict=True)))
    for found, table in zip(logits, (bench.soft, bench.middle), strict=True):
        torch.testing.assert_close(found, bench.expected((V, 5), table)[-1], atol=1e-5, rtol=0)


def test_virtual_tokens_need_a_table() -> None:
    bench = Bench("llama")
    with pytest.raises(ValueError, match="sequence 4 has virtual tokens"):
        bench.runner.forward([Span(4, 0, (5, V), (1,), Prefix(SOFT, 0, ()))])


def test_a_pending_token_must_be_carried() -> None:
    bench = Bench("llama")
    with pytest.raises(KeyError):
        bench.runner.forward([Span(4, 0, (PENDING,), (1,))], carried={5: 7})


def test_logits_are_float32_for_a_model_in_bfloat16() -> None:
    model = from_module(tiny_model("llama", dtype=torch.bfloat16), max_model_len=64)
    runner = Runner(model, create_backend("cpu", model.kv_shape(num_blocks=4, block_size=64)))
    table = torch.randn(2, 32)
    logits, _ = runner.forward([Span(1, 0, (5, V + 1, 6), (1,), samples=True)], table=table)
    assert logits.dtype == torch.float32
    assert bool(logits.isfinite().all())


def test_two_runners_of_two_models_do_not_disturb_each_other() -> None:
    one, other = Bench("llama"), Bench("gpt2")
    span = Span(1, 0, (5, 6, 7), (1,), samples=True)
    before, _ = one.runner.forward([span])
    other.runner.forward([Span(2, 0, (8, 9), (1,), samples=True)])
    after, _ = one.runner.forward([span])
    assert torch.equal(before, after)
