"""What code a stage runs: a digest of every module that its own module imports, and of what lies beside them.

Comments, docstrings, line breaks, brackets that change nothing and what only type checkers read do not count. So a change
counts where it could change a result, and for no other stage than those that run the changed module. `code`, the first
stage of dvc.yaml, writes this down for all stages (docs/house.md).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

# written by the stage `code`, a JSON file for each entry
FOLDER = "code"
PIPELINES = ("dvc.yaml", "pipelines/*/dvc.yaml", "pipelines/*/*/dvc.yaml")
# Data that a parameter names by their code, since they are drawn or trained here: `dataset.source`, `detector.source`.
NAMED_AS_SOURCE = {
    f"{FOLDER}/sources/toybox.json": "diptych.features.datasets.toybox",
    f"{FOLDER}/sources/detector.json": "diptych.features.detector.training",
}
# a dependency of those alone who name it as their source
BY_SOURCE = ("diptych.features.datasets.toybox",)

# where our modules lie; of two folders of one namespace package each has its own modules
SOURCES = (".", "packages/features/src", "packages/eval/src", "packages/model/src")
OURS = ("pipelines", "diptych")
# These decide how a stage or an item of a table runs, not what it computes, and would retrain everything. But into how many parts
# a batch is divided decides the last bits of what is computed, and the noise of some trainings.
RUNNERS = ("pipelines.runner", "pipelines.tables.item")
COUNTED = "pipelines.runner.processes"
# files beside modules that are none of what they read
_PIPELINE_FILES = ("dvc.yaml", "dvc.lock")
_OF_EDITORS = (".*", "#*", "*~", "*.orig", "*.rej")
# fields of syntax that change no result, or that only some versions of Python have
_NO_MEANING = frozenset(("ctx", "kind", "type_comment", "type_ignores"))


@dataclass(frozen=True)
class _Module:
    """What counts of a module. digest: of its statements; None where it has none."""

    digest: str | None
    imports: tuple[ast.Import | ast.ImportFrom, ...]


@functools.cache
def _parsed(source: bytes, file: str) -> _Module:
    """A module of which no comment, docstring and nothing for type checkers counts. A process that asks again does not parse again."""
    tree = ast.parse(source, file)
    for node in ast.walk(tree):
        for name, value in ast.iter_fields(node):
            if name in ("body", "orelse", "finalbody") and isinstance(value, list):
                setattr(node, name, list(_that_run(value, name, node)))
    imports = tuple(node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    return _Module(hashlib.sha256(_canonical(tree).encode()).hexdigest() if tree.body else None, imports)


class Code:
    """The modules below a repository's root; each is looked up, parsed and searched for imports once.

    Raises SyntaxError where a module that is asked about is no Python.
    """

    def __init__(self, root: Path = Path()) -> None:
        self._root = root
        self._files: dict[str, Path | None] = {}
        self._modules: dict[str, _Module] = {}
        self._imported: dict[str, list[str]] = {}

    def of(self, entry: str) -> dict[str, str]:
        """Digests by name of the modules that `python -m ENTRY` runs, imports inside functions included, and of the files
        beside the modules of their packages (`diptych.eval.words/coco.json`). Left out are modules that only have a docstring,
        and BY_SOURCE with what only they import, but where the entry is one of these.
        """
        if self._file(entry) is None:
            raise FileNotFoundError(2, "no such module", entry)
        found: dict[str, str] = {}
        without = () if entry in BY_SOURCE else BY_SOURCE
        for module in sorted(self._run_by(entry, without)):
            if (digest := self._module(module).digest) is not None:
                found[module] = digest
            for path in self._beside(module):
                found[f"{module}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def _run_by(self, entry: str, without: tuple[str, ...]) -> set[str]:
        found: set[str] = set()
        waiting = [entry]
        while waiting:
            module = waiting.pop()
            if module in found or not self._counts(module, without):
                continue
            found.add(module)
            parent = module.rpartition(".")[0]
            waiting += [*self._imports(module), *([parent] if self._file(parent) else [])]
        return found

    def _counts(self, module: str, without: tuple[str, ...]) -> bool:
        left_out = (*RUNNERS, *without)
        return module == COUNTED or not any(f"{module}.".startswith(f"{name}.") for name in left_out)

    def _file(self, module: str) -> Path | None:
        """The source of one of our modules; None for others, and for folders that are no packages."""
        if module not in self._files:
            self._files[module] = self._find(module)
        return self._files[module]

    def _find(self, module: str) -> Path | None:
        if module.partition(".")[0] not in OURS:
            return None
        for source in SOURCES:
            path = self._root.joinpath(source, *module.split("."))
            for file in (path / "__init__.py", path.with_suffix(".py")):
                if file.is_file():
                    return file
        return None

    def _module(self, module: str) -> _Module:
        if module not in self._modules:
            file = self._file(module)
            assert file is not None
            self._modules[module] = _parsed(file.read_bytes(), str(file))
        return self._modules[module]

    def _imports(self, module: str) -> list[str]:
        """Our modules that this one imports."""
        if module not in self._imported:
            self._imported[module] = list(self._find_imports(module))
        return self._imported[module]

    def _find_imports(self, module: str) -> Iterator[str]:
        file = self._file(module)
        package = module if file and file.name == "__init__.py" else module.rpartition(".")[0]
        for node in self._module(module).imports:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if self._file(alias.name))
            else:
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                source = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    name = next((n for n in (f"{source}.{alias.name}", source) if self._file(n)), None)
                    if name:
                        yield name

    def _beside(self, module: str) -> list[Path]:
        """Of a package: the files beside its modules, which they read."""
        file = self._file(module)
        if file is None or file.name != "__init__.py":
            return []
        left_out = (*_PIPELINE_FILES, *_OF_EDITORS, "*.py", "*.pyc")
        files = (path for path in file.parent.iterdir() if path.is_file())
        return sorted(path for path in files if not any(fnmatchcase(path.name, name) for name in left_out))


def entries() -> dict[str, str]:
    """Modules by the files in code/ that are about them: those that a pipeline's stage starts, the tables' data, which items
    load by name, and what parameters name as a source."""
    modules = {*_modules_of_stages(), *_modules_of_tables()} - {f"pipelines.{FOLDER}"}
    own = {f"{FOLDER}/{'/'.join(module.split('.')[1:])}.json": module for module in sorted(modules)}
    return own | NAMED_AS_SOURCE


def code_of(file: str) -> Mapping[str, str]:
    """What `file`, such as code/train_token.json, has to hold by the modules as they are now."""
    return Code().of(entries()[file])


def _modules_of_stages() -> Iterator[str]:
    from ruamel.yaml import YAML

    for path in sorted(path for pattern in PIPELINES for path in Path().glob(pattern)):
        for stage in YAML(typ="safe").load(path)["stages"].values():
            yield from re.findall(r"python -m (pipelines[\w.]*)", stage["cmd"])


def _modules_of_tables() -> Iterator[str]:
    for path in sorted(Path("pipelines/tables").glob("*/table.py")):
        yield ".".join(path.with_suffix("").parts)


def _that_run(statements: list[ast.stmt], field: str, parent: ast.AST) -> Iterator[ast.stmt]:
    """Statements without docstrings and what stands under `if TYPE_CHECKING`."""
    documented = isinstance(parent, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    for place, statement in enumerate(statements):
        if isinstance(statement, ast.If) and _name(statement.test) == "TYPE_CHECKING":
            yield from statement.orelse
        elif not (field == "body" and place == 0 and documented and _is_text(statement)):
            yield statement


def _is_text(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
        return False
    return isinstance(statement.value.value, str)


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _canonical(value: object) -> str:
    """Syntax as text that does not depend on the version of Python: absent and empty fields are left out, and text is ASCII."""
    if isinstance(value, ast.AST):
        fields = (
            f"{name}={_canonical(field)}"
            for name, field in ast.iter_fields(value)
            if name not in _NO_MEANING and field is not None and field != []
        )
        return f"{type(value).__name__}({','.join(fields)})"
    if isinstance(value, list):
        return f"[{','.join(_canonical(each) for each in value)}]"
    return ascii(value)
