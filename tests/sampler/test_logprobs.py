"""Log-probabilities of many rows at once: those of a softmax, ties to low ids, the same bits alone and in a crowd."""

from __future__ import annotations

import pytest
import torch

from server.engine.model.logprobs import LogProbs


def test_numbers_are_those_of_a_softmax() -> None:
    logits = torch.randn(7, 501, generator=torch.Generator().manual_seed(1)) * 5
    expected = logits.double().log_softmax(dim=-1)
    probs = LogProbs.of(logits)
    rows, ids = [0, 6, 6, 3], [500, 0, 0, 77]
    assert probs.take(rows, ids) == pytest.approx(expected[rows, ids].tolist(), abs=1e-6)
    values, order = expected.topk(4)
    for row, likeliest in enumerate(probs.likeliest(4)):
        assert [token for token, _ in likeliest] == order[row].tolist()
        assert [value for _, value in likeliest] == pytest.approx(values[row].tolist(), abs=1e-6)


def test_ties_go_to_low_ids_row_by_row() -> None:
    logits = torch.tensor([[1.0, 3, 3, 3, 0], [2, 2, 2, 2, 2], [5, 1, 0, 1, 4]])
    ids = [[token for token, _ in row] for row in LogProbs.of(logits).likeliest(2)]
    assert ids == [[1, 2], [0, 1], [0, 4]]
    assert [[token for token, _ in row] for row in LogProbs.of(logits).likeliest(9)][2] == [0, 4, 1, 3, 2]
    assert LogProbs.of(logits).likeliest(0) == [(), (), ()]


@pytest.mark.parametrize("vocab", [37, 5003, 49152])
def test_a_row_is_the_same_alone_and_in_a_crowd(vocab: int) -> None:
    logits = torch.randn(9, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
    crowd = LogProbs.of(logits)
    likeliest = crowd.likeliest(20)
    for row in range(9):
        lonely = LogProbs.of(logits[row : row + 1])
        assert lonely.likeliest(20) == likeliest[row : row + 1]
        assert lonely.take([0, 0], [5, 36]) == crowd.take([row, row], [5, 36])
