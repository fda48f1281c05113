"""Filter text -> an engine expression over known columns. Our own small grammar; nothing is ever evaluated. Light.

    motion_proxy >= 1.1 and (aesthetic_proxy > 4 or state in ('kept', 'new')) and caption is not null

Words: and, or, not, parentheses; = == != <> < <= > >= (column or value on either side); [not] in (...);
[not] between A and B; [not] like '%text%'; is [not] null; LIST has VALUE; a boolean column by itself.
Text stands in single or double quotes. A comparison with null is neither true nor false, as in SQL, so
`not (motion_proxy >= 1.1)` leaves unknown motion out; ask for it with `motion_proxy is null`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa

MAX_DEPTH = 64
"""Nested parentheses and `not`s; deeper text is a mistake and would exhaust Python's stack."""
SHOWN_COLUMNS = 6
"""Of each group, where a name is like none."""

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![A-Za-z_0-9.]))
  | (?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
  | (?P<word>[A-Za-z_][A-Za-z_0-9]*)
  | (?P<mark><=|>=|<>|!=|==|=|<|>|\(|\)|,)
    )""",
    re.VERBOSE,
)
_COMPARISONS = {"=": "=", "==": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_WORDS = frozenset(["and", "or", "not", "in", "is", "null", "between", "like", "has", "true", "false"])


class QueryError(ValueError):
    """A user's mistake in a query; the message is one clear line."""


@dataclass(frozen=True)
class _Token:
    kind: str  # number | text | word | mark | end
    text: str
    place: int


@dataclass(frozen=True)
class _Operand:
    kind: str  # number | text | boolean | time | list | vector
    sql: str
    shown: str
    is_column: bool
    value: object = None


def compile_filter(text: str, schema: pa.Schema) -> str:
    """The engine's SQL for a filter text. Raises QueryError (one line) for unknown columns, wrong types, bad grammar.

    The SQL is written anew from the parsed text: names are columns of the schema in backticks, values are
    quoted literals, so nothing of the text reaches the engine as it stands.
    """
    parser = _Parser(text, schema)
    sql = parser.disjunction(0)
    parser.expect_end()
    return sql


def check_column(name: str, schema: pa.Schema, hint: str = "") -> str:
    """The name, when it is a column. Raises QueryError with the nearest names and their units, or with the first of each group.

    `hint`: what else the name may have been meant as.
    """
    if name in schema.names:
        return name
    near = nearest_columns(name, schema)
    if not near:
        raise QueryError(f'unknown column "{name}"{hint}; {_grouped(schema)}')
    raise QueryError(f'unknown column "{name}"; did you mean {_either([_described(n, schema) for n in near])}?')


def nearest_columns(name: str, schema: pa.Schema, limit: int = 3) -> list[str]:
    """Columns that a misspelt name most likely means, nearest first; scores go before other columns."""
    word = name.lower()
    scores = [n for n in schema.names if f"{n}_run" in schema.names]
    plain = scores + [n for n in schema.names if n not in scores and not n.endswith("_run")]

    def likeness(column: str) -> float:
        stem = column.split("_")[0] if column in scores else column
        return max(difflib.SequenceMatcher(None, word, other).ratio() for other in (column, stem))

    near = [(likeness(column), column) for column in plain]
    near = [pair for pair in near if pair[0] >= 0.6]
    return [column for _, column in sorted(near, key=lambda pair: -pair[0])][:limit]


def _grouped(schema: pa.Schema) -> str:
    """How many columns there are and the first of each group, in one short line, and the question that shows all."""
    scores = [n for n in schema.names if f"{n}_run" in schema.names]
    lineages = [n for n in schema.names if n.endswith("_run") and n.removesuffix("_run") in scores]
    plain = [n for n in schema.names if n not in scores and n not in lineages]
    groups = [_first(names, kind) for names, kind in ((scores, "scores"), (plain, "others" if scores else "columns")) if names]
    groups += ["a lineage beside each score (SCORE_run)"] if lineages else []
    count = f"{len(schema.names)} columns: " if scores else ""
    return f"{count}{'; '.join(groups)}; all of them: flashvideo query --columns all"


def _first(names: list[str], kind: str) -> str:
    more = ", ..." if len(names) > SHOWN_COLUMNS else ""
    return f"{len(names)} {kind} ({', '.join(names[:SHOWN_COLUMNS])}{more})"


def unit_of(field: pa.Field) -> str:
    """The unit that the schema declares for a column, or an empty text."""
    return ((field.metadata or {}).get(b"unit") or b"").decode()


def _described(name: str, schema: pa.Schema) -> str:
    unit = unit_of(schema.field(name))
    return f"{name} ({unit})" if unit else name


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]


