"""Every curl line of the README, of pages that begin with one, and of the shipped cards, sent to a real server."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.docs.commands import Curl, commands, parse
from tests.docs.markdown import DOCS, README, ROOT
from tests.e2e.running import RunningServer

CARDS = sorted(ROOT.glob("adapters_store/public/*/versions/*/README.md"))


def send(client: httpx.Client, curl: Curl) -> httpx.Response:
    """Send what curl would have sent."""
    headers = dict(header.split(": ", 1) for header in curl.headers if "…" not in header)
    path = urlsplit(curl.url).path
    if curl.form:
        texts = {name: values[0] for name, values in curl.form.items() if name != "files"}
        paths = [ROOT / value[1:] for value in curl.form["files"]]
        files = [("files", (file.name, file.read_bytes())) for file in paths]
        return client.request(curl.method, path, data=texts, files=files)
    return client.request(curl.method, path, content=curl.body, headers=headers)


@pytest.mark.parametrize(
    "page", [README, DOCS / "quickstart.md", DOCS / "clients.md", *CARDS], ids=lambda page: str(page.relative_to(ROOT))
)
def test_curl_lines_answer(shipped: RunningServer, page: Path) -> None:
    with shipped.client() as client:
        for line in commands(page):
            if not line.startswith("curl "):
                continue
            reply = send(client, parse(line))
            assert reply.is_success, f"{line}\n{reply.text}"
        client.delete("/v1/adapters/my-pirate")


def test_shipped_adapters_do_what_the_readme_says(shipped: RunningServer) -> None:
    texts: dict[str | None, str] = {}
    with shipped.client() as client:
        for line in commands(README):
            if not line.startswith("curl ") or (body := parse(line).body) is None:
                continue
            request = {**json.loads(body), "stream": False}
            if not parse(line).url.endswith("/v1/generate") or "labels" in request:
                continue  # the README quotes the answers of the first commands only
            reply = client.post("/v1/generate", json=request).json()
            texts[request.get("adapter")] = reply["choices"][0]["text"]
    readme = " ".join(README.read_text().split())
    for name in ("pirate", None, "sms-spam", "question-type", "deb-summary"):
        assert f'"{texts[name]}"' in readme, f"{name} says {texts[name]!r}"
