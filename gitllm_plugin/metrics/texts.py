"""What makes two texts the same to a reader: in one place, before any metric sees them."""

import unicodedata

import regex

# Written by every tokenizer or none, and never seen: soft hyphens, joiners and non-joiners, marks of direction, byte
# order marks, variants of a character (the colour of an emoji's heart). Unicode's Default_Ignorable_Code_Point without
# the tags that tell flags apart.
_INVISIBLE = regex.compile(r"[\p{Default_Ignorable_Code_Point}--[\U000E0000-\U000E007F]]", regex.V1)
# NUL and its kin. Those that str.split takes for white space stay.
_CONTROLS = regex.compile(r"[\p{Cc}--\s--\x1c-\x1f]", regex.V1)
# The same character in another width, or in the place that it has in a word: "Ａ", "ｶﾞ", "ﷲ". Superscripts, fractions
# and the like, to which NFKC gives other meanings (10² would be 102), are not among them.
_SHAPES = ("<wide>", "<narrow>", "<initial>", "<medial>", "<final>", "<isolated>", "<noBreak>")
_SHAPED = regex.compile(r"[\u00A0\u2007\u2011\u202F\u3000\uFB50-\uFDFF\uFE30-\uFE6F\uFE70-\uFEFE\uFF01-\uFFEE]")


def clean(text: str) -> str:
    """Write a text in the form in which all metrics read it; what is written in ASCII stays as it is.

    Characters are composed (NFC) and of usual width; what is invisible is taken out; control characters are blanks; and
    halves of surrogate pairs are joined, or replaced by U+FFFD.
    """
    if text.isascii() and text.isprintable():
        return text
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = _CONTROLS.sub(" ", _INVISIBLE.sub("", text))
    return unicodedata.normalize("NFC", _SHAPED.sub(lambda found: _usual_shape(found[0]), text))


def fold(text: str) -> str:
    """Write in lower case; to be used of cleaned texts, which stay composed."""
    return unicodedata.normalize("NFC", text.lower())


def _usual_shape(char: str) -> str:
    shape = unicodedata.decomposition(char).split(" ")[0]
    return unicodedata.normalize("NFKC", char) if shape in _SHAPES else char
