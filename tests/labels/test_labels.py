"""Labels on real tiny models: the sums that transformers and PEFT give when they score each joined text alone."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import peft
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from server.app import create_app
from server.core import AdapterKind
from server.formats.base import read_base_model
from server.settings import Settings, make_plan
from tests.http.conftest import MACHINE
from tests.labels.inline import InlineEngine
from tests.parity.oracle import SavedAdapter, save_adapter
from tests.tiny_models import VOCAB_SIZE, tiny_model

MERGES = ["Ġ s", "Ġs p", "a m", "Ġsp am", "h am", "n o", "e s", "y es", "t y"]
"""No pre-tokenizer keeps them from crossing blanks, so a label's first letter may merge with the prompt's last."""

LABELS = ["am", " spam", " ham", "yes", "no", "y", "yesno", " spam or ham, who knows", " spam or ham, who cares", "?"]
PROMPTS = ["Is it? ", "The word is no", "To be or not", "x" * 70 + " t", "x" * 70 + " sp"]
"""The last two go through several blocks and steps; a label's y, or am, merges with their last letters."""

LogitsOf = Callable[[Sequence[int]], Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with a byte-level tokenizer that merges."""
    path = tmp_path_factory.mktemp("merging")
    tiny_model("llama").save_pretrained(path)
    merges = [(left, right) for left, right in map(str.split, MERGES)]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def encode(folder: Path) -> Callable[[str], list[int]]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: tokenizer.encode(text).ids


@asynccontextmanager
async def serving(folder: Path, store: Path, **settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, InlineEngine]]:
    """A whole server over a real engine with small steps."""
    small = {"kv_memory": 2**22, "max_seqs": 16, "step_tokens": 32, "threads": 1, "dtype": "float32"}
    made = Settings(model=folder, store=store, **small | settings)
    plan = make_plan(made, read_base_model(folder), MACHINE)
    engine = InlineEngine(plan.engine)
    app = create_app(made, plan, engine)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client, engine


def files_of(folder: Path) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (path.name, path.read_bytes())) for path in sorted(folder.iterdir()) if path.name != "README.md"]


async def publish(client: httpx.AsyncClient, name: str, folder: Path) -> None:
    response = await client.post("/v1/adapters", data={"name": name}, files=files_of(folder))
    assert response.status_code == 201, response.text


async def labels_of(client: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    response = await client.post("/v1/generate", json=body)
    assert response.status_code == 200, response.text
    choices: list[dict[str, Any]] = response.json()["choices"]
    return choices


def brute_force(logits_of: LogitsOf, alone: list[int], joined: list[list[int]]) -> list[float]:
    """Score each joined text by a forward of its own, from where all of them part from the prompt."""
    start = 0
    while all(len(tokens) > start and tokens[start] == joined[0][start] for tokens in (alone, *joined)):
        start += 1
    sums = []
    for tokens in joined:
        logprobs = logits_of(tokens).double().log_softmax(dim=-1)
        sums.append(math.fsum(float(logprobs[place - 1, tokens[place]]) for place in range(start, len(tokens))))
    return sums


def require(choice: dict[str, Any], expected: list[float], labels: list[str]) -> None:
    told = choice["labels"]
    assert [score["label"] for score in told] == labels
    assert [score["logprob"] for score in told] == pytest.approx(expected, abs=1e-4)
    mass = math.fsum(map(math.exp, expected))
    assert [score["probability"] for score in told] == pytest.approx([math.exp(p) / mass for p in expected], abs=1e-4)
    assert choice["text"] == labels[expected.index(max(expected))]


@torch.no_grad()
def plain_logits(tokens: Sequence[int]) -> Tensor:
    logits: Tensor = tiny_model("llama")(torch.tensor([list(tokens)])).logits[0]
    return logits


def peft_logits(adapter: SavedAdapter) -> LogitsOf:
    """Row i is behind token i of the text; the virtual tokens' own rows are left out."""
    wrapped = peft.PeftModel.from_pretrained(tiny_model("llama"), str(adapter.folder)).eval()
    more = {"task_ids": torch.tensor([1])} if adapter.kind is AdapterKind.MULTITASK_PROMPT_TUNING else {}
    skip = 0 if adapter.kind.holds_kv else adapter.num_virtual_tokens

    @torch.no_grad()
    def logits_of(tokens: Sequence[int]) -> Tensor:
        row = torch.tensor([list(tokens)])
        logits: Tensor = wrapped(input_ids=row, attention_mask=torch.ones_like(row), **more).logits[0, skip:]
        return logits

    return logits_of


def table_logits(table: Tensor) -> LogitsOf:
    """The base model over embeddings, in which ids from the vocabulary's end on name rows of the table."""
    model = tiny_model("llama")
    embed = model.get_input_embeddings()

    @torch.no_grad()
    def logits_of(tokens: Sequence[int]) -> Tensor:
        parts = [table[i - VOCAB_SIZE] if i >= VOCAB_SIZE else embed(torch.tensor(i)) for i in tokens]
        logits: Tensor = model(inputs_embeds=torch.stack(parts)[None], use_cache=False).logits[0]
        return logits

    return logits_of


@pytest.mark.parametrize("prompt_cache", ["on", "off"])
@pytest.mark.parametrize("attention", ["cpu", "native"])
async def test_labels_of_the_base_model(
    folder: Path, encode: Callable[[str], list[int]], tmp_path: Path, attention: str, prompt_cache: str
) -> None:
    assert encode("noty") != encode("not") + encode("y"), "a label has to merge with a prompt's end"
    async with serving(folder, tmp_path, attention=attention, prompt_cache=prompt_cache) as (client, _):
        choices = await labels_of(client, prompt=PROMPTS, labels=LABELS)
        again = await labels_of(client, prompt=PROMPTS, labels=LABELS)
        by_ids = await labels_of(client, prompt=[encode(prompt) for prompt in PROMPTS], labels=LABELS)
    for prompt, choice, repeated, plain in zip(PROMPTS, choices, again, by_ids, strict=True):
        alone = encode(prompt)
        expected = brute_force(plain_logits, alone, [encode(prompt + label) for label in LABELS])
        require(choice, expected, LABELS)
        require(repeated, expected, LABELS)
        require(plain, brute_force(plain_logits, alone, [alone + encode(label) for label in LABELS]), LABELS)


@pytest.mark.parametrize("kind", list(AdapterKind))
async def test_labels_with_adapters_of_every_kind(
    folder: Path, encode: Callable[[str], list[int]], tmp_path: Path, kind: AdapterKind
) -> None:
    adapter = save_adapter(tiny_model("llama"), kind, tmp_path / "adapter", 7, task=1)
    more = {"task": 1} if kind is AdapterKind.MULTITASK_PROMPT_TUNING else {}
    logits_of = peft_logits(adapter)
    async with serving(folder, tmp_path / "store", attention="native") as (client, _):
        await publish(client, "mine", adapter.folder)
        choices = await labels_of(client, adapter="mine", prompt=PROMPTS, labels=LABELS, **more)
    for prompt, choice in zip(PROMPTS, choices, strict=True):
        joined = [encode(prompt + label) for label in LABELS]
        require(choice, brute_force(logits_of, encode(prompt), joined), LABELS)


ROWS = [VOCAB_SIZE + i for i in range(6)]


@pytest.mark.parametrize(
    ("template", "prompt", "before", "after"),
    [
        ("{v:0-5}A {text} no", "film", [*ROWS, "A film no"], None),
        ("{v:0-2}A {text}{v:3-4} sp{v:5}", "film", [*ROWS[:3], "A film", *ROWS[3:5], " sp", ROWS[5]], ""),
        ("{v:0-2}A {text}{v:3-4}no{v:5} t", "film", [*ROWS[:3], "A film", *ROWS[3:5], "no", ROWS[5], " t"], None),
        ("{v:0-5}{text}", "", ROWS, ""),
    ],
)
async def test_labels_behind_templates(
    folder: Path,
    encode: Callable[[str], list[int]],
    tmp_path: Path,
    template: str,
    prompt: str,
    before: list[int | str],
    after: str | None,
) -> None:
    """A label is tokenised with the text that it touches; behind virtual tokens (`after` is "") it stands alone."""
    adapter = save_adapter(tiny_model("llama"), AdapterKind.P_TUNING, tmp_path / "adapter", 6)
    (adapter.folder / "waybill.json").write_text(f'{{"version": 1, "template": "{template}"}}')

    def ids(label: str) -> list[int]:
        parts = [*before, label] if after is not None else [*before[:-1], f"{before[-1]}{label}"]
        return [i for part in parts for i in (encode(part) if isinstance(part, str) else [part])]

    async with serving(folder, tmp_path / "store", attention="native") as (client, _):
        await publish(client, "mine", adapter.folder)
        (choice,) = await labels_of(client, adapter="mine", fields={"text": prompt}, labels=LABELS)
    require(choice, brute_force(table_logits(adapter.table()), ids(""), [ids(label) for label in LABELS]), LABELS)


async def test_a_prompt_that_a_label_swallows_has_to_have_something_before_it(folder: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model("llama"), AdapterKind.PROMPT_TUNING, tmp_path / "adapter", 5)
    body = {"prompt": "t", "labels": ["y", "x"]}
    async with serving(folder, tmp_path / "store", attention="cpu") as (client, _):
        await publish(client, "mine", adapter.folder)
        alone = await client.post("/v1/generate", json=body)
        (choice,) = await labels_of(client, **body, adapter="mine")
    assert (alone.status_code, alone.json()["error"]["param"]) == (400, "prompt")
    assert [score["num_tokens"] for score in choice["labels"]] == [1, 2]


async def test_the_shared_start_is_computed_once(
    folder: Path, tmp_path: Path, encode: Callable[[str], list[int]]
) -> None:
    prompt = "x" * 90 + "?"
    labels = [f" {i} of ten" for i in range(8)]
    endings = sum(len(encode(label)) - 1 for label in labels)
    computed = {}
    for prompt_cache in ("on", "off"):
        async with serving(folder, tmp_path, attention="native", prompt_cache=prompt_cache) as (client, engine):
            await labels_of(client, prompt=prompt, labels=labels)
            computed[prompt_cache] = engine.computed
    assert computed["on"] == 91 + endings
    assert computed["off"] == 91 + 8 * 91 + endings
