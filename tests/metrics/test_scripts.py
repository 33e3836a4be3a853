"""Texts of every script, however their characters are written."""

import random
import unicodedata

import pytest

from gitllm_plugin.metrics import exact_match, option_accuracy, rouge_l, vqa_accuracy
from gitllm_plugin.metrics.rouge import Words, longest_common_subsequence
from gitllm_plugin.metrics.texts import clean

SCRIPTS = {
    "ukrainian": ("дві чорні кішки", "жовтий автобус"),
    "greek": ("ένα μικρό σκυλί", "δύο αυτοκίνητα"),
    "hebrew": ("כלב חום", "שתי מכוניות"),
    "persian": ("می‌خواهم یک سیب", "دو ماشین"),
    "bengali": ("একটি লাল বাস", "দুটি কুকুর"),
    "tamil": ("ஒரு சிவப்பு பேருந்து", "இரண்டு நாய்கள்"),
    "amharic": ("ቀይ አውቶቡስ", "ሁለት ውሾች"),
    "georgian": ("წითელი ავტობუსი", "ორი ძაღლი"),
    "armenian": ("կարմիր ավտոբուս", "երկու շուն"),
    "tibetan": ("དམར་པོ་ཞིག", "ཁྱི་གཉིས"),
    "lao": ("ລົດເມສີແດງ", "ໝາ"),
    "khmer": ("រថយន្តក្រហម", "ឆ្កែ"),
    "burmese": ("နီသောကား", "ခွေး"),
    "vietnamese": ("một chiếc xe buýt màu đỏ", "hai con chó"),
    "japanese": ("赤いバス", "猫二匹"),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_equal_texts_score_all_and_others_nothing(script):
    text, other = SCRIPTS[script]
    assert rouge_l([text, text, text.upper()], [[text], [other], [text]]) == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("metric", [exact_match, option_accuracy, rouge_l, vqa_accuracy])
@pytest.mark.parametrize("text", ["crème brûlée", "한국어 책", "nghiêng ngả", "Ångström", "ガギグ", "ཀཱི", "ЙОД"])
def test_composed_and_decomposed_texts_are_the_same(metric, text):
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    assert all(metric([first], [[second]]) == [1.0] for first in forms for second in forms)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A café_bar, 12 o'clock", ["a", "café", "bar", "12", "o", "clock"]),
        ("п'ять", ["п", "ять"]),
        ("दो बिल्लियाँ", ["दो", "बिल्लियाँ"]),
        ("สีแดง 2 ตัว ๑๒", ["สี", "แ", "ด", "ง", "2", "ตั", "ว", "๑๒"]),
        ("红T恤和ＡＢ１２", ["红", "t", "恤", "和", "ab12"]),
        ("人々は二〇二四年", ["人", "々", "は", "二", "〇", "二", "四", "年"]),
        ("アイス・クリーム", list("アイス・クリーム")),
        ("ｶﾞﾗｽ", ["ガ", "ラ", "ス"]),
        ("ཁྱི་གཉིས", ["ཁྱི", "གཉིས"]),
        ("a 🐕 dog", ["a", "dog"]),
        ("👍🏽❤️", ["👍", "❤"]),
        ("می‌خواهم", ["میخواهم"]),
        ("x² ½", ["x²", "½"]),
        ("?!", []),
    ],
)
def test_words_of_mixed_texts(text, words):
    assert Words().tokenize(clean(text)) == words


def test_accents_and_digits_count():
    assert rouge_l(["résumé ù", "año ñ", "٣ قطط"], [["resume u"], ["ano n"], ["٤ قطط"]]) == [0.0, 0.0, 0.5]


def test_what_is_written_in_ascii_has_rouge_scores_very_numbers():
    from rouge_score.rouge_scorer import RougeScorer

    theirs, draw = RougeScorer(["rougeL"]), random.Random(0)
    alphabet = "".join(map(chr, range(128)))
    for _ in range(500):
        words = [draw.choice(["the", "The", "red", "cat's", "a_b", "3.5"]) for _ in range(12)] + list(alphabet)
        texts = [" ".join(draw.choices(words, k=draw.randint(0, 15))) for _ in range(2)]
        texts += ["".join(draw.choices(alphabet, k=40))]
        for first in texts:
            for second in texts:
                assert rouge_l([first], [[second]])[0] == theirs.score(second, first)["rougeL"].fmeasure


def test_long_texts_are_scored_as_short_ones_are():
    from rouge_score.rouge_scorer import _lcs_table

    draw = random.Random(1)
    for _ in range(200):
        first, second = (draw.choices("abcdef", k=draw.randint(0, 40)) for _ in range(2))
        assert longest_common_subsequence(first, second) == _lcs_table(first, second)[-1][-1]
    text = " ".join(draw.choices(["red", "blue", "cat", "dog"], k=25_000))  # more than 100 KB
    other = " ".join(draw.choices(["red", "blue", "cat", "dog"], k=25_000))
    assert rouge_l([text, "red cat", text], [[text], [text], [other]])[0] == 1.0


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("red\u200b cat", "red cat"),
        ("\ufeffred cat\u200f", "red cat"),
        ("ｒｅｄ　ｃａｔ", "red cat"),
        ("red\x00cat", "red cat"),
        ("red cat\u00ad", "red cat"),
        ("\ud83d\ude00 red cat", "😀 red cat"),
        ("ﻗﻄﺔ", "قطة"),
        ("قطة\u200e", "قطة"),
    ],
)
def test_what_no_reader_sees_changes_no_score(text, same):
    for metric in (exact_match, option_accuracy, rouge_l, vqa_accuracy):
        assert metric([text], [[same]]) == metric([same], [[text]]) == [1.0]


def test_ascii_and_meaning_stay_as_they_are():
    ascii_text = "".join(map(chr, range(32, 127)))
    assert clean(ascii_text) == ascii_text and clean("a\n\tb\r\n") == "a\n\tb\r\n"
    assert exact_match(["10²", "½", "\ud800"], [["102"], ["1⁄2"], ["a"]]) == [0.0, 0.0, 0.0]