def kind_of(type_: pa.DataType) -> str:
    """number, text, boolean, time, list (of texts or numbers) or vector."""
    if pa.types.is_boolean(type_):
        return "boolean"
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        return "number"
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return "text"
    if pa.types.is_timestamp(type_):
        return "time"
    if pa.types.is_fixed_size_list(type_):
        return "vector"
    return "list"


def quote_text(value: str) -> str:
    """A text as the engine's literal."""
    return "'" + value.replace("'", "''") + "'"


def any_of(column: str, values: Iterable[str]) -> str:
    """Filter text (not SQL): the column is one of the texts."""
    listed = ", ".join(quote_text(value) for value in values)
    return f"{column} in ({listed})" if listed else f"{column} is null and {column} is not null"


def _tokens(text: str) -> list[_Token]:
    tokens, place, end = [], 0, len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None:
            rest = text[place:].lstrip()
            hint = "; close the quote" if rest[0] in "'\"" else ""
            raise QueryError(f"cannot read the filter at {_cut(rest)!r} (character {len(text) - len(rest) + 1}){hint}")
        kind = match.lastgroup or ""
        tokens.append(_Token(kind, match.group(kind), match.start(kind)))
        place = match.end()
    return [*tokens, _Token("end", "", len(text))]


def _cut(text: str, length: int = 24) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


