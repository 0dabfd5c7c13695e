"""Who may import whom, how long files are, and what an import costs."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("pipeline", "model", "tools")
ALLOWED = {"pipeline": {"pipeline"}, "model": {"pipeline", "model"}, "tools": {"pipeline", "model", "tools"}}
ONLY_IN = {
    "click": ("tools",),
    "rich": ("tools",),
    "nvidia": ("pipeline/dali_graph.py",),
    "lmdb": ("pipeline/shard_",),
    "pyarrow": ("pipeline/table", "tools/parquet_"),
}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "misc", "core", "base", "types", "constants"}
MAX_LINES = 320
MAX_FUNCTION_LINES = 60
TORCH_FREE = (
    "manifest",
    "records",
    "shard_reader",
    "shard_writer",
    "dataset_writer",
    "decode",
    "eigenbasis",
    "augment",
)


def room_folder(room: str) -> Path:
    """Where a room lies: the installed one, which need not be the tree the tests are in."""
    spec = importlib.util.find_spec(f"lmdali.{room}")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


FILES = [(room, path) for room in ROOMS for path in sorted(room_folder(room).glob("*.py"))]


@cache
def texts_and_trees() -> dict[str, tuple[str, ast.Module]]:
    """Text and syntax tree of every file, by room/name.py."""
    texts = {f"{room}/{path.name}": path.read_text() for room, path in FILES}
    return {name: (text, ast.parse(text)) for name, text in texts.items()}


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def foreign_imports(room: str, file: str, tree: ast.Module) -> Iterator[str]:
    """What is wrong with the imports of one file."""
    for name in imports(tree):
        parts = name.split(".")
        if parts[0] in ROOMS:
            yield f"import lmdali.{name}, not {name}"
        if parts[0] == "lmdali" and (len(parts) < 2 or parts[1] not in ALLOWED[room]):
            yield f"{room} may not import {name}"
        if (homes := ONLY_IN.get(parts[0])) and not file.startswith(homes):
            yield f"{parts[0]} belongs to {homes}"


def untidy_parts(file: str, text: str, tree: ast.Module) -> Iterator[str]:
    """What one file lacks, and what it has too much of."""
    if (lines := text.count("\n")) > MAX_LINES:
        yield f"{lines} lines, at most {MAX_LINES}"
    if not ast.get_docstring(tree):
        yield "no module docstring"
    is_code = not file.endswith("__.py") and any(not isinstance(node, ast.Expr) for node in tree.body)
    if is_code and "from __future__ import annotations" not in text:
        yield "no `from __future__ import annotations`"
    for node in tree.body:
        is_public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if is_public and not ast.get_docstring(node):
            yield f"{node.name} has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            if lines > MAX_FUNCTION_LINES:
                yield f"{node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}"


def test_imports_run_downwards_and_packages_stay_where_they_belong() -> None:
    found = {
        file: wrong
        for file, (_, tree) in texts_and_trees().items()
        if (wrong := list(foreign_imports(file.partition("/")[0], file, tree)))
    }
    assert not found


def test_files_and_functions_are_short_and_documented() -> None:
    found = {
        file: wrong
        for file, (text, tree) in texts_and_trees().items()
        if (wrong := list(untidy_parts(file, text, tree)))
    }
    assert not found


def test_what_is_at_a_path_is_asked_of_path_kind() -> None:
    """Since Python 3.14 pathlib's own methods say no where they cannot tell. Directory entries still raise."""
    asked = re.compile(r"^.*\b(?!entry\b)\w+\)?\.(?:exists|is_file|is_dir)\(.*$", re.MULTILINE)
    assert asked.findall("if (path / name).exists():") and not asked.findall("entry.is_dir()")
    found = {file: wrong for file, (text, _) in texts_and_trees().items() if (wrong := asked.findall(text))}
    assert not found


def test_files_are_named_after_a_thing() -> None:
    assert not [path for _, path in FILES if path.stem in FORBIDDEN_NAMES]


