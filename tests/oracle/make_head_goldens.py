"""Tiny random models with heads by transformers, and the scores that it computes with them.

    pip install -e '.[oracle]'
    python tests/oracle/make_head_goldens.py [--check]

writes tests/golden/heads/<name>/: config.json and model.safetensors as transformers saves them, and
scores.npz, in float32 with eager attention:

  tokens, lengths  three sequences, padded on the right with 0
  scores           of the head: [3, outputs] at the last tokens, or [3, T, outputs] at all tokens

transformers has no classes with two layers: those here have the layers and names that the files
modeling_qwen2_rm.py of Qwen/Qwen2.5-Math-RM-72B and Qwen/Qwen2.5-Math-PRM-7B give them. `--check`
compares instead: the scores from the stored folders, and from folders that our export writes of
the same models, with the stored ones.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
    Qwen2Model,
    Qwen2PreTrainedModel,
)

from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.models import ModelConfig
from posttrain_jax.models.head_files import load_with_head, save_with_head

FOLDER = Path(__file__).parents[1] / "golden" / "heads"
LENGTHS, VOCAB = (14, 9, 1), 704
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "attention_dropout": 0.0,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}  # fmt: skip


class TwoLayers(Qwen2PreTrainedModel):
    """A decoder and Linear, ReLU, Linear on every token."""

    def __init__(self, config):
        super().__init__(config)
        self.model, width = Qwen2Model(config), config.hidden_size
        self.score = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.num_labels)
        )
        self.post_init()

    def forward(self, input_ids, attention_mask):
        """Outputs of all tokens -> [B, T, O]."""
        states = self.model(input_ids, attention_mask=attention_mask).last_hidden_state
        return self.score(states)


class Qwen2ForRewardModel(TwoLayers):
    """Its score is that of the last token."""


class Qwen2ForProcessRewardModel(TwoLayers):
    """Its classes are those of all tokens."""


CASES = {
    "llama_score": (LlamaForSequenceClassification, LlamaConfig, 1),
    "qwen2_many": (Qwen2ForSequenceClassification, Qwen2Config, 3),
    "qwen2_token": (Qwen2ForTokenClassification, Qwen2Config, 2),
    "qwen2_reward": (Qwen2ForRewardModel, Qwen2Config, 1),
    "qwen2_process": (Qwen2ForProcessRewardModel, Qwen2Config, 2),
}


def make(name: str):
    """A model of a case: normal weights of deviation 0.3, norms around 1."""
    kind, config, labels = CASES[name]
    model = kind(config(**SIZES, num_labels=labels)).eval()
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for path, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.2 * drawn if "norm" in path else 0.3 * drawn)
    return model


def load(name: str, folder: Path):
    """transformers' model of a folder; everything in it must be used, nothing made up."""
    kind = CASES[name][0]
    if kind in (Qwen2ForRewardModel, Qwen2ForProcessRewardModel):
        reader, more = kind, {"num_labels": CASES[name][2]}
    elif kind is Qwen2ForTokenClassification:
        reader, more = AutoModelForTokenClassification, {}
    else:
        reader, more = AutoModelForSequenceClassification, {}
    model, report = reader.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, **more
    )
    if odd := {what: names for what, names in report.items() if names}:
        raise SystemExit(f"{name} from {folder}: {odd}")
    if type(model) is not kind:
        raise SystemExit(f"{name}: read as {type(model).__name__}")
    return model.eval()


def score(model, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """What transformers computes, padding masked."""
    mask = torch.arange(tokens.shape[1]) < torch.from_numpy(lengths)[:, None]
    with torch.no_grad():
        found = model(torch.from_numpy(tokens).long(), attention_mask=mask.long())
    scores = getattr(found, "logits", found).numpy()
    if isinstance(model, Qwen2ForRewardModel):
        return scores[np.arange(len(lengths)), lengths - 1]
    return scores


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Tokens and lengths of the sequences."""
    rng, lengths = np.random.default_rng(0), np.array(LENGTHS)
    tokens = rng.integers(1, VOCAB, (len(lengths), max(lengths)))
    return np.where(np.arange(max(lengths)) < lengths[:, None], tokens, 0), lengths


def check(name: str) -> None:
    """Print how far the stored folder and our export of it are from the stored scores."""
    stored = np.load(FOLDER / name / "scores.npz")
    found = load_with_head(FOLDER / name)
    with tempfile.TemporaryDirectory() as folder:
        save_with_head(
            folder, ModelConfig(**found.fields), found.params, found.head, load_tokenizer("tiny"),
            reads=found.reads,
        )  # fmt: skip
        for where in (FOLDER / name, Path(folder)):
            scores = score(load(name, where), stored["tokens"], stored["lengths"])
            apart = np.abs(scores - stored["scores"]).max()
            print(f"{name}: {where.name}: {apart:.1e} apart")
            if not apart <= 1e-5:
                raise SystemExit(1)


def main() -> None:
    """Store, or compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        for name in CASES:
            check(name)
        return
    tokens, lengths = inputs()
    for name in CASES:
        model = make(name)
        model.save_pretrained(FOLDER / name)
        (FOLDER / name / "generation_config.json").unlink(missing_ok=True)
        scores = score(model, tokens, lengths)
        np.savez(FOLDER / name / "scores.npz", tokens=tokens, lengths=lengths, scores=scores)
        size = sum(path.stat().st_size for path in (FOLDER / name).iterdir())
        print(f"{name}: {size:,} bytes, scores {scores.shape} of deviation {scores.std():.2f}")


if __name__ == "__main__":
    main()
