"""What the namespace does, as a function: (tree, call) -> (outcome, tree).

Written from what the client library promises, not from the master's code: paths
to nodes in one immutable mapping, every rule spelled out. :mod:`.linear` searches
with it for an order of calls that explains what clients saw.

A node is a directory (``DIRECTORY``), or the number of the call that made the
file there: who looks at a file sees one of the calls that may have made it. A copy
of that file that a snapshot made is the same number, negative, whichever made it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

DIRECTORY = 0

Path = tuple[str, ...]
Tree = frozenset[tuple[Path, int]]

EMPTY: Tree = frozenset()

OK = "ok"
#: The call may or may not have happened; nobody was told.
UNKNOWN = "unknown"


def split(path: str) -> Path:
    return tuple(part for part in path.split("/") if part)


class Refused(Exception):
    """The call changes nothing; ``code`` is the error's."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def walk(nodes: dict[Path, int], path: Path) -> int | None:
    """The node of a path, or None. A file in the way is an error of its own."""
    for depth in range(1, len(path)):
        node = nodes.get(path[:depth])
        if node is None:
            return None
        if node != DIRECTORY:
            raise Refused("not_a_directory")
    return DIRECTORY if not path else nodes.get(path)


def place(nodes: dict[Path, int], path: Path, parents: bool, kept: int = 0) -> list[Path]:
    """The directories to be made so that ``path`` can be; the first ``kept`` must be there."""
    made: list[Path] = []
    for depth in range(1, len(path)):
        node = None if made else nodes.get(path[:depth])
        if node is None:
            if depth <= kept or not parents:
                raise Refused("not_found")
            made.append(path[:depth])
        elif node != DIRECTORY:
            raise Refused("not_a_directory")
    return made


def below(nodes: dict[Path, int], path: Path) -> list[Path]:
    depth = len(path)
    return [p for p in nodes if len(p) > depth and p[:depth] == path]


@dataclass(frozen=True)
class Call:
    """One call of the namespace. ``number`` is its own, unique and above 0."""

    number: int

    def change(self, nodes: dict[Path, int]) -> object:
        """Change ``nodes`` and return what the caller sees. Raises Refused."""
        raise NotImplementedError

    def agrees(self, seen: object, expected: object) -> bool:
        """Whether what a caller saw is what it should have seen."""
        return True

    #: Whether it only looks.
    pure = False

    def touches(self, path: Path) -> bool:
        """Whether it may change what is at ``path``."""
        named = [p for p in vars(self).values() if isinstance(p, tuple)]
        return not self.pure and any(path[: len(p)] == p for p in named)


@dataclass(frozen=True)
class Publish(Call):
    """A new file takes its name. ``expect``: the number of the call that made the
    file to be replaced, 0 for nothing at all, None for what ``replace`` says."""

    path: Path
    replace: bool = False
    parents: bool = True
    kept: int = 0
    expect: int | None = None

    def change(self, nodes: dict[Path, int]) -> object:
        expects_file = self.expect is not None and self.expect > 0
        made = place(nodes, self.path, self.parents or expects_file, self.kept)
        node = None if made else nodes.get(self.path)
        if expects_file and node != self.expect:
            raise Refused("file_changed")
        if node == DIRECTORY:
            raise Refused("is_a_directory")
        if node is not None and not expects_file and (self.expect == 0 or not self.replace):
            raise Refused("already_exists")
        for directory in made:
            nodes[directory] = DIRECTORY
        nodes[self.path] = self.number
        return None


@dataclass(frozen=True)
class MakeDirectory(Call):
    path: Path
    parents: bool = False
    exist_ok: bool = False

    def change(self, nodes: dict[Path, int]) -> object:
        made = place(nodes, self.path, self.parents)
        node = None if made else nodes.get(self.path)
        if node is not None:
            if node == DIRECTORY and self.exist_ok:
                return None
            raise Refused("already_exists")
        for directory in [*made, self.path]:
            nodes[directory] = DIRECTORY
        return None


@dataclass(frozen=True)
class Rename(Call):
    source: Path
    target: Path
    replace: bool = False
    parents: bool = False

    def change(self, nodes: dict[Path, int]) -> object:
        place(nodes, self.source, False)
        moved = nodes.get(self.source)
        if moved is None:
            raise Refused("not_found")
        made = place(nodes, self.target, self.parents)
        depth = len(self.source)
        if len(self.target) > depth and self.target[:depth] == self.source:
            raise Refused("invalid_argument")
        if self.source == self.target:
            return None
        existing = None if made else nodes.get(self.target)
        if existing is not None:
            if not self.replace:
                raise Refused("already_exists")
            if existing == DIRECTORY:
                raise Refused("is_a_directory")
            if moved == DIRECTORY:
                raise Refused("not_a_directory")
        for directory in made:
            nodes[directory] = DIRECTORY
        for path in [self.source, *below(nodes, self.source)]:
            nodes[self.target + path[depth:]] = nodes.pop(path)
        return None


@dataclass(frozen=True)
class Delete(Call):
    path: Path
    recursive: bool = False
    expect: int | None = None

    def change(self, nodes: dict[Path, int]) -> object:
        place(nodes, self.path, False)
        node = nodes.get(self.path)
        if node is None:
            raise Refused("not_found")
        if self.expect is not None and node != self.expect:
            raise Refused("file_changed")
        inside = below(nodes, self.path) if node == DIRECTORY else []
        if inside and not self.recursive:
            raise Refused("directory_not_empty")
        for path in [self.path, *inside]:
            del nodes[path]
        return None


