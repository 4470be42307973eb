"""`make faults`: every damaged input of tests/faults.py and the one error that it raises.

Each is made anew and loaded; the command fails where a model is returned, where the error is
another one than expected or carries another library's, or where anything was written, left open
or changed.
"""

import logging
import os
import re
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fault_outcome import Outcome, outcome  # noqa: E402
from faults import FAULTS  # noqa: E402

LONGEST = 240


def main() -> int:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows, wrong = [], []
    for fault in FAULTS:
        with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
            found = outcome(fault, Path(root), patch)
            complaints = complaints_of(found)
            wrong += [f"{fault.name}: {complaint}" for complaint in complaints]
            message = shown(found.line.replace(f"{root}/files/", ""))
            rows.append(f"| {fault.name} | {type(found.error).__name__} | {message} |")
    print(page(rows))
    for complaint in wrong:
        print(complaint, file=sys.stderr)
    return 1 if wrong else 0


def complaints_of(found: Outcome) -> list[str]:
    if found.error is None:
        return ["a model was returned"]
    complaints = {
        f"raised {type(found.error).__name__}": type(found.error) is not found.fault.error,
        f"said {found.line!r}": not re.search(found.fault.words, found.line),
        "carries another library's error": not found.error.__suppress_context__
        and found.error.__context__ is not None,
        f"wrote {found.written}": bool(found.written),
        f"changed {found.changed}": bool(found.changed),
    }
    return [complaint for complaint, holds in complaints.items() if holds]


def shown(message: str) -> str:
    cut = message if len(message) <= LONGEST else message[:LONGEST].rstrip() + " ..."
    return cut.replace("|", "\\|").replace("<", "&lt;")


def page(rows: list[str]) -> str:
    packages = ("transformer_lens", "transformers", "safetensors", "torch")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    head = f"## {versions}\n\n| damage | error | its first words |\n|---|---|---|"
    foot = (
        f"\n{len(rows)} inputs. Each raised the one error shown, returned no model, wrote nothing "
        "(folder, surroundings, temporary folder), left no file open and changed no global state."
    )
    return "\n".join([head, *rows, foot])


if __name__ == "__main__":
    sys.exit(main())
