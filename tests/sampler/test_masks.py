"""Masks in the sampler: what they forbid is never drawn, and the rest is drawn as if nothing else were there."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from server.core import SamplingParams
from server.engine.grammars.masks import Mask
from server.engine.model.filters import survivors
from server.engine.model.sampler import DrawRequest, Sampler
from tests.sampler.test_sampler import CPU, EOS, random_params, request


def random_mask(rng: random.Random, vocab: int) -> tuple[Mask, Tensor]:
    """A packed mask in whole words of 32, and the same as [vocab] bool; every density, one token at least."""
    share = rng.choice([0.001, 0.3, 0.99])
    allowed = np.array([rng.random() < share for _ in range(vocab)])
    allowed[rng.randrange(vocab)] = True
    bits = np.zeros((vocab + 31) // 32 * 32, dtype=bool)
    bits[:vocab] = allowed
    return np.packbits(bits, bitorder="little"), torch.from_numpy(allowed)


def crowd(vocab: int, rows: int) -> tuple[Tensor, list[DrawRequest], dict[int, Mask], dict[int, Tensor]]:
    rng = random.Random(vocab)
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab)) * 4
    requests = []
    for row in range(rows):
        params = replace(random_params(rng, vocab), min_tokens=0)
        requests.append(request(params, index=row % 5, sequence=row, prompt=tuple(rng.choices(range(vocab), k=6))))
    made = {row: random_mask(rng, vocab) for row in range(rows) if row % 3}
    return logits, requests, {row: mask for row, (mask, _) in made.items()}, {row: a for row, (_, a) in made.items()}


@pytest.mark.parametrize(("vocab", "rows"), [(37, 60), (5003, 40), (50257, 12)])
def test_a_masked_row_is_the_row_without_what_is_forbidden(vocab: int, rows: int) -> None:
    logits, requests, masks, allowed = crowd(vocab, rows)
    together = Sampler(vocab, EOS, CPU).draw(logits, requests, masks)
    plain = Sampler(vocab, EOS, CPU).draw(logits, requests)
    for row, draw in enumerate(together):
        assert draw is not None
        alone = Sampler(vocab, EOS, CPU)
        if row not in masks:
            assert draw == plain[row]
            continue
        assert allowed[row][draw.token]
        assert draw == alone.draw(logits[row][None], [requests[row]], {0: masks[row]})[0]
        low = logits[row].masked_fill(~allowed[row], -1e9)  # as good as gone, and still finite
        bare = replace(requests[row].params, logprobs=None, logit_bias=())
        masked = alone.draw(logits[row][None], [replace(requests[row], sequence=98, params=bare)], {0: masks[row]})
        by_hand = alone.draw(low[None], [replace(requests[row], sequence=99, params=bare)])
        assert masked == by_hand


def test_logprobs_under_a_mask_are_those_of_the_raw_row() -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0]])
    params = SamplingParams(max_tokens=1, logprobs=1)
    draw = Sampler(3, (), CPU).draw(logits, [request(params)], {0: np.array([0b101, 0, 0, 0], dtype=np.uint8)})[0]
    assert draw is not None
    assert draw.token == 2
    expected = logits[0].log_softmax(-1)
    assert draw.logprob == pytest.approx(float(expected[2]), abs=1e-5)
    assert draw.top_logprobs[0] == (1, pytest.approx(float(expected[1]), abs=1e-5))


def test_a_row_that_is_not_finite_is_told_under_a_mask_too() -> None:
    logits = torch.tensor([[0.0, float("nan"), 1.0], [0.0, 2.0, 1.0]])
    mask = np.array([0b101, 0, 0, 0], dtype=np.uint8)
    params = SamplingParams(max_tokens=1)
    draws = Sampler(3, (), CPU).draw(logits, [request(params), request(params)], {0: mask, 1: mask})
    assert draws[0] is None
    assert draws[1] is not None
    assert draws[1].token == 2


def test_a_greedy_row_with_a_grammar_wants_its_logits() -> None:
    sampler = Sampler(3, (), CPU)
    assert sampler.is_greedy(request(SamplingParams(max_tokens=1)))
    assert not sampler.is_greedy(request(SamplingParams(max_tokens=1, grammar="start: /a/")))


def test_a_row_that_keeps_all_that_is_allowed_needs_no_look_at_the_rest() -> None:
    weights = torch.zeros(3, 50257)
    weights[:, [5, 9, 40_000]] = torch.tensor([0.5, 1.0, 0.25])
    params = [
        SamplingParams(max_tokens=1, top_k=50),
        SamplingParams(max_tokens=1, typical_p=0.99),
        SamplingParams(max_tokens=1, top_p=1 - 1e-9),
    ]
    (left,) = survivors(weights, params)
    assert left.rows == [0, 1, 2]
    assert left.weights.shape[1] == 256
    for ids, kept in zip(left.ids, left.weights, strict=True):
        assert dict(zip(ids[kept > 0].tolist(), kept[kept > 0].tolist(), strict=True)) == {9: 1.0, 5: 0.5, 40_000: 0.25}
