"""Shows of every parameter of a route that it is heard: it changes something, or it is refused by its name.

A route's table has the cases of each field of its body's model. `Table.unproved` names the fields without one, so that
a new field needs a case before the tests pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from tests.fakes import FakeEngine
from tests.http import folders
from tests.http.conftest import Api, MakeApi, events

ADAPTERS = {
    "soft": folders.soft_prompt(),
    "tasks": folders.multitask(2),
    "form": folders.templated("{v:0-3}Say {text} in {place}."),
}
"""Adapters that a case can ask for by name."""

VOLATILE = ("created", "timings", "cached_tokens")
"""What differs between two answers to one request."""


@dataclass(frozen=True)
class Heard:
    """With `value` the route does something else than without; `given` is sent both times.

    `shows` is where it must differ: in the `reply`, in what the `engine` was asked, or in the `log` line. `absent`
    stands for the field where it cannot be left out. `bos`: the tokenizer begins every text with BOS.
    """

    value: Any
    given: Mapping[str, Any] = field(default_factory=dict)
    shows: str = "reply"
    absent: Any = None
    adapters: tuple[str, ...] = ()
    engine: Callable[[], FakeEngine] = FakeEngine
    bos: bool = False


@dataclass(frozen=True)
class Refused:
    """With `value` the answer is an error that names the field."""

    value: Any
    given: Mapping[str, Any] = field(default_factory=dict)
    status: int = 400
    names: str | None = None
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Neutral:
    """`value` says what happens anyway: it is taken, and changes nothing. Only beside a `Refused` of the same field."""

    value: Any
    given: Mapping[str, Any] = field(default_factory=dict)


Case = Heard | Refused | Neutral


def of_openai(response: httpx.Response) -> str:
    """What the error object says is at fault: its `param` and its message."""
    error = response.json()["error"]
    return f"{error['param']} {error['message']}"


@dataclass(frozen=True)
class Table:
    """A route, the model of its body (or of a part of it, which `wrap` puts in its place), and every field's cases.

    `least` are fields that make a body that is answered, the same each time. `fault` reads what an error is about.
    """

    path: str
    model: type[BaseModel]
    least: Mapping[str, Any]
    cases: Mapping[str, tuple[Case, ...]]
    wrap: Callable[[dict[str, Any]], dict[str, Any]] = dict
    fault: Callable[[httpx.Response], str] = of_openai

    def unproved(self) -> set[str]:
        """Fields of the model that no case shows to be heard or refused, and cases of no field."""
        proved = {name for name, cases in self.cases.items() if any(not isinstance(case, Neutral) for case in cases)}
        return names_of(self.model) ^ proved

    def parameters(self) -> list[Any]:
        """(name, case) of every case, for `pytest.mark.parametrize`."""
        return [
            pytest.param(name, case, id=f"{name}-{number}")
            for name, cases in self.cases.items()
            for number, case in enumerate(cases)
        ]

    def body(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The least body with these fields; None takes one out."""
        fields = {name: value for name, value in {**self.least, **given}.items() if value is not None}
        return self.wrap(fields)

    async def check(self, make_api: MakeApi, name: str, case: Case) -> None:
        """Send what the case says and fail where the parameter is not heard."""
        api = await (make_api(case.engine(), bos=case.bos) if isinstance(case, Heard) else make_api())
        for adapter in () if isinstance(case, Neutral) else case.adapters:
            assert (await api.publish(adapter, ADAPTERS[adapter])).status_code == 201
        sent = self.body({**case.given, name: case.value})
        if isinstance(case, Refused):
            response = await self._send(api, sent)
            assert response.status_code == case.status, response.text
            assert (case.names or name) in self.fault(response), response.text
            assert api.engine.submitted == []
            return
        plain = {**case.given, name: case.absent if isinstance(case, Heard) else None}
        without = await self._observe(api, self.body(plain))
        with_it = await self._observe(api, sent)
        assert without["status"] == 200, without["reply"]
        if isinstance(case, Neutral):
            assert with_it == without
        else:
            assert with_it[case.shows] != without[case.shows], f"{name} changes nothing in the {case.shows}"

    async def _send(self, api: Api, body: dict[str, Any]) -> httpx.Response:
        return await api.client.post(self.path, json=body, headers={"X-Request-Id": "fixed"})

    async def _observe(self, api: Api, body: dict[str, Any]) -> dict[str, Any]:
        """Everything that one request does: its answer, what the engine was asked, its log line."""
        before = len(api.engine.submitted)
        with request_lines() as lines:
            response = await self._send(api, body)
        asked = [(s.tokens, s.params, s.adapter, s.salt, s.scoring) for s in api.engine.submitted[before:]]
        (line,) = lines
        times = ("queue_ms", "ttft_ms", "total_ms")
        return {
            "status": response.status_code,
            "reply": (response.status_code, response.headers["content-type"], _steady(_told(response))),
            "engine": asked,
            "log": {key: value for key, value in line.items() if key not in times},
        }


def names_of(model: type[BaseModel]) -> set[str]:
    """The names of a model's fields, as a body has them."""
    return {info.alias or name for name, info in model.model_fields.items()}


@contextmanager
def request_lines() -> Iterator[list[dict[str, Any]]]:
    """Collect the fields of the request log's lines."""
    lines: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.fields)  # type: ignore[attr-defined]

    log, keep = logging.getLogger("waybill.requests"), Keep()
    level = log.level
    log.addHandler(keep)
    log.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        log.removeHandler(keep)
        log.setLevel(level)


def _told(response: httpx.Response) -> Any:
    if not response.headers["content-type"].startswith("text/event-stream"):
        return response.json()
    return events(response.text) if "[DONE]" in response.text else response.text


def _steady(told: Any) -> Any:
    """The answer without what no two answers share."""
    if isinstance(told, dict):
        return {name: _steady(item) for name, item in told.items() if name not in VOLATILE}
    if isinstance(told, list):
        return [_steady(item) for item in told]
    return told
