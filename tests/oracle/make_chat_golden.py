"""What transformers renders for the chat templates of real families, over a set of conversations.

    pip install -e '.[oracle]'; pip install --no-deps trl
    python tests/oracle/make_chat_golden.py

writes tests/golden/chat_templates.json: the conversations, and for each template that the trl
package ships (chat_templates/*.jinja) and each that we ship, by the hash of its text, a digest of
every rendered conversation and the spans of its `{% generation %}` blocks; null where the template
refuses the conversation. Only digests: the templates stay where they are. The clock is pinned. Also
the JSON schemas of some functions.
"""

import datetime
import hashlib
import importlib.metadata
import json
import typing
from pathlib import Path

import transformers.utils.chat_template_utils as theirs

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "chat_templates.json"
DATE = "2025-01-31"


def say(role: str, content: str | None, **more) -> dict:
    """One message."""
    return {"role": role, "content": content, **more}


SYSTEM = say("system", "Be brief & <kind> — é好.")
USER = say("user", 'What\'s 2+3? "Quote" <b>it</b>')
REPLY = say("assistant", "It's 5.\n\nDone.")
AGAIN = say("user", "  And then?\n")
THOUGHT = say("assistant", "<think>\ntwo and three\n</think>\n\nIt's 5.")
REASONED = say("assistant", "It's 5.", reasoning_content="two and three")
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather at a place <now> & then, naïve",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "A town"},
                "days": {"type": "integer", "enum": [1, 3]},
            },
            "required": ["place"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "The time",
        "parameters": {"type": "object", "properties": {}},
    },
}


def call(name: str, arguments: dict, number: int = 0) -> dict:
    """One tool call as OpenAI writes it."""
    inner = {"name": name, "arguments": arguments}
    return {"type": "function", "id": f"call{number:05d}", "function": inner}


CALL = say("assistant", "", tool_calls=[call("weather", {"place": "Zürich <b>", "days": 3})])
CALLS = say(
    "assistant",
    "Let me look.",
    tool_calls=[call("weather", {"place": "Zürich"}), call("clock", {}, 1)],
)
SILENT = say("assistant", None, tool_calls=[call("clock", {})])
RESULT = say("tool", '{"sky": "grün & <blue>"}', name="weather", tool_call_id="call00000")
TIME = say("tool", "12:00", name="clock", tool_call_id="call00001")
DOCUMENTS = [{"title": "A", "text": "Alpha <x>"}, {"title": "B", "text": "Beta"}]

CONVERSATIONS = {
    "user": {"messages": [USER], "add_generation_prompt": True},
    "system": {"messages": [SYSTEM, USER], "add_generation_prompt": True},
    "one turn": {"messages": [USER, REPLY]},
    "two turns": {"messages": [SYSTEM, USER, REPLY, AGAIN, REPLY]},
    "two turns, prompt": {
        "messages": [USER, REPLY, AGAIN],
        "add_generation_prompt": True,
    },
    "spaces": {"messages": [AGAIN, say("assistant", "\n  padded  \n")]},
    "thought": {"messages": [USER, THOUGHT]},
    "thought, two turns": {"messages": [USER, THOUGHT, AGAIN, THOUGHT]},
    "reasoning": {"messages": [USER, REASONED, AGAIN, REASONED]},
    "no thinking": {
        "messages": [USER],
        "add_generation_prompt": True,
        "options": {"enable_thinking": False},
    },
    "no thinking, reply": {"messages": [USER, REPLY], "options": {"enable_thinking": False}},
    "tools": {"messages": [SYSTEM, USER], "tools": [WEATHER, CLOCK], "add_generation_prompt": True},
    "no tools": {"messages": [USER], "tools": [], "add_generation_prompt": True},
    "tool call": {"messages": [USER, CALL], "tools": [WEATHER]},
    "tool result": {"messages": [USER, CALL, RESULT, REPLY], "tools": [WEATHER]},
    "two calls": {"messages": [USER, CALLS, RESULT, TIME, REPLY], "tools": [WEATHER, CLOCK]},
    "silent call": {
        "messages": [SYSTEM, USER, SILENT, TIME],
        "tools": [CLOCK],
        "add_generation_prompt": True,
    },
    "call, then a turn": {
        "messages": [USER, CALL, RESULT, REASONED, AGAIN, REASONED],
        "tools": [WEATHER],
    },
    "documents": {"messages": [USER], "documents": DOCUMENTS, "add_generation_prompt": True},
}


