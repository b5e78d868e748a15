"""The builtin corpus `everyday`: plain English texts from a grammar whose probabilities are known.

Every text follows from (seed, index) alone and is the same on every machine, so a corpus can be as large as one likes
and new texts for validation never run out. What a model learnt can be held against the truth: next_words() gives the
grammar's own probabilities of the word after certain contexts, read from the weights that the texts are drawn with,
and surprise() how unlikely a text is.

The grammar is a notation of templates. They stand in everyday_texts.py (what next_words() knows), everyday_life.py and
everyday_world.py; what they draw from in everyday_words.py (lists) and everyday_records.py (tables):

    {fruit}         an entry of that list          {Fruit}        the same with a capital letter
    {a fruit}       with "a" or "an" before it     {A fruit}      with "A" or "An"
    {x=fruit}       draws one and calls it x; from then on {x} is that one
    {pet.sound}     a field of a record; the text keeps the record it has drawn
    {pet}           the record's first field
    {he}            like {his}, {him}, {himself}, {they} and {their} a field of the record `kid`
    [one|two|]      one of these, each as likely as the others
    {The quick ...} a sentence that goes on word by word as KNOWN says; {The quick ...4} stops after four words

Entries of lists, first fields of records, topics and templates may end in a weight, `*3`; without one they weigh 1.
"""

import math
import re
from collections.abc import Callable, Iterator
from functools import cache

from hfpretrain.data.everyday_life import LIFE
from hfpretrain.data.everyday_records import RECORDS
from hfpretrain.data.everyday_texts import KNOWN, KNOWN_TEXTS
from hfpretrain.data.everyday_words import BOYS, FRIEND_BOYS, FRIEND_GIRLS, GIRLS, LISTS
from hfpretrain.data.everyday_world import WORLD

DEFAULT_BYTES = 3_000_000
"""How much text a corpus has unless another size is asked for."""
CONTEXTS: tuple[str, ...] = tuple(KNOWN)
"""The beginnings of a sentence after which next_words() knows the truth."""


def documents(size: int = DEFAULT_BYTES, *, seed: int = 0) -> Iterator[str]:
    """The texts 0, 1, 2, ... of `seed`, until together they have at least `size` bytes of UTF-8."""
    index = total = 0
    while total < size:
        text = document(index, seed=seed)
        yield text
        total += len(text.encode())
        index += 1


def document(index: int, *, seed: int = 0) -> str:
    """Text number `index` (0, 1, 2, ...) of `seed` (0 to 2**64 - 1): one to eight sentences on one line."""
    return _expand(_texts(), Draw(index, seed))


def surprise(index: int, *, seed: int = 0) -> float:
    """How unlikely text `index` is, in nats: -log of the probability of the choices that made it.

    Its mean over many texts is the cross-entropy that a model of these texts cannot do better than, up to the few
    texts that can come about in more than one way (they are a little likelier than this says).
    """
    draw = Draw(index, seed)
    _expand(_texts(), draw)
    return draw.nats


def next_words(context: str) -> dict[str, float]:
    """The true probabilities of the word after `context`, most probable first; they sum to 1.

    `context` is one of CONTEXTS, at the start of a text or of a sentence. Captions, which may end anywhere
    ("The quick brown fox"), do not count where they end: these are the probabilities given that a word follows.

    Raises:
        KeyError: `context` is not one of CONTEXTS.
    """
    weights: dict[str, int] = {}
    for entry, weight in _listed(KNOWN[context]):
        word = re.split(r"[ \[.]", entry)[0]
        weights[word] = weights.get(word, 0) + weight
    total = sum(weights.values())
    # sorted() is stable: words of equal weight stay in the order of the table.
    return {word: weight / total for word, weight in sorted(weights.items(), key=lambda item: -item[1])}


# Drawing. A part of the grammar is either plain text or a function of the Draw that makes its choices.


