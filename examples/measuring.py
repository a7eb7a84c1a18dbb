"""Quality on the held-out examples, by the same measure with and without the adapter."""

from __future__ import annotations

from typing import Protocol

import torch
from prompts import Prompts
from recipes import Recipe
from torch import Tensor
from transformers import PreTrainedModel


class Answers(Protocol):
    """What can be asked: a learner, or the bare model."""

    def next_logits(self, ids: list[int]) -> Tensor:
        """Return the logits [vocab_size] of the token after a prompt."""
        ...

    def generate(self, ids: list[int], max_tokens: int) -> list[int]:
        """Return the greedy continuation of a prompt."""
        ...


class BareModel:
    """The base model without any adapter."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def next_logits(self, ids: list[int]) -> Tensor:
        return self._model(torch.tensor([ids])).logits[0, -1]

    def generate(self, ids: list[int], max_tokens: int) -> list[int]:
        rows = torch.tensor([ids])
        out = self._model.generate(
            rows, attention_mask=torch.ones_like(rows), max_new_tokens=max_tokens, do_sample=False
        )
        return out[0, len(ids) :].tolist()


@torch.no_grad()
def measure(model: Answers, prompts: Prompts, recipe: Recipe, template: str) -> dict[str, float]:
    """Return the recipe's scores, each a mean over its held-out examples."""
    if recipe.labels:
        return _choices(model, prompts, recipe, template)
    total = dict.fromkeys(recipe.scores, 0.0)
    for number, example in enumerate(recipe.test):
        ids = model.generate(prompts.encode(template, example.text), recipe.max_tokens)
        said = prompts.text(ids).strip()
        if number < 3:
            print(f"  {example.text[:60]!r} -> {said!r}", flush=True)
        for name, score in recipe.scores.items():
            total[name] += score(said, example.answer)
    return {name: round(value / len(recipe.test), 3) for name, value in total.items()}


def _choices(model: Answers, prompts: Prompts, recipe: Recipe, template: str) -> dict[str, float]:
    """Score a classification: is the right label the likeliest of the labels, and of all tokens?"""
    labels = {label: prompts.answer(label)[0] for label in recipe.labels}
    among_labels = among_all = 0
    for example in recipe.test:
        logits = model.next_logits(prompts.encode(template, example.text))
        likeliest = max(labels, key=lambda label: float(logits[labels[label]]))
        among_labels += likeliest == example.answer
        among_all += int(logits.argmax()) == labels[example.answer]
    count = len(recipe.test)
    return {
        "accuracy, among the labels": round(among_labels / count, 3),
        "accuracy, next token as it is": round(among_all / count, 3),
    }
