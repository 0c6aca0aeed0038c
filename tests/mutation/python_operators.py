# SPDX-License-Identifier: Apache-2.0
"""Faults for Python sources, found in their syntax tree and made in their text."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise

from tests.mutation.mutants import Edit

_COMPARE: dict[type[ast.cmpop], tuple[str, str]] = {
    **{ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")},
    **{ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in")},
    **{ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is")},
}
_BINARY: dict[type[ast.operator], tuple[str, str]] = {
    **{ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "+"), ast.Div: ("/", "*")},
    **{ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "//"), ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<")},
    **{ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"), ast.BitXor: ("^", "|")},
}
_SIMPLE = (ast.Expr, ast.Assign, ast.AugAssign, ast.Raise, ast.Return, ast.Break, ast.Continue, ast.Delete)


def edits(text: str) -> Iterator[Edit]:
    """Every fault of every kind in the file; types, decorators and texts stay as they are."""
    return _Finder(text).all()


class _Finder:
    def __init__(self, text: str) -> None:
        self._text = text
        self._starts: list[int] = [0]
        for line in text.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._lines = text.splitlines(keepends=True)

    def all(self) -> Iterator[Edit]:
        """In no order."""
        yield from self._visit(ast.parse(self._text))

    def _offset(self, line: int, column: int) -> int:
        """ast counts columns in bytes of UTF-8."""
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())

    def _span(self, node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._offset(node.lineno, node.col_offset), self._offset(node.end_lineno, node.end_col_offset)

    def _visit(self, node: ast.AST) -> Iterator[Edit]:
        if isinstance(node, ast.JoinedStr):
            return
        yield from self._here(node)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_comment", "bases"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from self._visit(child)

    def _here(self, node: ast.AST) -> Iterator[Edit]:
        if isinstance(node, ast.Compare):
            for (left, right), op in zip(pairwise([node.left, *node.comparators]), node.ops, strict=True):
                yield from self._between(left, right, *_COMPARE[type(op)])
        elif isinstance(node, ast.BoolOp):
            yield from self._bool_op(node)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
            start = self._span(node)[0]
            yield Edit(start, start + (3 if isinstance(node.op, ast.Not) else 1), "", "not")
        elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            yield from self._between(node.left, node.right, *_BINARY[type(node.op)])
        elif isinstance(node, ast.AugAssign) and type(node.op) in _BINARY:
            yield from self._between(node.target, node.value, *(f"{op}=" for op in _BINARY[type(node.op)]))
        elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
            yield from self._condition(node)
        elif isinstance(node, ast.Constant):
            yield from self._constant(node)
        elif isinstance(node, ast.Call):
            yield from self._keywords(node)
        elif isinstance(node, ast.Slice):
            for bound in (node.lower, node.upper):
                if bound is not None:
                    yield Edit(*self._span(bound), "", "slice")
        if isinstance(node, _SIMPLE):
            yield from self._statement(node)

    def _between(self, left: ast.expr, right: ast.expr, old: str, new: str) -> Iterator[Edit]:
        start, end = self._span(left)[1], self._span(right)[0]
        words = re.escape(old).replace(r"\ ", r"\s+")
        match = re.search(rf"\b{words}\b" if old[0].isalpha() else words, self._text[start:end])
        if match is not None:
            yield Edit(start + match.start(), start + match.end(), new, "operator")

    def _bool_op(self, node: ast.BoolOp) -> Iterator[Edit]:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in pairwise(node.values):
            yield from self._between(left, right, old, new)
        for value in node.values:
            # The neutral value in its place: brackets around it stay whole.
            yield Edit(*self._span(value), str(isinstance(node.op, ast.And)), "clause")

    def _condition(self, node: ast.If | ast.IfExp | ast.While) -> Iterator[Edit]:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        for value in ("False",) if isinstance(node, ast.While) else ("True", "False"):
            yield Edit(*self._span(node.test), value, "condition")

    def _constant(self, node: ast.Constant) -> Iterator[Edit]:
        value = node.value
        if isinstance(value, bool):
            yield Edit(*self._span(node), str(not value), "constant")
        elif isinstance(value, int):
            yield Edit(*self._span(node), str(value + 1), "constant")
            if value > 0:
                yield Edit(*self._span(node), str(value - 1), "constant")
        elif isinstance(value, float):
            yield Edit(*self._span(node), repr(value * 2 + 1), "constant")
        elif isinstance(value, bytes):
            yield Edit(*self._span(node), repr(value + b"x"), "constant")

    def _keywords(self, node: ast.Call) -> Iterator[Edit]:
        for keyword in node.keywords:
            if keyword.arg is not None and not isinstance(keyword.value, ast.Constant):
                start, end = self._span(keyword)
                comma = re.match(r"\s*,\s*", self._text[end:])
                yield Edit(start, end + (comma.end() if comma else 0), "", "keyword")

    def _statement(self, node: ast.stmt) -> Iterator[Edit]:
        start, end = self._span(node)
        if isinstance(node, ast.Expr):
            if isinstance(node.value, ast.Constant):
                return  # a docstring
            yield Edit(start, end, "pass", "call")
        elif isinstance(node, ast.Return):
            if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
                yield Edit(start, end, "return None", "jump")
            elif node.value is None:
                yield Edit(start, end, "pass", "jump")
        elif isinstance(node, (ast.Raise, ast.Continue, ast.Break)):
            yield Edit(start, end, "pass", "jump")
        elif isinstance(node, ast.Assign) and all(isinstance(t, ast.Name) for t in node.targets):
            return  # it would only be a NameError
        else:
            yield Edit(start, end, "pass", "assignment")
