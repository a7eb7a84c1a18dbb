"""How often each token is drawn, against the exact distribution, computed here in float64 by the definitions."""

from __future__ import annotations

import numpy as np
import torch

from server.core import SamplingParams
from server.engine.model.sampler import DrawRequest, Sampler

VOCAB = 49152

MODES = {
    "temperature only": SamplingParams(max_tokens=1, temperature=0.9, seed=1),
    "top-k": SamplingParams(max_tokens=1, temperature=1.2, top_k=40, seed=2),
    "top-p": SamplingParams(max_tokens=1, temperature=0.8, top_p=0.95, seed=3),
    "min-p": SamplingParams(max_tokens=1, temperature=1.5, min_p=0.02, seed=4),
    "all three": SamplingParams(max_tokens=1, temperature=1.3, top_k=200, top_p=0.9, min_p=0.005, seed=5),
    "typical": SamplingParams(max_tokens=1, temperature=1.0, typical_p=0.8, seed=6),
    "top-p and typical": SamplingParams(max_tokens=1, temperature=0.8, top_p=0.95, typical_p=0.95, seed=7),
}


def wordlike_logits(vocab: int = VOCAB) -> torch.Tensor:
    """Logits [vocab] as a language model makes them: a Zipf-like head in scattered places, a long noisy tail."""
    generator = torch.Generator().manual_seed(11)
    ranks = torch.randperm(vocab, generator=generator) + 1.0
    return -1.1 * ranks.log() + torch.randn(vocab, generator=generator)


def exact_distribution(logits: torch.Tensor, params: SamplingParams) -> np.ndarray:
    """Return the probabilities [vocab], float64: top-k, top-p over the full vocabulary, min-p, then typical."""
    scaled = logits.double().numpy() / params.temperature
    full = np.exp(scaled - scaled.max())
    full /= full.sum()
    order = np.argsort(-full, kind="stable")
    keep = np.ones(len(full), bool)
    if params.top_k:
        keep[order[params.top_k :]] = False
    if params.top_p < 1:
        mass_before = np.cumsum(full[order]) - full[order]
        keep[order[mass_before >= params.top_p]] = False
    keep &= full >= params.min_p * full.max()
    left = np.where(keep, full, 0) / full[keep].sum()
    if params.typical_p == 1:
        return left
    told = -np.log(left, where=keep, out=np.full(len(left), np.inf))
    distance = np.abs(told - (left[keep] * told[keep]).sum())
    order = np.argsort(distance, kind="stable")
    mass_before = np.cumsum(left[order]) - left[order]
    left[order[mass_before >= params.typical_p]] = 0
    return left / left.sum()


def frequencies(logits: torch.Tensor, params: SamplingParams, draws: int) -> np.ndarray:
    """Draw from `logits` [vocab] at output indices 0, 1, 2 … and return how often each token came."""
    sampler = Sampler(len(logits), (), torch.device("cpu"))
    counts = np.zeros(len(logits), np.int64)
    for start in range(0, draws, 500):
        indices = range(start, min(start + 500, draws))
        requests = [DrawRequest(0, params, index, (), 0) for index in indices]
        drawn = sampler.draw(logits.expand(len(requests), -1), requests)
        np.add.at(counts, [draw.token for draw in drawn if draw is not None], 1)
    return counts


def surprise(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Return Pearson's chi-square in standard deviations from what chance gives.

    Tokens expected fewer than 10 times share one cell, as the test asks for. Under the exact distribution the value is
    about standard normal, so 4 is met once in 30,000 times.
    """
    expected = probabilities * counts.sum()
    common = expected >= 10
    cells = np.append(counts[common], counts[~common].sum())
    means = np.append(expected[common], expected[~common].sum())
    cells, means = cells[means > 0], means[means > 0]
    freedom = len(cells) - 1
    return float((((cells - means) ** 2 / means).sum() - freedom) / np.sqrt(2 * freedom))


def distance_beyond_chance(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the total variation distance, less what chance gives on average, in its standard deviations.

    It looks at every token, rare ones too. A count of mean m deviates by E|X - m| ~ sqrt(2m/pi) where m is large and by
    2m exp(-m) where it is small; the Poisson formula that holds for both is used, and its variance summed.
    """
    mean = probabilities * counts.sum()
    mean = mean[mean > 0]
    whole = np.floor(mean)
    log_factorial = torch.lgamma(torch.from_numpy(whole + 1)).numpy()
    expected = 2 * np.exp((whole + 1) * np.log(mean) - mean - log_factorial)
    spread = np.sqrt(np.maximum(mean - expected**2, 0).sum())
    observed = np.abs(counts - probabilities * counts.sum()).sum()
    return float((observed - expected.sum()) / spread)
