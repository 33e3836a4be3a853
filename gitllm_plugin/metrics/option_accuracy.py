"""Which option an answer names: by its letter, however models write it, or by its text.

What is not clear never scores: an answer that names several options, or takes back the one that it names, names none.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gitllm_plugin.metrics.answers import normalize
from gitllm_plugin.metrics.registry import metric

_ANSWER = (
    r"(?:answers?|ans\.?|solution|response|assistant|antwort|réponse|respuesta|resposta|risposta|antwoord|svaret|odpowiedź|ответ"
    r"|jawaban|cevap|đáp án|câu trả lời|答案|答え|答|正解|정답|답|उत्तर|الإجابة|الجواب|คำตอบ)"
)
_OPTION = r"(?:options?|choices?|letters?|alternatives?|选项|選項)"
_CORRECT = r"(?:correct|right|best|most likely|final|chosen)"
# What may stand between such a word and its letter: no "not", and nothing that begins another sentence.
_LINK = (
    r"(?:[\"'”’]s?)?(?:\s?(?:is|are|was|be|would|should|must|will|could|may|might|seems|appears|here|probably|likely|most"
    r"|definitely|clearly|obviously|surely|certainly|therefore|thus|simply|to|for|this|that|question|problem|the|my|one"
    r"|correct|right|best|final|options?|choices?|letters?|answers?|ist|lautet|est|es|la|é|è|correcta|correcte|correta"
    r"|corretta|adalah|là|는|은|は|है|هي|هو|คือ|应该是|應該是|应为|应选|选项|選項|选择|選擇|是|为|為|选|選|[:=→,–—-]|[-=]>)){0,8}\s?"
)
_IS = r"\s?(?:is|are|was|seems|looks|must be|should be|would be)"

_OPEN, _CLOSE = "([{<\"'“‘【「『", ")]}>\"'”’】」』"
# A letter that is no part of a word: "dog(s)", "X-ray", "C++", "U.S.", "A's" and "don't" have none.
_LETTER = re.compile(
    rf"(?<![A-Za-z0-9À-ɏ'’.-])[{re.escape(_OPEN)}]{{0,3}}(?P<letter>[A-Za-z])(?P<close>[{re.escape(_CLOSE)}]{{0,3}})"
    r"(?![A-Za-z0-9À-ɏ'’+#_]|-\w|\.\w)"
)
# Behind a letter that could be a word, "a" or "I": the end, a mark, or what goes on about a letter.
_ENDS = re.compile(
    r"\s?(?:$|\n|[.,;:!?。、！？=](?=\s|$)|[。、\u3400-\u9fff]|[-–—:]\s"
    r"|(?:because|since|as|is|was|due|seems|must)\b|(?:or|and|/|,|&)\s?(?:option )?[(\[]?[A-Za-z]\b(?!['’]))"
)
_BETWEEN = re.compile(
    rf"\s?(?:,|/|&|、|;|or|and|oder|und|ou|et|或者|或|和|と)\s?(?:or |and )?(?:(?:the )?{_OPTION} )?", re.IGNORECASE
)
# Behind a letter at the start of a text, or of one that is listed behind another.
_LABELS = re.compile(
    r"[.):,;]{1,2}(?=[\s\u3040-\u9fff]|$)|[。、:]|\s?(?:\n|$)|\s(?:[-–—:/]\s|[(\[])"
    r"|\s(?:because|since|as|due|it|the|this|that|there|he|she|they|its)\b"
)
_ITEM = re.compile(r"[.):](?:\s|$)|\s?(?:\n|$)")
_EXPLAINS = re.compile(
    r"\b(?:because|since|explanation|reason(?:ing)?|rationale|whereas|while|as|due)\b|因为|因為|由于|解释|理由",
    re.IGNORECASE,
)

_SAYS_LAST = re.compile(rf"final answer{_LINK}$", re.IGNORECASE)
_SAYS = re.compile(
    rf"(?:(?<![A-Za-zÀ-ɏ]){_ANSWER}|\b{_CORRECT} {_OPTION}|(?<![A-Za-z]){_OPTION}(?={_IS}\b|:|是|为|為)){_LINK}$"
    rf"|(?:我选|我選|故选|应选|选择|選擇|选|選)(?:项|項|是|:)?\s?$",
    re.IGNORECASE,
)
_IS_RIGHT = re.compile(
    rf"{_IS}(?: clearly| definitely| probably| also| both)?(?: the| my)? (?:{_CORRECT}|answer)\b"
    r"|\s?(?:选项|選項|项|項)?(?:是|为|為)?(?:正确|正確|对的|對的|が正解|が正しい)",
    re.IGNORECASE,
)
_MENTIONS = re.compile(rf"{_OPTION}\s?:?\s?$", re.IGNORECASE)
_THINKS = re.compile(
    r"\b(?:it'?s|that'?s|is|be|think|say|choose|chose|pick|picked|select|selected|go with|going with|go for|guess"
    r"|believe|(?<!thing )(?<!all )but|definitely|probably|perhaps|maybe|likely|sure|so|therefore|hence|thus|yes|okay"
    r"|ok|well)[,:]? $",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"[.,;:!?。，；：\n]|\b(?:but|so|therefore|hence|thus)\b|\band (?=the|so|i|it)|但|所以", re.IGNORECASE
)
_TAKES_BACK = re.compile(
    r"\b(?:not|cannot|neither|nor|never|rather than|instead of|except|excludes?|eliminat\w+|rul\w+ out|wrong"
    r"|incorrect)\b|n't\b|不是|不选|不選|并非|排除",
    re.IGNORECASE,
)
_IS_WRONG = re.compile(
    r"\s?(?:(?:is|are|was|seems|looks|could|would|does|do|also|both|all|clearly|definitely|选项|選項|是)\s?){1,4}"
    r"(?:not\b|n't\b|never\b|wrong\b|incorrect\b|false\b|invalid\b)"
    r"|\s?(?:cannot|can't|can not|won't|never)\b|\s?(?:选项|選項|是)?(?:不对|不對|不正确|不正確|不是|错|錯)",
    re.IGNORECASE,
)
_LEAD = re.compile(rf"(?:(?:the |my )?(?:{_CORRECT} )?(?:{_ANSWER}|{_OPTION}))(?:\s?(?:is|:|是))+\s?", re.IGNORECASE)
_NEAR = 90
"""Characters before and behind a letter that are looked at."""


@metric(
    "option_accuracy",
    "the same option: by its letter, as in `(C) a cat` or `The answer is C`, else by its text",
    leads=("choice",),
)
def option_accuracy(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Score 1.0 where prediction and reference name the same option, by letter or by text, else 0.0.

    Options are written ``(C) a cat``, as M3IT writes them, or as a letter or a text alone. Where the prediction or the
    reference names no letter, the texts are compared. A prediction that names several options is right by none of them.

    Args:
        predictions: N texts.
        references: N lists of right answers.

    Returns:
        N floats.

    Raises:
        ValueError: when the lengths differ.
    """
    return [
        float(any(_same_option(prediction, reference) for reference in accepted))
        for prediction, accepted in zip(predictions, references, strict=True)
    ]


