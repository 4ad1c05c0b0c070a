"""Masks with tools, reasoning and generation blocks; template options; what a template may do."""

import time

import pytest

from posttrain_jax.data.chat import (
    ChatTemplate,
    encode_chat,
    encode_prompt,
    load_template,
    split_turns,
)
from posttrain_jax.data.tokenizer import load_tokenizer

USER = {"role": "user", "content": "what is the answer?"}
REPLY = {"role": "assistant", "content": "the answer is three"}
THOUGHT = {**REPLY, "reasoning_content": "the fox"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "find", "arguments": {"x": "<é>"}}}],
}
RESULT = {"role": "tool", "content": "four"}
# ChatML with reasoning that the next user turn drops, as Qwen3 has it, and tool calls as JSON.
THINK = (
    "{% if m.reasoning_content and (keep or messages[loop.index0:]"
    "|selectattr('role', 'equalto', 'user')|list|length == 0) %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}"
)
SAID = "{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"


def chatml(
    assistant=THINK + SAID + "<|im_end|>", user="{{ m.content }}<|im_end|>", head="{{ NL }}"
):
    """The template; `head` stands between an assistant's role and its turn."""
    source = (
        "{% if tools %}<|im_start|>system{{ NL }}{{ tools | tojson }}<|im_end|>{{ NL }}{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.role == 'assistant' %}"
        f"{head}{assistant}{{% else %}}{{{{ NL }}}}{user}{{% endif %}}{{{{ NL }}}}{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant{{ NL }}{% endif %}"
    )
    return source.replace("{{ NL }}", "{{ '\\n' }}")


OPEN, CLOSE = "{% generation %}", "{% endgeneration %}"
QWEN = chatml()


@pytest.fixture(scope="module")
def bpe(bpe_folder):
    return load_tokenizer(bpe_folder)


def trained(bpe, template, messages, **options):
    """The texts of the masked runs."""
    tokens, mask = encode_chat(bpe, template, messages, **options)
    runs, inside = [], False
    for token, wanted in zip(tokens, mask, strict=True):
        if wanted and not inside:
            runs.append([])
        if wanted:
            runs[-1].append(token)
        inside = wanted
    return [bpe.decode(run) for run in runs]


def test_tool_calls_are_trained_on_and_results_are_not(bpe):
    template = ChatTemplate(QWEN, bpe.eos_token)
    tools = [{"type": "function", "function": {"name": "find", "description": "<b>"}}]
    messages = [USER, CALL, RESULT, REPLY]
    call = '{"name": "find", "arguments": {"x": "<é>"}}<|im_end|>'
    expected = [call, "the answer is three<|im_end|>"]
    assert trained(bpe, template, messages, tools=tools) == expected
    prompt = encode_prompt(bpe, template, messages[:1], tools=tools)
    assert '"description": "<b>"' in bpe.decode(prompt)
    tokens, mask = encode_chat(bpe, template, messages, tools=tools)
    assert tokens[: mask.index(True)] == prompt


def test_dropped_reasoning_is_refused_or_trained_turn_by_turn(bpe):
    template = ChatTemplate(QWEN, bpe.eos_token, name="qwen.jinja")
    messages = [USER, THOUGHT, USER, THOUGHT]
    with pytest.raises(ValueError, match=r"^qwen.jinja: .* message 1 .*set turns='last'"):
        encode_chat(bpe, template, messages)
    reply = "<think>the fox</think>the answer is three<|im_end|>"
    assert trained(bpe, template, messages, turns="last") == [reply]
    rows = split_turns(messages)
    assert [len(row) for row in rows] == [2, 4]
    assert [trained(bpe, template, row, turns="last") for row in rows] == [[reply], [reply]]
    keep = ChatTemplate(QWEN, bpe.eos_token, options=(("keep", True),))
    assert trained(bpe, keep, messages) == [reply, reply]
    assert split_turns([USER, CALL, RESULT, REPLY, USER]) == [[USER, CALL, RESULT, REPLY]]
    with pytest.raises(ValueError, match="turns: expected 'all' or 'last', got 'first'"):
        encode_chat(bpe, template, messages, turns="first")


def test_generation_blocks_decide_inside_the_turns(bpe):
    messages = [USER, THOUGHT]
    whole = "<think>the fox</think>the answer is three<|im_end|>"
    turn = THINK + SAID + "<|im_end|>"
    template = ChatTemplate(chatml(OPEN + turn + CLOSE), bpe.eos_token)
    text, [(start, end)] = template.render_spans(messages)
    assert text[start:end] == whole and text == ChatTemplate(QWEN, bpe.eos_token).render(messages)
    assert ChatTemplate(QWEN, bpe.eos_token).render_spans(messages)[1] is None
    assert trained(bpe, template, messages) == [whole]
    # A block that starts behind the thought: only the answer is trained.
    late = ChatTemplate(chatml(f"{THINK}{OPEN}{SAID}<|im_end|>{CLOSE}"), bpe.eos_token)
    assert trained(bpe, late, messages) == ["the answer is three<|im_end|>"]
    # One that takes in part of the generation prompt is cut to what is sampled.
    early = ChatTemplate(chatml(turn + CLOSE, head=OPEN + "{{ NL }}"), bpe.eos_token)
    assert trained(bpe, early, messages) == [whole]


