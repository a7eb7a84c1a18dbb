"""Parity with PEFT in float32: logits to 1e-4 and greedy tokens, alone and in one batch of every kind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from server.core import AdapterKind
from server.engine.loading import Sizes
from tests.parity.bench import Bench, Question, Run
from tests.parity.oracle import NEW_TOKENS, Answer, ask_peft, ask_plain, save_adapter
from tests.tiny_models import VOCAB_SIZE, WINDOW, tiny_model

FAMILIES = ["llama", "qwen3", "mistral", "gemma3", "gpt2", "opt", "gpt_neox"]
LENGTHS = {  # the sliding windows are shorter than some of these and longer than others
    AdapterKind.PROMPT_TUNING: 5,
    AdapterKind.MULTITASK_PROMPT_TUNING: 7,
    AdapterKind.P_TUNING: 17,
    AdapterKind.CPT: 4,
    AdapterKind.PREFIX_TUNING: 20,
    AdapterKind.CARTRIDGE: 33,
}
PROMPTS = (13, 3, 29)  # tokens

ROOMY = Sizes(num_blocks=200, block_size=16, prefix_blocks=40, max_seqs=32, step_tokens=4096, max_model_len=160)
# Room for every prefix and every prompt, but not for what the sequences grow to: the youngest are preempted while all
# kinds share the batch. Prompts and the longest compiled prefix go through in chunks.
CROWDED = Sizes(num_blocks=64, block_size=8, prefix_blocks=26, max_seqs=12, step_tokens=24, max_model_len=88)
# Few sequences at a time in little memory; every compiled prefix of more than three tokens goes through in chunks.
TIGHT = Sizes(num_blocks=14, block_size=8, prefix_blocks=8, max_seqs=3, step_tokens=6, max_model_len=88)
# The same three for compiled code, whose blocks have one size.
NATIVE = {
    ROOMY: replace(ROOMY, block_size=32),
    CROWDED: replace(CROWDED, block_size=32, num_blocks=20, prefix_blocks=16),
    TIGHT: replace(TIGHT, block_size=32, num_blocks=5, prefix_blocks=3),
}
BACKENDS = ("reference", "cpu", "native")
SETUPS = (*BACKENDS, "static", "ahead")
"""The last two are the reference in blocks of 16, as on a GPU: with static buffers, and one step ahead."""
PAGED = {
    ROOMY: ROOMY,
    CROWDED: replace(CROWDED, block_size=16, num_blocks=32, prefix_blocks=18),
    TIGHT: replace(TIGHT, block_size=16, num_blocks=8, prefix_blocks=5),
}


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked, and what the oracle answers."""

    name: str
    question: Question
    expected: Answer


def model_of(family: str) -> PreTrainedModel:
    return tiny_model(family, **({"sliding_window": WINDOW} if family in ("mistral", "gemma3") else {}))


def prompt_of(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist()


def all_cases(family: str, folder: Path) -> list[Case]:
    """Every kind with every prompt, templates with virtual tokens in the middle, and the base model alone."""
    cases = []
    for number, (kind, length) in enumerate(LENGTHS.items()):
        task = 1 if kind is AdapterKind.MULTITASK_PROMPT_TUNING else 0
        adapter = save_adapter(model_of(family), kind, folder / kind, length, task)
        source = adapter.source(VOCAB_SIZE)
        prompt = prompt_of(PROMPTS[number % len(PROMPTS)], seed=number)
        expected = ask_peft(lambda: model_of(family), adapter, prompt)
        cases.append(Case(kind.value, Question(tuple(prompt), source), expected))
    adapter = save_adapter(model_of(family), AdapterKind.P_TUNING, folder / "template", 9)
    virtual = list(range(VOCAB_SIZE, VOCAB_SIZE + 9))
    before, inside, after = prompt_of(4, 50), prompt_of(11, 51), prompt_of(3, 52)
    for name, compiled, rest in (
        ("template_middle", [], [*before, *virtual[:5], *inside, *virtual[5:], *after]),
        ("template_leading", [*virtual[:4], *before], [*inside, *virtual[4:], *after]),
        ("template_ends_virtual", virtual[:2], [*inside, *virtual[2:]]),
    ):
        source = adapter.source(VOCAB_SIZE, prefix_ids=tuple(compiled), needs_table=True)
        whole = ask_plain(model_of(family), [*compiled, *rest], adapter.table())
        expected = Answer(whole.tokens, whole.logits[len(compiled) :])
        cases.append(Case(name, Question(tuple(rest), source), expected))
    for number, length in enumerate(PROMPTS):
        prompt = prompt_of(length, seed=100 + number)
        cases.append(Case(f"base_{length}", Question(tuple(prompt)), ask_plain(model_of(family), prompt)))
    return cases


@pytest.fixture(scope="module", params=FAMILIES)
def family_cases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Case]]:
    family = str(request.param)
    return family, all_cases(family, tmp_path_factory.mktemp(family))


