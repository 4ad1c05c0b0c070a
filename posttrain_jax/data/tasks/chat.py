"""Helpfulness: `Name two fruits.` A good reply names exactly that many, of that kind.

Rejected replies are evasive, off topic, over-long or of the wrong count, or misread the request and
then answer that. Held out are two sentence templates a language; the fifteen combinations of
category and count all occur in training.
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain_jax.data import chains

KIND = "helpful"
COUNTS = {"en": (" two", " three", " four"), "zh": ("两种", "三种", "四种")}
MEMBERS = {
    "en": {
        " fruits": (" apples", " pears", " plums", " grapes"),
        " animals": (" cats", " dogs", " cows", " birds"),
        " colors": (" red", " green", " blue", " pink"),
        " foods": (" eggs", " rice", " bread", " soup"),
        " clothes": (" hats", " coats", " shoes", " socks"),
    },
    "zh": {
        "水果": ("苹果", "梨子", "桃子", "葡萄"),
        "动物": ("小猫", "小狗", "奶牛", "小鸟"),
        "颜色": ("红色", "绿色", "蓝色", "粉色"),
        "食物": ("鸡蛋", "米饭", "面包", "热汤"),
        "衣物": ("帽子", "大衣", "鞋子", "袜子"),
    },
}
TEMPLATES = {
    "en": ("Name{ask}.", "Tell me{ask}.", "Give me{ask}, please.", "Can you name{ask}?"),
    "zh": ("说出{ask}。", "告诉我{ask}。", "请给我{ask}。", "能说出{ask}吗？"),
}
HELD_OUT_TEMPLATES = {
    "en": ("Tell me{ask}, please.", "I want{ask}, please."),
    "zh": ("请告诉我{ask}。", "能给我{ask}吗？"),
}
SURE = {"en": " Sure:", "zh": "好的："}
AND = {"en": " and", "zh": "和"}
EVASIVE = {"en": " I do not know.", "zh": "我不知道。"}
FAULTS = ("evasive", "misread", "off_topic", "too_long", "wrong_count")


def _some(rng: random.Random, members: Sequence[str], count: int) -> list[str]:
    """`count` different members, in the order of the list."""
    return sorted(rng.sample(members, count), key=members.index)


def _reply(language: str, named: list[str]) -> str:
    return SURE[language] + AND[language].join(named) + chains.STOP[language]


def _misread(rng: random.Random, language: str, category: str, count: int) -> str:
    """The plan and the proper reply of another request."""
    members = MEMBERS[language]
    while True:
        other, size = rng.choice(tuple(members)), rng.randrange(3)
        if (other, size + 2) != (category, count):
            named = _some(rng, members[other], size + 2)
            plan = COUNTS[language][size] + other + chains.STOP[language]
            return chains.tagged(plan, _reply(language, named))


def _bad_reply(rng: random.Random, language: str, category: str, count: int, fault: str) -> str:
    members = MEMBERS[language]
    if fault == "evasive":
        return EVASIVE[language]
    if fault == "off_topic":
        other = rng.choice([name for name in members if name != category])
        return _reply(language, _some(rng, members[other], count))
    if fault == "too_long":
        return _reply(language, rng.choices(members[category], k=rng.randint(7, 9)))
    wrong = rng.choice([n for n in (1, 2, 3, 4) if n != count])
    return _reply(language, _some(rng, members[category], wrong))


def make_example(
    rng: random.Random, language: str, *, split: str | None = None, fault: str | None = None
) -> dict[str, Any]:
    """A request with a proper reply (`chosen`) and a faulty one (`rejected`).

    Args:
      split: `train`, `heldout`, or None for the training templates.
      fault: what is wrong with the rejected reply, one of FAULTS; drawn if None.
    """
    held_out = split == "heldout"
    categories = tuple(MEMBERS[language])
    kind, size = rng.randrange(len(categories)), rng.randrange(3)
    category, count = categories[kind], size + 2
    ask = COUNTS[language][size] + category
    templates = (HELD_OUT_TEMPLATES if held_out else TEMPLATES)[language]
    prompt = rng.choice(templates).replace("{ask}", ask)
    good = _reply(language, _some(rng, MEMBERS[language][category], count))
    plan = ask + chains.STOP[language]
    fault = fault or rng.choice(FAULTS)
    if fault == "misread":
        rejected = _misread(rng, language, category, count)
    else:
        rejected = chains.tagged(plan, _bad_reply(rng, language, category, count, fault))
    return {
        "id": chains.example_id("chat", language, prompt),
        "task": "chat",
        "language": language,
        "kind": KIND,
        "prompt": prompt,
        "answer": good.strip(),
        "category": category.strip(),
        "count": count,
        "chosen": chains.tagged(plan, good),
        "rejected": rejected,
    }


def named_in(text: str, language: str) -> list[str]:
    """All members of all categories that `text` names, in order, repetitions included."""
    every = [word.strip() for group in MEMBERS[language].values() for word in group]
    pattern = "|".join(every)
    return re.findall(rf"\b(?:{pattern})\b" if language == "en" else pattern, text)


def check(answer: str, example: Mapping[str, Any]) -> bool:
    """Whether `answer` names exactly the wanted number of different members of the category."""
    language = example["language"]
    groups = {name.strip(): group for name, group in MEMBERS[language].items()}
    wanted = {word.strip() for word in groups[example["category"]]}
    named = named_in(answer, language)
    return len(named) == len(set(named)) == example["count"] and set(named) <= wanted
