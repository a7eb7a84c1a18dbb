"""Grammars in the engine: every drawn token is allowed, alone, in a crowd, with adapters, preempted and in chunks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from server.core import AdapterKind, AdapterSource, FinishReason, SamplingParams, TokenEvent
from server.engine.loading import Sizes, assemble
from server.engine.loop import Engine
from server.engine.messages import Abort, StepReport, Submit
from server.engine.model.load import from_module
from tests.grammars.small import EOS, VOCABULARY, allowed, grammar, masks, start, words, write_tokenizer
from tests.parity.bench import Inline, base_of
from tests.parity.oracle import save_adapter
from tests.parity.test_parity import BACKENDS, NATIVE, ROOMY
from tests.tiny_models import tiny_model

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
LETTERS = "(?s:[a-f]{3,9}-[0-9]{2})"
EXPLODING = 'start: (("a" start?){1,1000}){1,1000}'
CHOICES = ["abc", "abacus", "né à", "12"]
GBNF = 'root ::= "(" (root | [a-c])* ")" | "x"'
# Memory for few of the crowd at a time, and spans of few tokens.
CROWDED = Sizes(num_blocks=26, block_size=8, prefix_blocks=8, max_seqs=12, step_tokens=24, max_model_len=130)
NATIVE_CROWDED = replace(CROWDED, block_size=32, num_blocks=6, prefix_blocks=2)


@dataclass
class Answer:
    """One sequence's end: its events, or why it failed."""

    events: list[TokenEvent] = field(default_factory=list)
    failure: tuple[str, str] | None = None

    @property
    def tokens(self) -> list[int]:
        return [event.token for event in self.events]

    @property
    def finish(self) -> FinishReason | None:
        return self.events[-1].finish

    @property
    def text(self) -> str:
        assert self.finish is FinishReason.STOP
        return b"".join(words()[token] for token in self.tokens[:-1]).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@contextmanager
def engine_of(folder: Path | None, sizes: Sizes = ROOMY, attention: str = "cpu") -> Iterator[Engine]:
    model = from_module(tiny_model("llama", vocab_size=VOCABULARY), max_model_len=sizes.max_model_len)
    with Inline() as readers:
        base = replace(base_of(model), eos_token_ids=EOS)
        yield assemble(model, base, sizes, attention, readers, folder=folder, threads=2)


def answers(engine: Engine, submits: Sequence[Submit]) -> tuple[list[Answer], int]:
    """Ask everything at once and step to the end; return the answers and how often one was preempted."""
    found = {submit.sequence: Answer() for submit in submits}
    for submit in submits:
        engine.handle(submit)
    open_, preempted = set(found), 0
    while open_:
        for message in engine.drain(block=engine.waits):
            assert message is not None
            engine.handle(message)
        for report in engine.step():
            assert isinstance(report, StepReport)
            assert report.stats is not None
            preempted = report.stats.preemptions
            for event in report.events:
                found[event.sequence].events.append(event)
                open_ -= {event.sequence} if event.finish else set()
            for failure in report.failures:
                found[failure.sequence].failure = (failure.code, failure.message)
                open_.discard(failure.sequence)
    return [found[submit.sequence] for submit in submits], preempted


def sampled(seed: int, written: str | None, max_tokens: int = 60) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=1.0, seed=seed, grammar=written)


def crowd(adapters: Sequence[AdapterSource | None]) -> list[Submit]:
    """Every kind of structure with several seeds, greedy and sampled, between rows without any."""
    written = [
        grammar("json_schema", PERSON),
        grammar("regex", LETTERS),
        grammar("choice", CHOICES),
        grammar("grammar", GBNF),
        None,
    ]
    submits = []
    for number in range(20):
        params = sampled(number, written[number % 5], max_tokens=40 if number % 5 else 90)
        if number % 3 == 0:
            params = replace(params, temperature=0.0)
        if number % 4 == 1:
            params = replace(params, top_p=0.9, repetition_penalty=1.3, logit_bias=((ord("q"), 90.0),))
        prompt = tuple(5 + (number * 31 + i * 7) % 250 for i in range(24 + number % 9))
        submits.append(Submit(number, prompt, params, adapters[number % len(adapters)]))
    return submits


