"""Settings of every stage that samples: rollout/sampling_settings.py, rollout/partners.py.

No stage by itself; `DEFAULTS` of those that sample begin with these. A budget of -1 is none; the
empty `end` is Qwen3's sentence. `slots`: so many sequences are sampled at once, and the others wait
for a free one (rollout/continuous.py); 0: all at once. `drafts`: tokens that a slot of such a queue
guesses at most (rollout/drafts.py). `cache_dtype`: what keys and values are kept in there,
`bfloat16`, `int8` (rollout/pools.py), or "", the model's type.
"""

DEFAULTS = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "sampling": {
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logit_bias": (),
        "min_new": 0,
        "stop_strings": (),
        "thinking": {
            "close": "</think>",
            "budget": -1,
            "end": "",
            "waits": 0,
            "wait": "Wait",
            "min_tokens": 0,
        },
    },
    "slots": 0,
    "drafts": 0,
    "cache_dtype": "",
    # Answers in a conversation, tokens of an answer, and how long the host waits for one: ours.
    "partner": {
        "tools": {},
        "calls": "inline",
        "environment": {},
        "max_answers": 8,
        "answer_length": 128,
        "wait_seconds": 60.0,
    },
}
