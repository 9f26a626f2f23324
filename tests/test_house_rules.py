"""The house polices itself: directions of import, sizes, names, and documents in step.

A rule that is not checked is a wish. Raising a size is allowed, by a line here and a reason in
the commit.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = sorted(
    path for path in (ROOT / "imserver").glob("*.py") if not path.name.endswith("_pb2.py")
)
SOURCES = sorted((ROOT / "_core").glob("*.c"))
HEADERS = sorted((ROOT / "_core").glob("*.h"))

#: Modules by row: one imports only from rows above (earlier in this list), or, within a row,
#: from those of its own family (`client_link` belongs to `client`).
ROWS = [
    {"errors", "config", "control_pb2", "_core", "_load"},
    {"model", "names", "load", "measures"},
    {"bodies"},
    {"protocol", "upgrade", "websocket"},
    {"textual"},
    {"auth", "routing", "sessions", "hooks", "timeline", "control"},
    {"delivery", "membership", "operations", "retention"},
    {"gateway"},
    {"http"},
    {"server", "client"},
    {"cli", "__init__"},
    {"__main__"},
]


def family(module: str) -> str:
    return module if module.startswith("_") else module.split("_")[0]


def row_of(module: str) -> int:
    for number, row in enumerate(ROWS):
        if module in row or family(module) in row:
            return number
    raise AssertionError(f"{module} stands in no row of ROWS: give it one")


def imports_of(path: Path) -> set[str]:
    """The modules of imserver that a file imports, without those for type checking only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "imserver":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("imserver."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("imserver.")}
    return {name for name in found if (ROOT / f"imserver/{name}.py").exists() or name == "_core"}


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_a_module_imports_only_from_rows_below_its_own(path: Path) -> None:
    for name in imports_of(path):
        assert row_of(name) < row_of(path.stem) or family(name) == family(path.stem), (
            f"{path.stem} imports {name}"
        )


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_only_the_gateway_and_the_store_know_the_core(path: Path) -> None:
    text = path.read_text()
    assert "_core_ffi" not in text
    if (
        family(path.stem) not in ("gateway", "timeline")
        and path.stem != "doctor"
        and path.stem != "cli_doctor"
    ):
        assert not re.search(r"imserver\._core\b|from imserver import _core", text)


@pytest.mark.parametrize("name", ["model", "protocol", "routing", "errors", "config"])
def test_policy_waits_for_nothing(name: str) -> None:
    tree = ast.parse((ROOT / f"imserver/{name}.py").read_text())
    assert not any(isinstance(node, ast.Await | ast.AsyncFunctionDef) for node in ast.walk(tree))


#: What a C file may include besides base.h, its own header and the system's.
INCLUDES = {
    "ring": set(),
    "frame": set(),
    "pool": set(),
    "queue": set(),
    "heartbeat": set(),
    "topics": set(),
    "stats": set(),
    "event": set(),
    "transport": set(),
    "filter": {"frame"},
    "outbox": {"pool"},
    "receipts": set(),
    "batch": {"frame", "receipts"},
    "rights": {"topics"},
    "cursors": {"topics"},
    "mask": set(),
    "deflate": set(),
    "utf8": set(),
    "websocket": {"mask"},
    "webstate": {"pool", "utf8", "websocket"},
}


@pytest.mark.parametrize("path", SOURCES + HEADERS, ids=lambda path: path.name)
def test_structures_of_the_core_do_not_know_each_other(path: Path) -> None:
    included = set(re.findall(r'#include "(\w+)\.h"', path.read_text()))
    if path.stem in INCLUDES:
        assert included <= INCLUDES[path.stem] | {"base", path.stem}
    assert "Python.h" not in path.read_text()


def test_only_the_loop_waits() -> None:
    waiting = [path.name for path in SOURCES if "epoll_wait(" in path.read_text()]
    assert waiting == ["loop.c"]


