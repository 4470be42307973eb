"""`accelerate launch` on two CPU processes: a plain Trainer script with AnnealGates."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import tl_bilinear as tlb

pytestmark = pytest.mark.one_major(3)

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "demos" / "convert_with_trainer.py"
LAUNCH = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    *("--main_process_port", "0"),
)

pytest.importorskip("accelerate", reason="accelerate is not installed")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_with_trainer", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_whole(command: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
    """Exit code, output and errors; where it hangs, its workers end with it."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            output, errors = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            process.terminate()  # the launcher then ends its workers, which a kill would leave
            raise
    return process.returncode, output, errors


@pytest.mark.slow
def test_two_processes_convert_the_bundled_teacher(tmp_path: Path):
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, *LAUNCH, str(SCRIPT), "--steps", "6", "-o", str(tmp_path / "out")]
    code, output, errors = run_whole(command, environment)
    assert code == 0, errors[-2000:]
    assert "2 processes, the same weights in each" in output
    assert "'gate_beta': '1'" in output and "'gate_beta': '0'" in output
    model = tlb.load(tmp_path / "out")
    tlb.self_check(model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_the_scripts_checks_can_fail(script: ModuleType):
    script.require_same(["a", "a"])
    with pytest.raises(SystemExit, match="different weights"):
        script.require_same(["a", "b"])
    script.require_lower(2.0, 4.0)
    with pytest.raises(SystemExit, match="did not bring the loss down"):
        script.require_lower(float("nan"), 4.0)


def test_windows_are_whole_rows_that_begin_stories(script: ModuleType):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(script.TEACHER)
    stories = ("Once upon a time. " * 40, "The end. " * 40)
    rows = script.windows(tokenizer, stories)
    assert rows and all(row["input_ids"].shape == (script.WINDOW,) for row in rows)
    assert rows[0]["input_ids"][0] == tokenizer.bos_token_id
