"""Who may import whom (CONTRIBUTING.md shows the picture), and that `import tl_bilinear` is light.

Every check is a function from a source tree to complaints. It is run on the package, where it must
find nothing, and on a small tree with the fault in it, which it must find.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "tl_bilinear"

# Top to bottom. A module imports from its own line or from lines below it.
# A new file or folder of tl_bilinear/ gets its place here.
LAYERS = (
    ("cli", "report", "__main__"),
    ("__init__",),
    ("unlearning", "sweeps", "recipes", "reading"),
    ("views",),
    ("attribution", "circuits", "ablation", "features", "conversion", "training"),
    ("checkpoints", "optimisation", "toys"),
    ("hosts",),
    ("decompositions",),
    ("tensor", "quadratic_map", "frozen_map", "gaussian", "dictionary", "characters"),
    ("one_line_errors",),
    ("results",),
)
SIBLINGS = {"attribution", "circuits", "ablation", "features", "conversion", "training"}
ALGEBRA = {"tensor", "quadratic_map", "gaussian", "dictionary"}
VIEWS_MAY_IMPORT = {"views", "decompositions", "results", "characters"} | ALGEBRA
RESULTS_IN_OTHER_ROOMS = {"tl_bilinear.circuits.circuit"}
ONLY_IN = {
    "transformer_lens": {"hosts"},
    "transformers": {"checkpoints", "conversion", "training", "recipes"},
    "circuitsvis": {"views"},
    "matplotlib": {"views"},
}
LAZY = {"circuitsvis", "matplotlib"}
NO_PLAIN_NAMES = {"utils", "core", "helpers", "types"}
LONGEST = 400

HEAVY = ("transformer_lens", "transformers", "circuitsvis", "matplotlib")


@dataclass(frozen=True)
class Import:
    """One name that one module imports, from inside the package or from outside."""

    module: str
    line: int
    target: str
    runs_on_import: bool

    @property
    def room(self) -> str:
        return room_of(self.module)

    @property
    def target_room(self) -> str | None:
        return room_of(self.target) if self.target.split(".")[0] == PACKAGE else None

    def __str__(self) -> str:
        return f"{self.module} line {self.line} imports {self.target}"


def room_of(module: str) -> str:
    """The file or folder of tl_bilinear/ that a module lives in."""
    return module.split(".")[1] if "." in module else "__init__"


def modules_of(root: Path) -> dict[str, Path]:
    modules = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imports_of(root: Path) -> list[Import]:
    modules = modules_of(root)
    return [
        Import(module, line, target, runs)
        for module, path in modules.items()
        for line, target, runs in targets(module, path, modules)
    ]


def targets(module: str, path: Path, modules: dict[str, Path]) -> Iterator[tuple[int, str, bool]]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def visit(node: ast.AST, runs: bool) -> Iterator[tuple[int, str, bool]]:
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name, runs
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                ancestors = package.split(".")
                base = ".".join(ancestors[: len(ancestors) - node.level + 1])
                source = f"{base}.{source}" if source else base
            for name in node.names:
                submodule = f"{source}.{name.name}"
                yield node.lineno, submodule if submodule in modules else source, runs
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            called = called.id if isinstance(called, ast.Name) else called
            argument = node.args[0]
            if called in ("import_module", "__import__") and isinstance(argument, ast.Constant):
                yield node.lineno, str(argument.value), runs
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.body:
                yield from visit(child, False)
            for child in node.orelse:
                yield from visit(child, runs)
            return
        runs = runs and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, runs)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True)


def depth(room: str) -> int:
    return next(i for i, rooms in enumerate(LAYERS) if room in rooms)


def known(room: str | None) -> bool:
    return any(room in rooms for rooms in LAYERS)


def rooms_without_a_place(root: Path) -> list[str]:
    rooms = {room_of(module) for module in modules_of(root)}
    return [
        f"{PACKAGE}/{room} has no place in the house: add {room!r} to LAYERS in "
        "tests/test_imports.py and to the picture in CONTRIBUTING.md (zoo/ holds data, no code)"
        for room in sorted(rooms)
        if not known(room)
    ]


def upward_arrows(root: Path) -> list[str]:
    return [
        f"{i}: {i.target_room} is above {i.room}"
        for i in imports_of(root)
        if known(i.room) and known(i.target_room) and depth(i.room) > depth(str(i.target_room))
    ]


def arrows_between_siblings(root: Path) -> list[str]:
    return [
        f"{i}: what two of {', '.join(sorted(SIBLINGS))} need moves down"
        for i in imports_of(root)
        if i.room != i.target_room and {i.room, i.target_room} <= SIBLINGS
    ]


def views_of_more_than_results(root: Path) -> list[str]:
    return [
        f"{i}: a view gets plain results and imports only {', '.join(sorted(VIEWS_MAY_IMPORT))}"
        for i in imports_of(root)
        if i.room == "views"
        and i.target_room
        and i.target_room not in VIEWS_MAY_IMPORT
        and i.target not in RESULTS_IN_OTHER_ROOMS
    ]


def strangers_in_the_wrong_room(root: Path) -> list[str]:
    return [
        f"{i}: only {', '.join(sorted(ONLY_IN[stranger]))} may"
        for i in imports_of(root)
        if (stranger := i.target.split(".")[0]) in ONLY_IN and i.room not in ONLY_IN[stranger]
    ]


def eager_drawing(root: Path) -> list[str]:
    return [
        f"{i}: import it inside the function that draws"
        for i in imports_of(root)
        if i.target.split(".")[0] in LAZY and i.runs_on_import
    ]


def names_that_say_nothing(root: Path) -> list[str]:
    return [
        f"{module} is named after no idea ({', '.join(sorted(NO_PLAIN_NAMES))} are not used)"
        for module in modules_of(root)
        if NO_PLAIN_NAMES & {part.strip("_") for part in module.split(".")}
    ]


def long_files(root: Path) -> list[str]:
    lengths = {
        m: len(p.read_text(encoding="utf-8").splitlines()) for m, p in modules_of(root).items()
    }
    return [
        f"{m} has {n} lines, over {LONGEST}: two ideas?" for m, n in lengths.items() if n > LONGEST
    ]


Check = Callable[[Path], list[str]]

# Each check with small trees that it must complain of, and the words of its complaint.
FAULTS: list[tuple[Check, dict[str, str], str]] = [
    (rooms_without_a_place, {"probes.py": ""}, "add 'probes' to LAYERS"),
    (rooms_without_a_place, {"zoo/__init__.py": ""}, "zoo/ holds data"),
    (upward_arrows, {"tensor.py": "import tl_bilinear.hosts"}, "hosts is above tensor"),
    (upward_arrows, {"hosts/norm.py": "from ..report import page"}, "report is above hosts"),
    (
        upward_arrows,
        {"hosts/norm.py": "def f():\n    from .. import cli", "cli.py": ""},
        "cli is above",
    ),
    (upward_arrows, {"tensor.py": "import tl_bilinear as tlb"}, "__init__ is above tensor"),
    (
        upward_arrows,
        {"views/page.py": "from tl_bilinear import unlearn"},
        "__init__ is above views",
    ),
    (upward_arrows, {"tensor.py": "import_module('tl_bilinear.cli')"}, "cli is above tensor"),
    (arrows_between_siblings, {"ablation/a.py": "import tl_bilinear.attribution.b"}, "moves down"),
    (
        arrows_between_siblings,
        {"circuits.py": "from . import training", "training.py": ""},
        "moves down",
    ),
    (
        views_of_more_than_results,
        {"views/page.py": "from ..hosts import get_host"},
        "plain results",
    ),
    (
        strangers_in_the_wrong_room,
        {"ablation/a.py": "import transformer_lens.utils"},
        "only hosts may",
    ),
    (strangers_in_the_wrong_room, {"hosts/h.py": "import transformers"}, "only checkpoints"),
    (strangers_in_the_wrong_room, {"report.py": "def f(): import circuitsvis"}, "only views may"),
    (eager_drawing, {"views/page.py": "from matplotlib import pyplot"}, "inside the function"),
    (eager_drawing, {"views/page.py": "class P:\n    import circuitsvis"}, "inside the function"),
    (names_that_say_nothing, {"hosts/_utils.py": ""}, "named after no idea"),
    (names_that_say_nothing, {"core/tensor.py": ""}, "named after no idea"),
    (long_files, {"tensor.py": "\n" * 401}, "has 401 lines"),
]
CHECKS = list(dict.fromkeys(check for check, _, _ in FAULTS))

# Allowed, and close to what is not.
SOUND = {
    "__init__.py": "from tl_bilinear.attribution import attribute_modes",
    "cli.py": "import tl_bilinear as tlb\nfrom tl_bilinear.report import page",
    "report.py": "from .views import drawing",
    "views/drawing.py": "def f():\n    import matplotlib.pyplot\n    from ..tensor import B",
    "views/notes.py": "if TYPE_CHECKING:\n    from matplotlib.figure import Figure",
    "attribution/__init__.py": "from .modes import attribute_modes",
    "attribution/modes.py": "from ..hosts import load\nfrom tl_bilinear.attribution import target",
    "attribution/target.py": "\n" * 400,
    "hosts/__init__.py": "import transformer_lens",
    "checkpoints/__init__.py": "from transformers import AutoConfig",
    "quadratic_map.py": "from tl_bilinear.tensor import BilinearTensor",
    "tensor.py": "import torch",
}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.one_major(3)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_keeps_to_the_house(check: Check) -> None:
    root = Path(__file__).parents[1]
    assert len(modules_of(root)) > 5, "the package was not found: these checks looked at nothing"
    complaints = check(root)
    assert not complaints, "\n".join(complaints)


@pytest.mark.one_major(3)
@pytest.mark.parametrize(("check", "files", "words"), FAULTS)
def test_the_fault_is_found(
    check: Check, files: dict[str, str], words: str, tmp_path: Path
) -> None:
    complaints = check(write(tmp_path, SOUND | files))
    assert len(complaints) == 1 and words in complaints[0], complaints


@pytest.mark.one_major(3)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_sound_tree_is_let_pass(check: Check, tmp_path: Path) -> None:
    assert check(write(tmp_path, SOUND)) == []


def heavy_after(statement: str, folder: Path) -> list[str]:
    """Which heavy packages a fresh Python, started in a folder, has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_package_is_light(tmp_path: Path) -> None:
    assert heavy_after(f"import {PACKAGE}", tmp_path) == []


@pytest.mark.parametrize("heavy", HEAVY)
def test_a_heavy_import_is_noticed(heavy: str, tmp_path: Path) -> None:
    (tmp_path / f"{heavy}.py").touch()
    (tmp_path / "plugin.py").write_text(f"import {heavy}")
    assert heavy_after("import plugin", tmp_path) == [heavy]
