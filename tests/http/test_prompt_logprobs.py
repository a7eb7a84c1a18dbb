"""`prompt_logprobs` of `POST /v1/generate`: what is told of the prompt's own tokens."""

from __future__ import annotations

from server.core import Scoring
from tests.fakes import FakeEngine, fake_logprob
from tests.http import folders
from tests.http.conftest import Api, MakeApi
from tests.http.test_bad_requests import refused


async def test_every_token_but_the_first_has_an_entry_aligned_to_the_prompt(api: Api) -> None:
    response = await api.generate(prompt="hey", max_tokens=2, prompt_logprobs=2)
    (choice,) = response.json()["choices"]
    first, *others = choice["prompt_logprobs"]
    assert first is None
    assert [(entry["token_id"], entry["token"]) for entry in others] == [(101, "e"), (121, "y")]
    assert [entry["logprob"] for entry in others] == [fake_logprob(101, b"h"), fake_logprob(121, b"he")]
    assert [[top["token"] for top in entry["top"]] for entry in others] == [["e", "f"], ["y", "z"]]
    assert len(choice["text"]) == 2
    assert api.engine.submitted[0].scoring == Scoring(top=2)


async def test_none_are_told_unless_they_are_asked_for(api: Api) -> None:
    response = await api.generate(prompt="hey", max_tokens=2)
    assert "prompt_logprobs" not in response.json()["choices"][0]
    assert api.engine.submitted[0].scoring is None


async def test_a_prompt_may_be_scored_and_nothing_be_written(api: Api) -> None:
    response = await api.generate(prompt=["hey", "a"], max_tokens=0, prompt_logprobs=0, return_token_ids=True)
    reply = response.json()
    assert [(c["text"], c["token_ids"], c["finish_reason"]) for c in reply["choices"]] == [("", [], "length")] * 2
    assert [len(choice["prompt_logprobs"]) for choice in reply["choices"]] == [3, 1]
    assert reply["choices"][0]["prompt_logprobs"][1]["top"] == []
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]) == (4, 0)


async def test_a_prompt_that_fills_the_context_can_be_scored(api: Api) -> None:
    response = await api.generate(prompt="x" * 1024, max_tokens=0, prompt_logprobs=0)
    assert len(response.json()["choices"][0]["prompt_logprobs"]) == 1024


async def test_what_is_told_of_prompts_is_bounded(api: Api) -> None:
    body = {"prompt": [[97] * 1000] * 5, "max_tokens": 0}
    refused(await api.generate(**body, prompt_logprobs=20, n=10), 400, "invalid_request", "prompt_logprobs")
    assert api.engine.submitted == []
    assert api.app.state.gate.open == 0
    assert (await api.generate(**body, prompt_logprobs=0)).status_code == 200


async def test_virtual_tokens_have_no_entries(api: Api) -> None:
    await api.publish("framed", folders.templated("{v:0-1}ab{text}{v:2-3}c"))
    response = await api.generate(adapter="framed", fields={"text": "xy"}, max_tokens=1, prompt_logprobs=0)
    (choice,) = response.json()["choices"]
    first, *others = choice["prompt_logprobs"]
    assert first is None
    assert "".join(entry["token"] for entry in others) == "bxyc"
    (stream,) = api.engine.submitted
    assert others[-1]["logprob"] == fake_logprob(ord("c"), stream.tokens[:-1]), "virtual tokens stand before it"
    assert response.json()["usage"]["prompt_tokens"] == 5


async def test_what_is_compiled_with_the_adapter_is_text_without_a_score(api: Api) -> None:
    await api.publish("constant", folders.templated("ab{v:0-3}{text}"))
    response = await api.generate(adapter="constant", fields={"text": "xy"}, max_tokens=1, prompt_logprobs=0)
    (choice,) = response.json()["choices"]
    (stream,) = api.engine.submitted
    assert stream.adapter is not None
    assert stream.adapter.prefix_ids[:2] == (97, 98)
    assert [entry and entry["token"] for entry in choice["prompt_logprobs"]] == [None, None, None, "y"]


async def test_usage_says_what_earlier_calls_had_computed(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine())
    told = [(await api.generate(prompt="hello", n=2, max_tokens=1)).json()["usage"] for _ in range(2)]
    assert [usage["cached_tokens"] for usage in told] == [0, 4]
