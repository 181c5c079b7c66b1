"""Which mutants a file has: small changes that a test should notice, from Python's syntax tree or from Lua's text.

Texts for people (messages, logs, docstrings) and annotations are left alone.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from difflib import unified_diff
from typing import Any, NamedTuple

_COMPARED: dict[type[ast.cmpop], ast.cmpop] = {
    ast.Lt: ast.LtE(),
    ast.LtE: ast.Lt(),
    ast.Gt: ast.GtE(),
    ast.GtE: ast.Gt(),
    ast.Eq: ast.NotEq(),
    ast.NotEq: ast.Eq(),
    ast.Is: ast.IsNot(),
    ast.IsNot: ast.Is(),
    ast.In: ast.NotIn(),
    ast.NotIn: ast.In(),
}
_COMPUTED: dict[type[ast.operator], ast.operator] = {
    ast.Add: ast.Sub(),
    ast.Sub: ast.Add(),
    ast.Mult: ast.FloorDiv(),
    ast.Div: ast.Mult(),
    ast.FloorDiv: ast.Mult(),
    ast.LShift: ast.RShift(),
    ast.BitOr: ast.BitAnd(),
}
_SWAPPED = {"min": "max", "max": "min"}


class Mutant(NamedTuple):
    """`file` with the bytes from `start` to `end` replaced."""

    file: str
    start: int
    end: int
    new: bytes

    def of(self, source: bytes) -> bytes:
        return source[: self.start] + self.new + source[self.end :]

    def diff(self, source: bytes) -> list[str]:
        """The lines that differ, with a line number before them."""
        before, after = source.decode().splitlines(), self.of(source).decode().splitlines()
        return list(unified_diff(before, after, self.file, self.file, n=0, lineterm=""))[2:]

    def title(self, source: bytes) -> str:
        """As `docs/mutants.md` names it: without a line number, which any change above would move."""
        lines = self.diff(source)
        old, new = (" ".join(" ".join(line[1:].split()) for line in lines if line[0] == sign) for sign in "-+")
        return f"{self.file}: `{old}` → `{new}`"


def mutants(file: str, source: bytes) -> list[Mutant]:
    """Every mutant of `file`, in the order of its lines."""
    found = _of_lua(source.decode()) if file.endswith(".lua") else _of_python(source)
    return sorted({Mutant(file, start, end, new) for start, end, new in found if source[start:end] != new})


def _of_python(source: bytes) -> Iterator[tuple[int, int, bytes]]:
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node, others in _walk(ast.parse(source)):
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        for other in others:
            yield start, end, other.encode()


def _walk(node: ast.AST) -> Iterator[tuple[ast.stmt | ast.expr, list[str]]]:
    if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Expr) and _tells_people(node.value)):
        return
    if isinstance(node, ast.expr | ast.stmt):
        yield node, list(_others(node))
    if isinstance(node, ast.If | ast.While | ast.IfExp) and isinstance(node.test, ast.Name | ast.Attribute | ast.Call):
        yield node.test, [f"not {ast.unparse(node.test)}"]
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walk(child)


def _tells_people(value: ast.expr) -> bool:
    """A docstring or a log line."""
    return isinstance(value, ast.Constant) or ast.unparse(value).startswith("logger.")


def _others(node: ast.expr | ast.stmt) -> Iterator[str]:  # noqa: PLR0912 - one case a kind of node
    match node:
        case ast.Compare(left, ops, right):
            for i, op in enumerate(ops):
                changed = [*ops[:i], _COMPARED[type(op)], *ops[i + 1 :]]
                yield ast.unparse(ast.Compare(left, changed, right))
        case ast.BoolOp(op, values):
            yield f"({ast.unparse(ast.BoolOp(ast.And() if isinstance(op, ast.Or) else ast.Or(), values))})"
        case ast.UnaryOp(ast.Not(), operand):
            yield ast.unparse(operand)
        case ast.BinOp(left, op, right) if type(op) in _COMPUTED:
            yield ast.unparse(ast.BinOp(left, _COMPUTED[type(op)], right))
        case ast.AugAssign(target, op, value):
            if type(op) in _COMPUTED:
                yield ast.unparse(ast.AugAssign(target, _COMPUTED[type(op)], value))
            yield "pass"
        case ast.Call(ast.Name(name) as function, arguments, words) if name in _SWAPPED:
            yield ast.unparse(ast.Call(ast.Name(_SWAPPED[function.id]), arguments, words))
        case ast.Constant(bool(value)):
            yield str(not value)
        case ast.Constant(int(value) | float(value)):
            yield str(value + 1)
        case ast.Assign([ast.Attribute() | ast.Subscript() | ast.Tuple([ast.Attribute(), *_])]):
            yield "pass"
        case ast.Expr() | ast.Raise() | ast.Delete() | ast.Break() | ast.Continue():
            yield "pass"
        case ast.Return(value) if value is not None and ast.unparse(value) != "None":
            yield "return None"


_LUA: tuple[tuple[str, Any], ...] = (
    (r" (<|<=|>|>=|==|~=) ", {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "~=", "~=": "=="}),
    (r" ([+-]) ", {"+": "-", "-": "+"}),
    (r"\b(and|or)\b", {"and": "or", "or": "and"}),
    (r"\b(not )", {"not ": ""}),
    (r"\bmath\.(max|min)\b", {"max": "min", "min": "max"}),
    (r"\b(true|false)\b", {"true": "false", "false": "true"}),
    (r"(?<![\w%'.\[])(\d+)(?![\w'])", None),
    (r"^ +(redis\.call\(.*(?:\n +'.*| +string.*)*\))$", {}),
    (r"^ *((?!local)[a-z_.]+(?:, [a-z_.]+)* = (?!.*\{$)[^\n]*[^,\n])$", {}),
    (r"^ +(return .*)$", {}),
)
"""What to look for, and what to put for its first group: None for one more, and nothing for a whole statement."""


def _of_lua(source: str) -> Iterator[tuple[int, int, bytes]]:
    code = re.sub(r"--.*", lambda comment: " " * len(comment[0]), source)
    for pattern, others in _LUA:
        for match in re.finditer(pattern, code, re.MULTILINE):
            word = match[1]
            new = str(int(word) + 1) if others is None else others.get(word, "")
            start, end = (len(source[: match.start(1)].encode()), len(source[: match.end(1)].encode()))
            yield start, end, new.encode()
