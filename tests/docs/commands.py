"""Shell commands on the pages, and curl's command line read into a request."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tests.docs.markdown import fences


@dataclass(slots=True)
class Curl:
    """One curl command, as far as these pages use it."""

    method: str = ""
    url: str = ""
    body: str | None = None
    form: dict[str, list[str]] = field(default_factory=dict)
    headers: list[str] = field(default_factory=list)

    @property
    def path(self) -> str:
        """The URL's path."""
        return urlsplit(self.url).path


def parse(command: str) -> Curl:
    """Read a curl command line; an option that is not known here fails the test."""
    words = iter(shlex.split(command)[1:])
    curl = Curl()
    for word in words:
        match word:
            case "-s" | "-sN" | "-N":
                pass
            case "-X":
                curl.method = next(words)
            case "-H":
                curl.headers.append(next(words))
            case "-d":
                curl.body = next(words)
            case "-F":
                name, _, value = next(words).partition("=")
                curl.form.setdefault(name, []).append(value)
            case _:
                assert not word.startswith("-"), word
                assert not curl.url, f"two URLs in {command}"
                curl.url = word
    curl.method = curl.method or ("POST" if curl.body or curl.form else "GET")
    return curl


def commands(page: Path) -> list[str]:
    """The page's shell commands, continued lines joined."""
    text = "\n".join(fence.text for fence in fences(page, "bash"))
    return [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip() and line[0] != "#"]