class Draw:
    """The choices of one text: a stream of random numbers, what was fixed so far, and how unlikely that is in nats.

    The numbers are those of splitmix64 (Steele, Lea and Flood 2014), started at a place that seed and index give.
    """

    def __init__(self, index: int, seed: int) -> None:
        self.state = _mixed(_mixed(seed & _64_BITS) + index & _64_BITS)
        self.fixed: dict[str, str] = {}
        self.rows: dict[str, dict[str, Part]] = {}
        self.nats = 0.0

    def choose(self, nats: tuple[float, ...]) -> int:
        """One of the places 0 ... len(nats) - 1, all equally likely, where nats[place] counts as how unlikely it is."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & _64_BITS
        place = _mixed(self.state) * len(nats) >> 64
        self.nats += nats[place]
        return place


_64_BITS = (1 << 64) - 1
Part = str | Callable[[Draw], str]


def _mixed(number: int) -> int:
    """splitmix64's scrambling of 64 bits."""
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & _64_BITS
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & _64_BITS
    return number ^ (number >> 31)


def _expand(part: Part, draw: Draw) -> str:
    return part if isinstance(part, str) else part(draw)


def _one_of(pairs: list[tuple[Part, int]]) -> Part:
    """Draws one of the parts, in proportion to the weights."""
    places = tuple(part for part, weight in pairs for _ in range(weight))
    nats = _nats([weight for _, weight in pairs])

    def one(draw: Draw) -> str:
        part = places[draw.choose(nats)]
        return part if isinstance(part, str) else part(draw)

    return one


def _nats(weights: list[int]) -> tuple[float, ...]:
    """An entry of weight 3 has three places; for each place, -log of its entry's probability."""
    total = sum(weights)
    return tuple(math.log(total / weight) for weight in weights for _ in range(weight))


# Reading the notation. The grammar is turned into Parts once, at its first use.


def _weighted(entry: str) -> tuple[str, int]:
    """An entry without its weight `*3`, and the weight."""
    text, star, weight = entry.rpartition("*")
    return (text.strip(), int(weight)) if star else (entry.strip(), 1)


def _listed(entries: str) -> list[tuple[str, int]]:
    """The entries of a list, which stand between commas, with their weights."""
    return [_weighted(" ".join(entry.split())) for entry in entries.split(",")]


@cache
def _texts() -> Part:
    """All texts: a topic in proportion to its weight, and one of its templates."""
    topics = []
    for topic, templates in (KNOWN_TEXTS | LIFE | WORLD).items():
        pairs = [_weighted(" ".join(text.split())) for text in re.split(r"\n\s*\n", templates.strip())]
        topics.append((_one_of([(_compiled(text), weight) for text, weight in pairs]), _weighted(topic)[1]))
    return _one_of(topics)


@cache
def _list(name: str) -> Part:
    return _one_of([(_compiled(entry), weight) for entry, weight in _listed(_LISTS[name])])


@cache
def _record(name: str) -> tuple[list[dict[str, Part]], tuple[float, ...]]:
    """The rows of a record, each as often as its weight says, and the nats of choosing each."""
    header, *lines = (line.split(";") for line in _RECORDS[name].strip().splitlines())
    fields = [field.strip() for field in header]
    rows, weights = [], []
    for first, *others in lines:
        first, weight = _weighted(first)
        row = dict(zip(fields, [_compiled(value.strip()) for value in (first, *others)], strict=True))
        row[""] = row[fields[0]]  # {pet} is its first field
        rows += [row] * weight
        weights.append(weight)
    return rows, _nats(weights)


def _compiled(template: str) -> Part:
    """The part that a template stands for."""
    return _choices(iter(re.findall(r"\{[^}]*\}|[\[|\]]|[^{\[|\]]+", template)))[0]


