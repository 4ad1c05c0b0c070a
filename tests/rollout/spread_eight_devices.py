"""Run by test_spread.py: prints what queues make of prompts on one device and on eight."""

import json
import re
from types import SimpleNamespace

import jax
import numpy as np

from posttrain_jax.data.token_automaton import TokenAutomaton
from posttrain_jax.mesh import make_mesh, shard_rows, shardings
from posttrain_jax.models import ModelConfig, make_model
from posttrain_jax.models.config import Experts
from posttrain_jax.rollout import continuous, conversations, engine
from posttrain_jax.rollout.continuous import Sizes, sample_queue
from posttrain_jax.rollout.draw_state import Tables
from posttrain_jax.rollout.partners import Answer, Partner, Partners
from posttrain_jax.rollout.request import Asked, Rules
from posttrain_jax.rollout.row_settings import RowSettings
from posttrain_jax.rollout.sampler import sample
from posttrain_jax.rollout.sampling import Sampling

DENSE = ModelConfig(
    vocab_size=32, layers=1, width=16, heads=4, kv_heads=2, head_dim=8, ffn=32, max_length=32,
    pad_id=0, tied=False,
)  # fmt: skip
SPARSE = ModelConfig(
    vocab_size=32, layers=1, width=16, heads=4, kv_heads=2, head_dim=8, ffn=32, max_length=32,
    pad_id=0, tied=False, experts=Experts(8, 3, 12),
)  # fmt: skip
MESHES = {
    "data 8": (DENSE, {"data": 8, "fsdp": 1}),
    "data 2, fsdp 2, tensor 2": (DENSE, {"data": 2, "fsdp": 2, "tensor": 2}),
    "fsdp 2, expert 2, tensor 2": (SPARSE, {"fsdp": 2, "expert": 2, "tensor": 2}),
}
PROMPTS, GROUP, WIDTH, NEW = 16, 3, 5, 10
RULES = Rules(Sampling(temperature=0.9, stop=(1, 2)), NEW, GROUP)
SIZES = Sizes(3, 6, 2, 1, 1, narrowest=2)
READS = SimpleNamespace(eos_id=1, decode=lambda ids: chr(40 + sum(ids)))
KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"


def table():
    """Prompts, their segments, uids and the most tokens of each row, on the host."""
    rng = np.random.default_rng(0)
    segments = (np.arange(WIDTH) >= rng.integers(0, WIDTH, (PROMPTS, 1))).astype(np.int32)
    prompts = (segments * rng.integers(2, 32, (PROMPTS, WIDTH))).astype(np.int32)
    uids = np.arange(PROMPTS * GROUP, dtype=np.uint32)
    return prompts, segments, uids, rng.integers(1, NEW + 1, PROMPTS * GROUP).astype(np.int32)


def asked(mesh, part=slice(None)):
    """Of some of the prompts, on the mesh."""
    prompts, segments, uids, most = table()
    rows = np.arange(PROMPTS * GROUP).reshape(PROMPTS, GROUP)[part].reshape(-1)
    placed = shard_rows(mesh, (prompts[part], segments[part], uids[rows], most[rows]))
    rows = RowSettings(max_new=placed[3])
    return Asked(*placed[:2], jax.random.key(3), placed[2], rows)


def shown(rollouts):
    """What is compared of rollouts, one behind the other."""
    names = ("tokens_BT", "completion_mask_BT", "behaviour_logp_BT", "finished_B")
    whole = lambda name: np.concatenate([getattr(r, name) for r in rollouts]).tolist()  # noqa: E731
    return {name: whole(name) for name in names}


def collectives(text):
    """(kind, type of the result) of all collectives of a compiled program."""
    found = re.findall(rf" = (\([^)]*\)|\S+) ({KINDS})(?:-start)?\(", text)
    return sorted({(kind, re.sub(r"\{[\d,]*\}", "", result)) for result, kind in found})