FUNCTIONS = {
    "weather": '''
def weather(place: str, days: int = 1, unit: Literal["c", "f"] = "c") -> dict[str, float]:
    """
    The weather at a place.
    In two lines.

    Args:
        place: A town, as in "Zürich"
        days: How many days,
            at most ten
        unit: Celsius or Fahrenheit

    Returns:
        Temperatures by day
    """
''',
    "order": '''
def order(drink: str, sizes: list[int], note: Optional[str] = None, mixed: int | str | None = 3):
    """Order a drink

    Args:
        drink: What to drink (choices: ["tea", "coffee"])
        sizes: In ml: one each
        note: For the kitchen
        mixed: Either
    """
''',
    "point": '''
def point(at: tuple[float, float], either: Union[list[int], dict], some: Any, flag: bool) -> str:
    """Point somewhere.

    Args:
        at: Where
        either: One
        some: Any
        flag: Yes
    """
''',
    "clock": '''
def clock():
    """The time."""
''',
}


class Clock(datetime.datetime):
    """A day that stays."""

    @classmethod
    def now(cls, tz=None):
        """Midnight of `DATE`."""
        return cls.fromisoformat(DATE)


def templates() -> dict[str, str]:
    """Name to text: trl's, then ours."""
    files = importlib.metadata.files("trl") or []
    paths = [Path(str(f.locate())) for f in files if f.match("chat_templates/*.jinja")]
    paths += (ROOT / "posttrain_jax" / "data" / "templates").glob("*.jinja")
    return {path.stem: path.read_text("utf-8") for path in sorted(paths)}


def render(source: str, conversation: dict) -> list | None:
    """[digest, spans], or None where the template refuses."""
    try:
        [text], [spans] = theirs.render_jinja_template(
            [conversation["messages"]],
            tools=conversation.get("tools"),
            documents=conversation.get("documents"),
            chat_template=source,
            return_assistant_tokens_mask=True,
            add_generation_prompt=conversation.get("add_generation_prompt", False),
            eos_token="<eos>",
            bos_token="<bos>",
            **conversation.get("options", {}),
        )
    except Exception as error:  # whatever the template's operations raise
        print(f"refused: {type(error).__name__}: {error}")
        return None
    return [hashlib.sha256(text.encode()).hexdigest()[:16], [list(span) for span in spans]]


def main() -> None:
    """Render everything and write the file."""
    theirs.datetime = Clock
    rendered = {}
    for name, source in templates().items():
        digest = hashlib.sha256(source.encode()).hexdigest()[:16]
        rows = {key: render(source, conversation) for key, conversation in CONVERSATIONS.items()}
        rendered[name] = {"source": digest, "rendered": rows}
    functions = {}
    for name, source in FUNCTIONS.items():
        scope = dict(vars(typing))
        exec(source, scope)
        functions[name] = {"source": source, "schema": theirs.get_json_schema(scope[name])}
    golden = {
        "date": DATE,
        "conversations": CONVERSATIONS,
        "functions": functions,
        "templates": rendered,
    }
    text = json.dumps(golden, ensure_ascii=True, separators=(",", ":"))
    GOLDEN.write_text(text.replace('},"', '},\n"') + "\n", encoding="ascii")
    print(f"{len(rendered)} templates, {len(CONVERSATIONS)} conversations")


if __name__ == "__main__":
    main()