def assert_equal(case: Case, answer: Answer) -> None:
    if len(answer.logits):
        difference = float((answer.logits - case.expected.logits).abs().max())
        assert difference <= 1e-4, f"{case.name}: logits differ by {difference:.2e}"
    assert answer.tokens == case.expected.tokens, case.name


def bench_of(family: str, sizes: Sizes, attention: str) -> Bench:
    if attention in ("static", "ahead"):
        return Bench(model_of(family), PAGED[sizes], "reference", ahead=attention == "ahead")
    return Bench(model_of(family), NATIVE[sizes] if attention == "native" else sizes, attention)


def run_all(family: str, cases: list[Case], sizes: Sizes, attention: str) -> Run:
    run = bench_of(family, sizes, attention).ask([case.question for case in cases])
    for case, answer in zip(cases, run.answers, strict=True):
        assert len(answer.tokens) == NEW_TOKENS
        assert_equal(case, answer)
    return run


@pytest.mark.parametrize("attention", SETUPS)
def test_one_batch_of_every_kind(family_cases: tuple[str, list[Case]], attention: str) -> None:
    run = run_all(*family_cases, ROOMY, attention)
    assert max(stats.batch_kinds for stats in run.stats) == len(AdapterKind) + 1  # and the base model's rows
    assert run.stats[-1].preemptions == 0


@pytest.mark.parametrize(("attention", "order"), [*((setup, 1) for setup in SETUPS), ("reference", -1), ("native", -1)])
def test_every_kind_in_one_batch_chunked_and_preempted(
    family_cases: tuple[str, list[Case]], attention: str, order: int
) -> None:
    family, cases = family_cases
    run = run_all(family, cases[::order], CROWDED, attention)  # the youngest are preempted: both ends get their turn
    large = attention not in ("reference", "cpu")  # blocks
    least = len(AdapterKind) - 1 if large else len(AdapterKind) + (order == 1)
    assert max(stats.batch_kinds for stats in run.stats) >= least
    assert large or run.stats[-1].preemptions > 0  # TIGHT preempts in larger blocks too
    assert max(stats.batch_tokens for stats in run.stats) <= CROWDED.step_tokens


@pytest.mark.parametrize("attention", SETUPS)
def test_every_prompt_and_prefix_in_chunks(family_cases: tuple[str, list[Case]], attention: str) -> None:
    family, cases = family_cases
    run = run_all(family, cases, TIGHT, attention)
    assert run.stats[-1].preemptions > 0
    assert max(stats.batch_tokens for stats in run.stats) <= TIGHT.step_tokens


@pytest.mark.parametrize("attention", SETUPS)
def test_alone(family_cases: tuple[str, list[Case]], attention: str) -> None:
    family, cases = family_cases
    bench = bench_of(family, ROOMY, attention)
    for case in cases:
        assert_equal(case, bench.ask([case.question]).answers[0])