def check_text(number: int, answer: Answer) -> None:
    """What was asked for is what came, where it came to an end."""
    if number % 5 == 4 or answer.finish is FinishReason.LENGTH:
        return
    text = answer.text
    if number % 5 == 0:
        person = json.loads(text)
        assert set(person) == {"name", "age", "tags"}
        assert len(person["name"]) <= 6
        assert 0 <= person["age"] <= 120
        assert set(person["tags"]) <= {"a", "b"}
    if number % 5 == 1:
        assert re.fullmatch(LETTERS, text)
    if number % 5 == 2:
        assert text in CHOICES
    if number % 5 == 3:
        assert text == "x" or (text.count("(") == text.count(")") and re.fullmatch(r"\([abcx()]*\)", text))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[AdapterSource | None]:
    made: list[AdapterSource | None] = [None]
    for kind, length in ((AdapterKind.PROMPT_TUNING, 5), (AdapterKind.PREFIX_TUNING, 9)):
        saved = save_adapter(tiny_model("llama", vocab_size=VOCABULARY), kind, tmp_path_factory.mktemp(kind), length)
        made.append(saved.source(VOCABULARY))
    return made


@pytest.mark.parametrize("attention", BACKENDS)
def test_a_crowd_of_structures_and_adapters_answers_as_each_alone(
    folder: Path, adapters: list[AdapterSource | None], attention: str
) -> None:
    roomy = NATIVE[ROOMY] if attention == "native" else ROOMY
    crowded = NATIVE_CROWDED if attention == "native" else CROWDED
    submits = crowd(adapters)
    with engine_of(folder, roomy, attention) as engine:
        alone = [answers(engine, [submit])[0][0] for submit in submits]
    for number, answer in enumerate(alone):
        check_text(number, answer)
    assert sum(answer.finish is FinishReason.STOP for answer in alone) >= 12
    for sizes in (roomy, crowded):
        with engine_of(folder, sizes, attention) as engine:
            together, preempted = answers(engine, submits)
        assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
        assert [answer.finish for answer in together] == [answer.finish for answer in alone]
        assert (preempted > 0) is (sizes is crowded)


@torch.no_grad()
def test_greedy_takes_the_likeliest_that_is_allowed(folder: Path) -> None:
    module, prompt = tiny_model("llama", vocab_size=VOCABULARY), [5, 17, 200, 42]
    written = grammar("json_schema", PERSON)
    with engine_of(folder) as engine:
        submit = Submit(1, tuple(prompt), SamplingParams(max_tokens=30, logprobs=2, grammar=written))
        (answer,), _ = answers(engine, [submit])
    kept, ids = masks(), list(prompt)
    assert start(kept, 1, written) is None
    surprises = 0
    for event in answer.events:
        logits = module(torch.tensor([ids])).logits[0, -1]
        logprobs = logits.log_softmax(-1)
        candidates = sorted(allowed(kept.take([1])[1]))
        assert event.token == candidates[int(logits[candidates].argmax())]
        # What is told is the raw distribution, in which the drawn token may be an unlikely one.
        assert event.logprob == pytest.approx(float(logprobs[event.token]), abs=1e-4)
        assert event.top_logprobs[0][0] == int(logits.argmax())
        surprises += event.token != int(logits.argmax())
        ids.append(event.token)
        if event.finish is None:
            kept.advance({1: event.token})
    assert surprises > 5


