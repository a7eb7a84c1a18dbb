"""Compiled masks: the likeliest token that is allowed, as the sampler finds it in torch."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from server.core import SamplingParams
from server.engine.grammars.masks import Mask
from server.engine.model.allowed import AllowedPeaks
from server.engine.model.sampler import Sampler
from server.engine.native.build import usable_variants
from server.engine.native.library import load
from tests.sampler.test_masks import random_mask
from tests.sampler.test_sampler import CPU, EOS, request

ISAS = [variant.name for variant in usable_variants()]
GREEDY = SamplingParams(max_tokens=1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("vocab", [3, 16, 37, 255, 256, 257, 5003, 49152, 50257])
def test_draws_equal_those_in_torch(vocab: int, isa: str) -> None:
    rng = random.Random(vocab)
    # Few values, so that many tie, in the last columns too.
    logits = torch.randint(-3, 4, (12, vocab), generator=torch.Generator().manual_seed(vocab)).float()
    logits[3, vocab - 1] = logits[7, 0] = 9.0
    masks: dict[int, Mask] = {row: random_mask(rng, vocab)[0] for row in range(12) if row % 4}
    requests = [request(GREEDY, sequence=row) for row in range(12)]
    compiled = Sampler(vocab, EOS, CPU, AllowedPeaks(load(2, isa))).draw(logits, requests, masks)
    assert compiled == Sampler(vocab, EOS, CPU).draw(logits, requests, masks)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sick", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 255, 262])
def test_a_row_that_is_not_finite_is_told(sick: float, place: int, isa: str) -> None:
    logits = torch.zeros(2, 263)
    logits[1, place] = sick
    mask = np.zeros(36, dtype=np.uint8)
    mask[2] = 1
    draws = Sampler(263, EOS, CPU, AllowedPeaks(load(2, isa))).draw(logits, [request(GREEDY)] * 2, {0: mask, 1: mask})
    assert draws[0] is not None
    assert draws[0].token == 16
    assert draws[1] is None


def test_rows_that_want_more_than_the_likeliest_token_go_another_way() -> None:
    logits = torch.randn(2, 263, generator=torch.Generator().manual_seed(1))
    mask = random_mask(random.Random(1), 263)[0]
    for params in (
        replace(GREEDY, temperature=0.7),
        replace(GREEDY, logprobs=2),
        replace(GREEDY, logit_bias=((5, 3.0),)),
    ):
        requests = [request(GREEDY), request(params, sequence=1)]
        compiled = Sampler(263, EOS, CPU, AllowedPeaks(load(2, ISAS[0]))).draw(logits, requests, {0: mask, 1: mask})
        assert compiled == Sampler(263, EOS, CPU).draw(logits, requests, {0: mask, 1: mask})
