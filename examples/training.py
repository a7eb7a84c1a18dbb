"""The training loop: AdamW, a short warm-up, then a cosine, on the answer's tokens only."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from learners import Learner
from prompts import Prompts
from recipes import Example, Recipe
from torch import Tensor

_WARM_UP = 5  # steps
_NOT_COUNTED = -100


def train(learner: Learner, prompts: Prompts, recipe: Recipe, steps: int) -> list[float]:
    """Train for `steps` and return the loss of each."""
    parameters = learner.parameters()
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    losses: list[float] = []
    batches = _batches(recipe.train, recipe.batch_size, random.Random(0))
    for step in range(steps):
        ids, mask, labels = _collate(prompts, recipe.template, next(batches))
        loss = learner.loss(ids, mask, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 10 == 0:
            print(f"step {step + 1}: loss {sum(losses[-10:]) / 10:.3f}", flush=True)
    return losses


def _rate(step: int, steps: int) -> float:
    if step < _WARM_UP:
        return (step + 1) / _WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (step - _WARM_UP) / max(1, steps - _WARM_UP)))


def _batches(examples: Sequence[Example], size: int, rng: random.Random):
    """Yield batches for ever, every example once before any comes again."""
    waiting: list[Example] = []
    while True:
        if len(waiting) < size:
            waiting += rng.sample(examples, len(examples))
        batch, waiting = waiting[:size], waiting[size:]
        yield batch


def _collate(prompts: Prompts, template: str, batch: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, mask and labels [batch, tokens], padded on the right.

    Padding is masked by position: the model's padding token is its end token, which the answers do teach.
    """
    rows = [(prompts.encode(template, example.text), prompts.answer(example.answer)) for example in batch]
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, _NOT_COUNTED)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        mask[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return ids, mask, labels