def test_nothing_brings_a_forbidden_token_back(folder: Path) -> None:
    eager = SamplingParams(
        max_tokens=20,
        temperature=5.0,
        repetition_penalty=0.01,
        presence_penalty=-2.0,
        frequency_penalty=-2.0,
        logit_bias=((ord("q"), 100.0), (EOS[0], 100.0)),
        grammar=grammar("regex", "[a-c]{8}"),
    )
    with engine_of(folder) as engine:
        found, _ = answers(engine, [Submit(n, (ord("q"), 9), replace(eager, seed=n)) for n in range(20)])
    for answer in found:
        assert re.fullmatch("[a-c]{8}", answer.text)


def test_the_same_seed_says_the_same_and_others_differ(folder: Path) -> None:
    written = grammar("regex", "[a-z]{12}")
    with engine_of(folder) as engine:
        found, _ = answers(engine, [Submit(n, (7, 8), sampled(n % 4, written)) for n in range(8)])
    texts = [answer.text for answer in found]
    assert texts[:4] == texts[4:]
    assert len(set(texts)) == 4


def test_max_tokens_may_cut_a_text(folder: Path) -> None:
    with engine_of(folder) as engine:
        (answer,), _ = answers(engine, [Submit(1, (7,), sampled(3, grammar("regex", "[a-c]{40}"), max_tokens=9))])
    assert answer.finish is FinishReason.LENGTH
    assert re.fullmatch(b"[a-c]+", b"".join(words()[token] for token in answer.tokens))


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (json.dumps({"grammars": [{"lark_grammar": "start: ("}]}), "cannot be followed"),
        (json.dumps({"grammars": [{"lark_grammar": 'start: start "a"'}]}), "no text matches"),
        ("no grammar at all", "cannot be followed"),
        # Each place of a text can be reached in many ways: it grows with every token.
        (json.dumps({"grammars": [{"lark_grammar": EXPLODING}]}), "cannot be followed"),
    ],
    ids=["malformed", "empty", "nonsense", "exploding"],
)
def test_a_bad_grammar_fails_alone(folder: Path, written: str, reason: str) -> None:
    good = grammar("choice", CHOICES)
    submits = [Submit(n, (9, 8, 7), sampled(n, good)) for n in range(3)]
    bad = replace(sampled(9, written, max_tokens=140), logit_bias=tuple((token, -100.0) for token in EOS))
    with engine_of(folder) as engine:
        alone, _ = answers(engine, submits)
        found, _ = answers(engine, [*submits[:2], Submit(9, (5,), bad), submits[2]])
    failed = found.pop(2)
    assert [answer.tokens for answer in found] == [answer.tokens for answer in alone]
    assert failed.failure is not None
    code, message = failed.failure
    assert code == "invalid_request"
    assert reason in message


def test_an_aborted_sequence_is_forgotten_before_and_after_its_grammar_is_read(folder: Path) -> None:
    written = grammar("regex", "[a-z]{50,}")
    with engine_of(folder) as engine:
        engine.handle(Submit(1, (5, 6), sampled(1, written)))
        engine.handle(Abort(1))
        for message in engine.drain(block=True):  # what was prepared arrives, and nobody waits for it
            assert message is not None
            engine.handle(message)
        engine.step()
        assert engine.waits
        engine.handle(Submit(2, (5, 6), sampled(2, grammar("regex", "[a-y]{50,}"))))
        for message in engine.drain(block=True):
            assert message is not None
            engine.handle(message)
        engine.step()
        engine.handle(Abort(2))
        engine.step()
        assert engine.waits
        (answer,), _ = answers(engine, [Submit(2, (5, 6), sampled(2, grammar("choice", ["ab"])))])
    assert answer.text == "ab"


def test_without_a_tokenizer_only_structure_is_refused(folder: Path) -> None:
    with engine_of(None) as engine:
        found, _ = answers(
            engine, [Submit(1, (5,), sampled(1, grammar("choice", ["ab"]))), Submit(2, (5,), sampled(1, None, 4))]
        )
    assert found[0].failure == (
        "invalid_request",
        "structured output needs the model's tokenizer, which this engine has not",
    )
    assert len(found[1].tokens) == 4
