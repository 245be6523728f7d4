"""What the code of a node pack says that it does: read, never run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

EVALUATES, INSTALLS, REMOTE_CODE, ROUTE = "evaluates", "installs", "remote-code", "route"
PICKLES, DOWNLOADS = "pickles", "downloads"
REFUSED = frozenset({EVALUATES, INSTALLS, REMOTE_CODE, ROUTE})
"""The kinds that refuse a pack; the others are told."""

_DOWNLOADS = frozenset(
    {"hf_hub_download", "snapshot_download", "urlretrieve", "download_url_to_file", "load_file_from_url"}
    | {"wget.download", "gdown.download", "load_state_dict_from_url", "torch.hub.load"}
)
_STARTS = frozenset({"system", "popen", "Popen", "run", "call", "check_call", "check_output", "getoutput"})
_RESTARTS = re.compile(r"os\.(exec\w+|_exit|kill|system|abort)|sys\.exit|exit|quit")
_INSTALL = re.compile(r"\bpip3?\s+install\b|\bgit\s+clone\b|\bapt(-get)?\s+install\b")
_LISTS = ({"pip", "install"}, {"git", "clone"}, {"uv", "install"})
_UNUSED_FOLDERS = frozenset({"test", "tests", "testframework"})
_UNUSED_FILES = frozenset({"install.py", "setup.py"})
_DEPTH = 4

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Finding:
    """One thing that the code does, and where: a path in the pack, with the line."""

    kind: str
    where: str
    what: str

    @property
    def file(self) -> str:
        """Return the path without the line."""
        return self.where.rpartition(":")[0] or self.where


@dataclass(frozen=True)
class Module:
    """A file of Python in the pack. One that only developers or ``install.py`` run is not ``used``."""

    path: str
    tree: ast.Module
    used: bool


def read(folder: Path) -> tuple[list[Module], list[str]]:
    """Return the pack's modules, and the files that are no Python that can be read."""
    modules, unread = [], []
    for file in sorted(folder.rglob("*.py")):
        path = file.relative_to(folder).as_posix()
        if file.is_symlink() or not file.is_file():
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            unread.append(path)
            continue
        parts = path.split("/")
        modules.append(Module(path, tree, not (_UNUSED_FOLDERS.intersection(parts[:-1]) or path in _UNUSED_FILES)))
    return modules, unread


def findings(modules: Sequence[Module]) -> Iterator[Finding]:
    """What all functions of a pack do, whoever calls them."""
    for module in modules:
        for node, given in _calls(module.tree):
            for kind, what in _of_call(node, given):
                yield Finding(kind, f"{module.path}:{node.lineno}", what)


def of_route(modules: Sequence[Module], method: str, path: str, file: str, line: int) -> Iterator[Finding]:
    """What the handler of a route, and the functions of the pack that it calls, would do for anybody who asks."""
    defined: dict[str, list[tuple[str, _Function]]] = {}
    handler: tuple[str, _Function] | None = None
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, _Function):
                defined.setdefault(node.name, []).append((module.path, node))
                first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
                if module.path == file and first <= line <= (node.end_lineno or line):
                    handler = (module.path, node)
    waiting = [] if handler is None else [(handler, 0)]
    seen: set[int] = set()
    while waiting:
        (where, function), depth = waiting.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        for node in ast.walk(function):
            if not isinstance(node, ast.Call):
                continue
            name = _name(node.func)
            last = name.rpartition(".")[2]
            what = "ends or restarts ComfyUI" if _RESTARTS.fullmatch(name) else ""
            what = what or ("downloads files" if {name, last} & _DOWNLOADS else "")
            what = what or ("installs packages" if _installs(node) else "")
            if what:
                yield Finding(ROUTE, f"{where}:{node.lineno}", f"{method} {path} {what} for anybody: {name}")
            elif depth < _DEPTH and len(defined.get(last, ())) == 1:
                waiting.append((defined[last][0], depth + 1))


def _calls(tree: ast.Module) -> Iterator[tuple[ast.Call, frozenset[str]]]:
    """All calls, each with the names that hold what the enclosing functions were given."""

    def walk(node: ast.AST, given: frozenset[str]) -> Iterator[tuple[ast.Call, frozenset[str]]]:
        if isinstance(node, _Function | ast.Lambda):
            given = _given(node, given)
        if isinstance(node, ast.Call):
            yield node, given
        for child in ast.iter_child_nodes(node):
            yield from walk(child, given)

    yield from walk(tree, frozenset())


def _given(function: _Function | ast.Lambda, outer: frozenset[str]) -> frozenset[str]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    names = {one.arg for one in [*every, arguments.vararg, arguments.kwarg] if one is not None} | outer
    before = -1
    while before != len(names):
        before = len(names)
        for node in ast.walk(function):
            targets: list[ast.expr] = []
            if isinstance(node, ast.Assign):
                targets = node.targets
            elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr | ast.For | ast.comprehension):
                targets = [node.target]
            value = node.iter if isinstance(node, ast.For | ast.comprehension) else getattr(node, "value", None)
            if targets and value is not None and _uses(value, names):
                names |= {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
    return frozenset(names)


def _uses(node: ast.AST, names: set[str] | frozenset[str]) -> bool:
    return any(isinstance(one, ast.Name) and one.id in names for one in ast.walk(node))


def _of_call(node: ast.Call, given: frozenset[str]) -> Iterator[tuple[str, str]]:
    name = _name(node.func)
    last = name.rpartition(".")[2]
    keywords = {one.arg: one.value for one in node.keywords}
    if name.removeprefix("builtins.") in {"eval", "exec"} and node.args and _uses(node.args[0], given):
        yield EVALUATES, f"{name} of what its function is given: {ast.unparse(node.args[0])[:60]}"
    if how := _installs(node):
        yield INSTALLS, f"{name or 'a call'}: {how}"
    if _true(keywords.get("trust_remote_code")):
        yield REMOTE_CODE, f"{last} with trust_remote_code: Python of whoever made the model"
    if name == "torch.load":
        weights_only = keywords.get("weights_only")
        if weights_only is None:
            yield PICKLES, "torch.load without weights_only, which torch takes for True since 2.6"
        elif not _true(weights_only):
            yield PICKLES, f"torch.load with weights_only={ast.unparse(weights_only)}: a pickle can run code"
    elif name in {"pickle.load", "pickle.loads", "joblib.load", "dill.load"}:
        yield PICKLES, f"{name}: a pickle can run code"
    if {name, last} & _DOWNLOADS:
        yield DOWNLOADS, name


def _installs(node: ast.Call) -> str:
    """Return how a call would install software, or an empty text."""
    name = _name(node.func)
    if name in {"pip.main", "pip._internal.main", "pip_main", "Repo.clone_from", "git.Repo.clone_from"}:
        return name
    for value in [*node.args, *(one.value for one in node.keywords)]:
        words = [one.value for one in ast.walk(value) if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        if isinstance(value, ast.List | ast.Tuple | ast.BinOp) and any(wanted <= set(words) for wanted in _LISTS):
            return " ".join(words)[:60]
        if name.rpartition(".")[2] in _STARTS and (found := _INSTALL.search(" ".join(words))):
            return found.group()
    return ""


def _true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _name(node: ast.expr) -> str:
    """Return a dotted name as it is written; that of a method of a call or of an item begins with a dot."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return ""
