"""Whole replies of TGI's and LoRAX's routes, to the last field."""

from __future__ import annotations

from tests.fakes import FakeEngine, fake_logprob, saying
from tests.http import folders
from tests.http.conftest import Api, MakeApi
from tests.http.tgi.calls import joined, post, whole


def token(byte: int) -> dict[str, object]:
    """A token of the answer, as the fake engine draws it."""
    return {"id": byte, "text": chr(byte), "logprob": -0.5, "special": False, "skipped": False}


async def test_a_reply_is_the_text_alone_and_the_root_route_puts_it_into_a_list(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(*b"abc")))
    assert await whole(api, max_new_tokens=5) == {"generated_text": "abcab"}
    assert (await post(api, "/", max_new_tokens=5)).json() == [{"generated_text": "abcab"}]
    assert (await post(api, "/", stream=False, max_new_tokens=5)).json() == [{"generated_text": "abcab"}]
    response = await api.client.post("/generate", json={"inputs": "x"})
    assert len(response.json()["generated_text"]) == 256
    assert [stream.params.logprobs for stream in api.engine.submitted] == [None] * 4


async def test_details_have_every_field_of_both_servers(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(*b"abc")))
    reply = await whole(api, "hey", max_new_tokens=2, details=True)
    assert reply == {
        "generated_text": "ab",
        "details": {
            "finish_reason": "length",
            "prompt_tokens": 3,
            "generated_tokens": 2,
            "skipped_tokens": 0,
            "seed": None,
            "prefill": [],
            "tokens": [token(97), token(98)],
            "adapter": None,
        },
    }


async def test_the_prompts_tokens_are_told_where_asked(api: Api) -> None:
    reply = await whole(api, "hey", max_new_tokens=1, decoder_input_details=True)
    prompt = list(b"hey")
    assert reply["details"]["prefill"] == [
        {"id": prompt[0], "text": "h", "logprob": None},
        {"id": prompt[1], "text": "e", "logprob": fake_logprob(prompt[1], prompt[:1])},
        {"id": prompt[2], "text": "y", "logprob": fake_logprob(prompt[2], prompt[:2])},
    ]


async def test_the_likeliest_are_told_as_either_server_does(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(97, folders.EOS), eos=frozenset((folders.EOS,))))
    reply = await whole(api, details=True, top_n_tokens=2, return_k_alternatives=1)
    first, last = reply["details"]["top_tokens"]
    assert first == [
        {"id": 97, "text": "a", "logprob": -0.5, "special": False},
        {"id": 98, "text": "b", "logprob": -1.5, "special": False},
    ]
    assert [entry["special"] for entry in last] == [True, True]
    assert reply["details"]["tokens"][0]["alternative_tokens"] == [{"id": 97, "text": "a", "logprob": -0.5}]
    assert "top_tokens" not in (await whole(api, details=True, return_k_alternatives=1))["details"]


async def test_the_end_of_sequence_is_a_special_token_and_no_text(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(97, folders.EOS), eos=frozenset((folders.EOS,))))
    reply = await whole(api, details=True)
    details = reply["details"]
    assert (reply["generated_text"], details["finish_reason"], details["generated_tokens"]) == ("a", "eos_token", 2)
    assert details["tokens"][1] == {
        "id": folders.EOS, "text": "<|im_end|>", "logprob": -0.5, "special": True, "skipped": False,
    }  # fmt: skip
    assert joined(details["tokens"]) == "a"


async def test_a_stop_string_stays_in_the_text(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(*b"abcdef")))
    for name in ("stop", "stop_sequences"):
        reply = await whole(api, details=True, **{name: ["zz", "cd"]})
        assert (reply["generated_text"], reply["details"]["finish_reason"]) == ("abcd", "stop_sequence")
        assert joined(reply["details"]["tokens"]) == "abcd"
    assert api.engine.running == []


async def test_the_prompt_comes_before_the_text_where_asked(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(next_token=saying(*b"abc")))
    assert (await whole(api, "hey ", max_new_tokens=1, return_full_text=True))["generated_text"] == "hey a"


async def test_an_adapter_is_named_in_the_headers_and_details(api: Api) -> None:
    card = (await api.publish("pirate", folders.soft_prompt(4))).json()
    response = await post(api, "/generate", adapter_id="pirate", adapter_source="local", details=True, max_new_tokens=1)
    assert response.json()["details"]["adapter"] == {
        "name": "pirate",
        "version": "v1",
        "digest": card["digest"],
        "kind": "prompt_tuning",
        "num_virtual_tokens": 4,
    }
    assert response.json()["details"]["prompt_tokens"] == 1
    told = {name: response.headers[name] for name in ("x-adapter-id", "x-adapter-source", "x-adapter-digest")}
    assert told == {"x-adapter-id": "pirate", "x-adapter-source": "local", "x-adapter-digest": card["digest"]}
    bare = await post(api, "/generate", adapter_id="", max_new_tokens=1)
    assert bare.status_code == 200
    assert "x-adapter-id" not in bare.headers
    assert [stream.adapter is None for stream in api.engine.submitted] == [False, True]


async def test_headers_count_and_time(make_api: MakeApi) -> None:
    api = await make_api(FakeEngine(step_seconds=0.001))
    headers = (await post(api, "/generate", "héy", max_new_tokens=20)).headers
    assert (headers["x-prompt-tokens"], headers["x-generated-tokens"], headers["x-total-tokens"]) == ("4", "20", "24")
    assert (headers["x-compute-characters"], headers["x-compute-type"], headers["x-model-id"]) == ("3", "cpu", "bytes")
    times = {name: float(headers[f"x-{name}"]) for name in ("compute-time", "total-time", "inference-time")}
    assert abs(times["compute-time"] * 1000 - times["total-time"]) <= 1
    assert 20 <= times["inference-time"] <= times["total-time"]
    assert float(headers["x-queue-time"]) == 1
    assert abs(float(headers["x-time-per-token"]) - times["inference-time"] / 20) <= 1


async def test_a_seed_is_told_where_tokens_are_drawn(api: Api) -> None:
    given = await whole(api, do_sample=True, seed=7, details=True, max_new_tokens=8)
    assert given["details"]["seed"] == 7
    assert (await whole(api, do_sample=True, seed=7, details=True, max_new_tokens=8)) == given
    drawn = await whole(api, do_sample=True, details=True, max_new_tokens=8)
    again = await whole(api, do_sample=True, seed=drawn["details"]["seed"], details=True, max_new_tokens=8)
    assert again == drawn


async def test_info_tells_what_is_served(api: Api) -> None:
    info = (await api.client.get("/info")).json()
    assert info["model_id"] == "bytes"
    assert info["model_sha"].startswith("sha256:")
    assert (info["model_dtype"], info["model_device_type"]) == ("torch.float32", "cpu")
    assert (info["max_input_tokens"], info["max_input_length"], info["max_total_tokens"]) == (1023, 1023, 1024)
    assert info["max_batch_total_tokens"] == 64 * 64
    assert (info["max_best_of"], info["max_stop_sequences"], info["router"]) == (1, 16, "waybill")


async def test_health_is_open_and_empty(make_api: MakeApi) -> None:
    api = await make_api()
    for route in ("/health", "/ping"):
        response = await api.client.get(route)
        assert (response.status_code, response.json()) == (200, {})
    api.engine.die()
    for route in ("/health", "/ping"):
        response = await api.client.get(route)
        assert response.status_code == 503
        assert response.json() == {"error": "unhealthy: the engine is being restarted", "error_type": "healthcheck"}
