"""The pretraining text: lengths, splits, true tables, shares of slips, and the probes."""

import re
from collections import Counter
from itertools import pairwise

import pytest
import sentencepiece as spm

from posttrain_jax.data import chains, corpus, train_tiny_tokenizer
from posttrain_jax.data.chains import END

STEP = re.compile(r" (\w+) #(\d) (\S+) (?:gives|得) (\w+)[.。]")
MIX = {kind: 1.0 for kind in corpus.KINDS}
PROCESSOR = spm.SentencePieceProcessor(model_file=str(train_tiny_tokenizer.MODEL))


def token_count(text):
    return len(PROCESSOR.encode(text.removesuffix(END))) + text.endswith(END)


def after(state, operation):
    if state.isdigit():
        return str(int(state) + int(operation))
    return state.translate(str.maketrans(operation, operation[::-1]))


def test_documents_fit_and_end():
    for kind in corpus.KINDS:
        for text in corpus.documents(0, 600, {kind: 1.0}):
            assert text.endswith(END) and text.count(END) == 1
            assert token_count(text) <= corpus.MAX_TOKENS, text


def test_longest_problem_leaves_44_tokens_for_the_completion():
    for text in corpus.documents(1, 4000, {"problem": 1.0, "chat": 0.2}):
        prompt, completion = re.fullmatch(r"(.*<\|assistant\|>)(.*)", text).groups()
        assert token_count(prompt) <= 20 and token_count(completion) <= 44


def test_same_seed_same_documents():
    assert corpus.documents(3, 50, MIX) == corpus.documents(3, 90, MIX)[:50]
    assert corpus.documents(3, 50, MIX) != corpus.documents(4, 50, MIX)


@pytest.mark.parametrize("kind", ["table", "worked"])
def test_tables_and_worked_solutions_hold_no_error(kind):
    seen = set()
    for text in corpus.documents(2, 1500, {kind: 1.0}):
        rows = STEP.findall(text)
        assert len(rows) >= 2
        assert all(after(state, op) == result for state, _, op, result in rows)
        assert all(row[3] == following[0] for row, following in pairwise(rows))
        seen |= {(state, op) for state, _, op, _ in rows}
    assert len(seen) == 288 + 24  # each sum, each swap of each cup


def test_lists_repeat_the_same_pairs():
    for text in corpus.documents(2, 300, {"list": 1.0}):
        body = re.split(r"[.。]", text.removesuffix(END).split(":")[-1].split("：")[-1])
        copies = [frozenset(re.findall(r"(#\d) ?([^\s#]+)", part)) for part in body if part]
        assert len(copies) >= 5 and len(set(copies)) == 1
        assert {label for label, _ in copies[0]} == {"#1", "#2", "#3", "#4", "#5"}


def test_no_training_document_shows_a_held_out_problem():
    for text in corpus.documents(5, 6000, {"problem": 1.0, "worked": 1.0}):
        prompt = text.split("<|assistant|>")[0]
        start = re.findall(r" (\d+|[A-D])\b", prompt)[0]
        key = " " + start + "".join(" " + op for op in re.findall(r"#\d ?(\S\w)", prompt))
        assert not chains.is_held_out(key)


def test_slips_are_as_frequent_as_stated():
    steps, wrong = Counter(), Counter()
    for text in corpus.documents(6, 6000, {"problem": 1.0}):
        for language, gives in chains.GIVES.items():
            pattern = rf" (\w+) #\d (\S+){gives} (\w+)[.。]"
            for state, operation, result in re.findall(pattern, text):
                key = (" " + state, " " + operation)
                if key in chains.RESULT:
                    steps[language] += 1
                    wrong[language] += chains.RESULT[key] != " " + result
    for language, share in corpus.SLIP.items():
        n = steps[language]
        assert n > 1500
        assert abs(wrong[language] / n - share) < 4 * (share * (1 - share) / n) ** 0.5 + 0.01


def test_formats_styles_and_languages_are_all_there():
    texts = corpus.documents(7, 3000, {"problem": 1.0})
    replies = [text.split("<|assistant|>")[1].removesuffix(END) for text in texts]
    tagged = [r for r in replies if re.fullmatch(r"<think>[^<]*</think><answer>[^<]*</answer>", r)]
    plain = [r for r in replies if "<" not in r]
    assert 0.55 < len(tagged) / 3000 < 0.62  # .65 x .9
    assert 0.31 < len(plain) / 3000 < 0.39  # .35
    empty = [r for r in tagged if r.startswith("<think></think>")]
    assert 0.39 < len(empty) / len(tagged) < 0.49  # .44
    mixed = [r for r in replies if "得" in r and "gives" in r]
    assert len(mixed) > 100
    assert any("Wait" in r or "等等" in r for r in replies)


def test_probes_ask_for_the_next_token_of_a_right_solution():
    probes = corpus.probes(0, 180)
    assert probes == corpus.probes(0, 180)
    shares = Counter((probe.kind, probe.task) for probe in probes)
    assert len(shares) == 9 and set(shares.values()) == {20}
    for probe in probes:
        assert len(PROCESSOR.encode(probe.target)) == 1
        both = PROCESSOR.encode(probe.prefix + probe.target)
        assert both == PROCESSOR.encode(probe.prefix) + PROCESSOR.encode(probe.target)
        assert len(both) <= corpus.MAX_TOKENS
        prompt, thought = probe.prefix.split("<|assistant|><think>")
        operations = re.findall(r"#\d ?(\S\w)", prompt)
        if probe.kind == "lookup":
            assert probe.target.strip() == operations[int(thought[-1]) - 1]
        elif probe.kind == "step":
            state, operation = re.search(r" (\w+) #\d (\S+) \S+$", thought).groups()
            assert probe.target.strip() == after(state, operation)
        else:
            assert probe.target.strip() == STEP.findall(thought)[-1][3]


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match="unknown kinds of document \\['web'\\]"):
        corpus.documents(0, 1, {"web": 1.0})


def test_probe_accuracy_by_hand():
    probes = [
        corpus.Probe("", "", "lookup", "logic"),
        corpus.Probe("", "", "lookup", "logic"),
        corpus.Probe("", "", "step", "logic"),
    ]
    accuracy = corpus.probe_accuracy(probes, [True, False, True])
    assert accuracy == {"lookup/logic": 0.5, "step/logic": 1.0}
    assert corpus.is_learnt(accuracy, ("lookup", "step"), 0.5)
    assert not corpus.is_learnt(accuracy, ("lookup", "step"), 0.51)
    assert corpus.is_learnt(accuracy | {"lookup/chat": 0.9}, ("lookup",), 0.7)
    assert corpus.is_learnt(accuracy, ("step",), 1.0)
    with pytest.raises(ValueError, match="2 for 3 probes"):
        corpus.probe_accuracy(probes, [True, False])