def _choices(tokens: Iterator[str]) -> list[Part]:
    """What stands between bars, up to the closing bracket or the end of the template."""
    choices: list[list[Part]] = [[]]
    for token in tokens:
        if token == "]":
            break
        if token == "|":
            choices.append([])
        elif token == "[":
            choices[-1].append(_one_of([(choice, 1) for choice in _choices(tokens)]))
        else:
            choices[-1].append(_slot(token[1:-1]) if token[0] == "{" else token)
    return [_joined(parts) for parts in choices]


def _joined(parts: list[Part]) -> Part:
    if len(parts) <= 1:
        return parts[0] if parts else ""
    return lambda draw: "".join([part if isinstance(part, str) else part(draw) for part in parts])


def _slot(slot: str) -> Part:
    """The part of a slot, given without its braces."""
    start, known, stop = slot.partition(" ...")
    if known:
        return _sentence(start, int(stop or 0))
    match = re.fullmatch(r"([aA] )?(?:(\w)=)?(\w+)(?:\.(\w+))?", slot)
    assert match, slot
    article, variable, name, field = match.groups()
    source = name[0].lower() + name[1:]
    if source in _KID_FIELDS:
        value = _field("kid", source)
    elif source in _RECORDS:
        value = _field(source, field or "")
    elif source in _LISTS:
        value = _list(source)
    else:
        assert len(source) == 1 and not variable, slot
        value = lambda draw: draw.fixed[source]  # noqa: E731
    if variable:
        value = _fixing(variable, value)
    if article:
        return _with_article(article, value)
    return value if name == source else _capital(value)


def _field(record: str, field: str) -> Part:
    def value(draw: Draw) -> str:
        row = draw.rows.get(record)
        if row is None:
            rows, nats = _record(record)
            row = draw.rows[record] = rows[draw.choose(nats)]
        return _expand(row[field], draw)

    return value


def _fixing(variable: str, part: Part) -> Part:
    def value(draw: Draw) -> str:
        text = draw.fixed[variable] = _expand(part, draw)
        return text

    return value


def _capital(part: Part) -> Part:
    def value(draw: Draw) -> str:
        text = _expand(part, draw)
        return text[0].upper() + text[1:]

    return value


def _with_article(article: str, part: Part) -> Part:
    def value(draw: Draw) -> str:
        text = _expand(part, draw)
        return article.strip() + ("n " if text[0] in "aeiouAEIOU" and not text.startswith(_LIKE_YOU) else " ") + text

    return value


def _sentence(start: str, stop: int) -> Part:
    """The sentence that goes on from `start` as KNOWN says; its first `stop` words if that is not 0."""
    steps = {
        context: _one_of([(_compiled(e), weight) for e, weight in _listed(nexts)])
        for context, nexts in KNOWN.items()
        if context.startswith(start)
    }
    assert start in steps, start

    def value(draw: Draw) -> str:
        text = start
        while text in steps and not 0 < stop <= text.count(" ") + 1:
            text += " " + _expand(steps[text], draw)
        return " ".join(text.split()[:stop]) if stop else text + "."

    return value


def _people(boys: str, girls: str) -> str:
    """The rows of the records `kid` and `friend`."""
    rows = ["name; s; he; his; him; himself; they; their; child"]
    for names, words in (
        (boys, "he; his; him; himself; they; their; boy"),
        (girls, "she; her; her; herself; they; their; girl"),
    ):
        rows += [f"{name}; {name}'s; {words}" for name, _ in _listed(names)]
    return "\n".join(rows)


_KID_FIELDS = {"he", "his", "him", "himself", "they", "their"}
_LIKE_YOU = ("uni", "use", "euro", "one ", "ukulele")
"""Words that begin with a vowel letter but not with a vowel."""
_LISTS = LISTS | {"name": f"{GIRLS}, {BOYS}"}
_RECORDS = RECORDS | {
    "kid": _people(BOYS, GIRLS) + "\nI *12; my; I; my; me; myself; we; our; child",
    "friend": _people(FRIEND_BOYS, FRIEND_GIRLS),
}
