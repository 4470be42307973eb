"""Runs the README's Python blocks in order, in one namespace and an empty folder.

A comment on the line before a block changes that:
`<!-- not run: reason -->` and `<!-- TransformerLens 3.9 only -->`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[1] / "README.md"
ONLY_3 = "TransformerLens 3.9 only"

BLOCK = re.compile(
    r"^(?:<!--[ ]*(?P<note>.*?)[ ]*-->[ ]*\n)?```python[ ]*\n(?P<code>.*?)^```[ ]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    line: int
    code: str
    why_not: str | None

    def __str__(self) -> str:
        return f"line {self.line}"


def blocks_of(text: str, transformer_lens: str) -> list[Block]:
    return [
        Block(
            line=text.count("\n", 0, match.start("code")) + 1,
            code=match["code"],
            why_not=reason_not_to_run(match["note"] or "", transformer_lens),
        )
        for match in BLOCK.finditer(text)
    ]


def reason_not_to_run(note: str, transformer_lens: str) -> str | None:
    if note.startswith("not run:"):
        return note.removeprefix("not run:").strip()
    if note == ONLY_3 and int(transformer_lens.split(".")[0]) >= 4:
        return f"{ONLY_3}; this is {transformer_lens}"
    return None


@dataclass
class Reader:
    """Runs blocks up to a given one, each once, as a reader of the page would."""

    blocks: list[Block]
    file: str
    done: int = 0
    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})

    def read_to(self, last: int) -> None:
        while self.done <= last:
            block = self.blocks[self.done]
            if block.why_not is None:
                code = "\n" * (block.line - 1) + block.code  # so that tracebacks show README lines
                exec(compile(code, self.file, "exec"), self.namespace)
            self.done += 1


BLOCKS = (
    blocks_of(README.read_text(encoding="utf-8"), version("transformer-lens"))
    if README.exists()
    else []
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        yield Reader(BLOCKS, str(README))


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=lambda n: str(BLOCKS[n]))
def test_the_block_runs(number: int, reader: Reader) -> None:
    reason = BLOCKS[number].why_not
    if reason is not None:
        pytest.skip(reason)
    reader.read_to(number)


def test_the_readme_has_blocks_that_run() -> None:
    assert [block for block in BLOCKS if block.why_not is None], (
        "no Python block of README.md is run"
    )


PAGE = """\
# Title
```bash
exit 1
```
```python
x = 1
```
<!-- not run: downloads a model -->
```python
x = undefined
```
<!-- TransformerLens 3.9 only -->
```python
x += 1
```
text
```python
assert x == 2
```
"""


@pytest.mark.parametrize(
    ("transformer_lens", "reasons"),
    [
        ("3.9.0", [None, "downloads a model", None, None]),
        ("4.3.0", [None, "downloads a model", f"{ONLY_3}; this is 4.3.0", None]),
    ],
)
def test_comments_decide_what_runs(transformer_lens: str, reasons: list[str | None]) -> None:
    blocks = blocks_of(PAGE, transformer_lens)
    assert [block.why_not for block in blocks] == reasons
    assert [block.line for block in blocks] == [6, 10, 14, 18]


def test_blocks_share_a_namespace_and_a_wrong_one_fails() -> None:
    Reader(blocks_of(PAGE, "3.9.0"), "page").read_to(3)
    with pytest.raises(AssertionError) as failure:
        Reader(blocks_of(PAGE, "4.3.0"), "page").read_to(3)
    assert failure.traceback[-1].lineno == 17  # counted from 0: line 18 of the page
