"""The classes of others that hold a model with a head: their names, heads and tensors.

  class                         head                       read by
  ...ForSequenceClassification  score.weight [O, D]        transformers, TRL, vLLM, SGLang
  ...ForTokenClassification     score.weight, score.bias   transformers, TRL's PRMTrainer
  ...ForRewardModel             score.0 and score.2, with  Qwen2.5-Math-RM: its own modelling file,
                                weight and bias each; O 1  vLLM, SGLang
  ...ForProcessRewardModel      the same, O 2              Qwen2.5-Math-PRM: as before

transformers itself has no class with two layers: without the modelling file of the published
checkpoints, which is not written here, its AutoModel reads such a folder without the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from posttrain_jax.models.config import ModelConfig
from posttrain_jax.models.heads import HeadConfig
from posttrain_jax.models.hf_files import find_family
from posttrain_jax.models.layout import check_names
from posttrain_jax.models.stored import Stored

READS = ("sequence", "token")
"""Where a head is read: at the last token of a sequence, or at any token."""
LAYERS = {
    1: {"weight": "score.weight", "bias": "score.bias"},
    2: {
        "hidden": "score.0.weight",
        "hidden_bias": "score.0.bias",
        "weight": "score.2.weight",
        "bias": "score.2.bias",
    },
}
"""Our parameters -> tensors, by the head's layers; matrices are stored transposed."""


class Form(NamedTuple):
    """A class of models with a head.

    Attributes:
      suffix: of its name, behind the family's.
      layers, reads: of its head.
      bias: whether its head has one; None where both can be said.
      outputs: how many its head has; 0 where any.
      families: those whose class somebody's code has; none where all have it.
    """

    suffix: str
    layers: int
    reads: str
    bias: bool | None
    outputs: int
    families: tuple[str, ...]


FORMS = (
    Form("ForSequenceClassification", 1, "sequence", False, 0, ()),
    Form(
        "ForTokenClassification", 1, "token", None, 0,
        ("llama", "qwen2", "qwen3", "qwen3_moe", "deepseek_v3"),
    ),
    Form("ForRewardModel", 2, "sequence", True, 1, ("qwen2", "qwen3")),
    Form("ForProcessRewardModel", 2, "token", True, 2, ("qwen2",)),
)  # fmt: skip


def find_form(family: str, head: HeadConfig, reads: str) -> Form:
    """The class that holds such a head.

    Raises:
      ValueError: there is none; says what each class of that kind holds.
    """
    forms = [form for form in FORMS if (form.layers, form.reads) == (head.layers, reads)]
    for form in forms:
        fits = (
            not form.families or family in form.families,
            form.bias in (None, head.bias),
            form.outputs in (0, head.outputs),
        )
        if all(fits):
            return form
    known = "; ".join(
        f"{form.suffix}: bias {'either' if form.bias is None else form.bias}, outputs "
        f"{form.outputs or 'any'}, families {', '.join(form.families) or 'all'}"
        for form in forms
    )
    raise ValueError(
        f"no Hugging Face class holds a head of layers={head.layers}, bias={head.bias}, "
        f"outputs={head.outputs}, reads={reads!r} on a {family}; there is: {known or 'none'}"
    )


def class_settings(config: ModelConfig, head: HeadConfig, form: Form) -> dict[str, Any]:
    """What config.json says of a model with a head besides what it says of a policy."""
    causal = find_family(config.family, "config.family").ARCHITECTURE
    family = str(causal).removesuffix("ForCausalLM")
    # A class of text alone has a name of its own in the families that see pictures too.
    family = "Gemma3Text" if family == "Gemma3" else family
    labels = {str(i): f"LABEL_{i}" for i in range(head.outputs)}
    settings: dict[str, Any] = {
        "architectures": [family + form.suffix],
        "id2label": labels,
        "label2id": {label: int(i) for i, label in labels.items()},
    }
    if form.suffix == "ForTokenClassification":
        settings |= {"token_classification_bias": head.bias, "classifier_dropout": 0.0}
    return settings


def form_of(folder: Path, settings: Mapping[str, Any]) -> Form:
    """The class that config.json names.

    Raises:
      ValueError: one without a head.
    """
    named = settings.get("architectures") or ["none"]
    for form in FORMS:
        if named[0].endswith(form.suffix):
            return form
    raise ValueError(
        f"{folder / 'config.json'}: the architecture is {named[0]}, expected one with a head: "
        f"{', '.join('...' + form.suffix for form in FORMS)}"
    )


def head_of(
    folder: Path, settings: Mapping[str, Any], form: Form, score: Mapping[str, Stored], width: int
) -> HeadConfig:
    """The head that config.json and the tensors say.

    Raises:
      ValueError: another number of labels than the head has outputs; wrong tensors or shapes.
    """
    # Transformers' default is two labels; Qwen's files say them in their code, not here.
    labels = settings.get("num_labels") or len(settings.get("id2label") or {}) or 2
    outputs, names = form.outputs or labels, LAYERS[form.layers]
    bias = names["bias"] in score if form.bias is None else form.bias
    wanted = {
        names["weight"]: (outputs, width),
        **({names["bias"]: (outputs,)} if bias else {}),
        **({names["hidden"]: (width, width)} if form.layers == 2 else {}),
        **({names["hidden_bias"]: (width,)} if form.layers == 2 and bias else {}),
    }
    check_names(folder, wanted, score)
    for name, shape in wanted.items():
        if score[name].shape != shape:
            raise ValueError(
                f"{score[name].file}: tensor {name}: expected shape {shape} from config.json "
                f"({outputs} labels, hidden size {width}), got {score[name].shape}"
            )
    return HeadConfig(form.layers, outputs, bias)
