"""Every hostile upload is refused for its own reason, at once, in little memory, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.hostile.corpus import CORPUS
from tests.hostile.serving import BAIT, Watched, watched
from tests.hostile.uploads import CONFIG, Attack, Upload, config_of, dump, right, send
from tests.http import folders

SECONDS = 1.0
MEMORY = 64 * 2**20
"""More bytes than this no upload may take, above what the server had before: the largest body has 17 MB."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A server with one adapter, named as the victims are."""
    folder = tmp_path_factory.mktemp("hostile")
    with watched(folders.make_model(folder / "bytes"), folder) as server:
        with client_of(server) as client:
            assert post(client, send(right())).status_code == 201
            post(client, CORPUS[-1].make())  # what is imported and built at the first upload is so now
        yield server


@pytest.fixture(scope="module")
def client(server: Watched) -> Iterator[httpx.Client]:
    with client_of(server) as client:
        yield client


def client_of(server: Watched) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=30, trust_env=False)


def post(client: httpx.Client, upload: Upload) -> httpx.Response:
    headers = dict(upload.headers)
    if upload.content_type is not None:
        headers["Content-Type"] = upload.content_type
    return client.post("/v1/adapters", content=upload.body, headers=headers)


def timed(client: httpx.Client, upload: Upload) -> tuple[httpx.Response, float]:
    """The answer and its seconds; sent again where they were too many, since another test may have held the machine."""
    for _ in range(3):
        started = time.monotonic()
        answer = post(client, upload)
        seconds = time.monotonic() - started
        if seconds < SECONDS:
            break
    return answer, seconds


def test_the_corpus_is_large_and_its_attacks_have_names_of_their_own() -> None:
    assert len(CORPUS) >= 80
    assert max(Counter(attack.name for attack in CORPUS).values()) == 1


@pytest.mark.parametrize("attack", CORPUS, ids=lambda attack: attack.name)
def test_a_hostile_upload_is_refused(server: Watched, client: httpx.Client, attack: Attack) -> None:
    upload = attack.make()
    files, adapters = server.files(), client.get("/v1/adapters").json()
    resident = server.forget_peak()
    answer, seconds = timed(client, upload)
    grown = server.peak() - resident
    assert (answer.status_code, answer.json().get("error", {}).get("code")) == (attack.status, attack.code), answer.text
    error = answer.json()["error"]
    assert error["param"] == attack.param
    for words in attack.words:
        assert any(choice in error["message"] for choice in words.split("|")), error["message"]
    assert len(error["message"]) < 500
    assert error["message"].isprintable()
    assert str(server.store) not in answer.text
    assert seconds < SECONDS
    assert grown < MEMORY
    assert server.files() == files
    assert server.open_files() == []
    assert client.get("/v1/adapters").json() == adapters
    assert server.surprises() == []


def test_what_a_config_asks_for_is_not_done(server: Watched, client: httpx.Client, tmp_path: Path) -> None:
    """PEFT and transformers import, open or download these; here they are text that changes nothing."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # who opens it to read stands still
    asked = {
        "auto_mapping": {"base_model_class": "Bait", "parent_library": BAIT},
        "base_model_name_or_path": str(pipe),
        "inference_mode": False,
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": f"file://{pipe}",
        "prompt_tuning_init_state_dict_path": str(pipe),
        "revision": f"refs/pr/1;import {BAIT}",
        "tokenizer_kwargs": {"trust_remote_code": True, "auto_map": {"AutoTokenizer": [f"{BAIT}.Bait", None]}},
        "tokenizer_name_or_path": str(pipe),
    }
    for kind in ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "CPT", "CARTRIDGE"):
        started = time.monotonic()
        answer = post(client, send({**right(kind), CONFIG: dump(config_of(kind) | asked)}, name="asking"))
        assert answer.status_code == 201, answer.text
        assert time.monotonic() - started < SECONDS
        request = {"adapter": "asking", "prompt": "x", "max_tokens": 1} | ({"task": 0} if "MULTI" in kind else {})
        reply = client.post("/v1/generate", json=request)
        assert reply.status_code == 200, reply.text
    assert not (server.log.parent / "bitten").exists()
    assert json.loads((server.log.parent / "bytes" / "config.json").read_text())
    assert server.surprises() == []
