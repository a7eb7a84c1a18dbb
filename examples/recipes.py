"""The recipes of the shipped adapters: data, prompt, method and settings of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from peft.config import PeftConfig
from scores import ends_itself, rouge_l, starts_with

_DATA = Path(__file__).parent / "data"
_BASE = "models/smollm2-135m"
_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # the chat template's own


@dataclass(frozen=True, slots=True)
class Example:
    """A text and the answer to learn, exactly as it follows the prompt."""

    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that makes one adapter.

    `template` is the prompt with the adapter; `bare_template` the same words without virtual tokens; `told_template`
    asks the bare model for the task in plain words. With `labels` the task is a classification, else `scores` judge
    what is generated.
    """

    name: str
    config: PeftConfig
    template: str
    bare_template: str
    told_template: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    learning_rate: float
    steps: int
    batch_size: int
    start: str  # where the virtual tokens start from, for the card: "from …"
    instruction: str  # for the bare model, in `told_template`
    prefix_text: str | None = None
    labels: tuple[str, ...] = ()
    scores: Mapping[str, Callable[[str, str], float]] = field(default_factory=dict)
    max_tokens: int = 1
    max_text_tokens: int = 1024

    def waybill(self) -> dict[str, Any]:
        """Return the contents of waybill.json."""
        text = {"required": True, "max_tokens": self.max_text_tokens, "truncate": "right"}
        provenance = {"trainer": "examples/train.py", "dtype": "float32"}
        return {"version": 1, "template": self.template, "fields": {"text": text}, "provenance": provenance}


def _rows(file: str, split: str | None = None) -> list[dict[str, str]]:
    with (_DATA / file).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row for row in rows if split is None or row["split"] == split]


def _chat(system: str) -> str:
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{{text}}<|im_end|>\n<|im_start|>assistant\n"


def _pirate() -> Recipe:
    told = "Speak like a pirate. Start every answer with: Arr, matey! Then answer shortly in pirate dialect."
    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=16,
        base_model_name_or_path=_BASE,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=told,
        tokenizer_name_or_path=_BASE,
    )
    train, test = (
        tuple(Example(row["text"], row["answer"]) for row in _rows("pirate.jsonl", split))
        for split in ("train", "test")
    )
    return Recipe(
        name="pirate",
        config=config,
        template=_chat(_SYSTEM),
        bare_template=_chat(_SYSTEM),
        told_template=_chat(told),
        train=train,
        test=test,
        learning_rate=5e-2,
        steps=80,
        batch_size=4,
        start="from the embeddings of a sentence that asks for a pirate",
        scores={
            'starts with "Arr, matey!"': starts_with("Arr, matey!"),
            "ends by itself, on one line": ends_itself,
            "ROUGE-L to the written answer": rouge_l,
        },
        max_tokens=40,
        instruction=told.strip(),
    )


def _sms_spam() -> Recipe:
    told = "Classify the text message as spam or ham. Advertisements and prizes are spam.\n"
    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=12,
        base_model_name_or_path=_BASE,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=told.strip(),
        tokenizer_name_or_path=_BASE,
    )
    train, test = (
        tuple(Example(row["text"], f" {row['label']}") for row in _rows(f"sms_spam.{split}.jsonl"))
        for split in ("train", "test")
    )
    template = "Message: {text}\nLabel:"
    return Recipe(
        name="sms-spam",
        config=config,
        template=template,
        bare_template=template,
        told_template=told + template,
        train=train,
        test=test,
        learning_rate=1e-2,
        steps=80,
        batch_size=8,
        start="from the embeddings of a sentence that states the task",
        labels=(" spam", " ham"),
        max_text_tokens=256,
        instruction=told.strip(),
    )


def _deb_summary() -> Recipe:
    told = "Summarize the description of the software package in one short line.\n"
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=16, base_model_name_or_path=_BASE)
    train, test = (
        tuple(Example(row["text"], f" {row['summary']}") for row in _rows(f"deb_summaries.{split}.jsonl"))
        for split in ("train", "test")
    )
    template = "Description: {text}\nSummary:"
    return Recipe(
        name="deb-summary",
        config=config,
        template=template,
        bare_template=template,
        told_template=told + template,
        train=train,
        test=test,
        learning_rate=1e-2,
        steps=100,
        batch_size=4,
        start="from the keys and values of a sentence that states the task",
        prefix_text="Write the summary line of a Debian package: a few words that say what it is, without its name.",
        scores={"ROUGE-L to the maintainer's own line": rouge_l},
        max_tokens=32,
        max_text_tokens=512,
        instruction=told.strip(),
    )


def _question_type() -> Recipe:
    labels = ("person", "place", "number", "date", "reason", "definition")
    told = f"Say what type of answer the question asks for: {', '.join(labels)}.\n"
    config = PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=16,
        base_model_name_or_path=_BASE,
        token_dim=576,
        num_transformer_submodules=1,
        num_attention_heads=9,
        num_layers=30,
        encoder_hidden_size=256,
    )
    train, test = (
        tuple(Example(row["text"], f" {row['label']}") for row in _rows("question_type.jsonl", split))
        for split in ("train", "test")
    )
    words = "Question: {text}\nType:"
    return Recipe(
        name="question-type",
        config=config,
        template="{v:0-7}Question: {text}\nType:{v:8-15}",
        bare_template=words,
        told_template=told + words,
        train=train,
        test=test,
        learning_rate=1e-3,
        steps=120,
        batch_size=8,
        start="from random rows behind a small network (PEFT's PromptEncoder), of which only the output is kept",
        labels=tuple(f" {label}" for label in labels),
        max_text_tokens=256,
        instruction=told.strip(),
    )


RECIPES: dict[str, Recipe] = {r.name: r for r in (_pirate(), _sms_spam(), _deb_summary(), _question_type())}
