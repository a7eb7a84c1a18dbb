"""What lm-eval makes of the server: a multiple-choice task with the base model and with an adapter on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from told import KEY, URL, tell

os.environ |= {"OPENAI_API_KEY": KEY, "HF_DATASETS_OFFLINE": "1"}

from lm_eval import simple_evaluate

MESSAGES = Path(__file__).parents[3] / "examples" / "data" / "sms_spam.test.jsonl"
TASK = {
    "task": "spam",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": str(MESSAGES)}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Message: {{text}}\nLabel:",
    "doc_to_choice": ["ham", "spam", "unsolicited advertising"],
    "doc_to_target": "{{['ham', 'spam'].index(label)}}",
    "metric_list": [{"metric": "acc"}],
}


def evaluate(model: str) -> dict[str, Any]:
    """The task's accuracy, and every pair of context and continuation with its log-likelihood."""
    results = simple_evaluate(
        model="local-completions",
        model_args={
            "base_url": f"{URL}/v1/completions",
            "model": model,
            "tokenizer_backend": "remote",
            "auth_token": KEY,
            "num_concurrent": 2,
        },
        tasks=[TASK],
        limit=40,
        log_samples=True,
        bootstrap_iters=0,
    )
    scored = [
        (*request, float(response[0][0]))
        for sample in results["samples"]["spam"]
        for request, response in zip(sample["arguments"], sample["resps"], strict=True)
    ]
    return {"accuracy": results["results"]["spam"]["acc,none"], "scored": scored}


def main() -> None:
    """Evaluate both."""
    tell({"base": evaluate("smollm2-135m"), "adapter": evaluate("spam-rows")}, "lm_eval", "datasets")


main()
