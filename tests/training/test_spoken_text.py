"""Words, sentences, and what of a text counts."""

import pytest

from dualspeech.training.data_steps.spoken_text import is_mostly_cjk, normalize_text, split_sentences, split_words


def test_words():
    assert split_words("Red  house, no!\n3.14") == ["Red", "house,", "no!", "3.14"]
    assert split_words("我用 GPU，好。ok") == ["我", "用", "GPU，", "好。", "ok"]
    assert split_words(" ") == []
    for text in ("Red house, no!", "我用 GPU，好。ok", "《书》"):
        assert "".join(split_words(text)) == text.replace(" ", "")


def test_sentences():
    text = 'He said: "Stop." It cost 3.50 today! Really? 今天好。明天呢？"好！"\nEnd'
    assert split_sentences(text, 1000) == [text]
    pieces = split_sentences(text, 25)
    assert pieces == ['He said: "Stop."', "It cost 3.50 today!", "Really? 今天好。明天呢？", '"好！"\nEnd'] or all(
        len(piece) <= 25 for piece in pieces
    )
    assert pieces[0] == 'He said: "Stop."' and pieces[1] == "It cost 3.50 today!"
    # clauses, then words, then characters
    assert split_sentences("one two, three four, five six", 12) == ["one two,", "three four,", "five six"]
    assert split_sentences("one two three", 8) == ["one two", "three"]
    assert split_sentences("abcdefgh", 3) == ["abc", "def", "gh"]
    with pytest.raises(ValueError, match="`text` is empty"):
        split_sentences(" ", 10)
    with pytest.raises(ValueError, match="`max_characters`"):
        split_sentences("a", 0)


@pytest.mark.parametrize("size", [1, 2, 5, 7, 20, 50])
def test_sentences_lose_nothing(size):
    text = "Dr. No lives, they say; in 1,000 houses. 他说：“走吧！”然后走了。\n\nWhy? Because...  It's so (really)."
    pieces = split_sentences(text, size)
    assert max(map(len, pieces)) <= size
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_languages():
    assert is_mostly_cjk("今天 GPU 很好用啊") and not is_mostly_cjk("a GPU 好")
    assert not is_mostly_cjk("123")


def test_normalized():
    assert normalize_text("It's TWENTY-one, Mr. Smith!", "en") == "it is 21 mister smith"
    assert normalize_text("今天，天气 OK 吗？", "zh") == "今天天气ok吗"
    assert normalize_text("Fußgänger, Äpfel!", "de") == "fußgänger äpfel"
    assert normalize_text("Wait... what -- 3.5%?", "en") == "wait what 3.5%"
    assert normalize_text("He said (very loudly) that [it] works", "en") == "he said very loudly that it works"
    assert normalize_text("Wort(e) （ganz laut）", "de") == "worte ganz laut"
    assert normalize_text("... !", "en") == normalize_text("。", "zh") == ""
