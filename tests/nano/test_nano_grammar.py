"""Sentences of the micro-language: agreement, questions and their answers, and which split a frame belongs to."""

import random
import re
from collections import Counter
from itertools import product

import pytest
from nano_grammar import KINDS, SPLITS, Frame, draw_frame, draw_frames, questions, things
from nano_lexicon import COLOURS, LANGUAGES, NAMES, NOUNS, NUMBERS, PLACES, REQUESTS, TIMES, VERBS

from .frames import digits, event, request, state, where

VOWELS = "aeiouéèêâîôh"
# Written by hand.
SENTENCES = {
    "en": [
        (event("Tom", "buy", 3, "apple", "red", "in the park", "on Monday"), "Tom buys three red apples in the park on Monday."),
        (event("Nina", "wash", 1, "knife"), "Nina washes one knife."),
        (event("Paul", "have", 2, "knife", "grey"), "Paul has two grey knives."),
        (state("box", "brown", "at school"), "The brown box is at school."),
        (request("paint", "bed", "blue", "at home"), "Please paint the blue bed at home."),
        (where("key", "yellow"), "Where is the yellow key?"),
        (digits(3, 0, 9), "three zero nine"),
    ],
    "de": [
        (event("Tom", "buy", 3, "apple", "red", "in the park", "on Monday"), "Tom kauft am Montag drei rote Äpfel im Park."),
        (event("Anna", "see", 1, "dog", "black"), "Anna sieht einen schwarzen Hund."),
        (event("Maria", "want", 1, "cup", "white", "at home"), "Maria möchte eine weiße Tasse zu Hause."),
        (event("Peter", "find", 1, "shirt", "green", None, "today"), "Peter findet heute ein grünes Hemd."),
        (event("Emma", "wash", 1, "spoon", None, "in the kitchen"), "Emma wäscht einen Löffel in der Küche."),
        (event("Jack", "carry", 12, "knife", "grey"), "Jack trägt zwölf graue Messer."),
        (state("chair", "yellow", "in the office"), "Der gelbe Stuhl ist im Büro."),
        (state("flower", "blue", "at the market"), "Die blaue Blume ist auf dem Markt."),
        (state("book", "brown", "at the station"), "Das braune Buch ist am Bahnhof."),
        (request("paint", "table", "green", "in the garden"), "Bitte male den grünen Tisch im Garten."),
        (request("sell", "car", "red"), "Bitte verkaufe das rote Auto."),
        (request("bring", "lamp", "white"), "Bitte bring die weiße Lampe."),
        (where("coat", "grey"), "Wo ist der graue Mantel?"),
        (where("horse", "black"), "Wo ist das schwarze Pferd?"),
    ],
    "es": [
        (event("Tom", "buy", 3, "apple", "red", "in the park", "on Monday"), "Tom compra tres manzanas rojas en el parque el lunes."),
        (event("Anna", "have", 1, "flower", "yellow"), "Anna tiene una flor amarilla."),
        (event("Anna", "see", 1, "bird", "white"), "Anna ve un pájaro blanco."),
        (event("Laura", "bring", 4, "pencil", "blue"), "Laura trae cuatro lápices azules."),
        (event("David", "sell", 2, "clock", "brown", None, "tomorrow"), "David vende dos relojes marrones mañana."),
        (event("Linda", "want", 1, "key", "grey", None, "at night"), "Linda quiere una llave gris por la noche."),
        (state("bed", "white", "in the hotel"), "La cama blanca está en el hotel."),
        (state("knife", "black", "in the kitchen"), "El cuchillo negro está en la cocina."),
        (request("wash", "shirt", "red"), "Por favor, lava la camisa roja."),
        (request("find", "car", "green", "in the city"), "Por favor, encuentra el coche verde en la ciudad."),
        (where("letter", "blue"), "¿Dónde está la carta azul?"),
    ],
    "fr": [
        (event("Tom", "buy", 3, "apple", "green", "in the park", "on Monday"), "Tom achète trois pommes vertes dans le parc lundi."),
        (event("Anna", "see", 1, "bottle", "white"), "Anna voit une bouteille blanche."),
        (event("Paul", "have", 1, "hat", "white"), "Paul a un chapeau blanc."),
        (event("Sarah", "find", 2, "horse", "blue", None, "in the evening"), "Sarah trouve deux chevaux bleus le soir."),
        (event("Mark", "carry", 5, "shoe", "brown"), "Mark porte cinq chaussures marron."),
        (event("Julia", "paint", 6, "bird", "grey"), "Julia peint six oiseaux gris."),
        (state("bird", "black", "at school"), "L'oiseau noir est à l'école."),
        (state("clock", "black", "at the station"), "L'horloge noire est à la gare."),
        (request("wash", "plate", "grey"), "S'il te plaît, lave l'assiette grise."),
        (request("sell", "car", "blue", "at the market"), "S'il te plaît, vends la voiture bleue au marché."),
        (request("paint", "bed", "green"), "S'il te plaît, peins le lit vert."),
        (where("key", "white"), "Où est la clé blanche ?"),
        (where("bag", "white"), "Où est le sac blanc ?"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("language", "frame", "text"),
    [(language, *entry) for language, entries in SENTENCES.items() for entry in entries],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sentence(language, frame, text):
    assert frame.text(language) == text


def test_all_lists_have_entries_of_their_own():
    """Two entries that a language says alike would put one sentence into two splits."""
    assert len(set(NAMES)) == len(NAMES)
    for language in LANGUAGES:
        for entries in (VERBS, REQUESTS, PLACES, TIMES):
            said = [getattr(entry, language) for entry in entries]
            assert len(set(said)) == len(said), (language, said)
        assert len(set(NUMBERS[language])) == len(NUMBERS["en"])
        nouns = [noun.en[0] if language == "en" else getattr(noun, language)[1] for noun in NOUNS]
        assert len(set(nouns)) == len(NOUNS)
        colours = [entry.en if language == "en" else entry.de if language == "de" else getattr(entry, language)[0] for entry in COLOURS]  # fmt: skip
        assert len(set(colours)) == len(COLOURS)


def test_genders_are_known():
    for noun in NOUNS:
        assert noun.de[0] in "mfn" and noun.es[0] in "mf" and noun.fr[0] in "mf"
        assert all(word[0].isupper() for word in noun.de[1:])


@pytest.mark.parametrize("number", [1, 2, 12])
def test_things_agree(number):
    """Every noun with every colour, against the rules said once more."""
    for noun, colour in product(range(len(NOUNS)), range(len(COLOURS))):
        frame = Frame("event", name=0, verb=0, number=number - 1, colour=colour, noun=noun)
        entry, shade = NOUNS[noun], COLOURS[colour]
        assert things(frame, "en").split() == [NUMBERS["en"][number - 1], shade.en, entry.en[number > 1]]
        count, adjective, word = things(frame, "de").split()
        assert word == entry.de[1 + (number > 1)]
        endings = {"m": ("einen", "en"), "f": ("eine", "e"), "n": ("ein", "es")}[entry.de[0]]
        assert (count, adjective) == ((endings[0], shade.de + endings[1]) if number == 1 else (NUMBERS["de"][number - 1], shade.de + "e"))  # fmt: skip
        for language, one in (("es", {"m": "un", "f": "una"}), ("fr", {"m": "un", "f": "une"})):
            gender, *forms = getattr(entry, language)
            count, word, adjective = things(frame, language).split()
            assert count == (one[gender] if number == 1 else NUMBERS[language][number - 1])
            assert word == forms[number > 1]
            assert adjective == getattr(shade, language)[2 * (number > 1) + (gender == "f")]


def test_definite_things_agree():
    articles = {"de": {"m": "der", "f": "die", "n": "das"}, "es": {"m": "el", "f": "la"}, "fr": {"m": "le", "f": "la"}}
    for noun, colour in product(range(len(NOUNS)), range(len(COLOURS))):
        frame = Frame("state", colour=colour, noun=noun, place=0)
        for language, by_gender in articles.items():
            gender, word = getattr(NOUNS[noun], language)[:2]
            article = by_gender[gender]
            start = frame.text(language)
            start = start[0].lower() + start[1:]
            if language == "fr" and word[0] in VOWELS:
                assert start.startswith(f"l'{word} ")
            elif language == "de":
                assert start.startswith(f"{article} {COLOURS[colour].de}e {word} ist ")
            else:
                assert start.startswith(f"{article} {word} ")
        asked = Frame("request", verb=0, colour=colour, noun=noun).text("de")
        gender, word = NOUNS[noun].de[:2]
        article, ending = ("den", "en") if gender == "m" else (articles["de"][gender], "e")
        assert asked == f"Bitte kauf {article} {COLOURS[colour].de}{ending} {word}."


def frames_of_all_kinds(count=400):
    draw = random.Random(0)
    return [draw_frame(draw) for _ in range(count)]


def test_every_sentence_is_a_sentence():
    for frame in frames_of_all_kinds():
        if frame.kind == "digits":
            assert re.fullmatch(r"[a-z]+( [a-z]+){0,5}", frame.text())
            continue
        for language in LANGUAGES:
            text = frame.text(language)
            end = {"fr": " ?"}.get(language, "?") if frame.kind == "where" else "."
            assert text.endswith(end) and text.lstrip("¿")[0].isupper()
            assert "  " not in text and text == text.strip() and "None" not in text
            assert text.startswith("¿") == (language == "es" and frame.kind == "where")


def test_wrong_languages_are_named():
    frame = event("Tom", "buy", 1, "apple")
    with pytest.raises(ValueError, match="`language` is 'it'; accepted are en, de, es, fr"):
        frame.text("it")
    with pytest.raises(ValueError, match="digits exist in English only"):
        digits(1, 2).text("de")
    with pytest.raises(ValueError, match="`split` is 'dev'; accepted are train, validation, test"):
        draw_frames("dev", 1, seed=0)
    with pytest.raises(ValueError, match="too many"):
        draw_frames("test", 100, seed=0, kinds=("where",))  # 224 frames in all


def test_questions_and_answers():
    full = event("Tom", "buy", 3, "apple", "red", "in the park", "on Monday")
    assert {asked.about: asked[1:] for asked in questions(full)} == {
        "who": ("Who buys the apples?", "Tom."),
        "what": ("What does Tom buy?", "Three red apples."),
        "number": ("How many apples does Tom buy?", "Three."),
        "colour": ("What colour are the apples?", "Red."),
        "place": ("Where is Tom?", "In the park."),
        "time": ("When does Tom buy the apples?", "On Monday."),
    }
    assert {asked.about: asked[1:] for asked in questions(event("Emma", "have", 1, "knife", "grey"))} == {
        "who": ("Who has the knife?", "Emma."),
        "what": ("What does Emma have?", "One grey knife."),
        "colour": ("What colour is the knife?", "Grey."),
    }
    assert {asked.about: asked[1:] for asked in questions(state("box", "brown", "at home"))} == {
        "place": ("Where is the box?", "At home."),
        "colour": ("What colour is the box?", "Brown."),
    }
    for frame in (request("buy", "cup", "red"), where("cup", "red"), digits(1, 2, 3)):
        assert questions(frame) == []


def test_answers_stand_in_the_sentence():
    for frame in frames_of_all_kinds():
        for asked in questions(frame):
            assert asked.answer.rstrip(".").lower() in frame.text().lower(), (frame.text(), asked)


def test_keys_tell_frames_apart():
    """Equal keys, equal texts: in every language."""
    frames = {frame.key: frame for frame in frames_of_all_kinds(4000)}
    for language in LANGUAGES:
        said = Counter(frame.text(language) for frame in frames.values() if language == "en" or frame.kind != "digits")
        assert not [text for text, count in said.items() if count > 1]
    assert digits(1, 2).key != digits(12).key
    assert event("Tom", "buy", 1, "apple").key != event("Tom", "buy", 1, "apple", "red").key


def test_splits_have_their_shares_and_stay():
    counts = Counter(frame.split for frame in frames_of_all_kinds(6000) if frame.kind != "digits")
    total = sum(counts.values())
    assert sum(SPLITS.values()) == 100
    for name, share in SPLITS.items():
        assert abs(100 * counts[name] / total - share) < 2
    # recorded: another hash or another order of the fields would mix the splits of corpora that exist
    assert [event("Tom", "buy", n, "apple", "red", "in the park").split for n in range(1, 13)] == [
        *["train"] * 9,
        "validation",
        "train",
        "train",
    ]
    assert {digits(a, b).split for a in range(10) for b in range(10)} == {"train"}


@pytest.mark.parametrize("split", SPLITS)
def test_draws_are_of_the_split_different_and_the_same_again(split):
    frames = draw_frames(split, 60, seed=3)
    assert {frame.split for frame in frames} == {split}
    assert len({frame.key for frame in frames}) == 60 and {frame.kind for frame in frames} == set(KINDS)
    assert frames == draw_frames(split, 60, seed=3) != draw_frames(split, 60, seed=4)
