"""The examples of the clients' page, run as they stand there, and `openai` once more for the record."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.clients.environments import environment, run_script
from tests.clients.serving import Served
from tests.docs.markdown import DOCS
from tests.long.clients.results import record

HERE = Path(__file__).parent
SHORT = HERE.parents[1] / "clients"
REQUIREMENTS = {
    "openai": None,
    "huggingface_hub": HERE / "requirements" / "huggingface_hub.txt",
    "lorax-client": HERE / "requirements" / "lorax.txt",
    "text-generation": HERE / "requirements" / "text_generation.txt",
    "LangChain": HERE / "requirements" / "langchain.txt",
    "LiteLLM": HERE / "requirements" / "litellm.txt",
}
EXAMPLES = {
    heading: (source, printed)
    for heading, source, printed in re.findall(
        r"^## ([^\n]+)\n\n```python\n(.*?)```\n\n```text\n(.*?)```$",
        (DOCS / "clients.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
}


def test_every_client_has_an_example() -> None:
    assert set(EXAMPLES) == set(REQUIREMENTS)


@pytest.mark.parametrize("client", REQUIREMENTS)
def test_an_example_prints_what_the_page_says(served: Served, tmp_path: Path, client: str) -> None:
    source, printed = EXAMPLES[client]
    script = tmp_path / "example.py"
    script.write_text(source.replace("http://127.0.0.1:8000", served.server.url).replace("wb_…", served.key))
    said = run_script(environment(REQUIREMENTS[client]), script, folder=tmp_path)
    assert said.strip("\n") == printed.strip("\n")


def test_openai_for_the_record(served: Served) -> None:
    told = served.ask(SHORT / "use_openai.py")
    assert {error["package"] for error in told["errors"].values()} == {"openai"}
    record("openai", told)
