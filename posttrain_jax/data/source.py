"""JSONL files as random-access sequences of examples.

Only the byte offset of every line is held; a row is read when it is asked for. `len()` and `[i]`
are what grain's `MapDataset.source` wants. Every row is checked when the file is opened, so that a
bad line stops a run before it starts, with its file and line number.
"""

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

TEXT_FIELDS = ("prompt", "answer", "solution", "chosen", "rejected")
"""Fields of an example that are text; a number there is written out, 14.0 as "14"."""
SIDES = ("chosen", "rejected")
"""Those of them that may also be messages: an object or a list of objects."""

Rule = str | Mapping[str, Any]


class JsonlSource:
    """The rows of a JSONL file, renamed to the fields of an example; blank lines are skipped.

    A row without an "id" gets "<file name>-<line number>". Picklable, safe to read from threads.
    """

    def __init__(
        self,
        path: str | Path,
        fields: Mapping[str, Rule] | None = None,
        *,
        required: Sequence[str] = (),
        validate: bool = True,
    ):
        """Open a file.

        Args:
          path: one JSON object a line, UTF-8.
          fields: `{our field: rule}`; without it rows stay as they are. A rule is the name of a
            field of the row; a text with fields in braces ("{Body} {Question}"); `{"field": name,
            "after": mark}`, the text after the last mark (GSM8K's "####"); or `{"value": x}`.
          required: our fields that every row must have (those with a rule always are).
          validate: check every row now; otherwise a bad row raises when it is read.

        Raises:
          FileNotFoundError: no such file.
          ValueError: a malformed row or one that lacks a field (with file and line), or no rows.
        """
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise FileNotFoundError(f"no data file {self.path}; set the path of this data source")
        self.fields = {name: _plain(rule) for name, rule in (fields or {}).items()}
        self.required = tuple(required)
        self._starts, self._lines = array("Q"), array("Q")
        start = 0
        with self.path.open("rb") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    self._starts.append(start)
                    self._lines.append(number)
                    if validate:
                        self._example(line, number)
                start += len(line)
        if not self._starts:
            raise ValueError(f"{self.path} holds no rows")

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        with self.path.open("rb") as f:
            f.seek(self._starts[index])
            return self._example(f.readline(), self._lines[index])

    def _example(self, line: bytes, number: int) -> dict[str, Any]:
        where = f"{self.path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
            raise ValueError(f"{where}: not a JSON object: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}")
        if self.fields:
            row = {name: _apply(rule, row, name, where) for name, rule in self.fields.items()}
        for name in self.required:
            if name not in row:
                raise ValueError(f"{where}: no field {name!r}; the row has {sorted(row)}")
        for name in TEXT_FIELDS:
            if name in row and not (name in SIDES and _are_messages(row[name])):
                row[name] = _text(row[name], name, where)
        return {"id": f"{self.path.stem}-{number}", **row}


def _plain(rule: Rule) -> Rule:
    known = ({"field"}, {"field", "after"}, {"value"})
    if isinstance(rule, str) or set(rule) in known:
        return rule if isinstance(rule, str) else dict(rule)
    raise ValueError(
        f"fields: a rule is a field's name, a text with fields in braces, "
        f"{{'field', 'after'}} or {{'value'}}; got {rule!r}"
    )


def _apply(rule: Rule, row: Mapping[str, Any], name: str, where: str) -> Any:
    try:
        if isinstance(rule, str):
            return rule.format_map(row) if "{" in rule else row[rule]
        if "value" in rule:
            return rule["value"]
        value = row[rule["field"]]
    except KeyError as error:
        raise ValueError(
            f"{where}: no field {error} (it is to become {name!r}); the row has {sorted(row)}"
        ) from None
    if "after" not in rule:
        return value
    _, mark, after = str(value).rpartition(rule["after"])
    if not mark:
        raise ValueError(f"{where}: field {rule['field']!r} has no {rule['after']!r} in it")
    return after.strip()


def _are_messages(value: Any) -> bool:
    turns = value if isinstance(value, list) else [value]
    return bool(turns) and all(isinstance(turn, dict) and "role" in turn for turn in turns)


def _text(value: Any, name: str, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: field {name!r} must be text or a number, got {value!r:.80}")
    return str(int(value)) if float(value).is_integer() else repr(value)