def random_params(model):
    """The same on every mesh, as numpy arrays."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: np.float32(0.3 * rng.standard_normal(x.shape)), shapes)


def on_one(config):
    """The plain rollout of all prompts."""
    mesh, model = make_mesh({}, jax.devices()[:1]), make_model(config)
    return shown([sample(model, random_params(model), asked(mesh), RULES)])


def by_parts(config, ways):
    """The rollouts of queues on one device, each for a part of the prompts, and their work."""
    mesh, model, each = make_mesh({}, jax.devices()[:1]), make_model(config), PROMPTS // ways
    params = random_params(model)
    parts = [asked(mesh, slice(i * each, (i + 1) * each)) for i in range(ways)]
    made = [sample_queue(model, params, part, RULES, SIZES) for part in parts]
    works = [jax.tree.map(int, work._asdict()) for _, work in made]
    return {**shown([rollout for rollout, _ in made]), "works": works}


def on_eight(config, axes):
    """The same by one program on a mesh."""
    mesh, model = make_mesh(axes), make_model(config)
    with jax.set_mesh(mesh):
        params = jax.device_put(random_params(model), shardings(mesh, model.axes()))
        params = engine.for_sampling(params, model, mesh)
        program = sample_queue.lower(model, params, asked(mesh), RULES, SIZES).compile()
        rollout, work = program(params, asked(mesh))
    homes = {s.device.id: s.index[0].start or 0 for s in rollout.tokens_BT.addressable_shards}
    text = program.as_text()
    pages = sorted(set(re.findall(r"f32\[6,\d,8,4\]", text)))
    return {
        **shown([rollout]), "work": jax.tree.map(int, work._asdict()), "homes": homes,
        "collectives": collectives(text), "pages": pages,
    }  # fmt: skip


def conversations_on(config, axes, devices=None):
    """Rollouts whose every seventh token is answered with one to three tokens."""
    mesh, model = make_mesh(axes, devices), make_model(config)
    called = np.arange(config.vocab_size) % 7 == 3
    tables = Tables(call=TokenAutomaton(np.int32([[0, 0], [1, 0]]), called.astype(np.int32)))
    rules = RULES._replace(sampling=RULES.sampling._replace(call_strings=("?",)), inserts=3)
    given = asked(mesh)._replace(rows=RowSettings(), tables=tables)
    reply = lambda said, ended: Answer([20, 21, 22][: 1 + ord(said) % 3])  # noqa: E731
    partners = Partners(
        lambda example: Partner(reply), SimpleNamespace(tokenizer=READS), ("?",), False, 3, 60.0,
        Answer([0]),
    )  # fmt: skip
    host = conversations.Host(partners, [{}] * PROMPTS * GROUP, rules, mesh)
    with jax.set_mesh(mesh):
        params = jax.device_put(random_params(model), shardings(mesh, model.axes()))
        params = engine.for_sampling(params, model, mesh)
        rollout = conversations.roll_out(
            model, params, given, rules, SIZES, stretch=4, host=host
        )  # fmt: skip
    return shown([rollout]) | {"whole": np.asarray(rollout.response_mask_BT).tolist()}


def carried_on(config, axes):
    """Three rollouts, each of which leaves a group a shard to the next: what they learn from."""
    mesh, model, learnt = make_mesh(axes), make_model(config), {}
    quarter = lambda i: asked(mesh, slice(4 * i, 4 * i + 4))  # noqa: E731
    job = lambda i: engine.Job(quarter(i), RULES, Sizes(5, 15, 2, 1, 1), mesh=mesh)  # noqa: E731
    numbers = np.arange(PROMPTS).reshape(4, 4)
    with jax.set_mesh(mesh):
        params = jax.device_put(random_params(model), shardings(mesh, model.axes()))
        params = engine.for_sampling(params, model, mesh)
        left, unfinished = engine.leave_all(job(0), model, numbers[0], mesh), 0
        for i in (1, 2, 3):
            going = engine.go_on(job(i), left, numbers[i], mesh)
            uids = np.asarray(going.asked.uids_B)
            rollout, left, rows = engine.stream_on(
                model, params, going, READS, lambda ended: None, stretch=3, version=i
            )
            unfinished += int(
                np.sum(np.asarray(left.said.place_N) * ~np.asarray(left.said.ended_N))
            )
            made = shown([rollout])
            learnt |= {int(uids[r]): [made[n][b] for n in made] for b, r in enumerate(rows)}
    return {"learnt": learnt, "unfinished": unfinished}


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    continuous.PAGE = 4
    print(json.dumps({
        "dense": by_parts(DENSE, 8), "sparse": on_one(SPARSE),
        **{name: on_eight(*mesh) for name, mesh in MESHES.items()},
        "conversations": {
            name: [conversations_on(config, {}, jax.devices()[:1]), conversations_on(config, axes)]
            for name, (config, axes) in MESHES.items() if "tensor" in axes
        },
        "carried": carried_on(*MESHES["data 2, fsdp 2, tensor 2"]),
    }))  # fmt: skip
