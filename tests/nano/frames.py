"""Frames of the micro-language by their words."""

from nano_grammar import Frame
from nano_lexicon import COLOURS, NAMES, NOUNS, PLACES, REQUESTS, TIMES, VERBS


def _index(values, word, of):
    return None if word is None else [of(value) for value in values].index(word)


def event(name, verb, number, noun, colour=None, place=None, time=None):
    """Who does what with how many of which, in English base forms."""
    return Frame(
        "event",
        name=NAMES.index(name),
        verb=_index(VERBS, verb, lambda entry: entry.base),
        number=number - 1,
        **_thing(noun, colour),
        place=_index(PLACES, place, lambda entry: entry.en),
        time=_index(TIMES, time, lambda entry: entry.en),
    )


def state(noun, colour, place):
    return Frame("state", **_thing(noun, colour), place=_index(PLACES, place, lambda entry: entry.en))


def request(verb, noun, colour, place=None):
    place = _index(PLACES, place, lambda entry: entry.en)
    return Frame("request", verb=_index(REQUESTS, verb, lambda entry: entry.en), **_thing(noun, colour), place=place)


def where(noun, colour):
    return Frame("where", **_thing(noun, colour))


def digits(*values):
    return Frame("digits", digits=values)


def _thing(noun, colour):
    return {
        "noun": _index(NOUNS, noun, lambda entry: entry.en[0]),
        "colour": _index(COLOURS, colour, lambda entry: entry.en),
    }
