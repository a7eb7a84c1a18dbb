"""lm-eval runs a multiple-choice task to its end, and its log-likelihoods are those of plain transformers and PEFT."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from server.machine import read_machine
from tests.clients.environments import environment
from tests.clients.serving import Served
from tests.docs.commands import commands
from tests.docs.markdown import DOCS, fences
from tests.e2e.running import MODEL, ROOT

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "lm_eval.json"
ADAPTER = ROOT / "adapters_store/public/sms-spam/versions/000001"
FILES = ("adapter_config.json", "adapter_model.safetensors")

Logits = Callable[[Tensor], Tensor]
"""From ids [length] to logits [length, vocab_size]."""


@pytest.fixture(scope="module")
def told(served: Served) -> dict[str, Any]:
    """What lm-eval told, with the shipped spam adapter published once more without its template."""
    with served.server.client(headers={"Authorization": f"Bearer {served.key}"}) as client:
        files = [("files", (name, (ADAPTER / name).read_bytes())) for name in FILES]
        reply = client.post("/v1/adapters", data={"name": "spam-rows"}, files=files)
    assert reply.status_code == 201, reply.text
    return served.ask(HERE / "use_lm_eval.py", HERE / "lm_eval.txt")


def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32", attn_implementation="eager").eval()


def plain() -> Logits:
    module = base()
    return lambda ids: module(input_ids=ids[None]).logits[0]


def with_adapter() -> Logits:
    wrapped = peft.PeftModel.from_pretrained(base(), str(ADAPTER)).eval()
    rows = wrapped.peft_config["default"].num_virtual_tokens
    return lambda ids: wrapped(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0, rows:]


@torch.no_grad()
def furthest(scored: list[tuple[str, str, float]], logits: Logits) -> float:
    """How far lm-eval's log-likelihoods are from those of these logits, at most."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    worst = 0.0
    for context, continuation, told in scored:
        start = len(tokenizer(context)["input_ids"])
        ids = torch.tensor(tokenizer(context + continuation)["input_ids"])
        logprobs = logits(ids)[:-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        worst = max(worst, abs(float(logprobs[start - 1 :].sum()) - told))
    return worst


def test_log_likelihoods_are_those_of_transformers_and_peft(told: dict[str, Any]) -> None:
    assert len(told["base"]["scored"]) == len(told["adapter"]["scored"]) == 120
    distances = {
        "base": furthest(told["base"]["scored"], plain()),
        "adapter": furthest(told["adapter"]["scored"], with_adapter()),
    }
    RESULTS.write_text(
        json.dumps(
            {
                "date": time.strftime("%Y-%m-%d", time.gmtime()),
                "machine": f"{platform.machine()}, {read_machine().cores} cores",
                "python": platform.python_version(),
                "versions": told["versions"],
                "log-likelihoods of each": len(told["base"]["scored"]),
                "furthest from transformers": distances["base"],
                "furthest from PEFT": distances["adapter"],
                "accuracy of the base": told["base"]["accuracy"],
                "accuracy of the adapter": told["adapter"]["accuracy"],
            },
            indent=1,
        )
        + "\n"
    )
    assert max(distances.values()) <= 1e-3
    assert told["adapter"]["accuracy"] > told["base"]["accuracy"]


def test_the_pages_command_runs(served: Served, tmp_path: Path) -> None:
    (task,) = (fence.text for fence in fences(DOCS / "clients.md", "yaml"))
    (line,) = (line for line in commands(DOCS / "clients.md") if "lm_eval" in line)
    (tmp_path / "spam.yaml").write_text(task.replace("examples/data", str(ROOT / "examples/data")))
    line = line.replace("http://127.0.0.1:8000", served.server.url).replace("wb_…", served.key)
    key, program, *arguments = shlex.split(line)
    binary = environment(HERE / "lm_eval.txt").parent / program
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "SSL_CERT_FILE")}
    done = subprocess.run(
        [str(binary), *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=kept | dict([key.split("=", 1)]) | {"HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "NO_PROXY": "*"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert re.search(r"\|spam\s*\|.*\|acc\s*\|", done.stdout), done.stdout
