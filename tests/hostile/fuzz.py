"""Right uploads with a few bytes, numbers or pieces changed at random: the server may take or refuse them, no more."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import httpx

from server.formats.base import read_base_model
from server.formats.judge import AdapterLimits, judge_folder
from server.store.digest import files_digest
from tests.hostile.serving import Watched
from tests.hostile.uploads import SIDECAR, ZIP, Upload, archive, entries_of, right, send

KINDS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "CPT", "PREFIX_TUNING", "CARTRIDGE")
SIDECARS = (b'{"version": 1}', b'{"version": 1, "template": "{v:0-1}Q: {text} A:{v:2-3}", "chat": "before_last_user"}')
NUMBERS = (b"0", b"-1", b"1", b"2", b"7", b"1024", b"65536", b"2147483648", b"9223372036854775808", b"1e308", b"null")
LIMITS = AdapterLimits(768)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Return the bytes with one to four changes."""
    for _ in range(chance.randint(1, 4)):
        if not data:
            return data
        at = chance.randrange(len(data))
        match chance.randrange(7):
            case 0:  # a bit
                data = data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
            case 1:  # a byte
                data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
            case 2:  # an end too early
                data = data[:at]
            case 3:  # a piece twice, or elsewhere
                piece = data[at : at + chance.randint(1, 64)]
                to = chance.randrange(len(data))
                data = data[:to] + piece + data[to:]
            case 4:  # a piece less
                data = data[:at] + data[at + chance.randint(1, 16) :]
            case 5:  # another number
                numbers = list(re.finditer(rb"\d+", data[:4096]))
                if numbers:
                    found = chance.choice(numbers)
                    data = data[: found.start()] + chance.choice(NUMBERS) + data[found.end() :]
            case 6:  # the small numbers of a header
                data = data[:at] + chance.randbytes(chance.choice((2, 4, 8))) + data[at + 8 :]
    return data


def upload(chance: random.Random) -> tuple[Upload, dict[str, bytes] | None]:
    """Return an upload, and its files where it is not a zip."""
    files = dict(right(chance.choice(KINDS)))
    if chance.random() < 0.3:
        files[SIDECAR] = chance.choice(SIDECARS)
    if chance.random() < 0.25:
        return send({ZIP: mutated(archive(entries_of(files)), chance)}), None
    name = chance.choice(list(files))
    files[name] = mutated(files[name], chance)
    made = send(files)
    if chance.random() < 0.1:
        return Upload(mutated(made.body, chance), made.content_type), None
    return made, files


def fuzz(server: Watched, client: httpx.Client, model: Path, count: int, seed: int) -> Counter[int]:
    """Send `count` uploads and return how many got each status; what is published must be right."""
    chance, base, statuses = random.Random(seed), read_base_model(model), Counter[int]()
    for turn in range(count):
        made, files = upload(chance)
        headers = {} if made.content_type is None else {"Content-Type": made.content_type}
        answer = client.post("/v1/adapters", content=made.body, headers=headers)
        statuses[answer.status_code] += 1
        assert answer.status_code in (200, 201, 400, 413, 415, 422), (turn, answer.text)
        if answer.status_code != 201:
            continue
        card = answer.json()
        folder = server.store / card["tenant"] / card["name"] / "versions" / f"{int(card['version'][1:]):06d}"
        assert files_digest(folder) == card["digest"]
        assert judge_folder(folder, base, LIMITS, published=True).num_virtual_tokens == card["num_virtual_tokens"]
        if files is not None:
            assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"} == files
        request = {"adapter": card["name"], "prompt": "x", "max_tokens": 1}
        request |= {"task": 0} if card["kind"].startswith("multitask") else {}
        reply = client.post("/v1/generate", json=request)
        assert reply.status_code in (200, 400), (turn, reply.text)
        assert client.delete(f"/v1/adapters/{card['name']}").status_code == 204
    assert server.surprises() == []
    assert server.open_files() == []
    return statuses
