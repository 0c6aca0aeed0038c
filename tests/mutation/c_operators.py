# SPDX-License-Identifier: Apache-2.0
"""Faults for C sources, made from tokens: enough for code without macros that hide operators."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.mutation.mutants import Edit

_TOKEN = re.compile(
    r"""
    (?P<skip>/\*.*?\*/|//[^\n]*|^[ \t]*\#(?:\\\n|[^\n])*|\s+)
  | (?P<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
  | (?P<number>0[xX][0-9a-fA-F]+[uU]?|\d+[uU]?)
  | (?P<name>[A-Za-z_]\w*)
  | (?P<sign><<=|>>=|->|\+\+|--|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=|[-+*/%&|^<>=!~?:;,.(){}\[\]])
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_SWAPS = {
    **{"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="},
    **{"&&": "||", "||": "&&", "+": "-", "-": "+", "/": "*", "%": "/", "<<": ">>", ">>": "<<", "|": "&", "^": "|"},
    **{"+=": "-=", "-=": "+=", "|=": "&=", "&=": "|=", "^=": "|=", "++": "--", "--": "++"},
}
_OPEN, _CLOSE = "([{", ")]}"
_ASSIGNS = ("=", "+=", "-=", "|=", "&=", "^=", "<<=", ">>=")
_KEYWORDS = ("return", "if", "while", "for", "switch", "case", "else", "do", "goto", "sizeof", "break", "continue")


@dataclass(frozen=True)
class Token:
    """``depth``: brackets around it; ``inside``: whether it is in the body of a function."""

    kind: str
    text: str
    start: int
    end: int
    depth: int
    inside: bool


def tokens(text: str) -> list[Token]:
    """All but comments, preprocessor lines and white space."""
    result: list[Token] = []
    stack: list[bool] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise ValueError(f"no C token at {text[at : at + 20]!r}")
        at = match.end()
        if match.lastgroup == "skip":
            continue
        word = match[0]
        if word in _CLOSE:
            stack.pop()
        result.append(Token(match.lastgroup, word, match.start(), at, len(stack), any(stack)))
        if word in _OPEN:
            stack.append(word == "{" and len(result) > 1 and result[-2].text == ")")
    return result


def edits(text: str) -> Iterator[Edit]:
    """Every fault of every kind in the bodies of the file's functions."""
    found = tokens(text)
    for k, token in enumerate(found):
        if not token.inside:
            continue
        yield from _swapped(found, k)
        yield from _constant(found, k)
        yield from _clause(found, k)
        yield from _condition(found, k)
        yield from _statement(found, k)
        yield from _flag(found, k)


def _is_binary(found: list[Token], k: int) -> bool:
    before = found[k - 1]
    return (before.kind in ("number", "name") and before.text not in _KEYWORDS) or before.text in (")", "]")


def _swapped(found: list[Token], k: int) -> Iterator[Edit]:
    token = found[k]
    if token.text == "!":
        yield Edit(token.start, token.end, "", "not")
    elif token.text in _SWAPS and (token.text not in ("+", "-") or _is_binary(found, k)):
        yield Edit(token.start, token.end, _SWAPS[token.text], "operator")


def _constant(found: list[Token], k: int) -> Iterator[Edit]:
    token = found[k]
    if token.kind == "number":
        value = int(token.text.rstrip("uU"), 0)
        suffix = "u" if token.text[-1] in "uU" else ""
        yield Edit(token.start, token.end, f"{value + 1 & 0xFFFFFFFF}{suffix}", "constant")
        if value > 0:
            yield Edit(token.start, token.end, f"{value - 1}{suffix}", "constant")
    elif token.text.startswith("SCL_ERR_"):
        yield Edit(token.start, token.end, "SCL_OK", "status")
    elif token.text == "SCL_OK":
        yield Edit(token.start, token.end, "SCL_ERR_STORE", "status")


def _clause(found: list[Token], k: int) -> Iterator[Edit]:
    """``a && b`` without b, and the first of a chain without a."""
    sign = found[k]
    if sign.text not in ("&&", "||"):
        return
    ends = {";", "?", ":", ",", "=", "return", "||"} | ({"&&"} if sign.text == "&&" else set())

    def operand(step: int) -> int:
        at = k + step
        while found[at].depth > sign.depth or (found[at].text not in ends and found[at].depth == sign.depth):
            at += step
        return at - step

    yield Edit(sign.start, found[operand(1)].end, "", "clause")
    yield Edit(found[operand(-1)].start, found[k + 1].start, "", "clause")


def _closing(found: list[Token], k: int) -> int:
    return next(at for at in range(k + 1, len(found)) if found[at].depth == found[k].depth and found[at].text in _CLOSE)


def _condition(found: list[Token], k: int) -> Iterator[Edit]:
    """What hangs on a condition always or never happens; a loop never runs."""
    word = found[k].text
    if word in ("if", "while"):
        end = found[_closing(found, k + 1)]
        for value in "01" if word == "if" else "0":
            yield Edit(found[k + 1].end, end.start, value, "condition")


def _statement(found: list[Token], k: int) -> Iterator[Edit]:
    """A call, an assignment or a jump is left out."""
    token = found[k]
    if found[k - 1].text not in (";", "{", "}", ":") and not (found[k - 1].text == ")" and token.text == "return"):
        return
    end = k
    while found[end].text != ";" or found[end].depth != token.depth:
        if found[end].text in ("{", "}") and found[end].depth <= token.depth:
            return
        end += 1
    words = [t.text for t in found[k:end] if t.depth == token.depth]
    if token.text in ("continue", "break", "return"):
        yield Edit(token.start, found[end].end, ";", "jump")
    elif token.text == "(" or (token.kind == "name" and token.text not in _KEYWORDS and not _declares(found, k)):
        kind = "assignment" if any(w in _ASSIGNS or w in ("++", "--") for w in words) else "call"
        yield Edit(token.start, found[end].end, ";", kind)


def _declares(found: list[Token], k: int) -> bool:
    after = found[k + 1]
    return after.kind == "name" or (after.text == "*" and found[k + 2].kind == "name")


def _flag(found: list[Token], k: int) -> Iterator[Edit]:
    """What is computed as a truth value is one or the other."""
    token = found[k]
    if token.text not in ("=", "return"):
        return
    end = k + 1
    while end < len(found) and (found[end].depth > token.depth or found[end].text not in (";", ",", "}")):
        end += 1
    inner = [t.text for t in found[k + 1 : end]]
    if any(w in ("==", "!=", "<", ">", "<=", ">=", "&&", "||", "!", "memcmp") for w in inner) and "{" not in inner:
        for value in "01":
            yield Edit(found[k + 1].start, found[end - 1].end, value, "flag")
