"""The house rules that a reader would otherwise have to check by eye."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dwcp

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "dwcp"

LINES_PER_FUNCTION, LINES_PER_FILE = 70, 600
LONG = {  # "file" or "file::function": the reason why it may be longer
    "src/dwcp/consensus/engines/probft/engine.py::__init__": "builds each handler with the fields it may change, once",
}
LONG_TESTS_FACTOR = 2  # scenarios read top to bottom

BANNED_FILES = {"utils.py", "util.py", "common.py", "base.py", "helpers.py", "helper.py", "misc.py"}
BANNED_NAMES = re.compile(r"(Manager|Helper|Handler2|V2)$|^(Enhanced|Advanced|Base[A-Z])")
FORBIDDEN_WORDS = re.compile(
    r"\b(TODO|FIXME|XXX|HACK)\b|/work/(main|wt|briefs|shared)|/tmp/scratch|/opt/wheels"
    r"|\b[Ii]ssue \d+\b|\b[Ss]ubagent\b|\b[Ww]orktree\b|\b[Cc]opyright\b"
)
ROOT_ENTRIES = {
    ".ci", ".gitignore", "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "backend", "benchmarks", "docs", "example",
    "pyproject.toml", "requirements-dev.lock", "requirements.lock", "scripts", "src", "tests",
}  # fmt: skip


def tracked() -> list[Path]:
    """The files that git knows, or all of them where there is no git."""
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode != 0:
        return [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def python_files() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py"]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_sizes() -> None:
    """Goal: no file or function grows beyond reading. Method: count lines; exceptions carry a reason."""
    long, excused = [], set()
    for path in python_files():
        name = str(path.relative_to(ROOT))
        factor = LONG_TESTS_FACTOR if name.startswith("tests/") else 1
        text = path.read_text()
        if len(text.splitlines()) > LINES_PER_FILE * factor:
            excused.add(name) if name in LONG else long.append(f"{name}: {len(text.splitlines())} lines")
        for node in functions(ast.parse(text)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            place = f"{name}::{node.name}"
            if lines > LINES_PER_FUNCTION * factor:
                excused.add(place) if place in LONG else long.append(f"{place}: {lines} lines")

    assert long == []
    assert excused == LONG.keys(), "an exception that nothing needs any more: remove it"


def test_names() -> None:
    """Goal: names say what things are. Method: refuse the known empty ones."""
    bad = [str(path.relative_to(ROOT)) for path in python_files() if path.name in BANNED_FILES]
    for path in SOURCE.rglob("*.py"):
        classes = [
            node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)
        ]
        bad += [f"{path.relative_to(ROOT)}: {name}" for name in classes if BANNED_NAMES.search(name)]

    assert bad == []


def test_words() -> None:
    """Goal: the repository speaks of the product alone. Method: look for words that do not."""
    found = []
    for path in tracked():
        if path == Path(__file__) or path.suffix == ".lock" or "golden" in path.parts:
            continue
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            if FORBIDDEN_WORDS.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")

    assert found == []


def test_root_entries() -> None:
    """Goal: the root stays readable. Method: compare with the list of what belongs there."""
    entries = {path.relative_to(ROOT).parts[0] for path in tracked()}

    assert sorted(entries - ROOT_ENTRIES) == []


def test_environment_is_read_in_one_place() -> None:
    """Goal: configuration has one door. Method: find every use of the process's variables."""
    names = {"environ", "getenv", "environb"}
    users = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in names
    }

    assert users <= {"runtime/config.py"}


def modules() -> list[str]:
    return sorted(
        module.name
        for module in pkgutil.walk_packages([str(SOURCE)], "dwcp.")
        if not module.name.endswith("__main__")
    )


def test_modules_have_docstrings() -> None:
    """Goal: each module says what it is for. Method: parse all; packages without code may be silent."""
    silent = [
        str(path.relative_to(ROOT))
        for path in SOURCE.rglob("*.py")
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]

    assert silent == []


def test_importing_has_no_effect() -> None:
    """Goal: importing starts nothing. Method: import all in a fresh interpreter; compare threads, files, output."""
    script = (
        "import importlib, os, sys, threading\n"
        f"names = {modules()!r}\n"
        "before = (threading.active_count(), len(os.listdir('/proc/self/fd')), os.getcwd())\n"
        "for name in names: importlib.import_module(name)\n"
        "after = (threading.active_count(), len(os.listdir('/proc/self/fd')), os.getcwd())\n"
        "assert before == after, (before, after)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={"PYTHONPATH": str(SOURCE.parent), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_error_classes_say_what_to_do() -> None:
    """Goal: every fault of an operator explains itself. Method: docstrings of all our exception classes."""
    silent = []
    for name in modules():
        for member in vars(importlib.import_module(name)).values():
            ours = isinstance(member, type) and issubclass(member, Exception) and member.__module__ == name
            if ours and not (member.__doc__ or "").strip():
                silent.append(f"{name}.{member.__name__}")

    assert silent == []


def test_version_is_one() -> None:
    """Goal: the package and the program agree on the version. Method: compare."""
    assert f'version = "{dwcp.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_tests_have_docstrings() -> None:
    """Goal: each test says its goal and method. Method: parse all tests."""
    silent = [
        f"{path.relative_to(ROOT)}::{node.name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in functions(ast.parse(path.read_text()))
        if node.name.startswith("test_") and not ast.get_docstring(node)
    ]

    assert silent == []


def test_golden_files_are_used() -> None:
    """Goal: no golden file is forgotten. Method: some test that reads golden files names its folder."""
    readers = [text for path in (ROOT / "tests").rglob("test_*.py") if "golden" in (text := path.read_text())]
    folders = [path.name for path in (ROOT / "tests" / "golden").iterdir()]

    assert [name for name in folders if not any(re.search(rf"\b{name}\b", text) for text in readers)] == []
