"""The layout as a test: imports go strictly downwards, files stay short, nothing names a machine.

Everything is read from the syntax tree, so a file that cannot be imported here is checked too.
"""

from __future__ import annotations

import ast
import functools
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = ("fgrad", "fgrad_nn")

# The floors, lowest first. A floor written as a tuple is ordered: each file may import those before it. In a
# floor written as a set (what the user imports) any order goes, as long as there is no cycle.
FLOORS: list[tuple[str, ...] | set[str]] = [
    ("errors", "tree", "dtypes", "memory"),
    ("ir", "show", "reference"),
    ("array", "device", "trace"),
    ("ops", "convert"),
    ("transforms", "vectorize"),
    ("control",),
    ("codegen",),
    ("passes",),
    ("runtime",),
    {"api", "autodiff", "devices", "jit", "numba_op", "numpy", "special", "random", "lax"},
    ("__init__",),
    ("testing",),
]

# Packages that may be imported inside a function: the two that make `import fgrad` slow, and what only the
# extras install.
LAZY = {
    *("numba", "llvmlite"),
    *(
        "tqdm",
        "safetensors",
        "rich",
        "matplotlib",
        "sklearn",
        "tensorboardX",
        "torch",
        "jax",
        "scipy",
        "cuda",
    ),
}

# The modules of fgrad that users import by name, apart from what fgrad/__init__.py exports.
PUBLIC_MODULES = {"array", "numpy", "special", "random", "lax", "tree", "errors", "dtypes", "testing"}

LONGEST_FILE = 500


class Import(NamedTuple):
    """One import statement's target: ``module`` is absolute, ``name`` what ``from`` takes out of it."""

    module: str
    name: str | None
    line: int
    in_function: bool


def files(*packages: str) -> list[pathlib.Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


@functools.cache
def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def known_modules() -> frozenset[str]:
    return frozenset(module_name(path) for path in files(*SOURCES))


@functools.cache
def imports(path: pathlib.Path) -> tuple[Import, ...]:
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = []

    def visit(node: ast.AST, in_function: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, None, node.lineno, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found.extend(Import(module, alias.name, node.lineno, in_function) for alias in node.names)
        inside = in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(path.read_text(encoding="utf-8"), str(path)), False)
    return tuple(found)


def target(item: Import) -> str:
    """The module that is run by an import: ``from fgrad import ir`` runs ``fgrad.ir``."""
    if item.name is not None and f"{item.module}.{item.name}" in known_modules():
        return f"{item.module}.{item.name}"
    return item.module


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def floor_name(module: str) -> str:
    """``fgrad.codegen.llvm`` -> ``codegen``, ``fgrad`` -> ``__init__``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def position(name: str) -> tuple[int, int]:
    for number, floor in enumerate(FLOORS):
        if name in floor:
            return number, 0 if isinstance(floor, set) else floor.index(name)
    raise AssertionError(f"fgrad/{name} is on no floor: add it to FLOORS in {__file__}")


def where(path: pathlib.Path, item: Import) -> str:
    return f"{path.relative_to(ROOT)}:{item.line}"


def test_every_module_is_on_a_floor():
    names = {floor_name(module) for module in known_modules() if is_within(module, "fgrad")}
    placed = {name for floor in FLOORS for name in floor}
    assert names <= placed, f"modules of fgrad on no floor: {sorted(names - placed)}"


def test_imports_go_downwards():
    wrong = []
    for path in files("fgrad"):
        mine = floor_name(module_name(path))
        for item in imports(path):
            if not is_within(item.module, "fgrad"):
                continue
            theirs = floor_name(target(item))
            upwards = position(theirs) > position(mine)
            # An ordered floor has one place for each name, so an equal place is the same package.
            if upwards:
                wrong.append(f"{where(path, item)}: {mine} imports {theirs}, which is above it")
    assert not wrong, "\n".join(wrong)


def test_fgrad_does_not_import_fgrad_nn():
    wrong = [where(p, i) for p in files("fgrad") for i in imports(p) if is_within(i.module, "fgrad_nn")]
    assert not wrong, f"fgrad must not know its neural-network library: {wrong}"


def strongly_connected(graph: dict[str, set[str]]) -> list[list[str]]:
    """The cycles of a graph as groups of nodes (Tarjan 1972), self-loops included."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            cut = stack.index(node)
            groups.append(stack[cut:])
            del stack[cut:]

    for node in graph:
        if node not in index:
            visit(node)
    return [group for group in groups if len(group) > 1 or group[0] in graph[group[0]]]


def test_strongly_connected_finds_cycles():
    assert strongly_connected({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    (group,) = strongly_connected({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}})
    assert sorted(group) == ["b", "c"]
    assert strongly_connected({"a": {"a"}}) == [["a"]]


def test_no_import_cycles():
    graph: dict[str, set[str]] = {}
    for path in files(*SOURCES):
        edges = {target(item) for item in imports(path)}
        graph[module_name(path)] = edges & known_modules()
    cycles = [sorted(group) for group in strongly_connected(graph)]
    assert not cycles, f"import cycles: {cycles}"


def test_no_imports_inside_functions():
    wrong = [
        f"{where(path, item)}: {item.module}"
        for path in files(*SOURCES)
        for item in imports(path)
        if item.in_function and item.module.split(".")[0] not in LAZY
    ]
    assert not wrong, "imports inside functions hide cycles and cost:\n" + "\n".join(wrong)


def exported(path: pathlib.Path) -> set[str]:
    """The names in a module's ``__all__``, read without running it."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            return set(ast.literal_eval(node.value))
    return set()


def test_fgrad_nn_uses_only_public_names():
    init = ROOT / "fgrad" / "__init__.py"
    public = exported(init) | PUBLIC_MODULES
    wrong = []
    for path in files("fgrad_nn"):
        for item in imports(path):
            if not is_within(item.module, "fgrad"):
                continue
            depth = item.module.split(".")[1:]
            name = item.name if item.module == "fgrad" else depth[0]
            private = item.name is not None and item.name.startswith("_")
            if private or len(depth) > 1 or (name is not None and name not in public):
                wrong.append(f"{where(path, item)}: {item.module} {item.name or ''}")
    assert not wrong, "fgrad_nn imports what fgrad does not make public:\n" + "\n".join(wrong)


def tracked_files() -> list[pathlib.Path]:
    """What git tracks; outside a checkout, every file of the project that is not hidden."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        visible = (p for p in ROOT.rglob("*") if not any(s[0] == "." for s in p.relative_to(ROOT).parts))
        return [path for path in visible if path.is_file()]
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_no_python_file_is_too_long():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in tracked_files()
        if path.suffix == ".py"
        and (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    assert not long, f"longer than {LONGEST_FILE} lines, so more than one idea: {long}"


def test_no_tracked_file_names_a_machine():
    # An absolute path into somebody's home or workspace; URLs and relative paths have a character before the /.
    path_of_a_machine = re.compile(r"(?<![\w.:/~-])/(?:work|farm|root|home|Users|tmp/bash_jobs)[/.][\w.-]")
    wrong = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures and arrays
        for number, line in enumerate(text.splitlines(), 1):
            if path_of_a_machine.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not wrong, "\n".join(wrong)


def test_importing_fgrad_loads_no_compiler():
    """Numba takes 0.3 s to import, more than the rest together; it waits for the first compilation."""
    code = "import sys, fgrad, fgrad_nn; print(sorted({'numba', 'torch', 'jax', 'tqdm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
