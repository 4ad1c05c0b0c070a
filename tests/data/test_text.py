"""Options of tokenizer and template, from a recipe to the text."""

import pytest

from posttrain_jax import pipeline
from posttrain_jax.data.text import open_text
from posttrain_jax.recipe import RecipeError


@pytest.fixture
def settings(tmp_path):
    """Of a template that says whether it thinks."""
    source = tmp_path / "thinking.jinja"
    source.write_text(
        "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
        "{{ '<think>' if enable_thinking else '' }}"
    )
    return {"tokenizer": "tiny", "chat_template": str(source)}


def test_options_reach_the_template_and_its_hash(settings):
    said = [{"role": "user", "content": "hello"}]
    texts, hashes = [], []
    for options in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
        given = {**settings, "template_options": options}
        texts.append(open_text(given).template.render(said, True))
        hashes.append(pipeline.fingerprint(given))
    assert [text.endswith("<think>") for text in texts] == [False, False, True]
    assert len({template for _, template in hashes}) == 3
    assert len({tokenizer for tokenizer, _ in hashes}) == 1


def test_the_token_that_ends_a_turn_can_be_set(settings):
    text = open_text({**settings, "tokenizer_options": {"eos": "</answer>"}})
    assert text.tokenizer.eos_token == "</answer>"
    assert text.template.eos_token == "</answer>"


def test_an_option_that_nobody_takes_is_refused(settings):
    with pytest.raises(RecipeError, match=r"tokenizer_options has \['bos'\]"):
        pipeline.fingerprint({**settings, "tokenizer_options": {"bos": "x"}})
