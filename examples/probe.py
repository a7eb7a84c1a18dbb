"""The self-test that travels with an adapter: a prompt, and what PEFT answers to it with the saved folder."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

_TOKENS = 6
_CLEAR = 0.1  # logits: where the two likeliest tokens are closer, another machine's rounding could decide


@torch.no_grad()
def probe(model: PreTrainedModel, folder: Path, ids: list[int]) -> dict[str, list[int]]:
    """Return the `probe` of waybill.json for the prompt `ids`, which hold no virtual token: they come first."""
    tuned = PeftModel.from_pretrained(model, str(folder)).eval()
    greedy: list[int] = []
    while len(greedy) < _TOKENS:
        (first, second), tokens = tuned(input_ids=torch.tensor([ids + greedy])).logits[0, -1].topk(2)
        if first - second < _CLEAR:
            break
        greedy.append(int(tokens[0]))
        if greedy[-1] == model.config.eos_token_id:
            break
    return {"input_ids": ids, "greedy": greedy}
