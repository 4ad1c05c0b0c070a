"""The dimension key, and the types that the parts of the pipeline hand to each other.

Dimension key, used as suffixes (`tokens_BT`) and as einsum letters everywhere below:

  B sequences            T query positions       S key positions      D model width
  N query heads          K key-value heads       G = N / K            H head width
  F feed-forward width   V vocabulary            E experts            L layers
  P prompts              R rollouts a prompt     W reward terms       C completion positions
  A active experts       M marked places         O outputs of a head    J a teacher's tokens

Every per-token array of a batch is aligned with the token it speaks of: `logp_BT[b, t]` is the
log-probability of `tokens_BT[b, t]` given the tokens before it. Position 0 is never predicted.

This module imports no jax, so that host-side code can use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import jax

    Array = jax.Array
else:
    Array = Any

Params = Any
"""A plain nested dict of arrays."""
Metrics = dict[str, Any]
"""Scalars by name; device arrays until they are logged."""


class Model(NamedTuple):
    """A language model as pure functions; hashable, so it can be a static argument of `jit`.

    Attributes:
      config: the sizes (a frozen dataclass).
      init: `key -> params`.
      axes: the tree of logical axis names, one tuple a parameter.
      apply: `(params, tokens_BT, *, positions_BT, segments_BT, cache=None) -> (hidden_BTD, cache)`.
      routed: as `apply`, with `experts_BTLA=None` (experts to keep in place of the routers'
        choices, -1 where there are none) -> `(hidden_BTD, cache, Routing)`; no Routing (None)
        where the model has no experts.
      logits: `(params, hidden_BTD) -> logits_BTV`.
      logprobs: `(params, hidden_BTD, targets_BT, temperature=1.0, needed_BT=None, slope_BT=None)
        -> (logp_BT, entropy_BT)`; never holds [B, T, V]; 0 where `needed_BT` is False. `slope_BT`
        promises the loss's derivative by logp_BT up to a factor, which saves time.
      logprobs_at: `(params, hidden_BTD, tokens_BTJ, temperature=1.0, needed_BT=None) -> logp_BTJ`
        of several candidates a place, in the same way.
      top_logprobs: `(params, hidden_BTD, k, temperature=1.0, needed_BT=None) -> (tokens_BTJ,
        logp_BTJ)`, the k likeliest tokens of each place, in the same way; no gradient.
      init_cache: `(batch, length) -> Cache`.
      trained: `path -> bool`: which parameters ("layers/q") an update trains; None: all of them.
      lora: the settings of its adapters, if it has any (models/lora.py).
    """

    config: Any
    init: Callable[..., Params]
    axes: Callable[[], Any]
    apply: Callable[..., tuple[Array, Any]]
    routed: Callable[..., tuple[Array, Any, Any]]
    logits: Callable[..., Array]
    logprobs: Callable[..., tuple[Array, Array]]
    logprobs_at: Callable[..., Array]
    top_logprobs: Callable[..., tuple[Array, Array]]
    init_cache: Callable[..., Any]
    trained: Callable[[str], bool] | None = None
    lora: Any = None


class Routing(NamedTuple):
    """What the routers of a mixture of experts chose; L counts its sparse layers, A the choices.

    Attributes:
      experts_LBTA: int32, the experts that each token went to.
      entropy_LBT: entropy of the router's distribution, in nats.
    """

    experts_LBTA: Array
    entropy_LBT: Array


class Teacher(NamedTuple):
    """What another model expects at each place: its likeliest tokens; J counts them.

    Attributes:
      tokens_BTJ: int32, candidates for the token at each place.
      logp_BTJ: their log-probs under the teacher; -inf where there are fewer.
      weight_BT: float32 weight of each place in the distillation loss.
    """

    tokens_BTJ: Array
    logp_BTJ: Array
    weight_BT: Array


class Batch(NamedTuple):
    """What an update consumes: one type for SFT, preferences, policy gradient and distillation.

    Rows of several sorts mix in one batch: each part of a loss has weights of its own.

    Attributes:
      tokens_BT: int32 token ids.
      positions_BT: int32 positions within each sequence.
      segments_BT: int32; 0 is padding, tokens attend only within their own segment.
      weight_BT: float32 loss weight of each token; 0 for prompts, padding, masked samples.
      advantage_BT: float32 advantage of each token.
      behaviour_logp_BT: log-prob of each token under the policy that sampled it.
      reference_logp_BT: log-prob of each token under the reference policy.
      experts_BTLA: experts that the policy keeps in place of its routers' choices; see `Rollout`.
      nll_weight_BT: float32 weight of each token's negative log-likelihood, beside the main loss.
      proximal_logp_BT: log-prob of each token under the trainer's policy at the first update on
        this rollout; None: the behaviour's stand for it.
      value_BT, return_BT: PPO's value of each token's state at that time, and what it is to be.
      teacher: a teacher's distributions, for distillation.
    """

    tokens_BT: Array
    positions_BT: Array
    segments_BT: Array
    weight_BT: Array
    advantage_BT: Array | None = None
    behaviour_logp_BT: Array | None = None
    reference_logp_BT: Array | None = None
    experts_BTLA: Array | None = None
    nll_weight_BT: Array | None = None
    proximal_logp_BT: Array | None = None
    value_BT: Array | None = None
    return_BT: Array | None = None
    teacher: Teacher | None = None


class PolicyOut(NamedTuple):
    """The model's view of a batch, aligned with `Batch.tokens_BT`.

    Attributes:
      routing: what a mixture of experts chose; None of a dense model.
      value_BT: the value of the state in which each token is chosen; None without a value head.
      teacher_logp_BTJ: log-probs of the teacher's tokens; None where the batch has no teacher.
    """

    logp_BT: Array
    entropy_BT: Array
    routing: Routing | None = None
    value_BT: Array | None = None
    teacher_logp_BTJ: Array | None = None


class Rollout(NamedTuple):
    """Sampled completions, one row a completion; prompts are left-padded to one width.

    Attributes:
      tokens_BT: prompt then completion, padding after the end-of-sequence token.
      positions_BT, segments_BT: as in `Batch`.
      completion_mask_BT: True on sampled tokens, end-of-sequence included.
      behaviour_logp_BT: log-prob under the sampling distribution (temperature, top-k, ...).
      model_logp_BT: log-prob under the untempered model.
      finished_B: True where a stop token was sampled before the length limit.
      experts_BTLA: int16, the experts that each token went to in every sparse layer, -1 for tokens
        that the model was not asked about (padding, the last of a row); None if not recorded. Two
        bytes a choice: 928 a token of DeepSeek-V3 (58 layers, 8 experts), 768 of Qwen3-30B-A3B.
      whole_mask_BT: True on all tokens of the response, forced ones included; None: all were
        sampled.
      sound_B: False where the host failed a sequence, which must be left out; None: nowhere.
      top_tokens_BTJ, top_logp_BTJ: the model's likeliest tokens at each place of the response and
        their log-probs; None if not asked for.
      version_BT: int32, how many updates the policy had that sampled each token, 0 on prompts;
        None: all are of the latest.
    """

    tokens_BT: Array
    positions_BT: Array
    segments_BT: Array
    completion_mask_BT: Array
    behaviour_logp_BT: Array
    model_logp_BT: Array
    finished_B: Array
    experts_BTLA: Array | None = None
    whole_mask_BT: Array | None = None
    sound_B: Array | None = None
    top_tokens_BTJ: Array | None = None
    top_logp_BTJ: Array | None = None
    version_BT: Array | None = None

    @property
    def response_mask_BT(self) -> Array:
        """True on all tokens of the response, sampled or not."""
        return self.completion_mask_BT if self.whole_mask_BT is None else self.whole_mask_BT


class Verdict(NamedTuple):
    """What a verifier says of one response.

    Attributes:
      score: the reward of this term, usually in [0, 1].
      status: `pass`, `fail`, `timeout`, `infra_error` or `poisoned`; an `infra_error` masks the
        sample out of the loss.
      detail: anything worth logging (the extracted answer, the reason).
      trust: where a program was run, how its result was reached. `value`: plain values were
        compared outside of the program's process; `proxy`: test code called it from a process of
        its own; `inproc`: test code and program shared a process.
    """

    score: float
    status: str = "pass"
    detail: str = ""
    trust: str = "value"


@dataclass(frozen=True)
class Artifact:
    """The finished output of a stage: a folder with a DONE marker, named by its identity.

    Attributes:
      stage: the stage's name in the recipe.
      kind: the stage's kind (`sft`, `rl`, ...).
      id: hex digest of config + inputs + code version.
      path: the folder.
      metrics: `{name: {"mean", "stderr", "n"}}`, what the stage reports.
    """

    stage: str
    kind: str
    id: str
    path: Path
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
