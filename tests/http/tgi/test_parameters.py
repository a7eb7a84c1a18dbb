"""Every field of TGI's and LoRAX's bodies changes what it says, or is refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from server.api.tgi.schemas import TgiParameters, TgiRequest
from tests.fakes import FakeEngine, saying
from tests.http import folders
from tests.http.conftest import MakeApi
from tests.http.parameters import Heard, Neutral, Refused, Table

DRAWN = {"do_sample": True}
TOLD = {"details": True}
DIGITS = {"type": "regex", "value": "[0-9]+"}


def abc() -> FakeEngine:
    """An engine that says abcabc…"""
    return FakeEngine(next_token=saying(*b"abc"))


def ending() -> FakeEngine:
    """An engine that ends after one letter, unless it is told to go on."""
    return FakeEngine(next_token=saying(ord("a"), folders.EOS), eos=frozenset((folders.EOS,)))


def fault(response: httpx.Response) -> str:
    """What the error is about."""
    text: str = response.json()["error"]
    return text


PARAMETERS = Table(
    "/generate",
    TgiParameters,
    {"max_new_tokens": 6, "seed": 3},
    {
        "adapter_id": (
            Heard("soft", TOLD, adapters=("soft",)),
            Heard("soft", adapters=("soft",), shows="engine"),
            Neutral(""),
            Refused("../x", status=422, names="adapter"),
            Refused("nobody", status=404, names="nobody"),
        ),
        "adapter_source": (Neutral("local"), Refused("hub", status=422)),
        "api_token": (Refused("hf_secret", status=422),),
        "merged_adapters": (Refused({"ids": ["a"], "weights": [1.0], "density": 0.5}, status=422),),
        "do_sample": (Heard(True, shows="engine"), Refused("yes", status=422)),
        "temperature": (
            Heard(0.7, shows="engine"),
            Heard(0, DRAWN, shows="engine"),
            Refused(5.1, status=422),
        ),
        "top_k": (Heard(3, shows="engine"), Refused(0, status=422)),
        "top_p": (Heard(0.9, shows="engine"), Neutral(1.0), Refused(0, status=422)),
        "typical_p": (Heard(0.9, shows="engine"), Neutral(1.0), Refused(1.1, status=422)),
        "repetition_penalty": (Heard(1.5, shows="engine"), Refused(0, status=422)),
        "frequency_penalty": (Heard(1.5, shows="engine"), Refused(3, status=422)),
        "presence_penalty": (Heard(1.5, shows="engine"), Refused(3, status=422)),
        "max_new_tokens": (Heard(3), Refused(0, status=422)),
        "ignore_eos_token": (Heard(True, engine=ending), Refused(1, status=422)),
        "stop": (Heard(["b"], engine=abc), Refused("b", status=422)),
        "stop_sequences": (Heard(["b"], engine=abc), Refused([""], status=422)),
        "truncate": (Heard(2, shows="engine"), Heard(2, TOLD), Refused(0, status=422)),
        "seed": (Heard(2, {"do_sample": True}, absent=1), Refused(-1, status=422)),
        "best_of": (Neutral(1), Refused(2, status=422)),
        "watermark": (Neutral(False), Refused(True, status=422)),
        "return_full_text": (Heard(True), Refused(1, status=422)),
        "details": (Heard(True), Refused(1, status=422)),
        "decoder_input_details": (Heard(True, TOLD), Refused(1, status=422)),
        "top_n_tokens": (Heard(2, TOLD), Refused(21, status=422)),
        "return_k_alternatives": (Heard(2, TOLD), Refused(0, status=422)),
        "grammar": (
            Heard(DIGITS, shows="engine"),
            Heard({"type": "json", "value": {"properties": {}}}, shows="engine"),
            Refused({"type": "regex", "value": {}}, status=422),
            Refused(DIGITS, {"response_format": {"type": "json_object"}}, status=422),
        ),
        "response_format": (
            Heard({"type": "json_object"}, shows="engine"),
            Heard({"type": "json_schema", "schema": {"type": "integer"}}, shows="engine"),
            Neutral({"type": "text"}),
            Refused({"type": "json_schema"}, status=422),
        ),
        "apply_chat_template": (Neutral(False), Refused(True, status=422)),
    },
    wrap=lambda fields: {"inputs": "hello", "parameters": fields},
    fault=fault,
)

BODY = Table(
    "/",
    TgiRequest,
    {"inputs": "hello", "parameters": {"max_new_tokens": 6, "seed": 3}},
    {
        "inputs": (Heard("other", absent="hello"), Refused(["a", "b"], status=422)),
        "parameters": (Heard({"max_new_tokens": 3}), Refused([], status=422)),
        "stream": (Heard(True), Neutral(False), Refused("yes", status=422)),
    },
    fault=fault,
)


@pytest.mark.parametrize("table", [PARAMETERS, BODY], ids=["parameters", "body"])
def test_every_field_has_its_case(table: Table) -> None:
    assert table.unproved() == set()


@pytest.mark.parametrize(("name", "case"), PARAMETERS.parameters())
async def test_a_parameter_is_heard_or_refused(make_api: MakeApi, name: str, case: Any) -> None:
    await PARAMETERS.check(make_api, name, case)


@pytest.mark.parametrize(("name", "case"), BODY.parameters())
async def test_a_field_of_the_body_is_heard_or_refused(make_api: MakeApi, name: str, case: Any) -> None:
    await BODY.check(make_api, name, case)
