"""Run by test_beams_on_eight_devices.py: prints what one and eight devices give for a search."""

import json

import jax
import numpy as np

from posttrain_jax import process_reward, reward_model, train_state
from posttrain_jax.data.chat import load_template
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.mesh import make_mesh
from posttrain_jax.models import ModelConfig, heads, make_model
from posttrain_jax.policy import Text
from posttrain_jax.rollout import engine
from posttrain_jax.rollout.beams import Limits, Searcher, search
from posttrain_jax.rollout.judges import process_judge
from posttrain_jax.rollout.mcts import Explorer
from posttrain_jax.rollout.mcts import search as search_trees
from posttrain_jax.rollout.sampling import Sampling
from posttrain_jax.rollout.steps import Writer
from posttrain_jax.rollout.tree_search import Plan

LIMITS, PROMPT = Limits(beams=4, width=2, rounds=3), 8


def run(sizes, devices, text):
    """Beams, trees and scores on one mesh."""
    config = ModelConfig(
        vocab_size=text.tokenizer.vocab_size, layers=1, width=16, heads=4, kv_heads=2, head_dim=8,
        ffn=32, max_length=32, pad_id=text.tokenizer.pad_id, tied=False,
    )  # fmt: skip
    mesh, model = make_mesh(sizes, devices), make_model(config)
    with jax.set_mesh(mesh):
        policy = train_state.init_params(model, mesh, seed=0)
        params = reward_model.add_head(model, policy, mesh, 1, heads.PROCESS)
        judge = process_reward.ProcessModel(model, params, 16, (".",))
        stops = tuple(range(8, text.tokenizer.vocab_size, 2))
        writer = Writer(
            model, engine.for_sampling(policy, model, mesh), mesh, text.tokenizer, stops,
            Sampling(stop=(*stops, text.tokenizer.eos_id)), 0, PROMPT, 2, 8,
        )  # fmt: skip
        examples = [{"prompt": f"{i} + {j}"} for i in range(4) for j in range(2)]
        prompts = engine.encode_prompts(examples, *text, PROMPT)
        found, rounds = search(Searcher(writer, judge, LIMITS), prompts, 0)
        plan = Plan(iterations=2, candidates=4, depth=3, c_puct=2.0, rollouts=0)
        walks, _ = search_trees(Explorer(writer, judge, "last", plan), prompts, 0)
        said = [" 3 gives 4. 4", " 5."] * 4
        verdicts = process_judge(judge, text, mesh, batch_size=8).score(examples, said)
        return {
            "tokens": [[beam.tokens for beam in mine.beams] for mine in found],
            "chances": float(np.sum([b.chances[-1] for mine in found for b in mine.beams])),
            "rounds": rounds,
            "trees": [[[n.parent, n.step, n.ends] for n in walk.nodes] for walk in walks],
            "scores": [verdict.score for verdict in verdicts],
        }


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    tokenizer = load_tokenizer("tiny")
    text = Text(tokenizer, load_template("tiny", tokenizer))
    print(json.dumps({
        "one": run({}, jax.devices()[:1], text),
        "eight": run({"fsdp": 4, "tensor": 2}, jax.devices(), text),
    }))  # fmt: skip
