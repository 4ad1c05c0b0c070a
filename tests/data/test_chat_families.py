"""The chat templates of real families (as the trl package ships them) against transformers.

tests/oracle/make_chat_golden.py stored what transformers renders; here without transformers.
"""

import hashlib
import importlib.metadata
import json
from pathlib import Path

import pytest

from posttrain_jax.data.chat import TEMPLATES, ChatTemplate

GOLDEN = Path(__file__).parents[1] / "golden" / "chat_templates.json"
STORED = json.loads(GOLDEN.read_text())


def source_of(name):
    """The template's text; skips where the package or this version of it is not there."""
    path = TEMPLATES / f"{name}.jinja"
    if not path.is_file():
        try:
            files = importlib.metadata.files("trl") or []
        except importlib.metadata.PackageNotFoundError:
            pytest.skip("trl's chat templates: pip install --no-deps trl")
        found = [f for f in files if f.match(f"chat_templates/{name}.jinja")]
        if not found:
            pytest.skip(f"this version of trl has no chat template {name}")
        path = Path(str(found[0].locate()))
    source = path.read_text("utf-8")
    if hashlib.sha256(source.encode()).hexdigest()[:16] != STORED["templates"][name]["source"]:
        assert not (TEMPLATES / f"{name}.jinja").is_file(), "run make_chat_golden.py again"
        pytest.skip(f"this version of trl has another template {name}")
    return source


@pytest.mark.parametrize("name", STORED["templates"])
def test_renders_as_transformers_does(name):
    source, wrong = source_of(name), []
    for key, expected in STORED["templates"][name]["rendered"].items():
        conversation = STORED["conversations"][key]
        options = {"date": STORED["date"], **conversation.get("options", {})}
        template = ChatTemplate(source, "<eos>", "<bos>", tuple(options.items()))
        try:
            text, spans = template.render_spans(
                conversation["messages"],
                conversation.get("add_generation_prompt", False),
                tools=conversation.get("tools"),
                documents=conversation.get("documents"),
            )
        except ValueError:
            got = None
        else:
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            got = [digest, [list(span) for span in spans or []]]
        if got != expected:
            wrong.append((key, got, expected))
    assert wrong == []
