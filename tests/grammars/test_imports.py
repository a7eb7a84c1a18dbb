"""The room loads neither torch nor llguidance before it must, and says so where llguidance cannot be had."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
sys.modules["llguidance"] = None  # as where it is not installed
from queue import SimpleQueue
from server.engine.grammars.masks import Masks
from server.engine.grammars.vocabulary import read_vocabulary
from server.errors import InvalidRequest
from server.service.exchange import Structure
from server.service.structure import engine_grammar
assert "torch" not in sys.modules
found = SimpleQueue()
Masks(lambda: read_vocabulary(None, 1, (0,)), threads=1).prepare('start: "a"', found.put)
print(found.get().message)
try:
    engine_grammar(Structure("regex", "a", "field"))
except InvalidRequest as error:
    print(error.message)
"""


def test_without_llguidance_only_structure_is_refused() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["this server has no llguidance, which structured output needs"] * 2
