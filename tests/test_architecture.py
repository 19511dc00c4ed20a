"""The house is a test: data flows one way, files stay small, and the core never knows Prefect."""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "pyramid_core"

FLOORS = (
    "errors",
    "jsons",
    "version",
    "grid",
    "urls",
    "params",
    "lines",
    "means",
    "halves",
    "ranks",
    "kernels",
    "patterns",
    "image",
    "model",
    "layout",
    "folder",
    "remote",
    "sure",
    "stores",
    "arrays",
    "swollen",
    "plain",
    "direct",
    "groups",
    "presence",
    "changes",
    "asked",
    "plan",
    "ngff",
    "record",
    "reader",
    "owner",
    "origin",
    "contrast",
    "leftovers",
    "levels",
    "writer",
    "workers",
    "job",
    "needs",
    "flight",
    "opened",
    "compute",
    "execute",
    "phantom",
    "audit",
    "labels",
    "voxels",
    "decode",
    "verify",
    "views",
    "files",
    "preview",
    "histogram",
    "opening",
    "serve",
    "view",
    "build",
    "markup",
    "drawing",
    "sections",
    "report",
    "inbox",
    "sampler",
    "shell",
    "options",
    "progress",
    "answers",
    "cli",
    "start",
)
"""The modules of pyramid_core; each may import those before it, and no other."""

LONGEST_FILE = 400
LONGEST_FUNCTION = 50

LONG_FILES: dict[str, str] = {}
"""Files that may be longer ("pyramid_core/kernels.py"), each with its reason."""

LONG_FUNCTIONS: dict[str, str] = {}
"""Functions that may be longer ("pyramid_core/kernels.py:reduce_block"), each with its reason."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def files(*folders: Path) -> list[Path]:
    """Return the Python files in the folders; a folder that is not there has none."""
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path: Path, top: Path = CORE) -> set[str]:
    """Return the dotted names that a file imports, at its top or late in a function."""
    package = [top.name, *path.relative_to(top).parent.parts]
    names: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def imported_modules(path: Path, top: Path = CORE) -> set[str]:
    """Return the modules of the core that a file imports; "" is the package itself."""
    modules = set()
    for name in imported(path, top):
        package, _, rest = name.partition(".")
        if package == top.name:
            module = rest.partition(".")[0]
            is_module = module in FLOORS or (top / f"{module}.py").exists()
            modules.add(module if is_module else "")
    return modules


def wrong_imports(path: Path, top: Path = CORE) -> set[str]:
    """Return the modules that a file of the core imports though they do not stand below it."""
    return imported_modules(path, top) - set(FLOORS[: FLOORS.index(path.stem)])


def prefect_imports(path: Path, top: Path = CORE) -> set[str]:
    """Return what a file imports from Prefect or from the flows."""
    return {n for n in imported(path, top) if n.partition(".")[0] in {"prefect", "flows"}}


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Yield each function of a file, methods and inner ones too, with its dotted name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield f"{prefix}{node.name}", node
            yield from functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")
        else:
            yield from functions(node, prefix)


def lines_of_code(text: str) -> set[int]:
    """Return the numbers of the lines that hold code: neither blank nor only a comment."""
    empty = {
        *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
        *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
    }
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in empty:
            code |= set(range(token.start[0], token.end[0] + 1))
    return code


def long_functions(path: Path) -> dict[str, int]:
    """Return the functions with too many lines of code, docstrings not counted."""
    text = path.read_text(encoding="utf-8")
    code = lines_of_code(text)
    found = {}
    for name, node in functions(ast.parse(text)):
        lines = code & set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if ast.get_docstring(node) is not None:
            docstring = node.body[0]
            lines -= set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
        if len(lines) > LONGEST_FUNCTION:
            found[name] = len(lines)
    return found


def long_file(path: Path) -> bool:
    return len(path.read_text(encoding="utf-8").splitlines()) > LONGEST_FILE


def shadows(path: Path) -> bool:
    """Return whether a file would hide a module of the standard library."""
    return path.stem in sys.stdlib_module_names


def without_docstring(path: Path) -> list[str]:
    """Return the public functions and classes at the top of a file that lack a docstring."""
    return [
        node.name
        for node in parse(path).body
        if isinstance(node, Function | ast.ClassDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


core_files = pytest.mark.parametrize("path", files(CORE), ids=label)
our_files = pytest.mark.parametrize(
    "path", files(CORE, ROOT / "flows", ROOT / "deployments"), ids=label
)


def test_every_module_of_the_core_has_its_floor() -> None:
    """A module that is not in the list could import anything."""
    assert {path.stem for path in files(CORE)} - {"__init__"} <= set(FLOORS)


def test_the_design_lists_the_modules_in_order() -> None:
    """Who reads docs/design.md meets the house as it is now."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    house = text.partition("## How data flows")[0]
    assert re.findall(r"^- `(\w+)`: ", house, re.MULTILINE) == list(FLOORS)


@pytest.mark.parametrize("floor", FLOORS)
def test_a_module_imports_only_from_those_below_it(floor: str) -> None:
    """Data flows one way, so a module can be read knowing only those before it."""
    path = CORE / f"{floor}.py"
    if path.exists():
        assert wrong_imports(path) == set()