class _Parser:
    """Recursive descent; every method returns SQL."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self._text, self._schema = text, schema
        self._tokens, self._next = _tokens(text), 0
        if self._tokens[0].kind == "end":
            raise QueryError("the filter is empty; write for example: motion_proxy >= 1.1 and state = 'kept'")

    def disjunction(self, depth: int) -> str:
        parts = [self._conjunction(depth)]
        while self._take_word("or"):
            parts.append(self._conjunction(depth))
        return parts[0] if len(parts) == 1 else "(" + " OR ".join(parts) + ")"

    def expect_end(self) -> None:
        token = self._peek()
        if token.kind != "end":
            raise QueryError(f"did not expect {token.text!r} {self._where(token)}; join conditions with and / or")

    def _conjunction(self, depth: int) -> str:
        parts = [self._negation(depth)]
        while self._take_word("and"):
            parts.append(self._negation(depth))
        return parts[0] if len(parts) == 1 else "(" + " AND ".join(parts) + ")"

    def _negation(self, depth: int) -> str:
        if depth > MAX_DEPTH:
            raise QueryError(f"the filter nests more than {MAX_DEPTH} levels deep; write it flatter")
        if self._take_word("not"):
            return f"(NOT {self._negation(depth + 1)})"
        if self._take_mark("("):
            inner = self.disjunction(depth + 1)
            self._need_mark(")")
            return inner
        return self._predicate()

    def _predicate(self) -> str:
        left = self._operand()
        token = self._peek()
        if token.kind == "mark" and token.text in _COMPARISONS:
            self._next += 1
            right = self._operand()
            return self._comparison(left, _COMPARISONS[token.text], right)
        if self._take_word("is"):
            negated = self._take_word("not")
            self._need_word("null")
            return f"({self._column_only(left, 'is null')} IS {'NOT ' if negated else ''}NULL)"
        if self._take_word("has"):
            return self._membership(left)
        negated = self._take_word("not")
        not_ = "NOT " if negated else ""
        if self._take_word("in"):
            return f"({self._column_only(left, 'in')} {not_}IN ({', '.join(self._values(left))}))"
        if self._take_word("between"):
            low = self._coerced(left, self._value())
            self._need_word("and")
            return f"({self._column_only(left, 'between')} {not_}BETWEEN {low} AND {self._coerced(left, self._value())})"
        if self._take_word("like"):
            pattern = self._value()
            if left.kind != "text" or pattern.kind != "text":
                raise QueryError(f"like compares text columns with quoted text; {left.shown} is {_a(left.kind)}")
            return f"({self._column_only(left, 'like')} {not_}LIKE {pattern.sql})"
        if not negated and left.is_column and left.kind == "boolean":
            return left.sql
        raise QueryError(f"expected a comparison after {left.shown!r} {self._where(self._peek())}, e.g. >= 1.1, in (...), is null")

    def _comparison(self, left: _Operand, sign: str, right: _Operand) -> str:
        if not left.is_column and not right.is_column:
            raise QueryError(f"{left.shown} {sign} {right.shown} names no column")
        if left.is_column and not right.is_column:
            return f"({left.sql} {sign} {self._coerced(left, right)})"
        if right.is_column and not left.is_column:
            return f"({self._coerced(right, left)} {sign} {right.sql})"
        if left.kind != right.kind or left.kind in ("list", "vector"):
            raise QueryError(f"cannot compare {left.shown} ({left.kind}) with {right.shown} ({right.kind})")
        return f"({left.sql} {sign} {right.sql})"

    def _membership(self, left: _Operand) -> str:
        if not left.is_column or left.kind != "list":
            raise QueryError(f"has looks into list columns; {left.shown} is {_a(left.kind)}")
        value = self._value()
        item = kind_of(self._schema.field(left.shown).type.value_type)
        if value.kind != item:
            raise QueryError(f"{left.shown} holds {item}s, {value.shown} is {_a(value.kind)}")
        return f"array_has({left.sql}, {value.sql})"

    def _values(self, column: _Operand) -> list[str]:
        self._need_mark("(")
        values = [self._coerced(column, self._value())]
        while self._take_mark(","):
            values.append(self._coerced(column, self._value()))
        self._need_mark(")")
        return values

    def _coerced(self, column: _Operand, value: _Operand) -> str:
        """The value's SQL, checked against the column's kind."""
        if column.kind == "time" and value.kind == "text":
            return _time(str(value.value), column.shown)
        if column.kind != value.kind:
            unit = unit_of(self._schema.field(column.shown)) if column.is_column else ""
            raise QueryError(
                f"{column.shown} is {_a(column.kind)}{f' ({unit})' if unit else ''}; {value.shown} is {_a(value.kind)}"
                + ("; leave the quotes out" if column.kind == "number" and value.kind == "text" else "")
            )
        return value.sql

    def _column_only(self, operand: _Operand, word: str) -> str:
        if not operand.is_column:
            raise QueryError(f"{word} needs a column on its left, found {operand.shown}")
        return operand.sql

    def _value(self) -> _Operand:
        operand = self._operand()
        if operand.is_column:
            raise QueryError(f"expected a value, found the column {operand.shown}; put text in quotes: '{operand.shown}'")
        return operand

    def _operand(self) -> _Operand:
        token = self._peek()
        self._next += 1
        if token.kind == "number":
            return _number(token.text)
        if token.kind == "text":
            quote = token.text[0]
            value = token.text[1:-1].replace(quote * 2, quote)
            return _Operand("text", quote_text(value), f"'{_cut(value)}'", False, value)
        if token.kind == "word" and token.text.lower() in ("true", "false"):
            return _Operand("boolean", token.text.upper(), token.text, False, token.text.lower() == "true")
        if token.kind == "word" and token.text.lower() == "null":
            raise QueryError("null is unknown, so it equals nothing; write: COLUMN is null, or COLUMN is not null")
        if token.kind == "word" and token.text.lower() not in _WORDS:
            return self._column(token)
        self._next -= 1
        raise QueryError(f"expected a column or a value {self._where(token)}, found {token.text or 'the end'!r}")

    def _column(self, token: _Token) -> _Operand:
        following = self._peek()
        if following.kind == "mark" and following.text == "(":
            raise QueryError(f"there are no functions in filters: {token.text}(...)")
        name = check_column(token.text, self._schema, "; text stands in quotes")
        return _Operand(kind_of(self._schema.field(name).type), f"`{name}`", name, True)

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take_word(self, word: str) -> bool:
        token = self._peek()
        if token.kind == "word" and token.text.lower() == word:
            self._next += 1
            return True
        return False

    def _take_mark(self, mark: str) -> bool:
        token = self._peek()
        if token.kind == "mark" and token.text == mark:
            self._next += 1
            return True
        return False

    def _need_word(self, word: str) -> None:
        if not self._take_word(word):
            raise QueryError(f"expected {word!r} {self._where(self._peek())}, found {self._peek().text or 'the end'!r}")

    def _need_mark(self, mark: str) -> None:
        if not self._take_mark(mark):
            raise QueryError(f"expected {mark!r} {self._where(self._peek())}, found {self._peek().text or 'the end'!r}")

    def _where(self, token: _Token) -> str:
        return f"at character {token.place + 1} of the filter"


def _a(kind: str) -> str:
    return {"number": "a number", "text": "text", "boolean": "true or false", "time": "a time"}.get(kind, f"a {kind}")


def _number(text: str) -> _Operand:
    value: float | int = int(text) if re.fullmatch(r"[+-]?\d{1,308}", text) else float(text)
    if not math.isfinite(value):
        raise QueryError(f"{_cut(text)} is too large for a number")
    fits = isinstance(value, int) and abs(value) < 2**63
    return _Operand("number", str(value) if fits else repr(float(value)), text, False, value)


def _time(text: str, column: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise QueryError(f"{column} is a time; {text!r} is none. Write '2026-01-31' or '2026-01-31T12:00:00'") from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return f"TIMESTAMP '{moment.strftime('%Y-%m-%d %H:%M:%S.%f')}'"