def test_no_files_import_each_other_in_a_circle() -> None:
    # Imports inside functions count: they hide a circle from Python, and from nobody who reads.
    rooms = {f"lmdali.{file[:-3].replace('/', '.')}": tree for file, (_, tree) in texts_and_trees().items()}
    graph = {module: {name for name in imports(tree) if name in rooms} for module, tree in rooms.items()}
    assert sum(map(len, graph.values())) > len(rooms)
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_file_names_are_unique_across_rooms() -> None:
    names = Counter(path.stem for _, path in FILES if not path.stem.startswith("__"))
    assert not [name for name, count in names.items() if count > 1]


def test_the_map_of_the_code_has_every_file_and_no_other() -> None:
    named = re.findall(r"\b([a-z0-9_]+)\.py\b", (ROOT / "docs" / "house.md").read_text())
    here = {path.stem for _, path in FILES if not path.stem.startswith("__")}
    assert not here - set(named)
    assert (
        not set(named)
        - here
        - {path.stem for folder in ("tests", "benchmarks") for path in (ROOT / folder).glob("*.py")}
    )


def python(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(tuple(BLOCKED)):
            raise ModuleNotFoundError(f"no module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
"""


def test_converting_and_asking_for_help_do_not_import_torch(tmp_path: Path) -> None:
    python(
        f"""
import sys
from lmdali.tools.cli import cli
import lmdali.pipeline
for arguments in (["--help"], ["convert", "--help"], ["convert", {str(tmp_path)!r}, "out", "--dry-run"]):
    try:
        cli(arguments, standalone_mode=False)
    except Exception as error:
        assert "the folder is empty" in str(error), error
heavy = {{"torch", "numba", "nvidia.dali", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
"""
    )


def test_the_format_is_read_without_torch_numba_or_dali(jpeg_dataset: Path) -> None:
    modules = "\n".join(f"import lmdali.pipeline.{name}" for name in TORCH_FREE)
    python(
        f"""
BLOCKED = ["torch", "numba", "nvidia", "matplotlib"]
{BLOCK}
{modules}
from pathlib import Path
from lmdali.pipeline import load_eigenbasis, load_manifest, AugmentConfig
from lmdali.pipeline.shard_reader import ShardReader
directory = Path({str(jpeg_dataset)!r})
reader = ShardReader(directory, load_manifest(directory))
assert reader.read(3, lambda record: len(record.data)) > 1000
assert load_eigenbasis(directory).num_pixels == 60 * 65536
from lmdali.pipeline.errors import MissingExtraError
for name in ("create_loader", "LoaderConfig"):
    try:
        getattr(__import__("lmdali.pipeline", fromlist=[name]), name)
    except MissingExtraError as error:
        assert "pip install 'lmdali[train]'" in str(error), error
    else:
        raise AssertionError(name)
"""
    )


def test_parity_without_torch_says_which_extra_brings_it(jpeg_dataset: Path) -> None:
    # `verify` itself needs none, so it is not refused as a verb; it ended in a traceback.
    python(
        f"""
BLOCKED = ["torch", "numba", "nvidia"]
{BLOCK}
from lmdali.tools.cli import cli
from lmdali.tools.exit_codes import run_command
for options, code in (([], 0), (["--parity"], 8)):
    assert run_command(lambda: cli(["verify", {str(jpeg_dataset)!r}, *options], standalone_mode=False)) == code
"""
    )


def test_the_cpu_loader_works_without_dali(jpeg_dataset: Path) -> None:
    python(
        f"""
BLOCKED = ["nvidia"]
{BLOCK}
from lmdali.pipeline import LoaderConfig, create_loader
with create_loader(LoaderConfig(dataset={str(jpeg_dataset)!r}, batch_size=20)) as loader:
    assert loader.backend_name == "cpu"
    assert sum(len(labels) for _, labels in loader) == 60
"""
    )
