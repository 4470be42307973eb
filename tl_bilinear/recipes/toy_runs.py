"""What recipes read from a finished run's folder."""

import json
from pathlib import Path


def seconds_of(run: Path) -> float:
    """Seconds of training, over all the times that the run was taken up."""
    last = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    return json.loads(last)["seconds"]
