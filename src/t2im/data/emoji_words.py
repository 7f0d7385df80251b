"""How does an emoji's name become a caption that a person would type?

Emojibase labels are telegrams: "cat with wry smile", "person: red hair", "flag: Chad", "keycap: 3". A text encoder
trained on them would learn a language nobody speaks. Here they become short lower-case noun phrases with the article
that English wants ("a cat with wry smile", "a person with red hair", "the flag of chad", "grapes"), followed by what
the picture looks like ("flat style"). No grammar is perfect: the rules are few, and the exceptions are a table.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split(", "))


# Labels that say too little, or say it in the wrong words, with the phrase that says it right.
_PHRASES = {
    "baby symbol": "a baby sign",
    "badminton": "a badminton racket and shuttlecock",
    "bowling": "a bowling ball and pins",
    "breast-feeding": "a woman breast-feeding a baby",
    "building construction": "a building under construction",
    "camping": "a tent at a camping site",
    "candy": "a wrapped candy",
    "collision": "an explosion",
    "construction": "a construction barrier",
    "cooking": "an egg in a frying pan",
    "cricket game": "a cricket bat and ball",
    "dashing away": "a cloud of dust",
    "divide": "a division sign",
    "dizzy": "a dizzy star",
    "dna": "a dna helix",
    "eye in speech bubble": "an eye in a speech bubble",
    "face without mouth": "a face without a mouth",
    "field hockey": "a field hockey stick and ball",
    "foggy": "a city in fog",
    "heavy dollar sign": "a dollar sign",
    "heavy equals sign": "an equals sign",
    "high voltage": "a lightning bolt",
    "horse racing": "a jockey on a horse",
    "hourglass done": "an hourglass",
    "hourglass not done": "an hourglass with flowing sand",
    "hundred points": "the number one hundred",
    "ice hockey": "an ice hockey stick and puck",
    "index pointing at the viewer": "a hand pointing at the viewer",
    "index pointing up": "a hand pointing up, front view",
    "joker": "a joker card",
    "kaaba": "the kaaba",
    "keycap: #": "the number sign button",
    "keycap: *": "the asterisk button",
    "khanda": "a khanda symbol",
    "kiss": "two people kissing",
    "lacrosse": "a lacrosse stick and ball",
    "leafy green": "a leafy green vegetable",
    "left-right arrow": "an arrow pointing left and right",
    "leftwards hand": "a hand reaching left",
    "leftwards pushing hand": "a hand pushing left",
    "locked": "a locked padlock",
    "locked with key": "a locked padlock with a key",
    "locked with pen": "a locked padlock with a pen",
    "mahjong red dragon": "a mahjong tile with a red dragon",
    "mate": "a cup of mate tea",
    "milky way": "the milky way",
    "moon viewing ceremony": "a moon viewing scene",
    "multiply": "a multiplication sign",
    "nail polish": "a hand with nail polish",
    "non-potable water": "a no drinking water sign",
    "om": "an om symbol",
    "palms up together": "two palms up together",
    "performing arts": "two theatre masks",
    "ping pong": "a ping pong paddle and ball",
    "potable water": "a drinking water sign",
    "pouring liquid": "a glass pouring liquid",
    "prohibited": "a prohibition sign",
    "radioactive": "a radioactivity sign",
    "raised back of hand": "the back of a raised hand",
    "rightwards hand": "a hand reaching right",
    "rightwards pushing hand": "a hand pushing right",
    "rolling on the floor laughing": "a face rolling on the floor laughing",
    "speaker high volume": "a speaker at high volume",
    "speaker low volume": "a speaker at low volume",
    "speaker medium volume": "a speaker at medium volume",
    "star and crescent": "a crescent and a star",
    "star-struck": "a star-struck face",
    "statue of liberty": "the statue of liberty",
    "sun": "the sun",
    "sun behind cloud": "the sun behind a cloud",
    "sun behind large cloud": "the sun behind a large cloud",
    "sun behind rain cloud": "the sun behind a rain cloud",
    "sun behind small cloud": "the sun behind a small cloud",
    "tennis": "a tennis racket and ball",
    "tokyo tower": "the tokyo tower",
    "unlocked": "an open padlock",
    "up-down arrow": "an arrow pointing up and down",
    "wedding": "a wedding chapel",
    "wireless": "a wireless symbol",
    "woman and man holding hands": "a woman and a man holding hands",
    "zzz": "the letters zzz",
}
# Labels that name what a sign means.
_SIGNS = _listed(
    "baggage claim, biohazard, children crossing, cinema, copyright, currency exchange, customs, infinity, left "
    "luggage, men's room, minus, mobile phone off, passport control, place of worship, plus, registered, restroom, "
    "trade mark, vibration mode, warning, water closet, women's room"
)
_ZODIAC = _listed(
    "aquarius, aries, cancer, capricorn, gemini, leo, libra, ophiuchus, pisces, sagittarius, scorpio, taurus, virgo"
)
# Names and substances.
_NO_ARTICLE = _listed(
    "bacon, baguette bread, bread, broccoli, bubble tea, butter, canned food, cooked rice, coral, curry rice, "
    "custard, fire, flatbread, fog, fondue, garlic, ginger root, ice, ice cream, luggage, money with wings, mount "
    "fuji, mrs. claus, mx claus, oden, popcorn, sake, salt, santa claus, shaved ice, soap, soft ice cream, "
    "spaghetti, stuffed flatbread, sushi, thread, wood, yarn"
)
# Words that end in s and are one thing, and words that do not and are many.
_SINGULAR = _listed("fleur-de-lis, rhinoceros")
_PLURAL = _listed("feet, lungs, men, people, teeth, women")
# The head of a noun phrase stands before the first of these.
_AFTER_HEAD = re.compile(
    r" (?:with|without|of|in|on|at|behind|over|from|made|to|for|and|holding|wearing|pointing|showing|riding|blowing"
    r"|savoring|screaming|vomiting|exhaling|gesturing|curving|increasing|decreasing|tilted|fluttering|crossed)\b"
)
_SOUNDS_LIKE_VOWEL = re.compile(r"(?!uni|eu|one|ewe)[aeiou]|hour|x-")
_THE_COUNTRY = re.compile(
    r"^united|islands$|territor|republic$|^european union|netherlands$|^(?:bahamas|comoros|congo|gambia|isle of man|maldives"
    r"|philippines|seychelles)"
)
# Tags that are used often and still say nothing that can be seen.
_UNINFORMATIVE = _listed(
    "adorbs, again, all, amount, anniversary, awesome, babe, bae, bestie, bff, big, bro, can, cardinal, cell, "
    "closed, clothes, cross, cya, date, dating, discuss, done, double, down, epic, ever, expression, face, facing, "
    "fairy, fairytale, feels, five, flirt, folklore, full, good, grin, handle, hear, heavy, here, hey, high, hold, "
    "ideograph, ily, index, intercardinal, just, kisses, left, lmao, lol, mad, man, mark, medium, meh, move, myth, "
    "nap, nervous, not, now, old, omg, one, open, ornithology, over, party, person, pick, play, playing, point, "
    "probing, quick, raised, right, romance, scales, shade, skin, slide, smh, smiling, square, stop, tale, tbt, "
    "teeth, three, throw, tone, two, type, undead, upset, whatever, white, win, woman, wow, xoxo, yolo, you"
)


def plain(label: str) -> str:
    """Return a label in lower-case ASCII letters, digits and simple punctuation.

    >>> plain("Piñata & woman’s “hat” (blue)")
    "pinata and woman's hat"
    """
    text = re.sub(r"\(.*?\)| SAR China|[“”\"!]", "", label).replace(" - ", " ").replace("’", "'").replace("&", "and")
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return " ".join(text.lower().split())


def slug(text: str) -> str:
    """Return a file name's stem for a phrase.

    >>> slug("1st place medal, flat style")
    '1st-place-medal-flat-style'
    """
    return re.sub(r"[^a-z0-9]+", "-", plain(text)).strip("-")


def words_of(phrase: str) -> set[str]:
    """Return the different words of a phrase; a hyphen joins two words, it does not make a third."""
    return set(re.findall(r"[a-z0-9']+", phrase))


def concept(label: str) -> str:
    """Return what a label shows without the gender of the person who does it: the unit that is held out as one.

    >>> concept("woman cook"), concept("man: red hair"), concept("woman")
    ('cook', 'red hair', 'woman')
    """
    text = plain(label)
    return re.sub(r"^(?:man|woman|person|men|women|people)(?:: | )", "", text)


def bare(phrase: str) -> str:
    """Return a noun phrase without its article, the inverse of `article`."""
    return re.sub(r"^(?:an?|the) ", "", phrase)


def article(phrase: str) -> str:
    """Return the article of a bare noun phrase, with a space after it: "a ", "an " or nothing.

    >>> [article(phrase) + phrase for phrase in ("owl", "unicorn", "bus", "grapes", "pair of socks", "bread")]
    ['an owl', 'a unicorn', 'a bus', 'grapes', 'a pair of socks', 'bread']
    """
    if phrase in _NO_ARTICLE or phrase.startswith(("two ", "people ", "men ", "women ")):
        return ""
    head = _AFTER_HEAD.split(phrase, maxsplit=1)[0].split()[-1]
    plural = head in _PLURAL or (head.endswith("s") and not head.endswith(("ss", "us", "'s")) and head not in _SINGULAR)
    if plural and not phrase.startswith(("person ", "man ", "woman ")):  # "person lifting weights"
        return ""
    return "an " if _SOUNDS_LIKE_VOWEL.match(phrase) else "a "


def phrase_for(label: str) -> str:
    """Return the noun phrase a person would say for a label.

    >>> for label in ("cat with wry smile", "man: bald", "flag: Chad", "kiss: woman, man", "five o’clock"):
    ...     print(phrase_for(label))
    a cat with wry smile
    a bald man
    the flag of chad
    a kiss of woman and man
    a clock showing five o'clock
    """
    text = plain(label)
    if text in _PHRASES:
        return _PHRASES[text]
    kind, _, detail = text.partition(": ")
    if kind == "flag":
        return f"the flag of {'the ' if _THE_COUNTRY.search(detail) else ''}{detail}"
    if kind == "keycap":
        return f"the number {detail} button"
    if detail == "bald":
        return f"a bald {kind}"
    if detail == "beard":
        return f"a {kind} with a beard"
    if detail.endswith("hair"):
        return f"a {kind} with {detail}"
    if detail:
        first, _, last = detail.rpartition(", ")
        return f"{article(kind)}{kind} of {f'{first} and {last}' if first else last}"
    if text.endswith("o'clock"):
        return f"a clock showing {text}"
    if text in _ZODIAC:
        return f"the zodiac sign {text}"
    if text in _SIGNS or text.startswith("no "):
        return f"{article(text + ' sign')}{text} sign"
    if arrow := re.fullmatch(r"((?:up|down|left|right)(?:-(?:left|right))?) arrow", text):
        return f"an arrow pointing {arrow[1].replace('-', ' ')}"
    text = text.removeprefix("backhand ").replace("index pointing", "hand pointing")
    return article(text) + text


def keywords(phrase: str, tags: Iterable[str], uses: Mapping[str, int], *, count: int = 2) -> list[str]:
    """Return the few most used tags that are plain words and say something the phrase does not.

    The tags used most are what a thing is ("animal", "fruit"); those used once are puns and slang.
    """
    said = words_of(phrase)
    fresh = {
        tag
        for tag in map(plain, tags)
        if re.fullmatch("[a-z]{3,}", tag) and uses[tag] >= 4 and not {tag, f"{tag}s", f"{tag}ing"} & said
    }
    return sorted(fresh - _UNINFORMATIVE, key=lambda tag: (-uses[tag], tag))[:count]
