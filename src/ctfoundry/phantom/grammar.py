"""From phrases to sentences: alternatives picked by a key, articles, commas, capitals, and what a structure is called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ctfoundry.keys import Key
from ctfoundry.phantom.wording import RIBS, SITES, WORDS


def site_words(site: str) -> tuple[str, ...]:
    """What a structure may be called, with its article.

    >>> site_words("kidney_left"), site_words("vertebrae_L3")[0]
    (('the left kidney',), 'the L3 vertebra')
    """
    if site in SITES:
        return SITES[site]
    rib = re.fullmatch(r"rib_(left|right)_(\d+)", site)
    if rib:
        side, number = rib[1], int(rib[2])
        word = RIBS[number - 1]
        return f"the {side} {word} rib", f"the {word} rib on the {side}", f"{side} rib {number}"
    if re.fullmatch(r"vertebrae_[CTLS]\d+", site):
        level = site.removeprefix("vertebrae_")
        return f"the {level} vertebra", f"vertebra {level}", f"the {level} vertebral body"
    stem, _, side = site.rpartition("_")
    if side in ("left", "right"):
        return (f"the {side} {stem.replace('_', ' ')}",)
    return (f"the {site.replace('_', ' ')}",)


def pick(key: Key, options: Sequence[str]) -> str:
    """One of the options."""
    return options[int(key.integers(0, len(options)))]


def say(key: Key, text: str, values: Mapping[str, str]) -> str:
    """A sentence from a frame: expanded, tidied, with a capital and a full stop.

    >>> say(Key.of(0), "a(n) {size} {adj} nodule", {"size": "8 mm", "adj": ""})
    'An 8 mm nodule.'
    """
    steps = 0
    while (slot := re.search(r"\{(\w+)\}", text)) is not None:
        name = slot[1]
        found = values[name] if name in values else pick(key(name, steps), WORDS[name])
        text = text[: slot.start()] + found + text[slot.end() :]
        steps += 1
    return sentence(text)


def sentence(text: str) -> str:
    """Blanks and commas in order, articles chosen, a capital and a full stop."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"\s+([,.;:)])", r"\1", text)
    text = re.sub(r"([,;:])(?:\s*[,;:])+", r"\1", text)
    text = re.sub(r"\ba\(n\) (?=(\S+))", lambda m: _article(m[1]), text, flags=re.IGNORECASE)
    text = re.sub(r"^[,;:\s]+", "", text).rstrip(" ,;:.")
    return text[:1].upper() + text[1:] + "."


def _article(word: str) -> str:
    """ "a " or "an " before `word`; numbers as they are spoken (8, 11, 18, 80 to 89)."""
    number = re.match(r"\d+", word)
    if number:
        return "an " if number[0] in ("11", "18") or number[0][0] == "8" else "a "
    return "an " if word[0].lower() in "aeiou" else "a "