def test_the_core_has_no_globals() -> None:
    for path in SOURCES:
        for line in path.read_text().splitlines():
            if re.match(r"(static )?[a-z_]+[a-z0-9_ *]*\w+(\[.*\])?( = .*)?;$", line):
                assert "const" in line or line.startswith(("return", "typedef")), (
                    f"{path.name}: {line}"
                )


#: Lines; what grows past its bound is split by noun.
BOUNDS = {".c": 500, ".h": 250, ".py": 450, ".pyx": 400}


@pytest.mark.parametrize(
    "path",
    [
        *PACKAGE,
        *SOURCES,
        *HEADERS,
        ROOT / "_core/core.pyx",
        *sorted((ROOT / "bench").glob("*.[ch]")),
    ],
    ids=lambda path: path.name,
)
def test_a_file_is_small_and_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= BOUNDS[path.suffix]
    assert text.startswith(('"""', "/*", "# What")), f"{path.name} opens without saying why"


def test_a_file_of_tests_is_small_too() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 500, f"{path.name} is to be split by noun"


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_a_function_fits_on_a_screen(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno
            assert length <= 60, f"{path.name}:{node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_c_function_fits_on_a_screen(path: Path) -> None:
    start, name = 0, ""
    for number, line in enumerate(path.read_text().splitlines()):
        if match := re.match(r"[a-z].*?(\w+)\(", line):
            start, name = number, match[1]
        elif line == "}":
            assert number - start <= 65, f"{path.name}:{name} has {number - start} lines"


def test_public_names_of_the_core_say_their_noun() -> None:
    owners = {
        "conn",
        "core",
        "follow",
        "journal",
        "loop",
        "accept",
        "command",
        "dispatch",
        "fanout",
        "intake",
        "upgrade",
        "web",
        "wrap",
    }
    for path in HEADERS:
        text = re.sub(r"static inline[^{]*\{.*?\n\}", "", path.read_text(), flags=re.S)
        for name in re.findall(r"^[a-z][^;{=]*?\b(\w+)\([^;{]*\);", text, flags=re.M):
            assert name.startswith("im_"), f"{path.name}: {name}"
            noun = name.split("_")[1]
            nouns = owners | {path.stem, f"{path.stem}s", path.stem.removesuffix("s")}
            nouns |= {"msg", "message", "ack", "sub", "tag"}  # what a file keeps beside its noun
            assert noun in nouns, f"{path.name}: {name}"


def test_the_map_names_what_exists() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for file, name in re.findall(r"`(\w+\.(?:c|h|py)):([\w.]+)`", text):
        path = ROOT / ("_core" if file.endswith((".c", ".h")) else "imserver") / file
        last = name.split(".")[-1]
        assert re.search(rf"\b{last}\b", path.read_text()), f"{file}:{name}"
    for path in SOURCES:
        assert f"`{path.stem}`" in text, f"{path.stem} is not on the map"
    assert len(text.splitlines()) <= 200


def test_every_counter_is_documented() -> None:
    text = (ROOT / "_core/stats.h").read_text()
    documented = (ROOT / "docs/operations.md").read_text()
    names = re.findall(r"^\s+X\((\w+)\)", text, flags=re.M)
    assert len(names) > 20
    assert [name for name in names if f"`{name}`" not in documented] == []


def test_decisions_are_short() -> None:
    for path in (ROOT / "docs/adr").glob("*.md"):
        assert len(path.read_text().splitlines()) <= 40, path.name


def test_a_guarantee_names_tests_that_exist() -> None:
    text = (ROOT / "docs/guarantees.md").read_text()
    named = re.findall(r"`((?:core/)?test_\w+\.py)(?:::(\w+))?`", text)
    assert len(named) > 40
    for file, test in named:
        source = (ROOT / "tests" / file).read_text()
        assert not test or re.search(rf"^(async )?def {test}\(|^{test} = ", source, flags=re.M), (
            test
        )
