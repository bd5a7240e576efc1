"""Recognition of the micro-language by a recogniser that is not ours: pocketsphinx, with a grammar of what can be said.

    pip install pocketsphinx
    python examples/nano/nano_recognizer.py recording.wav           # what it says
    python examples/nano/nano_recognizer.py --grammar               # the grammar itself (JSGF)

The grammar knows the words and the order of the phrases, and no agreement: "one red apples" is heard as such.
"""

import argparse
import re
from collections.abc import Iterable
from functools import cache

import numpy as np
from nano_lexicon import COLOURS, DIGITS, NAMES, NOUNS, NUMBERS, PLACES, REQUESTS, TIMES, VERBS
from nano_voices import SAMPLING_RATE

# Seconds of silence on both sides of a recording, its highest sample, and the noise that is added to all of it. Without
# noise, digital silence is taken for speech: three times as many words of the synthesizers are misheard.
SILENCE, PEAK, NOISE = 0.4, 0.9, 3e-3
# Where the default beams lose the end of a sentence, these are tried; they take four times as long.
WIDE_BEAMS = {"beam": 1e-60, "wbeam": 1e-40, "pbeam": 1e-60}


def normalize(text: str) -> str:
    """`text` in lower case, without punctuation, one space between words."""
    return " ".join(re.sub(r"[^\w\s']", " ", text.lower()).split())


def _either(phrases: Iterable[str]) -> str:
    return "( " + " | ".join(dict.fromkeys(normalize(phrase) for phrase in phrases)) + " )"


# Rule -> its JSGF expansion.
RULES = {
    "name": _either(NAMES),
    "verb": _either(verb.en for verb in VERBS),
    "request": _either(request.en for request in REQUESTS),
    "number": _either(NUMBERS["en"]),
    "digit": _either(DIGITS),
    "colour": _either(colour.en for colour in COLOURS),
    "noun": _either(form for noun in NOUNS for form in noun.en),
    "thing": _either(noun.en[0] for noun in NOUNS),
    "place": _either(place.en for place in PLACES),
    "time": _either(time.en for time in TIMES),
    "things": "<number> [ <colour> ] <noun>",
    "the": "the <colour> <thing>",
    "sentence": "<name> <verb> <things> [ <place> ] [ <time> ] | <the> is <place> | please <request> <the> [ <place> ] "
    "| where is <the> | ( <digit> ) +",
    "answer": "<name> | <things> | <number> | <colour> | <place> | <time>",
}
GRAMMARS = ("sentence", "answer")


def grammar(public: str = "sentence") -> str:
    """
    The grammar as JSGF.

    Args:
        public: `"sentence"` (what `nano_grammar.Frame.text` says in English) or `"answer"` (what `questions` answers).

    Raises:
        ValueError: another name.
    """
    if public not in GRAMMARS:
        raise ValueError(f"`public` is {public!r}; accepted are {', '.join(GRAMMARS)}")
    rules = "".join(f"<{name}> = {body};\n" for name, body in RULES.items() if name not in GRAMMARS)
    return f"#JSGF V1.0;\ngrammar nano;\n{rules}public <{public}> = {RULES[public]};\n"


@cache
def _pattern(rule: str) -> str:
    """The rule as a regular expression over words that each end in a space."""
    parts = []
    for token in RULES[rule].split():
        if token.startswith("<"):
            parts.append(f"(?:{_pattern(token[1:-1])})")
        else:
            parts.append({"(": "(?:", ")": ")", "[": "(?:", "]": ")?", "|": "|", "+": "+"}.get(token, f"{token} "))
    return "".join(parts)


def accepts(text: str, rule: str = "sentence") -> bool:
    """Whether the normalised `text` is one that the rule can give."""
    return re.fullmatch(_pattern(rule), f"{normalize(text)} ") is not None


class Recognizer:
    """
    Recognition with the grammars. Recordings do not influence each other: the mean of the features is that of the recording,
    and the noise is the same for all.

    Raises:
        ImportError: pocketsphinx is not installed.
    """

    def __init__(self):
        try:
            from pocketsphinx import Decoder, get_model_path
        except ImportError as error:
            raise ImportError("the recogniser needs pocketsphinx: pip install pocketsphinx") from error
        model = get_model_path()
        files = {"hmm": f"{model}/en-us/en-us", "dict": f"{model}/en-us/cmudict-en-us.dict"}
        settings = {"lm": None, "cmn": "batch", "loglevel": "FATAL", **files}
        self.decoders = [Decoder(**settings), Decoder(**settings, **WIDE_BEAMS)]
        for decoder in self.decoders:
            for name in GRAMMARS:
                decoder.add_jsgf_string(name, grammar(name))

    def __call__(self, samples: np.ndarray, rate: int = SAMPLING_RATE, rule: str = "sentence") -> str:
        """
        What is said.

        Args:
            samples: float `[S]` at `rate` Hz.
            rule: a name of `GRAMMARS`.

        Returns:
            Words in lower case: what the rule can give, or the beginning of it, or the empty string.

        Raises:
            ValueError: an unknown `rule`.
        """
        if rule not in GRAMMARS:
            raise ValueError(f"`rule` is {rule!r}; accepted are {', '.join(GRAMMARS)}")
        samples = at_rate(samples, rate)
        samples = samples * (PEAK / max(1e-3, np.abs(samples).max(initial=0)))
        samples = np.pad(samples, round(SILENCE * SAMPLING_RATE))
        samples = samples + NOISE * np.random.default_rng(0).standard_normal(len(samples))
        data = (np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes()
        for decoder in self.decoders:
            heard = _decode(decoder, data, rule)
            if accepts(heard, rule):
                break
        return heard


def _decode(decoder, data: bytes, rule: str) -> str:
    decoder.activate_search(rule)
    decoder.start_utt()
    decoder.process_raw(data, full_utt=True)
    decoder.end_utt()
    heard = decoder.hyp()
    return "" if heard is None else normalize(heard.hypstr)


def at_rate(samples: np.ndarray, rate: int) -> np.ndarray:
    """`samples` float `[S]` at `rate` Hz, brought to `SAMPLING_RATE`."""
    if rate == SAMPLING_RATE:
        return np.asarray(samples, dtype=np.float32)
    import librosa

    return librosa.resample(np.asarray(samples, dtype=np.float32), orig_sr=rate, target_sr=SAMPLING_RATE)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="*", help="mono files")
    parser.add_argument("--rule", choices=GRAMMARS, default="sentence")
    parser.add_argument("--grammar", action="store_true", help="print the grammar")
    options = parser.parse_args(arguments)
    if options.grammar:
        print(grammar(options.rule))
    if options.recordings:
        import soundfile

        recognizer = Recognizer()
        for path in options.recordings:
            print(f"{path}: {recognizer(*soundfile.read(path, dtype='float32'), options.rule)}")


if __name__ == "__main__":
    main()

__all__ = ["GRAMMARS", "RULES", "Recognizer", "accepts", "at_rate", "grammar", "normalize"]
