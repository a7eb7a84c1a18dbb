"""Train one of the shipped adapters on the embedded base model, and measure it against that model alone.

    .venv/bin/python examples/train.py pirate            writes examples/out/pirate
    .venv/bin/python examples/train.py sms-spam --threads 4

The folder that comes out is a plain PEFT folder with a `waybill.json` and a card. Publish it with

    .venv/bin/waybill adapters add examples/out/pirate --name my-pirate
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # everything needed is in this repository or in the base model's folder

import torch
from card import write_card
from learners import Learner, learner_for
from measuring import BareModel, measure
from probe import probe
from prompts import Prompts
from recipes import RECIPES
from training import train
from transformers import AutoModelForCausalLM, AutoTokenizer

from server.basemodel import fetch_base_model
from server.formats.base import read_base_model

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Read the command line, train, measure, save."""
    options = _options()
    torch.set_num_threads(options.threads)
    recipe = RECIPES[options.name]
    os.chdir(ROOT)  # so that the paths that PEFT writes into adapter_config.json are those of any clone
    folder = fetch_base_model(Path("models/smollm2-135m"), print)
    model = AutoModelForCausalLM.from_pretrained(folder.relative_to(ROOT), dtype=torch.float32)
    model.requires_grad_(False).eval()
    prompts = Prompts(AutoTokenizer.from_pretrained(folder), model.config.vocab_size)

    bare = {
        "bare model": measure(BareModel(model), prompts, recipe, recipe.bare_template),
        "bare model, told what to do": measure(BareModel(model), prompts, recipe, recipe.told_template),
    }
    print(json.dumps(bare, indent=1), flush=True)
    torch.manual_seed(0)
    learner = learner_for(recipe, model, prompts.tokenizer)
    started = time.monotonic()
    losses = train(learner, prompts, recipe, options.steps or recipe.steps)
    seconds = time.monotonic() - started
    scores = bare | {"with this adapter": measure(learner, prompts, recipe, recipe.template)}
    print(json.dumps(scores, indent=1), f"{seconds:.0f} s", flush=True)
    out = options.out or Path("examples/out") / recipe.name
    _save(learner, out)
    test = probe(model, out, prompts.encode(recipe.bare_template, recipe.test[0].text))
    base = read_base_model(folder)
    sidecar = recipe.waybill() | {"base": {"name": base.name, "digest": base.digest}, "probe": test}
    (out / "waybill.json").write_text(json.dumps(sidecar) + "\n", encoding="utf-8")
    write_card(out / "README.md", recipe, scores, losses)
    print(f"Wrote {out}")


def _save(learner: Learner, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    learner.save(out)
    (out / "adapter_model.safetensors").chmod(0o644)  # PEFT leaves it readable by its owner alone


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train an adapter on the embedded base model.")
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--steps", type=int, help="instead of the recipe's own")
    parser.add_argument("--out", type=Path, help="default: examples/out/NAME")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
