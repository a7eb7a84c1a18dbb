"""Replies of many tokens are written apart from the event loop, and say what small ones say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.replies import PIECE, write_json, write_large
from tests.fakes import fake_logprob
from tests.http.conftest import Api
from tests.http.openai.calls import choice, complete

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values, st.integers(0, 2 * PIECE + 1))
def test_pieces_join_to_the_same_json(value: Any, count: int) -> None:
    for data in (value, {"a": [value] * count, "b": [[value] * count]}):
        assert write_large(data) == write_json(data)


async def test_a_long_text_is_tokenized_in_both_words(api: Api) -> None:
    text = "hé" * 400
    plain = await api.client.post("/tokenize", json={"prompt": text, "return_token_strs": True})
    assert plain.headers["content-type"] == "application/json"
    assert bytes(plain.json()["tokens"]) == text.encode()
    assert plain.json()["token_strs"] == ["h", "Ã", "©"] * 400
    located = (await api.client.post("/tokenize", json={"inputs": text})).json()
    assert [token["start"] for token in located] == [
        place for n in range(400) for place in (2 * n, 2 * n + 1, 2 * n + 1)
    ]


@pytest.mark.parametrize("length", [5, 600])
async def test_a_long_prompt_is_scored_as_a_short_one(api: Api, length: int) -> None:
    prompt = "x" * length
    response = await complete(api, prompt=prompt, echo=True, logprobs=0, max_tokens=0)
    assert response.headers["content-type"] == "application/json"
    told = choice(response)
    expected = [fake_logprob(ord("x"), prompt[:place].encode()) for place in range(1, length)]
    assert (told["text"], told["logprobs"]["token_logprobs"]) == (prompt, [None, *expected])
    assert response.json()["usage"]["prompt_tokens"] == length
