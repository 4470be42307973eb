"""Every block of docs/upstream.md, without our work-around: each asserts its defect.

A failure here is good news: the defect is mended in the installed version, and what the entry
names under "Here" can go once every supported version is mended.
"""

import copy
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from families import bridge_of
from models import tiny_llama
from test_readme import blocks_of

import tl_bilinear as tlb

PAGE = Path(__file__).parents[1] / "docs" / "upstream.md"
BLOCKS = blocks_of(PAGE.read_text(encoding="utf-8"), version("transformer-lens"))

# In one process, to import once; each block in a namespace of its own.
RUN = """
import json, sys, traceback, warnings
warnings.simplefilter("ignore")
found = {}
for line, code in json.load(sys.stdin):
    try:
        exec(compile(chr(10) * (line - 1) + code, "upstream.md", "exec"), {"__name__": "__main__"})
        found[line] = ""
    except Exception:
        found[line] = traceback.format_exc()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """The traceback of every block, or nothing, by line."""
    code = [(block.line, block.code) for block in BLOCKS if block.why_not is None]
    result = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(code),
        env={**os.environ, "TL_BILINEAR_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=lambda n: f"entry {n + 1}")
def test_the_defect_is_still_there(number, outcomes):
    block = BLOCKS[number]
    if block.why_not is not None:
        pytest.skip(block.why_not)
    error = outcomes[str(block.line)]
    assert not error, f"mended upstream? See entry {number + 1} of docs/upstream.md\n{error}"


def test_every_entry_has_its_block_cause_fix_and_work_around():
    entries = PAGE.read_text(encoding="utf-8").split("\n## ")[1:-1]
    assert len(entries) == len(BLOCKS) == 21
    for number, entry in enumerate(entries, start=1):
        assert entry.startswith(f"{number}. ")
        assert "(3.9" in entry.splitlines()[0]
        assert entry.count("```python") == 1 and "assert" in entry
        for part in ("**Cause.**", "**Fix.**", "**Here.**"):
            assert entry.count(part) == 1, (number, part)


def test_our_hosts_refuse_hook_names_that_do_not_exist():
    """Entry 7."""
    bridge = bridge_of(copy.deepcopy(tiny_llama()), "Llama")
    with pytest.raises(KeyError, match="no hook named"):
        tlb.get_host(bridge).hooks([("blocks.0.hook_typo", lambda value, hook: 0 * value)])


@pytest.mark.parametrize("name", ["gate", "in"])
def test_hooks_before_the_gate_fire_in_compatibility_mode(name):
    """Entry 11."""
    bridge = bridge_of(copy.deepcopy(tiny_llama()), "Llama")
    bridge.enable_compatibility_mode()
    _, cache = bridge.run_with_cache(torch.arange(3, 12)[None])
    assert f"blocks.0.mlp.{name}.hook_in" in cache
