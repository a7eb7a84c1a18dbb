"""Draws follow the exact distribution. The 100,000-draw form of this is tests/long/test_sampling.py."""

from __future__ import annotations

import pytest
import torch

from server.core import SamplingParams
from server.engine.model.rng import TokenNoise, draw_key
from tests.sampler.frequencies import (
    MODES,
    VOCAB,
    distance_beyond_chance,
    exact_distribution,
    frequencies,
    surprise,
    wordlike_logits,
)

DRAWS = 800
CPU = torch.device("cpu")


@pytest.mark.parametrize("mode", MODES)
def test_frequencies_match_the_exact_distribution(mode: str) -> None:
    logits = wordlike_logits()
    counts = frequencies(logits, MODES[mode], DRAWS)
    exact = exact_distribution(logits, MODES[mode])
    assert counts[exact == 0].sum() == 0
    assert abs(surprise(counts, exact)) < 4
    assert abs(distance_beyond_chance(counts, exact)) < 4


def test_the_measures_notice_a_wrong_temperature() -> None:
    logits = wordlike_logits(2000)
    counts = frequencies(logits, SamplingParams(max_tokens=1, temperature=1.0), 5000)
    wrong = exact_distribution(logits, SamplingParams(max_tokens=1, temperature=1.15))
    assert surprise(counts, wrong) > 4
    assert distance_beyond_chance(counts, wrong) > 4


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_top_p_holds_where_thousands_of_tokens_share_the_mass(top_p: float) -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(3)) * 0.3
    params = SamplingParams(max_tokens=1, temperature=1.0, top_p=top_p)
    counts = frequencies(logits, params, 2000)
    exact = exact_distribution(logits, params)
    assert counts[exact == 0].sum() == 0
    assert abs(distance_beyond_chance(counts, exact)) < 4


@pytest.mark.parametrize("gap", [25.1, 30.0, 80.0])
def test_a_negligible_token_never_wins(gap: float) -> None:
    logits = torch.full((VOCAB,), -gap)
    logits[4321] = 0
    counts = frequencies(logits, SamplingParams(max_tokens=1, temperature=1.0, seed=2**63 + 5), 2500)
    assert counts[4321] == 2500


def test_the_noise_is_exponential_into_its_tail() -> None:
    noise = TokenNoise(VOCAB, CPU)
    below = {1e-6: 0, 1e-5: 0, 1e-4: 0, 1e-2: 0, 1.0: 0, 5.0: 0, 10.0: 0}
    draws = 800
    for start in range(0, draws, 8):
        values = noise.exponentials([draw_key(77, index) for index in range(start, start + 8)])
        assert float(values.min()) >= 2**-32
        assert float(values.max()) < 16.7
        for limit in below:
            below[limit] += int((values < limit).sum())
    for limit, count in below.items():
        chance = -torch.expm1(torch.tensor(-limit, dtype=torch.float64)).item()
        total = draws * VOCAB
        assert abs(count - total * chance) < 4 * (total * chance * (1 - chance)) ** 0.5 + 1


def test_the_hash_is_32_bit_integer_arithmetic() -> None:
    def half_round(x: int, shift: int, factor: int) -> int:
        return ((x ^ (x >> shift)) * factor) % 2**32

    first, second = (part % 2**32 for part in draw_key(2**64 - 3, 12))
    expected = []
    for token in range(1003):
        mixed = half_round(half_round(token, 16, 0x7FEB352D), 15, 0x846CA68B)
        mixed = (half_round(mixed ^ first, 16, 0x7FEB352D) + second) % 2**32
        mixed = half_round(mixed, 15, 0x846CA68B)
        mixed ^= mixed >> 16
        signed = mixed - 2**32 if mixed >= 2**31 else mixed
        expected.append(abs(signed + 0.5) / 2**31)
    exact = -torch.log1p(-torch.tensor(expected, dtype=torch.float64))
    got = TokenNoise(1003, CPU).exponentials([draw_key(2**64 - 3, 12)])[0]
    torch.testing.assert_close(got.double(), exact, rtol=3e-6, atol=0)


def test_the_noise_of_some_tokens_is_the_noise_of_all() -> None:
    noise = TokenNoise(1000, CPU)
    keys = [draw_key(1, 0), draw_key(2, 5)]
    ids = torch.tensor([[3, 999, 0], [7, 7, 500]])
    assert torch.equal(noise.exponentials(keys, ids), noise.exponentials(keys).gather(1, ids))


@pytest.mark.parametrize(
    ("one", "other"),
    [((5, 0), (5, 1)), ((5, 0), (6, 0)), ((5, 0), (5 + 2**32, 0)), ((5, 0), (5 + 2**63, 0)), ((0, 1), (1, 0))],
)
def test_seeds_and_positions_are_unrelated(one: tuple[int, int], other: tuple[int, int]) -> None:
    noise = TokenNoise(VOCAB, CPU)
    a, b = -noise.exponentials([draw_key(*one), draw_key(*other)]).log()
    for shift in (0, 1, 2, 7):
        correlation = float(torch.corrcoef(torch.stack([a, b.roll(shift)]))[0, 1])
        assert abs(correlation) < 5 / VOCAB**0.5


def test_neighbouring_tokens_and_draws_are_unrelated() -> None:
    noise = TokenNoise(64, CPU).exponentials([draw_key(9, index) for index in range(20_000)])
    correlations = torch.corrcoef(noise.T) - torch.eye(64)
    assert float(correlations.abs().max()) < 5.5 / 20_000**0.5
    successive = torch.corrcoef(torch.cat([noise[:-1].T, noise[1:].T]))[:64, 64:]
    assert float(successive.abs().max()) < 5.5 / 20_000**0.5
