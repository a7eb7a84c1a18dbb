"""Taking a prompt and its labels apart: what is shared, what is left of each, what is asked of the engine."""

from __future__ import annotations

import pytest

from server.errors import InvalidRequest
from server.service.labelling import join
from server.service.prompting import RenderedPrompt

VOCAB = 100


def rendered(*tokens: int, prefix: tuple[int, ...] = ()) -> RenderedPrompt:
    return RenderedPrompt(tokens, prefix, sum(i < VOCAB for i in (*prefix, *tokens)), 0, max(tokens) >= VOCAB)


def test_all_labels_are_counted_from_where_the_first_parts_from_the_prompt() -> None:
    joined = join(
        rendered(1, 2, 3), [rendered(1, 2, 3, 4), rendered(1, 2, 9, 5), rendered(1, 2, 3, 4, 6)], "abc", VOCAB
    )
    assert joined.shared == rendered(1, 2)
    assert joined.endings == ((3, 4), (9, 5), (3, 4, 6))
    assert joined.stems == {(): (3, 9), (3,): (4,), (9,): (5,), (3, 4): (6,)}
    assert joined.num_text_tokens == 3


def test_what_labels_share_with_each_other_and_not_with_the_prompt_is_theirs() -> None:
    joined = join(rendered(1, 2), [rendered(1, 2, 7, 8), rendered(1, 2, 7, 9)], "ab", VOCAB)
    assert joined.endings == ((7, 8), (7, 9))
    assert joined.stems == {(): (7,), (7,): (8, 9)}, "their last tokens are asked for together"


def test_sequences_open_at_once() -> None:
    endings = [rendered(1, i, i) for i in range(10, 20)]
    joined = join(rendered(1), endings, "abcdefghij", VOCAB)
    assert [joined.sequences(abreast) for abreast in (64, 10, 4, 1)] == [10, 10, 4, 1]
    short = join(rendered(1), [rendered(1, i) for i in range(10, 20)], "abcdefghij", VOCAB)
    assert short.sequences(64) == 1


def test_one_token_of_a_prefix_is_computed_where_the_prompt_has_no_other() -> None:
    prefix = (VOCAB, VOCAB + 1)
    alone = rendered(VOCAB + 1, prefix=(VOCAB,))  # as a prompt of virtual tokens alone is rendered
    joined = join(alone, [rendered(4, prefix=prefix), rendered(5, prefix=prefix)], "ab", VOCAB)
    assert (joined.shared.prefix_ids, joined.shared.tokens, joined.shared.needs_table) == ((VOCAB,), (VOCAB + 1,), True)
    assert joined.endings == ((4,), (5,))


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'b' adds no token") as nothing:
        join(rendered(1, 2), [rendered(1, 2, 3), rendered(1, 2)], "ab", VOCAB)
    assert nothing.value.param == "labels"
    with pytest.raises(InvalidRequest, match="no token to go on from") as merged:
        join(rendered(1), [rendered(9), rendered(1, 2)], "ab", VOCAB)
    assert merged.value.param == "prompt"