@core_files
def test_the_core_never_imports_prefect(path: Path) -> None:
    """The core knows images and runs without Prefect; the flows know the core."""
    assert prefect_imports(path) == set()


@our_files
def test_a_file_is_short_enough_to_be_read_in_one_go(path: Path) -> None:
    """A longer file is two things, or stands in LONG_FILES with its reason."""
    assert label(path) in LONG_FILES or not long_file(path)


@our_files
def test_a_function_fits_on_a_page(path: Path) -> None:
    """A longer function does two things, or stands in LONG_FUNCTIONS with its reason."""
    found = {f"{label(path)}:{name}": lines for name, lines in long_functions(path).items()}
    assert {name: lines for name, lines in found.items() if name not in LONG_FUNCTIONS} == {}


def test_an_exception_is_still_needed() -> None:
    """A file or function that became short again leaves the list."""
    assert {name for name in LONG_FILES if not long_file(ROOT / name)} == set()
    long = {f"{label(p)}:{name}" for p in files(CORE, ROOT / "flows") for name in long_functions(p)}
    assert set(LONG_FUNCTIONS) - long == set()


@pytest.mark.parametrize(
    "path", files(CORE, *(ROOT / n for n in ("flows", "deployments", "tests"))), ids=label
)
def test_a_module_hides_none_of_the_standard_library(path: Path) -> None:
    """A script's folder comes first on sys.path, and Prefect's hidden server looks there too."""
    assert not shadows(path)


@core_files
def test_what_is_public_has_a_docstring(path: Path) -> None:
    """A name without an underscore is a promise, and the docstring says which."""
    assert without_docstring(path) == []


LONG_BODY = "\n".join(f"    x{i} = {i}" for i in range(LONGEST_FUNCTION))
QUIET_BODY = '    """Say much.\n' + "\n" * 80 + '    """\n' + "    # a comment\n" * 80


@pytest.mark.parametrize(
    ("module", "text", "found"),
    [
        ("grid", "from pyramid_core.errors import PlanError", set()),
        ("grid", "from pyramid_core.plan import plan_pyramid", {"plan"}),
        ("grid", "import pyramid_core.plan", {"plan"}),
        ("grid", "from pyramid_core import plan", {"plan"}),
        ("grid", "from . import plan", {"plan"}),
        ("grid", "from .plan import plan_pyramid", {"plan"}),
        ("grid", "def late():\n    from pyramid_core.plan import plan_pyramid", {"plan"}),
        ("grid", "from pyramid_core.grid import Grid", {"grid"}),
        ("grid", "from pyramid_core import Grid", {""}),  # the package imports everything
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, module: str, text: str, found: set[str]) -> None:
    """However it is written, and late in a function too."""
    core = tmp_path / "pyramid_core"
    core.mkdir()
    for floor in FLOORS:
        (core / f"{floor}.py").touch()
    (core / f"{module}.py").write_text(text)
    assert wrong_imports(core / f"{module}.py", core) == found


@pytest.mark.parametrize("text", ["import prefect", "def f():\n    from flows.tasks import build"])
def test_an_import_of_prefect_is_found(tmp_path: Path, text: str) -> None:
    """The check above can fail."""
    (tmp_path / "grid.py").write_text(text)
    assert prefect_imports(tmp_path / "grid.py", tmp_path) != set()


def test_what_shares_a_slow_server_is_run_by_one_process(request: pytest.FixtureRequest) -> None:
    """Xdist reads groups in the names of tests; where it cannot write them there, it says nothing and each process starts every server."""
    shared = [i for i in request.session.items if i.get_closest_marker("xdist_group")]
    if hasattr(request.config, "workerinput"):
        assert [item.name for item in shared if "@" not in item.nodeid] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"def f():\n{LONG_BODY}\n", ["f"]),  # with its first line, one line too many
        (f"class A:\n  async def f(self):\n{LONG_BODY}\n", ["A.f"]),
        (f"def f():\n{QUIET_BODY}    return 1\n", []),
    ],
)
def test_a_long_function_is_found(tmp_path: Path, text: str, found: list[str]) -> None:
    """Code counts; docstrings, comments and blank lines do not."""
    (tmp_path / "grid.py").write_text(text)
    assert list(long_functions(tmp_path / "grid.py")) == found


def test_a_long_file_is_found(tmp_path: Path) -> None:
    """The longest that may be, and one line more."""
    (tmp_path / "grid.py").write_text("\n" * LONGEST_FILE)
    assert not long_file(tmp_path / "grid.py")
    (tmp_path / "grid.py").write_text("\n" * (LONGEST_FILE + 1))
    assert long_file(tmp_path / "grid.py")


def test_a_hidden_module_and_a_missing_docstring_are_found(tmp_path: Path) -> None:
    """The checks above can fail."""
    text = "def a(): ...\nclass B: ...\ndef _c(): ...\ndef d():\n    'Said.'\n"
    (tmp_path / "queue.py").write_text(text)
    assert shadows(tmp_path / "queue.py")
    assert without_docstring(tmp_path / "queue.py") == ["a", "B"]
