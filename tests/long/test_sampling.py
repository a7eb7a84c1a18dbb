"""100,000 draws on a 49,152-token vocabulary follow the exact distribution, in every mode. Takes some minutes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from server.core import SamplingParams
from tests.sampler.frequencies import (
    MODES,
    VOCAB,
    distance_beyond_chance,
    exact_distribution,
    frequencies,
    surprise,
    wordlike_logits,
)

DRAWS = 100_000
RESULTS = Path(__file__).parent / "results" / "sampling.json"


def record(name: str, result: dict[str, float]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(known | {name: result}, indent=2, sort_keys=True) + "\n")


@pytest.mark.parametrize("mode", MODES)
def test_frequencies_match_the_exact_distribution(mode: str) -> None:
    logits = wordlike_logits()
    exact = exact_distribution(logits, MODES[mode])
    counts = frequencies(logits, MODES[mode], DRAWS)
    result = {
        "draws": DRAWS,
        "tokens_possible": int((exact > 0).sum()),
        "tokens_drawn_that_were_not": int(counts[exact == 0].sum()),
        "chi_square_sigmas": round(surprise(counts, exact), 2),
        "total_variation_sigmas": round(distance_beyond_chance(counts, exact), 2),
        "total_variation": round(float(abs(counts / DRAWS - exact).sum() / 2), 5),
    }
    record(mode, result)
    assert result["tokens_drawn_that_were_not"] == 0
    assert abs(result["chi_square_sigmas"]) < 4
    assert abs(result["total_variation_sigmas"]) < 4


def test_a_negligible_token_never_wins() -> None:
    logits = torch.full((VOCAB,), -25.1)
    logits[4321] = 0
    counts = frequencies(logits, SamplingParams(max_tokens=1, temperature=1.0, seed=3), DRAWS)
    record("negligible tokens", {"draws": DRAWS, "hashes": DRAWS * VOCAB, "wins": DRAWS - int(counts[4321])})
    assert counts[4321] == DRAWS
