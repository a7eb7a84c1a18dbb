"""Each parameter does what it says, and a row's result does not depend on its batch."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TypicalLogitsWarper

from server.core import SamplingParams
from server.engine.model.sampler import Draw, DrawRequest, Sampler

CPU = torch.device("cpu")
EOS = (2, 5)


def request(params: SamplingParams, index: int = 0, sequence: int = 0, prompt: tuple[int, ...] = ()) -> DrawRequest:
    return DrawRequest(sequence, params, index, prompt, len(prompt))


def draw_one(logits: list[float] | torch.Tensor, params: SamplingParams, index: int = 0) -> Draw:
    row = torch.as_tensor(logits, dtype=torch.float32)
    draw = Sampler(len(row), EOS, CPU).draw(row[None], [request(params, index)])[0]
    assert draw is not None
    return draw


def reachable(logits: list[float], draws: int = 400, **params: float) -> set[int]:
    """The tokens that come up at all."""
    row = torch.tensor(logits)
    wanted = SamplingParams(max_tokens=1, **{"temperature": 1.0, **params})  # type: ignore[arg-type]
    sampler = Sampler(len(row), (), CPU)
    got = sampler.draw(row.expand(draws, -1), [request(wanted, index) for index in range(draws)])
    return {draw.token for draw in got if draw is not None}


def random_params(rng: random.Random, vocab: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=9,
        temperature=rng.choice([0.0, 0.3, 1.0, 2.5]),
        top_k=rng.choice([0, 0, 1, 20, 300, 4500, vocab]),
        top_p=rng.choice([1.0, 1.0, 0.1, 0.9, 0.999]),
        min_p=rng.choice([0.0, 0.0, 0.05]),
        typical_p=rng.choice([1.0, 1.0, 0.2, 0.95]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
        presence_penalty=rng.choice([0.0, 0.0, 0.5]),
        frequency_penalty=rng.choice([0.0, 0.0, -0.4]),
        logit_bias=rng.choice([(), ((3, 4.0), (8, -100.0))]),
        seed=rng.getrandbits(64),
        min_tokens=rng.choice([0, 4]),
        stop_token_ids=rng.choice([(), (9,)]),
        logprobs=rng.choice([None, 0, 5]),
    )


@pytest.mark.parametrize(("vocab", "rows"), [(37, 60), (5003, 40), (50257, 12)])
def test_a_row_is_the_same_alone_and_in_a_crowd(vocab: int, rows: int) -> None:
    rng = random.Random(vocab)
    crowd, lonely = Sampler(vocab, EOS, CPU), Sampler(vocab, EOS, CPU)
    requests = []
    for sequence in range(rows):
        prompt = tuple(rng.randrange(vocab + 5) for _ in range(7))
        requests.append(request(random_params(rng, vocab), 0, sequence, prompt))
    for step in range(3):
        logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(step)) * rng.choice([1.0, 4.0])
        asked = [DrawRequest(r.sequence, r.params, step, r.tokens, r.prompt_len) for r in requests]
        together = crowd.draw(logits, asked)
        order = rng.sample(range(rows), rows)
        alone = {row: lonely.draw(logits[row : row + 1].clone(), [asked[row]])[0] for row in order}
        assert together == [alone[row] for row in range(rows)]


def test_a_row_is_the_same_among_any_neighbours() -> None:
    rng = random.Random(4)
    vocab, rows = 5003, 30
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(1)) * 3
    asked = [
        request(SamplingParams(max_tokens=1, temperature=1.2, top_p=rng.choice([0.5, 0.999, 1]), seed=row, logprobs=3))
        for row in range(rows)
    ]
    whole = Sampler(vocab, EOS, CPU).draw(logits, asked)
    for _ in range(5):
        some = rng.sample(range(rows), rng.randrange(1, rows))
        got = Sampler(vocab, EOS, CPU).draw(logits[some], [asked[row] for row in some])
        assert got == [whole[row] for row in some]


def test_greedy_takes_the_likeliest_and_the_lowest_id_of_equals() -> None:
    greedy = SamplingParams(max_tokens=1)
    assert draw_one([0.0, 3.0, 1.0, 3.0], greedy).token == 1
    ties = torch.zeros(50257)
    ties[[40000, 77, 50256]] = 4
    assert draw_one(ties, greedy).token == 77
    sampler = Sampler(50257, (), CPU)
    assert {d.token for d in sampler.draw(ties.repeat(3, 1), [request(greedy)] * 3) if d is not None} == {77}


def test_the_logits_are_left_as_they_are() -> None:
    logits = torch.randn(4, 50)
    before = logits.clone()
    params = SamplingParams(
        max_tokens=1, temperature=0.7, top_p=0.5, repetition_penalty=2, logit_bias=((1, 5.0),), min_tokens=3, logprobs=2
    )
    Sampler(50, EOS, CPU).draw(logits, [request(params, sequence=row) for row in range(4)])
    assert torch.equal(logits, before)


def test_seed_and_index_decide_the_draw() -> None:
    logits = torch.zeros(1000)
    tokens = {
        (seed, index): draw_one(logits, SamplingParams(max_tokens=1, temperature=1.0, seed=seed), index).token
        for seed in (0, 1, 2**32, 2**63, 2**64 - 1)
        for index in range(4)
    }
    assert len(set(tokens.values())) >= 18
    again = SamplingParams(max_tokens=1, temperature=1.0, seed=2**63)
    assert draw_one(logits, again, 3).token == tokens[2**63, 3]


def test_temperature_near_zero_is_greedy() -> None:
    assert reachable([0.0, 1e-4, 0.0], temperature=1e-40) == {1}
    assert reachable([0.0, 1.0, 0.0], temperature=0.01) == {1}
    assert reachable([0.0, 1.0, 0.0], temperature=5.0) == {0, 1, 2}


def test_top_k_keeps_the_k_likeliest_and_what_ties_with_them() -> None:
    assert reachable([1.0, 3.0, 2.0, 2.5], top_k=1) == {1}
    assert reachable([1.0, 3.0, 2.0, 2.5], top_k=3) == {1, 2, 3}
    assert reachable([1.0, 3.0, 2.0, 2.0], top_k=2) == {1, 2, 3}
    assert reachable([1.0, 3.0, 2.0, 2.5], top_k=99) == {0, 1, 2, 3}


def test_top_p_counts_mass_over_the_full_vocabulary() -> None:
    # Probabilities 0.4, 0.3, 0.2, 0.1. After top_k=3 the rest would be 0.44, 0.33, 0.22 if it were counted anew, and
    # two tokens would hold 0.75.
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().tolist()
    assert reachable(logits, top_p=0.39) == {0}
    assert reachable(logits, top_p=0.41) == {0, 1}
    assert reachable(logits, top_p=0.75) == {0, 1, 2}
    assert reachable(logits, top_p=0.75, top_k=3) == {0, 1, 2}
    assert reachable(logits, top_p=0.95, top_k=3) == {0, 1, 2}
    assert reachable(logits, top_p=1e-9) == {0}


def test_top_p_does_not_stop_at_a_candidate_list() -> None:
    # 10,000 equal tokens: the nucleus of any top_p is all of them, because they tie.
    assert len(reachable([0.0] * 10_000, draws=60, top_p=0.5)) > 50


def test_min_p_is_relative_to_the_likeliest() -> None:
    logits = torch.tensor([0.5, 0.26, 0.14, 0.1]).log().tolist()
    assert reachable(logits, min_p=0.5) == {0, 1}
    assert reachable(logits, min_p=0.25) == {0, 1, 2}
    assert reachable(logits, min_p=1.0) == {0}


@pytest.mark.parametrize("mass", [0.05, 0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.8])
def test_typical_keeps_what_the_reference_keeps(mass: float, temperature: float) -> None:
    torch.manual_seed(round(mass * 100))
    logits = torch.randn(30) * 2
    reference = TypicalLogitsWarper(mass=mass)(torch.zeros(1, 0, dtype=torch.long), logits[None] / temperature)[0]
    kept = set(reference.isfinite().nonzero()[:, 0].tolist())
    likely = {token for token in kept if (logits / temperature).softmax(0)[token] > 0.02}
    came = reachable(logits.tolist(), draws=2000, typical_p=mass, temperature=temperature)
    assert likely <= came <= kept


def test_typical_may_leave_out_the_likeliest_and_looks_at_what_others_leave() -> None:
    logits = torch.tensor([0.4, *[0.6 / 30] * 30]).log().tolist()
    assert 0 not in reachable(logits, typical_p=0.3)
    assert reachable(logits, typical_p=0.3, top_k=1) == {0}
    assert reachable(logits, draws=1500) >= {0, 1}


def test_logit_bias_is_added_before_temperature() -> None:
    assert draw_one([0.0, 1.0, 0.0], SamplingParams(max_tokens=1, logit_bias=((2, 1.5),))).token == 2
    assert reachable([0.0, 0.0, 0.0], logit_bias=((1, -100.0),)) == {0, 2}  # type: ignore[arg-type]


def test_min_tokens_holds_back_every_end() -> None:
    logits = [0.0, 1.0, 9.0, 2.0, 7.0, 8.0]  # 2 and 5 end a sequence, 4 is a stop token of the request
    params = SamplingParams(max_tokens=9, min_tokens=2, stop_token_ids=(4, 10**6))
    assert [draw_one(logits, params, index).token for index in range(4)] == [3, 3, 2, 2]
    ignoring = SamplingParams(max_tokens=9, min_tokens=2, stop_token_ids=(4,), ignore_eos=True)
    assert draw_one(logits, ignoring).token == 2
    sampled = SamplingParams(max_tokens=9, min_tokens=1, temperature=1.0)
    assert {draw_one(logits, sampled, 0).token} & {2, 5} == set()


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = torch.randn(500, generator=torch.Generator().manual_seed(2)) * 3
    exact = logits.double().log_softmax(-1)
    params = SamplingParams(max_tokens=1, temperature=2.0, top_k=3, logit_bias=((7, 50.0),), logprobs=4)
    draw = draw_one(logits, params)
    assert draw.token == 7
    assert draw.logprob == pytest.approx(float(exact[7]), abs=1e-6)
    values, ids = exact.topk(4)
    assert [token for token, _ in draw.top_logprobs] == ids.tolist()
    assert [value for _, value in draw.top_logprobs] == pytest.approx(values.tolist(), abs=1e-6)


def test_logprobs_none_zero_and_ties() -> None:
    plain = draw_one([1.0, 2.0], SamplingParams(max_tokens=1))
    assert (plain.logprob, plain.top_logprobs) == (None, ())
    none_of_the_top = draw_one([1.0, 2.0], SamplingParams(max_tokens=1, logprobs=0))
    assert none_of_the_top.logprob == pytest.approx(-0.3132617)
    assert none_of_the_top.top_logprobs == ()
    ties = draw_one([0.0, 1.0, 2.0, 1.0, 1.0, 0.0], SamplingParams(max_tokens=1, logprobs=3))
    assert [token for token, _ in ties.top_logprobs] == [2, 1, 3]
    assert len(draw_one([0.0, 1.0], SamplingParams(max_tokens=1, logprobs=9)).top_logprobs) == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_is_told_and_others_go_on(bad: float, temperature: float) -> None:
    logits = torch.randn(3, 40)
    logits[1, 17] = bad
    params = SamplingParams(max_tokens=1, temperature=temperature, repetition_penalty=1.5, logprobs=1)
    sampler = Sampler(40, EOS, CPU)
    draws = sampler.draw(logits, [request(params, sequence=row, prompt=(1, 2)) for row in range(3)])
    assert [draw is None for draw in draws] == [False, True, False]


def penalised(
    logits: torch.Tensor, params: SamplingParams, prompt: list[int], output: list[int], vocab: int
) -> torch.Tensor:
    """The reference: transformers' repetition penalty, then OpenAI's formula."""
    seen = [token for token in prompt + output if token < vocab]
    scores = logits.clone()
    if seen:
        scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(torch.tensor([seen]), scores[None])[0]
    for token, count in Counter(output).items():
        scores[token] -= params.frequency_penalty * count + params.presence_penalty
    return scores


@pytest.mark.parametrize("seed", range(12))
def test_penalties_equal_the_reference_over_a_whole_sequence(seed: int) -> None:
    rng = random.Random(seed)
    vocab = 30
    params = SamplingParams(
        max_tokens=99,
        repetition_penalty=rng.choice([1.0, 1.4, 0.7]),
        presence_penalty=rng.choice([0.0, 0.8, -0.5]),
        frequency_penalty=rng.choice([0.0, 0.6, -0.3]),
    )
    prompt = [rng.randrange(vocab + 8) for _ in range(10)]  # with virtual tokens
    sampler, output = Sampler(vocab, (), CPU), list[int]()
    for index in range(40):
        logits = torch.randn(vocab, generator=torch.Generator().manual_seed(100 * seed + index)) * 2
        known = rng.randrange(max(0, index - 1), index + 1)  # a plan may be in flight
        asked = DrawRequest(0, params, index, tuple(prompt + output[:known]), len(prompt))
        draw = sampler.draw(logits[None], [asked])[0]
        assert draw is not None
        assert draw.token == int(penalised(logits, params, prompt, output, vocab).argmax())
        output.append(draw.token)


def test_penalties_outlive_preemption_and_end_with_forget() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    params = SamplingParams(max_tokens=9, presence_penalty=2.0)
    sampler = Sampler(3, (), CPU)

    def step(index: int, tokens: tuple[int, ...]) -> int:
        draw = sampler.draw(logits, [DrawRequest(7, params, index, tokens, 1)])[0]
        assert draw is not None
        return draw.token

    assert step(0, (0,)) == 0
    assert step(1, (0,)) == 1
    assert step(2, (0, 0, 1)) == 0  # 3-2, 2-2, 1: the lowest id of two equals
    sampler.forget(7)
    sampler.forget(7)
    assert step(0, (0,)) == 0
    sampler.forget(7)
    assert step(2, (0, 0, 1)) == 0  # the history is read from the tokens
    assert step(3, (0, 0, 1, 0)) == 0


def test_a_tiny_repetition_penalty_overflows_to_a_finite_score() -> None:
    params = SamplingParams(max_tokens=9, temperature=1.0, repetition_penalty=1e-38)
    draw = Sampler(3, (), CPU).draw(torch.tensor([[300.0, 2.0, 1.0]]), [request(params, prompt=(0,))])[0]
    assert draw == Draw(0)
