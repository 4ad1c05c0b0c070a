"""From a stage's `data` setting to examples, and from examples to token sequences.

`data` is a dict of named sources, mixed by their counts. A source is one of
  {"tasks": {name: weight}, "split": "train", "count": n, "languages": (...), "options": {...}}
  {"path": "file.jsonl", "fields": {ours: theirs}, "count": n}     (count 0: all rows)
  {"input": role, "count": n}                                     (the data.jsonl of an artifact)
  {"input": role, "folder": name}                                 (that of a folder in it)
All but the first may add "where": {field: value}, to keep some rows, and "skip": leave out the
first of those. Each may "add": {field: value} to its rows, such as the `system` prompt of these
alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain_jax.api import Artifact
from posttrain_jax.data import chat, procedural
from posttrain_jax.data.inserted import encode_inserted
from posttrain_jax.data.source import JsonlSource
from posttrain_jax.data.tokenizer import Tokenizer

DATA = "data.jsonl"
KEYS = {
    "tasks": ("tasks", "split", "count", "languages", "options", "add"),
    "path": ("path", "fields", "count", "skip", "where", "add"),
    "input": ("input", "folder", "count", "skip", "where", "add"),
}
"""The settings of each sort of source."""
Example = Mapping[str, Any]


def load_examples(
    sources: Mapping[str, Mapping[str, Any]], inputs: Mapping[str, Artifact], seed: int
) -> list[dict[str, Any]]:
    """All examples of all sources, in the order of the sources' names.

    Raises:
      ValueError: an unknown key or role, a source of no kind, malformed data (file and line).
    """
    found: list[dict[str, Any]] = []
    for name in sorted(sources):
        rows = _load(name, sources[name], inputs, seed)
        if not rows:
            raise ValueError(f"data.{name} has no rows: check its path, count, skip and where")
        added = sources[name].get("add", {})
        found += [{"source": name, **row, **added} for row in rows]
    return found


def _load(name, source: Mapping[str, Any], inputs, seed: int) -> list[dict[str, Any]]:
    sorts = [sort for sort in KEYS if sort in source]
    if len(sorts) != 1:
        raise ValueError(f"data.{name} needs one of tasks, path, input; got {sorted(source)}")
    known = KEYS[sorts[0]]
    if unknown := set(source) - set(known):
        raise ValueError(
            f"data.{name}: unknown keys {sorted(unknown)}; with {sorts[0]!r} there are {known}"
        )
    count, skip = source.get("count", 0), source.get("skip", 0)
    if "tasks" in source:
        return procedural.examples(
            source["tasks"],
            split=source.get("split", "train"),
            count=count,
            seed=seed,
            languages=source.get("languages", ("en", "zh")),
            **source.get("options", {}),
        )
    if "path" in source:
        rows = JsonlSource(source["path"], fields=source.get("fields", {}))
    else:
        if source["input"] not in inputs:
            raise ValueError(f"data.{name}: no input {source['input']!r}; has {sorted(inputs)}")
        rows = JsonlSource(inputs[source["input"]].path / source.get("folder", "") / DATA)
    wanted = source.get("where", {})
    kept = [row for row in rows if all(row.get(k) == v for k, v in wanted.items())]
    return kept[skip : skip + count if count else None]


def messages(example: Example, response: str | None = None, system: str = "") -> list[dict]:
    """The conversation of an example, with the assistant's turn if one is given.

    It is the example's `prompt`; without one its `messages`, up to where the assistant goes on. A
    `system` prompt of the example's own comes before the one that is given.

    Raises:
      ValueError: the example has neither.
    """
    system = example.get("system", system)
    asked = [{"role": "user", "content": example["prompt"]}] if "prompt" in example else None
    if asked is None and "messages" not in example:
        raise ValueError(f"example {example.get('id')!r} has neither prompt nor messages")
    turns = asked or [dict(message) for message in example["messages"]]
    if system and turns and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    if response is not None:
        turns.append({"role": "assistant", "content": response})
    return turns


def target(example: Example) -> str:
    """The response that supervised stages imitate: the sampled, chosen or worked one.

    Raises:
      ValueError: the example has none of them.
    """
    for key in ("response", "chosen", "solution"):
        if str(example.get(key) or "").strip():
            return example[key]
    raise ValueError(
        f"example {example.get('id')!r} has no response, chosen or solution to train on"
    )


def encode_examples(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    template: chat.ChatTemplate,
    system: str = "",
    results: Sequence[tuple[str, str]] = (),
) -> list[tuple[list[int], list[bool]]]:
    """(tokens, loss mask) of each example's conversation; loss on the assistant's turn.

    Args:
      results: what tools said in that turn stands between the texts of one of these pairs.

    Raises:
      ValueError: an example that can't be encoded, or that teaches nothing, by its id.
    """
    encoded = []
    for example in examples:
        try:
            turns = messages(example, target(example), system)
            if results:
                encoded.append(encode_inserted(tokenizer, template, turns, results))
            else:
                encoded.append(chat.encode_chat(tokenizer, template, turns))
        except ValueError as error:
            raise ValueError(f"example {example.get('id')!r}: {error}") from error
        if not {t for t, learnt in zip(*encoded[-1], strict=True) if learnt} - {tokenizer.eos_id}:
            raise ValueError(
                f"example {example.get('id')!r} has no token to learn from but its end: the chat "
                "template or `results` masks all of its response; leave it out of the data"
            )
    return encoded