def option_letter(text: str) -> str | None:
    """Give the letter, in upper case, of the option that a text names; None where it names none, or several."""
    named = named_options(text)
    return next(iter(named)) if len(named) == 1 else None


def named_options(text: str) -> set[str]:
    """Give the letters, in upper case, of all options that a text names and does not take back."""
    text = _without_marks(text)
    groups = [group for group in _groups(text) if not group.is_denied]
    if last := [group for group in groups if _SAYS_LAST.search(group.before)]:
        return _letters(last)
    said = [group for group in groups if group.is_said]
    if start := [group for group in groups if group.is_label]:
        head = _head(text, start[0].end)
        return _letters([*start, *said, *(g for g in groups if g.start < head and (g.is_item or g.is_mention))])
    mentioned = [group for group in groups if group.is_mention]
    return _letters(said or mentioned or [group for group in groups if _THINKS.search(group.before)])


@dataclass(frozen=True)
class _Group:
    """Letters of which one list is made, "B" or "B or (C)", and what stands around them.

    Attributes:
        letters: in upper case.
        bracketed: whether one of them is in brackets.
        closed: whether there is a bracket behind one of them.
        start, end: their place.
        before, after: the text next to them.
        begins: whether nothing stands before them.
    """

    letters: frozenset[str]
    bracketed: bool
    closed: bool
    start: int
    end: int
    before: str
    after: str
    begins: bool

    @property
    def is_denied(self) -> bool:
        """Whether they are named as wrong."""
        return bool(_TAKES_BACK.search(_CLAUSE.split(self.before)[-1]) or _IS_WRONG.match(self.after))

    @property
    def is_said(self) -> bool:
        """Whether they are said to be the answer."""
        return bool(_SAYS.search(self.before) or _IS_RIGHT.match(self.after))

    @property
    def is_label(self) -> bool:
        """Whether a text begins with them as with an answer, "B." or "B, because"; a bare "A" may begin a sentence."""
        return self.begins and (self.closed or bool(_LABELS.match(self.after)) or len(self.letters) > 1)

    @property
    def is_item(self) -> bool:
        """Whether they are one of several that are listed, "A. B. C."."""
        return self.closed or bool(_ITEM.match(self.after))

    @property
    def is_mention(self) -> bool:
        """Whether they are letters of options for certain."""
        return self.bracketed or bool(_MENTIONS.search(self.before) or re.match(r"\s?(?:选项|選項)", self.after))


