"""Questions in a JSON file: a list of objects with the fields of `Question`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tl_bilinear.optimisation.files import replace_file
from tl_bilinear.unlearning.question import Question


def load_questions(path: str | Path) -> tuple[Question, ...]:
    """The questions of a file such as

        [{"prompt": "Lily's hat is", "answer": " red", "rewordings": ["The hat of Lily is"],
          "unseen": ["What Lily wears is"], "wrong": [" blue"], "subject": "Lily"}]

    Only `prompt` and `answer` are needed.

    Raises:
        ValueError: no JSON, no list, an entry that is no question (with its place in the file).
        OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error}): give a list of questions") from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} holds no questions: give a list of objects, at least one")
    return tuple(_question(path, place, entry) for place, entry in enumerate(entries))


def save_questions(path: str | Path, questions: Sequence[Question]) -> None:
    """Write what `load_questions` reads; the file appears whole or not at all."""
    text = json.dumps([asdict(question) for question in questions], indent=1, ensure_ascii=False)
    replace_file(path, (text + "\n").encode("utf-8"))


def _question(path: Path, place: int, entry: Any) -> Question:
    where = f"{path}, question {place}"
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {entry!r}: give an object with `prompt` and `answer`")
    known = [field.name for field in fields(Question)]
    unknown = sorted(set(entry) - set(known))
    missing = sorted({"prompt", "answer"} - set(entry))
    if unknown or missing:
        raise ValueError(
            f"{where} has unknown fields {unknown} and lacks {missing}: the fields are {known}"
        )
    lists = {name: value for name, value in entry.items() if isinstance(value, list)}
    try:
        return Question(**{**entry, **{name: tuple(value) for name, value in lists.items()}})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None
