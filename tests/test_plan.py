"""Batch arithmetic and stage graph against hand-worked examples."""

from posttrain_jax import plan
from posttrain_jax.recipe import MESH

R1 = {
    "rollout_size": 8192,
    "group_size": 16,
    "batch_size": 512,
    "steps": 10_400,
    "prompt_length": 1024,
    "max_new": 31_744,
}


def test_the_rollout_arithmetic_of_r1():
    # Nature, Methods: 8,192 outputs a rollout for 512 questions, 16 minibatches; 10,400 steps are
    # 650 rollouts
    sizes, problems = plan.arithmetic({**R1, "microbatches": 4}, MESH)
    assert sizes["questions a rollout"] == 512 and sizes["updates a rollout"] == 16
    assert sizes["rollouts"] == 650 and sizes["rows a microbatch"] == 128
    assert sizes["tokens a batch, at most"] == 512 * 32_768
    assert problems == []


def test_the_token_arithmetic_of_sft():
    sizes, _ = plan.arithmetic({"batch_size": 32, "length": 64, "steps": 100}, MESH)
    assert sizes["tokens a batch, at most"] == 2048 and sizes["steps"] == 100


def test_what_does_not_divide_is_named_with_its_neighbours():
    _, problems = plan.arithmetic({**R1, "batch_size": 500}, MESH)
    assert problems[0] == (
        "rollout_size = 8192 does not divide by batch_size = 500; the nearest that do: 8000 or 8500"
    )
    _, problems = plan.arithmetic({"batch_size": 12}, {"data": 2, "fsdp": 4})
    assert problems == [
        "batch_size / microbatches = 12 does not divide by data x fsdp x expert of the mesh = 8; "
        "the nearest that do: 8 or 16"
    ]


def test_the_graph_is_drawn_by_whose_weights_a_stage_starts_from():
    stages = {
        "base": {"kind": "pretrain"},
        "cold": {"kind": "sft", "inputs": {"policy": "base"}},
        "rl": {"kind": "rl", "inputs": {"policy": "cold"}},
        "data": {"kind": "reject", "inputs": {"samples": "rl"}},
        "sft": {"kind": "sft", "inputs": {"data": "data", "policy": "base"}},
    }
    assert plan.draw({"order": tuple(stages), "stages": stages}) == [
        "base [pretrain]",
        "├─ cold [sft]  <- policy: base",
        "│  └─ rl [rl]  <- policy: cold",
        "│     └─ data [reject]  <- samples: rl",
        "└─ sft [sft]  <- data: data, policy: base",
    ]


def test_sequences_beyond_the_models_length_are_named():
    """Which a stage before it may have set."""
    stages = {
        "base": {"kind": "pretrain", "model": "tiny:base"},  # for 64
        "rl": {"kind": "rl", "inputs": {"policy": "base"}, "prompt_length": 24, "max_new": 41},
    }
    (problem,) = plan.window({"stages": stages}, "rl")
    assert problem.startswith("prompt_length + max_new = 65 tokens, and the model is for 64 (max_l")
    stages["base"]["model_options"] = {"max_length": 65}
    assert plan.window({"stages": stages}, "rl") == []


def test_a_stages_model_is_that_of_its_policy():
    stages = {
        "base": {"kind": "pretrain", "model": "tiny:base"},
        "sft": {"kind": "sft", "inputs": {"policy": "base"}},
        "rl": {"kind": "rl", "inputs": {"policy": "sft", "data": "base"}},
        "soup": {"kind": "merge", "inputs": {"one": "rl", "two": "sft"}},
        "more": {"kind": "sft", "inputs": {"policy": "soup"}},
    }
    assert plan.model_of({"stages": stages}, "rl") == "tiny:base"
    assert plan.model_of({"stages": stages}, "more") == "tiny:base"  # by what was merged


def test_the_arithmetic_of_pairs():
    stage = {"pairs_per_step": 12, "microbatches": 2, "length": 64, "steps": 3}
    sizes, problems = plan.arithmetic(stage, {"data": 2, "fsdp": 1})
    assert (sizes["pairs a step"], sizes["tokens a step, at most"]) == (12, 2 * 12 * 64)
    assert problems == []
    _, problems = plan.arithmetic({**stage, "microbatches": 5}, {"data": 1})
    assert problems[0].startswith("pairs_per_step = 12 does not divide by microbatches = 5; ")
    _, problems = plan.arithmetic(stage, {"data": 4})
    assert problems == [
        "pairs_per_step / microbatches = 6 does not divide by data x fsdp x expert of the mesh = "
        "4; the nearest that do: 4 or 8"
    ]


def test_adapters_of_the_tiny_model_by_hand():
    """Width 128, 4 heads of 32, feed-forward 256, 2 layers; rank r of a [m, n] has r (m + n)."""
    of_layer = 4 * (128 + 128) + 3 * (128 + 256)  # q, k, v, o, gate, up, down
    stage = {"lora": {"rank": 4, "targets": ""}}
    assert plan.trained("tiny:base", stage) == 2 * 4 * of_layer
    assert plan.trained("tiny:base", {"lora": {"rank": 0}}) is None
    assert plan.trained("tiny:base", {}) is None


def test_parameters_of_the_tiny_model_by_hand():
    from posttrain_jax.models.tiny import SIZES

    c = SIZES["base"]
    attention = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads)
    layer = attention + 3 * c.width * c.ffn + 2 * c.width
    head = 0 if c.tied else c.vocab_size * c.width
    assert plan.parameters("tiny:base") == (
        c.vocab_size * c.width + c.layers * layer + c.width + head
    )
    assert plan.parameters("no_such_family:1b") is None


def test_the_queue_of_a_sampler():
    """R1's rollout on two shards of 256 slots: an answer has 1,984 pages, of which a slot has 35 %;
    5.5 times the slots are 88 groups."""
    stage = {**R1, "slots": 512, "cache_dtype": "int8"}
    found = plan.queue(stage, "tiny:base", {"data": 2})
    from posttrain_jax.models.tiny import SIZES

    c, places = SIZES["base"], 177_766 * 16 + 88 * 1024
    assert round(0.35 * 256 * 1984) == 177_766
    assert found == {
        "slots a shard": 256, "pages a shard": 177_766, "places a page": 16,
        "prompts in the pool": 88, "prompts a prefill": 2,
        "places of a prefill": [256, 512, 1024],
        "free slots that are worth a prefill": 16,
        "cache bytes a shard": 2 * c.layers * c.kv_heads * places * (c.head_dim + 4),
    }  # fmt: skip
    local = plan.queue({**stage, "cache_dtype": ""}, "gemma3_text:1b", MESH)
    assert local["pages of a slot in local layers"] == 34  # 33 for 528 places, and one being left
    assert plan.queue(R1, "tiny:base", MESH) == {}
    assert plan.queue({**R1, "slots": 8192}, "tiny:base", MESH) == {}  # all at once
    assert "cache bytes a shard" not in plan.queue(stage, "no_such_family:1b", MESH)