def test_generation_blocks_that_do_not_fit_are_refused(bpe):
    never_ends = ChatTemplate(chatml(f"{OPEN}{SAID}{CLOSE}<|im_end|>"), bpe.eos_token)
    with pytest.raises(
        ValueError, match=r"generation block of message 1 .* leaves out the end-of-s"
    ):
        encode_chat(bpe, never_ends, [USER, REPLY])
    users = ChatTemplate(chatml(user=f"{OPEN}{{{{ m.content }}}}{CLOSE}<|im_end|>"), bpe.eos_token)
    with pytest.raises(ValueError, match=r"what is the answer\?.* expected inside an assistant's"):
        encode_chat(bpe, users, [USER, REPLY])


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("text", "message 1: expected an object"),
        ({"role": "bot", "content": "x"}, "expected a role of system, developer, .* got 'bot'"),
        ({"role": "user", "content": ["x"]}, "message 1 needs a role and a text content"),
        ({**REPLY, "reasoning_content": 3}, "message 1: expected reasoning_content to be text"),
        (
            {**USER, "tool_calls": []},
            r"message 1 \(user\): expected tool_calls to be a list, in an",
        ),
        ({**REPLY, "tool_calls": {"a": 1}}, "expected tool_calls to be a list"),
        ({**REPLY, "tool_calls": [{"function": {}}]}, "expected a tool call with a name and arg"),
        (
            {**REPLY, "tool_calls": [{"name": "f", "arguments": {"a": ["<|im_end|>"]}}]},
            r"message 1 \(assistant\) holds the turn marker '<\|im_end",
        ),
        ({**REPLY, "reasoning_content": "<|im_start|>"}, "holds the turn marker"),
        ({**REPLY, "extra": object()}, "message 1: expected what JSON can hold"),
        ({**REPLY, "content": "\ufdd0"}, "message 1 holds the noncharacter"),
    ],
)
def test_malformed_messages_say_which_and_why(message, expected, bpe):
    with pytest.raises(ValueError, match=expected):
        encode_chat(bpe, ChatTemplate(QWEN, bpe.eos_token), [USER, message])


def test_the_clock_is_pinned_or_absent(bpe, tmp_path):
    path = tmp_path / "dated.jinja"
    path.write_text(
        "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}none{% endif %}"
    )
    assert load_template(path, bpe).render([]) == "none"
    pinned = load_template(path, bpe, {"date": "2025-01-31", "enable_thinking": False})
    assert pinned.render([]) == "31 Jan 2025"
    assert pinned.hash != load_template(path, bpe).hash
    path.write_text("{{ strftime_now('%Y') }}")
    with pytest.raises(ValueError, match=r"dated.jinja: .*date='YYYY-MM-DD' \(line 1\)"):
        load_template(path, bpe).render([])
    for options in ({"messages": "x"}, {"x": [1]}):
        with pytest.raises(ValueError, match="chat template option"):
            load_template(path, bpe, options)


def test_tojson_is_transformers(bpe):
    source = "{{ messages | tojson }}{{ {'b': 1, 'a': '<&>é'} | tojson(indent=2) }}"
    text = ChatTemplate(source).render([{"role": "user", "content": "'<é>\""}])
    assert text == ('[{"role": "user", "content": "\'<é>\\""}]' + '{\n  "b": 1,\n  "a": "<&>é"\n}')


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ messages.__class__ }}", "asks for the attribute '__class__' of a list"),
        ("{{ cycler.__init__.__globals__ }}", "attribute '__init__' of a type"),
        ("{{ 'x' | attr('__class__') }}", "attribute '__class__' of a str"),
        ("{% for i in range(10**9) %}{% endfor %}", "blocks ranges larger than"),
        ("\n{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
         r"loops take more than 1000000 turns \(line 2\)"),
        ("{{ 'x' * 10**10 }}", "more than 50000000 characters"),
        ("{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}"
         "{% endfor %}", "more than 50000000 characters"),
        ("{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}"
         "{% endfor %}", "more than 50000000 characters"),
        ("{{ '%999999999d' % 1 }}", "a width too large"),
        ("{{ '%999999999d' | format(1) }}", "a width too large"),
        ("{{ '{:999999999}'.format(1) }}", "a width too large"),
        ("{{ 'x'.ljust(10**10) }}", "uses the number 10000000000"),
        ("{{ 'x' | center(10**9) }}", "uses the number 1000000000"),
        ("{{ messages | tojson(indent=10**8) }}", "at most 100 is meant"),
        ("{{ 9 ** 999999 }}", "uses the number"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ lipsum() }}", "'lipsum' is undefined"),
        ("{{ [1, 2] | random }}", "No filter named 'random'"),
        ("{% include '/etc/passwd' %}", "no loader"),
    ],
)  # fmt: skip
def test_what_a_template_must_not_do(source, message):
    start = time.monotonic()
    with pytest.raises(ValueError, match=message) as error:
        ChatTemplate(source, name="bad.jinja").render([USER])
    assert str(error.value).startswith("bad.jinja: the chat template fails on roles ['user']")
    assert time.monotonic() - start < 60  # it ends


def test_loops_keep_their_variables():
    source = (
        "{% for c in 'abc' %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}"
        "{{ loop.previtem }}{{ loop.nextitem }} {% endfor %}"
        "{% for x in [] %}{% else %}e{% endfor %}"
        "{% for x in range(9) %}{% if x == 2 %}{% break %}{% endif %}{{ 'a' ~ x }}{% endfor %}"
    )
    assert ChatTemplate(source).render([]) == "1False33b 2False32ac 3True31b ea0a1"
