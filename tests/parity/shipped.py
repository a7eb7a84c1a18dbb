"""The adapters that the project ships, on the real base model, beside PEFT (float32).

Greedy tokens are equal; logits are equal to 1e-4 of their standard deviation, which is 3 to 4 here, with values up to
40. Float32 itself goes no further through 30 layers: on these prompts PEFT's own logits differ from float64's by 6e-5
to 2e-4, and its eager attention from its SDPA attention by as much.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import AutoModelForCausalLM, PreTrainedModel

from server.engine.loading import Sizes
from server.formats.base import read_base_model
from server.service.prompting import Prompter, RenderedPrompt
from server.service.sources import source_of
from server.service.tokenizer import Tokenizer
from server.store.opening import local_store
from server.store.version import Version
from tests.parity.bench import Bench, Question
from tests.parity.oracle import Answer, SavedAdapter, ask_peft, ask_plain

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "smollm2-135m"
TEXT = "URGENT! Which tool lists the files of a package? Reply now to win 1000 pounds."
CPU = Sizes(num_blocks=40, block_size=64, prefix_blocks=10, max_seqs=16, step_tokens=64, max_model_len=512)
SIZES = {"cpu": CPU, "native": replace(CPU, block_size=32, num_blocks=80, prefix_blocks=20)}


def load_base() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32", attn_implementation="eager").eval()


def shipped() -> list[Version]:
    """The adapters that the project ships."""
    versions = local_store(ROOT / "adapters_store").list("public")
    assert {version.spec.kind.value for version in versions} >= {"prompt_tuning", "prefix_tuning", "p_tuning"}
    return versions


def expected_of(version: Version, rendered: RenderedPrompt, new_tokens: int) -> Answer:
    """PEFT where it can place the virtual tokens, else the plain model over `inputs_embeds`."""
    adapter = SavedAdapter(version.spec.kind, version.folder, version.spec.num_virtual_tokens)
    if version.spec.template is None or not version.spec.template.has_rows:
        return ask_peft(load_base, adapter, list(rendered.tokens), new_tokens)
    whole = ask_plain(load_base(), [*rendered.prefix_ids, *rendered.tokens], adapter.table(), new_tokens)
    return Answer(whole.tokens, whole.logits[len(rendered.prefix_ids) :])


def require_parity(attentions: tuple[str, ...], new_tokens: int) -> float:
    """Ask every shipped adapter and the base, alone and mixed; return the largest difference, in deviations."""
    base, versions = read_base_model(MODEL), shipped()
    prompter = Prompter(Tokenizer(MODEL), base)
    plain = prompter.render(None, messages=[{"role": "user", "content": TEXT}])
    rendered = [prompter.render(version.spec, prompt=TEXT) for version in versions]
    pairs = list(zip(versions, rendered, strict=True))
    questions = [Question(prompt.tokens, source_of(base, version, prompt)) for version, prompt in pairs]
    expected = [expected_of(version, prompt, new_tokens) for version, prompt in pairs]
    questions.append(Question(plain.tokens))
    module = load_base()
    expected.append(ask_plain(module, list(plain.tokens), new_tokens=new_tokens))
    worst = 0.0
    for attention in attentions:
        sizes = SIZES[attention]
        bench = Bench(module, sizes, attention)
        mixed = bench.ask(questions, new_tokens)
        assert max(stats.batch_kinds for stats in mixed.stats) >= 4
        alone = [bench.ask([one], new_tokens).answers[0] for one in questions]
        for answers in (mixed.answers, alone):
            for answer, right in zip(answers, expected, strict=True):
                spread = float(right.logits.std(dim=-1).mean())
                difference = float((answer.logits - right.logits).abs().max()) / spread
                assert difference <= 1e-4
                assert answer.tokens == right.tokens
                worst = max(worst, difference)
    return worst