@dataclass(frozen=True)
class Prune(Call):
    """An empty directory, and those above it with nothing else in them."""

    path: Path

    def change(self, nodes: dict[Path, int]) -> object:
        place(nodes, self.path, False)
        node = nodes.get(self.path)
        if node is None:
            raise Refused("not_found")
        if node != DIRECTORY:
            raise Refused("not_a_directory")
        path = self.path
        if below(nodes, path):
            raise Refused("directory_not_empty")
        while path and not below(nodes, path):
            del nodes[path]
            path = path[:-1]
        return None


@dataclass(frozen=True)
class Snapshot(Call):
    source: Path
    target: Path
    parents: bool = False

    def change(self, nodes: dict[Path, int]) -> object:
        place(nodes, self.source, False)
        if self.source not in nodes:
            raise Refused("not_found")
        made = place(nodes, self.target, self.parents)
        depth = len(self.source)
        if len(self.target) > depth and self.target[:depth] == self.source:
            raise Refused("invalid_argument")
        if not made and self.target in nodes:
            raise Refused("already_exists")
        copied = {p[depth:]: nodes[p] for p in [self.source, *below(nodes, self.source)]}
        for directory in made:
            nodes[directory] = DIRECTORY
        for path, node in copied.items():
            nodes[self.target + path] = -abs(node)
        return None


@dataclass(frozen=True)
class Undelete(Call):
    """A file that was deleted, ``file``, has a name again. That it is not in the trash
    (any more) is for others to judge."""

    path: Path
    file: int

    def change(self, nodes: dict[Path, int]) -> object:
        if self.file in nodes.values():
            raise Refused("not_found")
        made = place(nodes, self.path, True)
        if not made and nodes.get(self.path) is not None:
            raise Refused("already_exists")
        for directory in made:
            nodes[directory] = DIRECTORY
        nodes[self.path] = self.file
        return None


#: What a caller sees of one node: DIRECTORY, or the calls that may have made the file.
Sight = int | frozenset[int]


class _AnyFile(frozenset[int]):
    def __contains__(self, node: object) -> bool:
        return node != DIRECTORY


#: There is a file; nobody looked which.
ANY_FILE: Sight = _AnyFile()


def fits(seen: Sight, node: int) -> bool:
    return node in seen if isinstance(seen, frozenset) else node == seen


@dataclass(frozen=True)
class Look(Call):
    """stat, or the opening of a file (which a directory refuses)."""

    path: Path
    opens: bool = False
    pure = True

    def change(self, nodes: dict[Path, int]) -> object:
        node = walk(nodes, self.path)
        if node is None:
            raise Refused("not_found")
        if self.opens and node == DIRECTORY:
            raise Refused("is_a_directory")
        return node

    def agrees(self, seen: object, expected: object) -> bool:
        assert isinstance(expected, int)
        return seen is None or fits(seen, expected)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Exists(Call):
    """Whether there is anything, of what can be asked of any path."""

    path: Path
    pure = True

    def change(self, nodes: dict[Path, int]) -> object:
        try:
            return walk(nodes, self.path) is not None
        except Refused:
            return False

    def agrees(self, seen: object, expected: object) -> bool:
        return seen is expected


@dataclass(frozen=True)
class List(Call):
    """One directory, as one page; of its names those above ``after``."""

    path: Path
    after: str = ""
    pure = True

    def change(self, nodes: dict[Path, int]) -> object:
        node = walk(nodes, self.path)
        if node is None:
            raise Refused("not_found")
        if node != DIRECTORY:
            raise Refused("not_a_directory")
        depth = len(self.path)
        inside = [p for p in below(nodes, self.path) if len(p) == depth + 1]
        return {path[depth]: nodes[path] for path in inside if path[depth] > self.after}

    def agrees(self, seen: object, expected: object) -> bool:
        return _same(seen, expected)


@dataclass(frozen=True)
class Files(Call):
    """The first files below a directory, as one page: of the paths that begin with ``prefix``
    those above ``after``, by the bytes of the path."""

    path: Path
    prefix: str
    after: str
    limit: int
    pure = True

    def change(self, nodes: dict[Path, int]) -> object:
        node = walk(nodes, self.path)
        if node is None:
            raise Refused("not_found")
        if node != DIRECTORY:
            raise Refused("not_a_directory")
        depth = len(self.path)
        inside = {"/".join(p[depth:]): p for p in below(nodes, self.path) if nodes[p] != DIRECTORY}
        found = [p for p in sorted(inside) if p.startswith(self.prefix) and p > self.after]
        return {p: nodes[inside[p]] for p in found[: self.limit]}

    def agrees(self, seen: object, expected: object) -> bool:
        return _same(seen, expected)


@dataclass(frozen=True)
class Everything(Call):
    """The whole tree, looked at while nobody changes it."""

    pure = True

    def change(self, nodes: dict[Path, int]) -> object:
        return dict(nodes)

    def agrees(self, seen: object, expected: object) -> bool:
        return _same(seen, expected)


def _same(seen: object, expected: object) -> bool:
    assert isinstance(seen, dict)
    assert isinstance(expected, dict)
    return seen.keys() == expected.keys() and all(fits(seen[k], expected[k]) for k in seen)


def step(tree: Tree, call: Call) -> tuple[str, object, Tree]:
    """(outcome, what is seen, the tree after it)."""
    nodes = dict(tree)
    try:
        seen = call.change(nodes)
    except Refused as refused:
        return refused.code, None, tree
    return OK, seen, tree if call.pure else frozenset(nodes.items())


Step = Callable[[Tree, Call], tuple[str, object, Tree]]
