"""Every metric over texts of many scripts and over rubbish: a number in its range, and no traceback."""

import random
import unicodedata

import pytest

from gitllm_plugin.metrics import METRICS, score, why_not
from gitllm_plugin.metrics.rouge import Words
from gitllm_plugin.metrics.texts import clean

RANGES = [
    *((0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x530, 0x58F), (0x590, 0x5FF)),
    *((0x600, 0x6FF), (0x900, 0x97F), (0x980, 0x9FF), (0xB80, 0xBFF), (0xE00, 0xE7F), (0xE80, 0xEFF), (0xF00, 0xFDA)),
    *((0x1000, 0x109F), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x137F), (0x1780, 0x17FF), (0x1E00, 0x1EFF)),
    *((0x2000, 0x206F), (0x2070, 0x218F), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFB00, 0xFDFF)),
    *((0xFE00, 0xFFEF), (0x1F1E6, 0x1F1FF), (0x1F300, 0x1F64F), (0x20000, 0x2A6DF), (0xE0020, 0xE007F)),
]
ODD = [
    "",
    " ",
    "\x00",
    "\ud83d",
    "\udc00",
    "\u200d",
    "\ufeff",
    "\n",
    "\r\n",
    "\x1c",
    "\x85",
    "\u2028",
    "\u202e",
    "\u0301",
]
PHRASES = [
    "the answer is",
    "(B)",
    "B",
    "a",
    "A",
    "or",
    "not",
    "Option",
    "\\boxed{",
    "}",
    "答案是",
    "because",
    ".",
    "yes",
    "12",
    "'s",
]
SLOW = {"meteor", "spice"}  # a process in Java that reads its tables for each call
SELF = {"exact_match": 1.0, "option_accuracy": 1.0, "vqa_accuracy": 1.0}
"""Score of every text against itself; ``rouge_l`` gives 1 where there is a word."""


def make_text(draw: random.Random) -> str:
    """A few words of one script or of several, phrases of answers, and what no text should have."""
    start, end = draw.choice(RANGES)
    parts = []
    for _ in range(draw.choice([0, 1, 1, 2, 3, 5, 8])):
        kind = draw.random()
        if kind < 0.5:
            parts.append("".join(chr(draw.randint(start, end)) for _ in range(draw.randint(1, 6))))
        elif kind < 0.8:
            parts.append(draw.choice(PHRASES))
        elif kind < 0.9:
            parts.append("".join(chr(draw.randint(*draw.choice(RANGES))) for _ in range(3)))
        else:
            parts.append(draw.choice(ODD))
    text = draw.choice([" ", " ", "", "\n"]).join(parts)
    return unicodedata.normalize("NFD", text) if draw.random() < 0.2 else text


def check(count: int, seed: int) -> None:
    draw = random.Random(seed)
    texts = [make_text(draw) for _ in range(count)]
    others = [[make_text(draw) for _ in range(draw.randint(1, 3))] for _ in range(count)]
    names = [name for name in METRICS if name not in SLOW and not why_not(name)]
    for predictions, references in ((texts, others), (texts, [[text] for text in texts])):
        scores = score(names, predictions, references)
        assert set(scores.over_all) == set(names) and not scores.skipped
        for name in names:
            values = [scores.over_all[name], *scores.by_example[name]]
            assert len(values) == count + 1
            assert all(-1e-9 <= value <= (10 if name == "cider" else 1) + 1e-9 for value in values), name
    # The last are those of texts against themselves.
    for place, text in enumerate(texts):
        for name, expected in SELF.items():
            assert scores.by_example[name][place] == expected, (name, text)
        assert scores.by_example["rouge_l"][place] == float(bool(Words().tokenize(clean(text)))), text
    again = [clean(text) for text in texts]
    assert again == [clean(text) for text in again]
    assert again == [clean(unicodedata.normalize("NFD", text)) for text in texts]


def test_a_few_hundred_texts():
    check(400, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_many_texts(seed):
    check(5000, seed)
