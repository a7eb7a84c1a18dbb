"""The likeliest token is the one that torch's own maximum finds."""

from __future__ import annotations

import pytest
import torch

from server.engine.model.likeliest import likeliest


@pytest.mark.parametrize("vocab", [1, 37, 255, 256, 511, 512, 513, 5003, 49152])
def test_it_is_the_first_of_the_largest(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    scores = torch.randint(-9, 9, (200, vocab), generator=generator).float()  # most rows have ties
    scores[::3] = torch.randn(scores[::3].shape, generator=generator)
    scores[1::5] = -torch.inf
    scores[1::5, vocab // 2] = -3e38
    assert torch.equal(likeliest(scores), scores.max(dim=-1).indices)
    assert torch.equal(likeliest(scores[:, : vocab // 2 + 1]), scores[:, : vocab // 2 + 1].max(dim=-1).indices)
