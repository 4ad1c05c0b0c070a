"""Run by test_preference_devices.py: prints what one and eight virtual devices give."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from posttrain_jax import settings, train_state
from posttrain_jax.data.preferences import Preferences, Side
from posttrain_jax.losses import dpo, kto
from posttrain_jax.mesh import make_mesh
from posttrain_jax.models import ModelConfig, make_model
from posttrain_jax.stages import kto as singles
from posttrain_jax.stages import preference

CONFIG = ModelConfig(
    vocab_size=32, layers=1, width=16, heads=4, kv_heads=2, head_dim=8, ffn=32, max_length=32,
    pad_id=0, tied=False,
)  # fmt: skip
PAIRS = 16


def draw() -> tuple[Preferences, list]:
    """Pairs of random tokens, and log-probs of a reference."""
    rng = np.random.default_rng(0)

    def side() -> Side:
        prompt, said = rng.integers(1, 4), rng.integers(2, 7)
        mask = np.arange(prompt + said) >= prompt
        return Side(rng.integers(1, 32, prompt + said).astype(np.int32), mask, np.roll(mask, -said))

    groups = [(side(), side()) for _ in range(PAIRS)]
    kept = [
        tuple(rng.normal(-3, 1, s.said.sum()).astype(np.float32) for s in group) for group in groups
    ]
    return Preferences(groups, [i % 3 > 0 for i in range(PAIRS)], [""] * PAIRS, []), kept


def settle(stage, **given) -> ConfigDict:
    few = {"data": {}, "length": 10, "row_length": 24, "pairs_per_step": PAIRS, "lr": 1.0}
    return ConfigDict(settings.fill(stage.DEFAULTS, few | {"microbatches": 2} | given, "stage"))


def step(model, params, loss, batch, config, **more):
    """One step of descent, which is linear in the gradient -> numbers of it."""
    descent = optax.trace(decay=0.0)
    controls = {"kl": more.pop("kl")} if "kl" in more else {}
    update = train_state.make_update(model, descent, loss, microbatches=config.microbatches, **more)
    state = train_state.init_state(jax.tree.map(jnp.copy, params), descent)
    state, metrics = update(state, batch, jnp.float32(1.0), **controls)
    found = {name: float(value) for name, value in {**metrics, **controls}.items()}
    return found | {"norm": sum(float(jnp.linalg.norm(x)) for x in jax.tree.leaves(state.params))}


def run(sizes, devices):
    """A step of DPO and one of KTO, packed, on one mesh."""
    mesh, model = make_mesh(sizes, devices), make_model(CONFIG)
    data, kept = draw()
    everything = list(range(PAIRS))
    with jax.set_mesh(mesh):
        params = train_state.init_params(model, mesh, seed=0)
        config = settle(preference, nll_coef=0.2, loss_options={"beta": 0.5})
        view = preference.View(config, mesh, model, dpo, None, 0)
        pairs = preference.Pairs(data, kept)
        layout = view.layout(pairs, [everything], config.microbatches)
        batch = view.batch(pairs, everything, layout, PAIRS)
        shape = [layout.rows, layout.sequences]
        compared = step(model, params, view.bound(layout), batch, config, together=layout.together)

        config = settle(singles)
        seen = singles.View(config, mesh, model, None, data, kept, 0)
        layouts = [seen.layout(which, [everything]) for which in (singles.OWN, singles.OTHER)]
        own, other = (seen.batch(w, everything, layouts[w]) for w in (singles.OWN, singles.OTHER))
        drift = kto.drift(train_state.logprobs(model, params, other), other)
        loss = functools.partial(kto.loss, sequences=layouts[0].sequences)
        single = step(model, params, loss, own, config, kl=drift)
    return {"shape": shape, "dpo": compared, "kto": single}


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    results = {
        "one": run({}, jax.devices()[:1]),
        "eight": run({"fsdp": 4, "tensor": 2}, jax.devices()),
    }
    print(json.dumps(results))
