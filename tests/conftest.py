"""Seeds, shape checking, the offline switch and the inputs that not every machine has.

Shape checking is put into the package as it is imported: tl_bilinear must not be imported above it.
"""

import gc
import os
import random
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch; do not spin on shared cores
os.environ.setdefault("MPLBACKEND", "Agg")  # a figure needs no screen

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# Before the hook: what is first imported under it is compiled anew, two thousand modules of others.
import transformer_lens.model_bridge  # noqa: E402, F401
from jaxtyping import install_import_hook  # noqa: E402

MAJOR = version("transformer-lens").split(".")[0]
# Types and shapes in signatures are checked while the tests run, which takes most of their time:
# each part of the package is checked in one environment and runs as users have it in the other.
# Hosts differ, and are checked in both.
PARTS = {path.stem for path in (Path(__file__).parents[1] / "tl_bilinear").glob("[!_]*")}
IN_3 = {"circuits", "conversion", "sweeps"}
CHECKED = IN_3 | {"hosts"} if MAJOR == "3" else PARTS - IN_3
install_import_hook(
    sorted(f"tl_bilinear.{part}" for part in CHECKED),
    # The numeric tower lets an int be given for a float, as every type checker does.
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

# The same examples every time, and no deadline: the first call of a torch operation is slow.
hypothesis.settings.register_profile(
    "tl_bilinear", deadline=None, derandomize=True, max_examples=40
)
hypothesis.settings.load_profile("tl_bilinear")


def pytest_collection_finish() -> None:
    gc.freeze()  # thousands of tests and all modules: no collection need look at them again


def pytest_runtest_setup(item: pytest.Item) -> None:
    once = item.get_closest_marker("one_major")
    if once and str(once.args[0]) != MAJOR:
        pytest.skip(f"no part of TransformerLens: the environment of {once.args[0]} has it")
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("network") and os.environ["HF_HUB_OFFLINE"] != "0":
        pytest.skip("needs the Hugging Face hub: set HF_HUB_OFFLINE=0")


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real inputs that lies beside the repository on some machines only."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real inputs of {folder} are not on this machine")
    return folder


@pytest.fixture
def unchecked():
    """What a user without the shape checker sees: our own errors instead of the checker's."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
