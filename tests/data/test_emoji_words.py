"""Labels become phrases that a person would type."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2im.data.emoji_words import article, bare, concept, keywords, phrase_for, plain, slug


@pytest.mark.parametrize(
    ("label", "phrase"),
    [
        ("cat with wry smile", "a cat with wry smile"),
        ("owl", "an owl"),
        ("unicorn", "a unicorn"),
        ("ewe", "a ewe"),
        ("onion", "an onion"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("x-ray", "an x-ray"),
        ("T-Rex", "a t-rex"),
        ("hourglass done", "an hourglass"),
        ("grapes", "grapes"),
        ("bus", "a bus"),
        ("cactus", "a cactus"),
        ("dress", "a dress"),
        ("rhinoceros", "a rhinoceros"),
        ("glass of milk", "a glass of milk"),
        ("nest with eggs", "a nest with eggs"),
        ("busts in silhouette", "busts in silhouette"),
        ("person lifting weights", "a person lifting weights"),
        ("people with bunny ears", "people with bunny ears"),
        ("bacon", "bacon"),
        ("Santa Claus", "santa claus"),
        ("Statue of Liberty", "the statue of liberty"),
        ("piñata", "a pinata"),
        ("woman’s hat", "a woman's hat"),
        ("ON! arrow", "an on arrow"),
        ("up-right arrow", "an arrow pointing up right"),
        ("left-right arrow", "an arrow pointing left and right"),
        ("backhand index pointing left", "a hand pointing left"),
        ("no smoking", "a no smoking sign"),
        ("infinity", "an infinity sign"),
        ("Aries", "the zodiac sign aries"),
        ("five o’clock", "a clock showing five o'clock"),
        ("keycap: 7", "the number 7 button"),
        ("keycap: #", "the number sign button"),
        ("man: bald", "a bald man"),
        ("woman: beard", "a woman with a beard"),
        ("person: red hair", "a person with red hair"),
        ("kiss: woman, man", "a kiss of woman and man"),
        ("flag: Chad", "the flag of chad"),
        ("flag: United States", "the flag of the united states"),
        ("flag: Réunion", "the flag of reunion"),
        ("flag: European Union", "the flag of the european union"),
        ("flag: Hong Kong SAR China", "the flag of hong kong"),
        ("flag: Côte d’Ivoire", "the flag of cote d'ivoire"),
        ("flag: Trinidad & Tobago", "the flag of trinidad and tobago"),
    ],
)
def test_label_becomes_a_phrase(label, phrase):
    assert phrase_for(label) == phrase


@given(st.text(st.characters(codec="utf-8"), min_size=1).filter(plain))
def test_every_phrase_is_plain(label):
    phrase = phrase_for(label)
    assert phrase == plain(phrase)


@given(st.lists(st.sampled_from(["owl", "bus", "grapes", "fire", "person"]), min_size=1).map(" ".join))
def test_bare_undoes_article(phrase):
    assert bare(article(phrase) + phrase) == phrase


def test_slug_is_a_safe_file_name():
    assert slug("Côte d’Ivoire, 3d style") == "cote-d-ivoire-3d-style"


@pytest.mark.parametrize("label", ["cook", "man cook", "woman cook", "person cook", "person: cook"])
def test_concept_is_the_same_for_every_gender(label):
    assert concept(label) == "cook"


def test_keywords_are_the_most_used_words_that_the_phrase_does_not_say():
    uses = Counter({"fruit": 20, "food": 55, "red": 21, "apples": 4, "snackish": 1, "omg": 16, "14:30": 14})
    tags = ["omg", "red", "snackish", "fruit", "apples", "14:30", "food"]
    assert keywords("a red apple", tags, uses) == ["food", "fruit"]
    assert keywords("a red apple", tags, uses, count=1) == ["food"]
    assert keywords("red apples", ["apple"], Counter(apple=9)) == []