def _groups(text: str) -> Iterator[_Group]:
    found: list[re.Match[str]] = []
    for match in [*_LETTER.finditer(text), None]:
        if match is not None and not _is_letter(text, match):
            continue
        if found and (match is None or not _belong_together(text, found[-1], match)):
            start, end = found[0].start(), found[-1].end()
            yield _Group(
                letters=frozenset(member["letter"].upper() for member in found),
                bracketed=any(map(_is_bracketed, found)),
                closed=any(member["close"] for member in found),
                start=start,
                end=end,
                before=text[max(0, start - _NEAR) : start],
                after=text[end : end + _NEAR],
                begins=not text[:start].strip(" \n\t>#•-–—") if start < _NEAR else False,
            )
            found = []
        if match is not None:
            found.append(match)


def _is_letter(text: str, match: re.Match[str]) -> bool:
    letter = match["letter"]
    if match["close"] or (letter.isupper() and letter not in "AI"):
        return True
    before = text[max(0, match.start() - _NEAR) : match.start()]
    return bool(_ENDS.match(text, match.end()) or (letter != "a" and _MENTIONS.search(before)))


def _is_bracketed(match: re.Match[str]) -> bool:
    return match[0][0] in _OPEN and bool(match["close"])


def _belong_together(text: str, first: re.Match[str], second: re.Match[str]) -> bool:
    between = text[first.end() : second.start()]
    if len(between) > _NEAR:
        return False
    side_by_side = not between.strip() and _is_bracketed(first) and _is_bracketed(second)
    return side_by_side or _BETWEEN.fullmatch(between) is not None


def _letters(groups: Sequence[_Group]) -> set[str]:
    return {letter for group in groups for letter in group.letters}


def _head(text: str, start: int) -> int:
    """Find where the explanation of an answer begins that ends at ``start``."""
    end = len(text)
    for line in re.compile(r"\n").finditer(text, start):
        # What is listed line by line are options too; other lines say why.
        label = _LETTER.match(text, line.end())
        if not (label and (label["close"] or _ITEM.match(text, label.end()))):
            end = line.start()
            break
    why = _EXPLAINS.search(text, start, end)
    return why.start() if why else end


def _same_option(prediction: str, reference: str) -> bool:
    given, wanted = (normalize(_without_marks(text)) for text in (prediction, reference))
    if given == wanted:
        return True
    label, text = _split(reference)
    own_label, own_text = _split(prediction)
    if text and (own_label, own_text) == (label, text):
        return True
    # An option's own text, which may begin as a letter does: "C major", "A dog".
    plain = normalize(_LEAD.sub("", _without_marks(prediction), count=1)) if own_label is None else own_text
    if len(text) > 1 and own_label is None and plain == text:
        return True
    if text and label and _is_spelled(prediction, label, text):
        return True
    named, letter = named_options(prediction), label or option_letter(reference)
    if named and letter:
        return named == {letter}
    return bool(text) and own_label is not None and own_text == text


def _is_spelled(prediction: str, label: str, text: str) -> bool:
    """Tell whether a text is a letter and its option's text, "B a dog" or "(B)a dog"; but "A dog" is a dog."""
    found = re.match(rf"\W{{0,3}}{label}(\W{{1,4}})", _without_marks(prediction), re.IGNORECASE)
    if found is None or (label in "AI" and not found[1].strip()):
        return False
    return normalize(found.string[found.end() :]) == text


def _split(text: str) -> tuple[str | None, str]:
    """Take the label from the start of a text: "(B) a dog" is B, and "a dog", normalised."""
    text = _without_marks(text)
    group = next(_groups(text), None)
    if group is None or not group.is_label or len(group.letters) > 1:
        return None, normalize(text)
    return next(iter(group.letters)), normalize(text[group.end :].lstrip(" .):,;-–—。、\n"))


def _without_marks(text: str) -> str:
    """Take out the marks of Markdown, HTML and LaTeX; what they make stand out is the final answer."""
    text = re.sub(r"\\(?:boxed|fbox)\s?\{|<answer>", " final answer {", text)
    text = re.sub(r"\\(?:text|math|bf|rm)[a-z]*\s?\{", "{", text)
    text = re.sub(r"</?[a-zA-Z]+>|[*`$]|__|##+|\\(?=[().\[\]])", "", text)
    return re.sub(r"\n\s*", "\n", re.sub(r"[^\S\n]+", " ", text)).strip()
