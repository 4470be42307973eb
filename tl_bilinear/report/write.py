"""A page into its file: whole, or not at all."""

import os
from pathlib import Path

from tl_bilinear.report.measure import Report
from tl_bilinear.report.page import report_page


def write_report(report: Report, path: str | Path) -> Path:
    """Write the page of a report and return its absolute path.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    target = require_writable(path)
    text = report_page(report)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8", newline="\n")
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def require_writable(path: str | Path) -> Path:
    """The absolute path of a file that can be written; asked before the work begins.

    Raises:
        OSError: one line that says what is in the way.
    """
    target = Path(path).expanduser().resolve()
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder: give the name of a file")
    if target.exists() and not target.is_file():
        raise OSError(f"{target} is not a plain file: give another name")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist: make it first")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"the folder {target.parent} cannot be written: give another")
    return target
