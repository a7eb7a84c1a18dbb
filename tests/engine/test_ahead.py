"""An engine that launches steps before it has read the last ones tells what one tells that does not."""

from __future__ import annotations

from server.core import SamplingParams
from server.engine.loading import Sizes, assemble
from server.engine.loop import Engine
from server.engine.messages import Abort, StepReport, Submit
from server.engine.model.load import LoadedModel, from_module
from tests.engine.asking import ask_all
from tests.parity.bench import Inline, base_of
from tests.tiny_models import tiny_model

SIZES = Sizes(num_blocks=30, block_size=16, prefix_blocks=4, max_seqs=6, step_tokens=24, max_model_len=96)
SICK = 7
"""A token whose embedding is not finite."""


def made(*, static: bool) -> tuple[Engine, LoadedModel]:
    model = from_module(tiny_model("llama"), max_model_len=SIZES.max_model_len)
    return assemble(model, base_of(model), SIZES, "reference", Inline(), static=static), model


def greedy(sequence: int, *tokens: int, stop: tuple[int, ...] = (), count: int = 20) -> Submit:
    return Submit(sequence, tokens, SamplingParams(max_tokens=count, stop_token_ids=stop))


def play(*, static: bool) -> dict[int, list[int]]:
    """Return the tokens of sequences that stop early, are joined by a sampled one, and of one that is aborted."""
    engine, _ = made(static=static)
    probe = ask_all(made(static=False)[0], [greedy(0, 11, 12, 13)])
    stop = probe[0].events[4].token
    for message in (greedy(0, 11, 12, 13, stop=(stop,)), greedy(1, 21, 22), greedy(2, *range(30, 70)), greedy(3, 5)):
        engine.handle(message)
    drawn: dict[int, list[int]] = {number: [] for number in range(5)}
    open_ones, steps = {0, 1, 3, 4}, 0
    while open_ones:
        if steps == 6:
            engine.handle(Abort(2))
            engine.handle(Submit(4, (8, 9), SamplingParams(max_tokens=5, temperature=1.0, seed=3)))
        for report in engine.step():
            assert isinstance(report, StepReport)
            assert not report.failures
            for event in report.events:
                drawn[event.sequence].append(event.token)
                if event.finish is not None:
                    open_ones.discard(event.sequence)
        steps += 1
    del drawn[2]
    return drawn


def test_one_step_ahead_tells_the_same() -> None:
    ahead, plain = play(static=True), play(static=False)
    assert ahead == plain
    assert len(ahead[0]) <= 5 < len(ahead[1])


def test_who_fails_in_flight_leaves_the_next_step_to_the_others() -> None:
    engine, model = made(static=True)
    model.module.get_input_embeddings().weight.data[SICK] = float("nan")
    engine.handle(greedy(0, 5, SICK))
    engine.step()  # launched, and not read yet
    engine.handle(Submit(1, (8, 9), SamplingParams(max_tokens=3, temperature=1.0)))
    failed, told = [], 0
    while told < 3:
        for report in engine.step():
            assert isinstance(report, StepReport)
            failed += [failure.sequence for failure in report.failures]
            told += sum(event.sequence == 1 for event in report.events)
    assert failed == [0]
