"""Holds the house to its drawing: what imports what, how large a file may be, what is loaded when."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "unetdist"
MAX_LINES = 400

ROOMS = (
    "errors",
    "cli",
    "storage",
    "distributed",
    "data",
    "model",
    "sharding",
    "evaluation",
    "tracking",
    "predict",
    "train",
    "commands",
)
"""A room imports from the rooms before it in this list, and from itself."""

FRAMEWORK_FILES = {
    "accelerate": {
        "distributed/collectives.py",
        "distributed/launch_check.py",
        "distributed/launcher.py",
        "tracking/dashboard.py",
        "tracking/tracker.py",
        "tracking/local_dashboards.py",
        "tracking/wandb_run.py",
        "train/step.py",
        "train/trainer.py",
    },
    "torch.distributed": {
        "distributed/collectives.py",
        "distributed/gradient_tree.py",
        "distributed/launcher.py",
        "distributed/rendezvous.py",
    },
}
"""Who may touch what is kept in few hands."""

NO_ROOMS = {"__init__.py", "__main__.py", "__pycache__", "README.md", "py.typed"}

FORBIDDEN_NAMES = {"utils.py", "helpers.py", "common.py", "base.py", "misc.py"}

LAZY = (
    "datasets",
    "wandb",
    "webdataset",
    "pandas",
    "pyarrow",
    "fsspec",
    "aiohttp",
    "s3fs",
    "huggingface_hub",
    "plotly",
    "trackio",
    "mlflow",
    "tensorboard",
)
"""Heavy or optional: imported inside the function that needs them, never by `import unetdist.anything`."""

ONLY_OF_SOME_TESTS = {*LAZY, "boto3", "flask", "jinja2", "moto", "onnx", "onnxruntime"} - {
    "aiohttp",
    "fsspec",
    "huggingface_hub",
}
"""A test takes them by `pytest.importorskip`, so that pytest gets past them where they are not installed."""

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py"))


def room_of(path: Path) -> str:
    """`model` for unetdist/model/losses.py, `errors` for unetdist/errors.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it; `from a import b` counts as a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import unetdist by its full name"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_imported(path: Path) -> set[str]:
    names = {name.split(".")[1] for name in imports_of(path) if name.startswith("unetdist.")}
    return {name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


def file_id(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_a_missing_package_of_some_tests_keeps_no_other_test_from_running():
    stopping = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for name in imported_at_once(path)
        if name.split(".")[0] in ONLY_OF_SOME_TESTS
    ]
    assert stopping == []


def imported_at_once(path: Path) -> Iterator[str]:
    """Names that a file imports when it is imported itself: not those inside of its functions."""
    rest: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while rest:
        node = rest.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
        elif not isinstance(node, ast.FunctionDef):
            rest += ast.iter_child_nodes(node)


def test_the_house_has_the_rooms_of_its_drawing():
    found = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.name not in NO_ROOMS}
    assert found == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=file_id)
def test_a_module_imports_only_from_rooms_above_its_own(path):
    room = ROOMS.index(room_of(path))
    for target in rooms_imported(path):
        assert ROOMS.index(target) <= room, f"unetdist/{file_id(path)} imports {target}, a room below its own"


def test_no_import_goes_round():
    graph = {file_id(path): imports_of(path) for path in FILES}
    names = {f"unetdist.{name.removesuffix('.py').replace('/', '.')}": name for name in graph}
    edges = {name: {names[module] for module in modules if module in names} for name, modules in graph.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way, name])
        if name not in done:
            for target in sorted(edges[name]):
                visit(target, (*way, name))
            done.add(name)

    for name in sorted(edges):
        visit(name, ())


@pytest.mark.parametrize("path", FILES, ids=file_id)
@pytest.mark.parametrize("framework", FRAMEWORK_FILES)
def test_framework_stays_in_few_hands(path, framework):
    touched = any(name == framework or name.startswith(f"{framework}.") for name in imports_of(path))
    assert not touched or file_id(path) in FRAMEWORK_FILES[framework], f"{file_id(path)} imports {framework}"


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "launch").glob("*.py"))], ids=lambda path: path.name)
def test_files_stay_small_and_well_named(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines: it does two things"
    assert path.name not in FORBIDDEN_NAMES, f"{path.name} says nothing of what is inside"


def test_docstring_of_every_collective_begins_with_the_word():
    """A function that calls a collective from `distributed` is one itself, and must say so."""
    collectives = {"all_reduce_min", "all_reduce_sum", "any_rank", "barrier", "broadcast", "gather_to"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                called = {
                    call.func.id
                    for call in ast.walk(node)
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
                }
                if called & collectives:
                    text = ast.get_docstring(node) or ""
                    assert text.startswith("Collective."), f"{file_id(path)}: {node.name} is a collective"


BLOCKED = """
import importlib, pkgutil, sys
for name in {lazy!r}:
    sys.modules[name] = None
import unetdist
for module in pkgutil.walk_packages(unetdist.__path__, "unetdist."):
    importlib.import_module(module.name)
print("imported", len([name for name in sys.modules if name.startswith("unetdist")]))
"""


def test_importing_needs_neither_wandb_nor_datasets():
    code = BLOCKED.format(lazy=LAZY)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > len(FILES)


def test_settings_are_read_without_torch():
    """Help and the errors of the command line come at once."""
    configs = [f"unetdist.{room}.config" for room in ROOMS if (PACKAGE / room / "config.py").is_file()]
    code = f"import sys, unetdist.cli.settings, {', '.join(configs)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "unetdist.train.config" in loaded
    assert not loaded & {"torch", "accelerate", "cv2", "numpy", *LAZY}


ANSWERED = """
import contextlib, io, sys
from unetdist.__main__ import COMMANDS, run
from unetdist.errors import ConfigError
lines = [[name, word] for name in COMMANDS for word in ("--help", "--modle")]
lines += [line.split() for line in {wrong!r}]
for words in lines:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = run(words)
        except (ConfigError, SystemExit) as error:
            code = error.code if isinstance(error, SystemExit) else 1
    assert bool(code) != ("--help" in words), (words, code)
    assert not {{"torch", "accelerate", *{lazy!r}}} & {{*sys.modules}}, words
print("answered", len(lines))
"""


def test_help_and_mistakes_on_the_command_line_are_answered_without_torch():
    wrong = [
        "train --data.train x --optim.lr fast",
        "train --data.train x --loss.ce_weight -1",
        "doctor --data.train x --trainer.mixed_precision fp8",
        "equivalence --data.train x --world 1",
        "evaluate --model x --data y --overlap 2",
        "predict --model x --input y --out z --image-range 2 1",
        "export --model x --out y --num-images 0",
        "report x --pictures -1",
        "ablate absent.yaml",
    ]
    code = ANSWERED.format(lazy=LAZY, wrong=wrong)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > len(wrong)
