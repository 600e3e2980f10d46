"""Make training and test documents: book prose with facts planted in it, and questions about them.

A document is a run of consecutive passages of one book. Between its sentences stand made-up facts
about made-up people ("The lantern of Ada Finch is crimson."). Each question asks for one of them,
and its answer is the value alone, in the very tokens that it has in the document. What makes the
task hard is length and likeness: several people share a first name or a surname, a person has
several facts, and many facts have values of the same kind.

One line of the output:

    {"id": "train-0-17",
     "document": "... The lantern of Ada Finch is crimson. ...",
     "questions": [
       {"question": "\\n\\nQuestion: What colour is the lantern of Ada Finch?\\nAnswer:",
        "response": " crimson",
        "evidence": [812, 848]}]}

document + question + response reads as one text; `evidence` are the character offsets of the fact
in the document (of the fact and, where it is echoed, of the sentence that repeats it right after).

Example:

    python examples/make_facts.py --books train-*.jsonl.xz --output facts.jsonl --documents 10000 \\
        --tokens 500 1000 --facts-per-1000 20 --questions 8 --seed 0 --workers 8
"""

from __future__ import annotations

import argparse
import bisect
import json
import lzma
import multiprocessing
import os
import random
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words("""
Ada Agnes Albert Alfred Alice Amelia Amos Andrew Anna Arthur Basil Beatrice Bertha Bridget Caleb
Carl Caroline Cecil Celia Charlotte Clara Clement Conrad Cora Cyril Daniel David Deborah Dinah Dora
Dorothy Edgar Edith Edmund Edwin Eleanor Elias Eliza Ella Elsie Emily Emma Enid Eric Ernest Esther
Ethel Eva Felix Fergus Flora Frances Frank Frederick George Gerald Gertrude Gideon Gilbert Gloria
Grace Gregory Hannah Harold Harriet Harry Hector Helen Herbert Hester Hilda Horace Hubert Hugo Ida
Irene Isaac Isabel Ivan Jacob Jane Jasper Jerome Joanna Joel Joseph Josephine Joshua Judith Julia
Julian Kate Laura Lawrence Leo Leonard Lewis Louisa Lucy Luke Lydia Mabel Magnus Margaret Martha
Martin Matilda Maurice Max Mildred Miriam Monica Nathan Nora Oliver Oscar Owen Patrick Paul Percy
Peter Philip Phoebe Rachel Ralph Reuben Robert Roland Rosa Rufus Rupert Ruth Samuel Sarah Sidney
Silas Simon Sophia Stella Susan Sybil Theodore Thomas Toby Tom Ursula Vera Victor Vincent Walter
Wanda Wilfred William Winifred
""")

SURNAMES = _words("""
Abbot Abel Adler Allen Anstey Archer Arnold Ashby Atwood Avery Bagley Baldwin Bancroft Barlow
Barton Beckett Bell Benson Bentley Bishop Blake Blunt Bolton Booth Bowen Boyd Bradley Brand Brewer
Briggs Burke Burton Byrd Caldwell Calvert Carter Chandler Chester Clifton Cobb Cole Collier Conway
Corbett Cotton Crane Crosby Dalton Darby Davenport Dawson Denham Dickson Dillon Dixon Doyle Drake
Drew Duffy Dunbar Eaton Elliot Emerson Falconer Farrell Fenton Finch Fisher Fletcher Flint Forbes
Ford Foster Fowler Frost Fuller Gale Gardner Garland Garrison Gibson Goodwin Gordon Graham Grant
Griffin Hale Hall Hammond Harding Hardy Harper Hart Hawthorn Hayden Heath Henderson Hilton Hobson
Holden Holt Hooper Horton Howard Hudson Hunt Hunter Hurst Irving Jarvis Jennings Kendall Kent Kerr
Lambert Landon Lane Larkin Latimer Lawson Leslie Lindsay Lister Lloyd Locke Logan Lowell Mallory
Marsh Marshall Mason Maxwell Mercer Merritt Milton Morton Murray Nash Newton Norton Oakley Osborne
Page Palmer Parker Payne Pearson Pelham Penn Perkin Pike Pollard Porter Potter Powell Preston Quinn
Radley Ramsey Randall Redford Rhode Rigby Rowe Russell Rutherford Sawyer Selby Seymour Shaw Sheldon
Sinclair Skinner Slater Spencer Stanton Stark Sterling Stone Stratton Sutton Talbot Tanner Tate
Thornton Todd Travers Tucker Turner Tyler Underhill Vance Vaughan Wade Walker Walsh Warren Watson
Webb Webster Weldon Weston Whitman Wilder Winslow Winter Wolfe Woodward Yates York
""")

COLOURS = _words("""
amber azure beige black blue bronze brown buff cobalt copper coral cream crimson ebony emerald fawn
gold green grey indigo ivory jade khaki lavender lilac lime maroon mauve navy ochre orange pink
purple red russet ruby rust saffron sapphire scarlet silver tan teal turquoise violet white yellow
""")

PLACES = _words("""
Aberdeen Algiers Antwerp Arles Athens Avignon Baltimore Bangor Barcelona Basel Bath Bedford Belfast
Bergen Berlin Berne Bologna Bombay Bordeaux Boston Bremen Brighton Bristol Bruges Brussels Budapest
Buffalo Burgos Cadiz Cairo Calais Calcutta Cambridge Canterbury Canton Cardiff Carlisle Charleston
Chicago Cologne Constantinople Copenhagen Cordova Cork Coventry Cracow Damascus Delhi Denver Derby
Detroit Dieppe Dijon Dover Dresden Dublin Dundee Durham Edinburgh Exeter Falmouth Florence
Frankfort Galway Geneva Genoa Ghent Glasgow Gloucester Granada Grimsby Halifax Hamburg Hanover
Harwich Havana Hereford Hull Inverness Ipswich Jerusalem Kingston Lausanne Leeds Leicester Leipzig
Lima Lincoln Lisbon Liverpool London Lucerne Lyons Madras Madrid Malaga Malta Manchester Manila
Mantua Margate Marseilles Memphis Messina Milan Montreal Moscow Munich Nantes Naples Newcastle Nice
Norwich Nottingham Odessa Oporto Orleans Oslo Ostend Oxford Padua Palermo Paris Perth Pisa Plymouth
Prague Quebec Ramsgate Ravenna Reading Rheims Riga Rome Rotterdam Rouen Salem Salisbury Salzburg
Seville Sheffield Smyrna Southampton Stafford Stockholm Stratford Sydney Syracuse Tangier Toledo
Toronto Toulon Trieste Tripoli Truro Tunis Turin Utrecht Valencia Venice Verona Vienna Warsaw
Warwick Weymouth Whitby Winchester Windsor Worcester Zurich
""")

TRADES = _words("""
actor architect baker banker barber basketmaker beekeeper blacksmith boatman bookbinder bookseller
builder butcher butler carpenter clerk coachman cobbler cook dentist diver doctor dyer engineer
engraver farmer ferryman fiddler gardener glazier grocer hatter innkeeper jeweller joiner judge
lawyer librarian locksmith merchant midwife miller miner notary nurse painter pilot plumber postman
potter printer roper sailor schoolmaster sculptor shepherd smuggler surgeon tailor teacher tinker
undertaker watchmaker weaver
""")

PETS = _words("""
badger bat beetle bulldog camel canary cat cockatoo cow cricket crow dog donkey dove duck eagle
falcon ferret fox frog goat goldfish goose greyhound hamster hare hawk hedgehog hen heron jackdaw
kitten lamb leopard lizard magpie mastiff mole monkey mouse mule newt otter owl parrot peacock pig
pigeon pony poodle puppy rabbit rat raven robin seal snail snake sparrow spider spaniel squirrel
stork swan terrier toad tortoise turkey turtle weasel
""")

INSTRUMENTS = _words("""
accordion bagpipe banjo bassoon bugle cello clarinet cornet cymbal drum dulcimer fiddle fife flute
gong guitar harmonica harp harpsichord horn lute lyre mandolin oboe organ piano piccolo recorder
tambourine triangle trombone trumpet tuba viola violin whistle zither
""")

FRUITS = _words("""
almond apple apricot banana blackberry cherry chestnut cranberry currant date elderberry fig
gooseberry grape hazelnut lemon mango medlar melon mulberry nectarine olive peach peanut pear
persimmon pineapple plum pomegranate quince raisin raspberry strawberry tangerine walnut
""")

FLOWERS = _words("""
aster bluebell buttercup camellia carnation cowslip crocus daffodil dahlia daisy foxglove gentian
geranium heather hollyhock honeysuckle hyacinth iris jasmine larkspur lily lupin magnolia marigold
narcissus orchid pansy peony petunia poppy primrose rose snowdrop sunflower thistle tulip wisteria
""")

PASSWORDS = _words("""
acorn anchor anvil apron arrow barrel basket beacon bellows bench blanket bonfire bottle bracelet
branch bridle broom bucket button cabin candle cannon canvas carpet castle cavern chain chimney
cider cinder clover coffin comet compass cottage cradle crown crystal curtain cushion dagger desert
diamond domino dragon drawer eclipse feather flagon forest fountain furnace gallows garlic ginger
glacier goblet granite hammer harbour harvest hatchet helmet hinge honey hourglass island ivy
jacket jungle kennel kettle keyhole knapsack ladder lagoon lattice ledger lever locket magnet
mantle marble meadow medal mirror mitten mortar moss mustard nail needle nettle nutmeg oar orchard
oven oyster paddle pebble pepper pendulum pickle pillow pistol pitcher plank pocket prism pulley
pumpkin puzzle quarry quill quiver rafter ribbon riddle rocket saddle sandal satchel saucer
scissors shovel sickle skeleton slipper spindle stirrup sulphur sundial tankard teapot temple
thimble thunder timber torch treasure tunnel umbrella urn vault velvet vinegar wagon whisper willow
""")

TWO_DIGITS = [str(n) for n in range(10, 100)]
THREE_DIGITS = [str(n) for n in range(100, 1000)]
NUMBERS = TWO_DIGITS + THREE_DIGITS


# What the attributes are and how English states them: a fact, a name or a question a line.
# {p} is the person, {v} the value, {a} its article, {t} the thing of a coloured attribute.

_COLOURED_FACTS = """
{p}'s {t} is {v}.
the {t} of {p} is {v}.
the colour of {p}'s {t} is {v}.
as for the {t} of {p}, its colour is {v}.
"""
_COLOURED_NAMES = """
the {t} of {p}
{p}'s {t}
"""
_COLOURED_QUESTIONS = """
What colour is the {t} of {p}?
What colour is {p}'s {t}?
What is the colour of {p}'s {t}?
Which colour does the {t} of {p} have?
"""
_COAT = """
{p} always wears a coat of {v}.
the coat that {p} wears on Sundays is {v}.
{p} would never put on a coat that was not {v}.
the tailor cut the coat of {p} from cloth of {v}.
"""
_LANTERN = """
{p} carries a lantern painted {v}.
the glass in the lantern of {p} shines {v}.
at night {p} lights a lantern of {v}.
whoever meets {p} in the dark sees a lantern of {v}.
"""
_SAIL = """
{p} has a boat with a sail of {v}.
the boat of {p} comes home under a sail of {v}.
from the pier one knows {p} by a sail of {v}.
{p} sewed a new sail, and it was {v}.
"""
_HOME = """
{p} lives in {v}.
the home of {p} is in {v}.
{p} has made a home in {v}.
{p} lives in a small house in {v}.
{p} lives with an aunt in {v}.
a letter will find {p} at home in {v}.
the house where {p} lives is in {v}.
{p} came to live in {v}.
--
the home of {p}
the house where {p} lives
--
Where does {p} live?
In which town does {p} live?
In which town is the home of {p}?
Where is the home of {p}?
"""
_BIRTHPLACE = """
{p} was born in {v}.
the birthplace of {p} is {v}.
{p} was born on a ship off {v}.
the parish book says that {p} was born in {v}.
{p} was born to a poor family in {v}.
the town where {p} was born is {v}.
{p} was born one winter in {v}.
--
the birthplace of {p}
{p}'s birthplace
--
Where was {p} born?
In which town was {p} born?
What is the birthplace of {p}?
Which town is {p}'s birthplace?
"""
_TRADE = """
{p} works as {a} {v}.
by trade {p} is {a} {v}.
the trade of {p} is that of {a} {v}.
{p} learnt the trade of {a} {v}.
{p}, who works hard, is {a} {v}.
the trade that feeds {p} is that of {a} {v}.
for many years {p} has worked as {a} {v}.
--
the trade of {p}
{p}'s trade
--
What is the trade of {p}?
What is {p}'s trade?
As what does {p} work?
By what trade does {p} live?
"""
_PET = """
{p} keeps as a pet {a} {v}.
{p}'s pet is {a} {v}.
the pet of {p} is {a} {v}.
the only pet of {p} is {a} {v}.
{p} has a pet, and it is {a} {v}.
for a pet {p} has chosen {a} {v}.
the pet that sleeps by {p}'s fire is {a} {v}.
--
the pet of {p}
{p}'s pet
--
What pet does {p} keep?
What animal is {p}'s pet?
Which animal is the pet of {p}?
What kind of pet has {p}?
"""
_INSTRUMENT = """
{p} plays the {v}.
the instrument of {p} is the {v}.
of every instrument {p} loves best the {v}.
in the evening {p} plays the {v}.
{p} plays one instrument only, the {v}.
{p}'s favourite instrument is the {v}.
when guests come {p} plays upon the {v}.
--
the instrument of {p}
{p}'s instrument
--
Which instrument does {p} play?
What instrument does {p} play?
What is the instrument of {p}?
What is {p}'s favourite instrument?
"""
_NUMBER = """
{p}'s lucky number is {v}.
the lucky number of {p} is {v}.
{p} believes in one lucky number, and that is {v}.
{p} bets on nothing but the lucky number {v}.
for {p} there is no lucky number but {v}.
{p} was told by a gipsy that the lucky number was {v}.
--
the lucky number of {p}
{p}'s lucky number
--
What is the lucky number of {p}?
What is {p}'s lucky number?
Which number is lucky for {p}?
"""
_ROOM = """
{p}'s room at the inn is number {v}.
the room of {p} is number {v}.
{p} sleeps in room {v}.
they gave {p} the key to room {v}.
whoever wants {p} must knock at room {v}.
{p} has taken a room, number {v}.
--
the room of {p}
{p}'s room
--
What is the number of {p}'s room?
In which room does {p} sleep?
Which room is {p}'s?
Which number has the room of {p}?
"""
_PASSWORD = """
{p}'s password is {v}.
the password of {p} is {v}.
the password that {p} chose is {v}.
{p} opens the gate with the password {v}.
whoever comes from {p} gives the password {v}.
{p} whispered the password, which is {v}.
only {p} knew that the password was {v}.
--
the password of {p}
{p}'s password
--
What is the password of {p}?
What is {p}'s password?
Which password did {p} choose?
Which word is {p}'s password?
"""
_FRUIT = """
{p}'s favourite fruit is the {v}.
the favourite fruit of {p} is the {v}.
of all fruit {p} likes best the {v}.
there is one fruit that {p} loves, the {v}.
no fruit pleases {p} so much as the {v}.
the fruit that grows by {p}'s wall is the {v}.
--
the favourite fruit of {p}
{p}'s fruit
--
What is the favourite fruit of {p}?
What is {p}'s favourite fruit?
Which fruit does {p} love?
Which fruit does {p} like best?
"""
_FLOWER = """
{p}'s favourite flower is the {v}.
the favourite flower of {p} is the {v}.
of every flower {p} likes best the {v}.
there is one flower that {p} grows, the {v}.
no flower is so dear to {p} as the {v}.
the flower on {p}'s window sill is the {v}.
--
the favourite flower of {p}
{p}'s flower
--
What is the favourite flower of {p}?
What is {p}'s favourite flower?
Which flower does {p} grow?
Which flower does {p} like best?
"""


@dataclass(frozen=True)
class Attribute:
    """What can be known of a person: its values, and how English states it and asks for it.

    In `facts` the value comes after both person and attribute, right before punctuation;
    `names` and `questions` name the attribute of a person without its value.
    """

    name: str
    values: Sequence[str]
    facts: Sequence[str]
    names: Sequence[str]
    questions: Sequence[str]


def _attribute(name: str, values: Sequence[str], language: str) -> Attribute:
    blocks = [block.strip().split("\n") for block in language.split("\n--\n")]
    return Attribute(name, values, *map(tuple, blocks))


def _coloured(thing: str, facts: str) -> Attribute:
    """The colour of a thing: attributes that differ by one word of the question alone."""
    blocks = (_COLOURED_FACTS.strip() + facts, _COLOURED_NAMES, _COLOURED_QUESTIONS)
    language = "\n--\n".join(block.strip() for block in blocks)
    return _attribute(thing, COLOURS, language.replace("{t}", thing))


ATTRIBUTES = (
    _coloured("coat", _COAT),
    _coloured("lantern", _LANTERN),
    _coloured("sail", _SAIL),
    _attribute("home", PLACES, _HOME),
    _attribute("birthplace", PLACES, _BIRTHPLACE),
    _attribute("trade", TRADES, _TRADE),
    _attribute("pet", PETS, _PET),
    _attribute("instrument", INSTRUMENTS, _INSTRUMENT),
    _attribute("number", NUMBERS, _NUMBER),
    _attribute("room", NUMBERS, _ROOM),
    _attribute("password", PASSWORDS, _PASSWORD),
    _attribute("fruit", FRUITS, _FRUIT),
    _attribute("flower", FLOWERS, _FLOWER),
)

# A fact may open with one of these; the empty ones make half of the facts stand alone.
OPENINGS = (
    *("",) * 10,
    "they say that ",
    "it is well known that ",
    "you must know that ",
    "people remember that ",
    "it so happens that ",
    "by all accounts ",
    "I have heard that ",
    "the neighbours will tell you that ",
    "nobody doubts that ",
    "it was written down that ",
)

# A fact may be followed by its echo: what matters said again, the value after attribute and person.
# To predict the echo a model must carry person and value in its state: what answers need, too.
ECHOES = (
    "Ask about {n}, and the answer is {v}.",
    "For {n}, remember {v}.",
    "Yes, {n}: {v}.",
    "If anyone asks about {n}, say {v}.",
    "When they speak of {n}, think of {v}.",
)

QUESTION = "\n\nQuestion: {q}\nAnswer:"
PARAGRAPH = "\n\n"
DEV_SHARE = 10  # one full name in so many belongs to the dev split
FACTS_SHARE = 0.8  # of a document may be facts
CHARS_PER_TOKEN = 4  # without a tokenizer

_HEADING = re.compile(
    r"^(#|\||!\[|-{3,}|\*{3,}|={3,}|(chapter|book|part|act|scene)\b.{0,40}$)", re.I
)
_SENTENCE_END = re.compile(r"""[.!?]+["')\]]*\s+(?=["'(\[]*[A-Z])""")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'])(?:Mr|Mrs|Ms|Dr|St|Messrs|Mme|Mlle|Capt|Col|Gen|Lieut|Sergt|Prof|Rev|Hon|Esq|No|"
    r"Nos|Vol|vol|vs|viz|cf|etc|[A-Za-z])\.\s+$"
)
_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "_": None, "*": None, "\\": None})


class BadInput(ValueError):
    """What the user gave cannot be used; the message is one line that says what to change."""


def split_of(name: str) -> str:
    """Which split a full name belongs to, "train" or "dev": a fixed hash, so never both."""
    return "dev" if zlib.crc32(name.encode()) % DEV_SHARE == 0 else "train"


def read_books(paths: Sequence[str | Path]) -> list[list[str]]:
    """Read JSON lines with a "text" (plain or .xz); return the paragraphs of each book.

    Headings and ornaments are dropped, white space is normalised, markup and curly
    quotes are made plain.
    """
    books = []
    for path in map(Path, paths):
        if not path.is_file():
            raise BadInput(f"--books {path}: there is no such file")
        opened = lzma.open if path.suffix == ".xz" else open
        try:
            with opened(path, "rt", encoding="utf-8") as lines:
                texts = [json.loads(line)["text"] for line in lines if line.strip()]
        except (ValueError, KeyError, TypeError, lzma.LZMAError) as error:
            raise BadInput(
                f'--books {path}: every line must be a JSON object with a "text" ({error!r})'
            ) from error
        books += [paragraphs for text in texts if (paragraphs := clean_paragraphs(text))]
    if not books:
        raise BadInput(f"--books {' '.join(map(str, paths))}: no prose in these files")
    return books


def clean_paragraphs(text: str) -> list[str]:
    """Split a book into paragraphs of prose, each on one line."""
    kept = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        block = block.strip()
        if not block or _HEADING.match(block):
            continue
        paragraph = " ".join(block.translate(_PLAIN).split())
        if len(paragraph) >= 12 and paragraph[-1] in ".!?\"')" and not paragraph.isupper():
            kept.append(paragraph)
    return kept


def split_sentences(paragraph: str) -> list[str]:
    """Split a paragraph at its sentence ends; " ".join gives it back."""
    sentences, start = [], 0
    for match in _SENTENCE_END.finditer(paragraph):
        if not _ABBREVIATION.search(paragraph, max(start, match.start() - 12), match.end()):
            sentences.append(paragraph[start : match.end()].rstrip())
            start = match.end()
    sentences.append(paragraph[start:])
    return sentences


@dataclass(frozen=True)
class Fact:
    """One planted fact: its text (with the echo, if any), and what a question about it needs."""

    person: str
    attribute: Attribute
    value: str
    text: str


@dataclass(frozen=True)
class Options:
    """What the documents look like; the command line's options of the same names explain each."""

    tokens: tuple[int, int] = (500, 1000)
    facts_per_1000: float = 20.0
    questions: int = 8
    seed: int = 0
    split: str = "train"
    echo: float = 0.5
    kinds: tuple[int, int] | None = None
    depth: float | None = None
    no_questions: bool = False

    def __post_init__(self) -> None:
        low, high = self.tokens
        if not 50 <= low <= high:
            raise BadInput(f"--tokens {low} {high}: give two numbers, 50 <= LO <= HI")
        if not 0 <= self.facts_per_1000 <= 100:
            raise BadInput(f"--facts-per-1000 {self.facts_per_1000}: give a number from 0 to 100")
        if not 0 <= self.echo <= 1:
            raise BadInput(f"--echo {self.echo}: give a probability from 0 to 1")
        if self.kinds is not None and not 1 <= self.kinds[0] <= self.kinds[1] <= len(ATTRIBUTES):
            low, high = self.kinds
            raise BadInput(f"--kinds {low} {high}: give 1 <= LO <= HI <= {len(ATTRIBUTES)}")
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise BadInput(f"--depth {self.depth}: give a fraction of the document from 0 to 1")
        if self.split not in ("train", "dev"):
            raise BadInput(f"--split {self.split}: give train or dev")
        if self.questions < 1 and not self.no_questions:
            raise BadInput(f"--questions {self.questions}: give 1 or more, or --no-questions")
        if not self.facts_per_1000 and not self.no_questions:
            raise BadInput("--facts-per-1000 0: there is nothing to ask; add --no-questions")


class WordCost(dict):
    """Tokens of a word that follows `before`, counted once for each word."""

    def __init__(self, tokenizer: Any, before: str) -> None:
        super().__init__()
        self.tokenizer, self.before = tokenizer, before

    def __missing__(self, word: str) -> int:
        encoded = self.tokenizer.encode(self.before + word, add_special_tokens=False)
        self[word] = cost = len(encoded.ids)
        return cost


@dataclass
class FactMaker:
    """Makes document number i of an endless, seeded row: the same i gives the same document always.

    `tokenizer` is a `tokenizers.Tokenizer`, or None to count four characters as a token.
    """

    books: list[list[str]]
    options: Options
    tokenizer: Any = None
    _sizes: list[int] = field(default_factory=list, repr=False)
    _passages: dict = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        total = 0
        for book in self.books:  # cumulative numbers of paragraphs: long books are drawn more often
            total += len(book)
            self._sizes.append(total)
        self._bare = WordCost(self.tokenizer, "")
        self._spaced = WordCost(self.tokenizer, " ")
        self._paragraph_cost = self.cost(PARAGRAPH)
        self._unit = 1 if self.tokenizer is not None else CHARS_PER_TOKEN

    # -- lengths --

    def cost(self, piece: str) -> int:
        """Length of a piece of text in tokens (in characters when there is no tokenizer).

        A token never spans the space before a word, so that the costs of words add up.
        """
        if self.tokenizer is None:
            return len(piece)
        first, *words = piece.split(" ")
        return self._bare[first] + sum(map(self._spaced.__getitem__, words))

    # -- the prose --

    def _sentences(self, book: int, paragraph: int) -> list[tuple[str, int, bool]]:
        """(text with what stands before it, cost, may a fact follow) of a paragraph's sentences."""
        key = (book, paragraph)
        found = self._passages.get(key)
        if found is None:
            found, quotes = [], 0
            for number, text in enumerate(split_sentences(self.books[book][paragraph])):
                quotes += text.count('"')
                if number:
                    text = " " + text
                    cost = self.cost(text)
                else:
                    cost = self.cost(text) + self._paragraph_cost
                    text = PARAGRAPH + text
                found.append((text, cost, quotes % 2 == 0))
            self._passages[key] = found
        return found

    def _passage(self, rng: random.Random, low: int, aim: int, high: int) -> list[tuple[str, bool]]:
        """Consecutive sentences of one book, `low` to `high` long together, `aim` if it can be."""
        for _ in range(200):
            place = rng.randrange(self._sizes[-1])
            book = bisect.bisect_right(self._sizes, place)
            paragraph = place - (self._sizes[book - 1] if book else 0)
            if sentences := self._passage_at(book, paragraph, low, aim, high):
                return sentences
        raise BadInput(
            f"--tokens {self.options.tokens[0]} {self.options.tokens[1]}: the books are too short "
            "for documents of this length; give longer books or fewer tokens"
        )

    def _passage_at(
        self, book: int, paragraph: int, low: int, aim: int, high: int
    ) -> list[tuple[str, bool]]:
        """The passage that begins with this paragraph; empty if the book ends too early."""
        used = -self._paragraph_cost  # the document does not begin with a blank line
        taken: list[tuple[str, bool]] = []
        for number in range(paragraph, len(self.books[book])):
            for text, cost, open_slot in self._sentences(book, number):
                if used + cost <= aim or (used < low and used + cost <= high):
                    taken.append((text, open_slot))
                    used += cost
                elif taken and used >= low:
                    return taken
                else:
                    rest = self._cut(text, max(aim, low) - used)
                    return [*taken, (rest, True)] if rest else taken
        return taken if used >= low else []

    def _cut(self, text: str, room: int) -> str:
        """The first words of a sentence, as many as fit with a full stop; none may fit."""
        head = PARAGRAPH if text.startswith(PARAGRAPH) else ""
        room -= self.cost(head) + self.cost(".")
        kept: list[str] = []
        for word in text[len(head) :].split(" "):
            room -= self.cost(word if head and not kept else " " + word)
            if room < 0:
                break
            kept.append(word)
        words = " ".join(kept).rstrip(".,;:!?-\"'")
        return f"{head}{words}." if words.strip() else ""

    # -- the facts --

    def _people(self, rng: random.Random, count: int) -> list[str]:
        """Different people, some of whom share a first name or a surname."""
        people: list[str] = []
        taken = set()
        while len(people) < count:
            first, last = rng.choice(FIRST_NAMES), rng.choice(SURNAMES)
            likeness = rng.random()
            if people and likeness < 0.2:
                first = rng.choice(people).split(" ")[0]
            elif people and likeness < 0.4:
                last = rng.choice(people).split(" ")[1]
            name = first + " " + last
            if name not in taken and split_of(name) == self.options.split:
                taken.add(name)
                people.append(name)
        return people

    def facts(self, rng: random.Random, count: int) -> list[Fact]:
        """`count` facts; no two of them have the same person and attribute."""
        kinds = ATTRIBUTES
        if self.options.kinds is not None:
            kinds = rng.sample(ATTRIBUTES, rng.randint(*self.options.kinds))
        people = self._people(rng, max(1, (count + 1) // 2, -(-count // len(kinds))))
        places = rng.sample(range(len(people) * len(kinds)), count)
        made = []
        for place in places:
            person, attribute = people[place // len(kinds)], kinds[place % len(kinds)]
            if attribute.values is NUMBERS:
                value = rng.choice(THREE_DIGITS if rng.random() < 0.3 else TWO_DIGITS)
            else:
                value = rng.choice(attribute.values)
            article = "an" if value[0] in "aeiou" else "a"
            text = rng.choice(OPENINGS) + rng.choice(attribute.facts)
            text = text.replace("{p}", person).replace("{a}", article).replace("{v}", value)
            text = text[0].upper() + text[1:]
            if rng.random() < self.options.echo:
                name = rng.choice(attribute.names).replace("{p}", person)
                text += " " + rng.choice(ECHOES).replace("{n}", name).replace("{v}", value)
            made.append(Fact(person, attribute, value, text))
        return made

    def _fitting_facts(self, rng: random.Random, count: int, room: float) -> list[Fact]:
        """At least one fact and at most `count`, as many as there is room for."""
        for _ in range(50):
            fitting, left = [], room
            for fact in self.facts(rng, count):
                cost = self.cost(" " + fact.text)
                if cost <= left:
                    fitting.append(fact)
                    left -= cost
            if fitting:
                return fitting
        low, high = self.options.tokens
        raise BadInput(f"--tokens {low} {high}: a fact alone is longer; give more tokens")

    # -- the document --

    def make(self, number: int) -> dict:
        """Document `number` with its questions, as a row of the output."""
        options = self.options
        rng = random.Random(f"{options.seed}/{options.split}/{number}")
        low, high = options.tokens
        aim, unit = rng.randint(low, high), self._unit
        count = round(options.facts_per_1000 * aim / 1000)
        facts: list[Fact] = []
        if options.facts_per_1000:
            facts = self._fitting_facts(rng, max(count, 1), FACTS_SHARE * aim * unit)
        used = sum([self.cost(" " + fact.text) for fact in facts])
        low, aim, high = low * unit, aim * unit, high * unit
        sentences = self._passage(rng, low - used, aim - used, high - used)

        row: dict[str, Any] = {"id": f"{options.split}-{options.seed}-{number}"}
        asked = 0 if options.no_questions else min(options.questions, len(facts))
        slots = [i for i, (_, open_slot) in enumerate(sentences) if open_slot] or [
            len(sentences) - 1
        ]
        after: dict[int, list[int]] = {}
        for i in range(len(facts)):  # facts are in random order: the first ones are asked
            if options.depth is not None and i < max(asked, 1):
                slot = slots[min(int(options.depth * len(slots)), len(slots) - 1)]
            else:
                slot = rng.choice(slots)
            after.setdefault(slot, []).append(i)

        pieces, length, where = [], 0, {}
        for i, (text, _) in enumerate(sentences):
            if not i:
                text = text[len(PARAGRAPH) :] if text.startswith(PARAGRAPH) else text[1:]
            pieces.append(text)
            length += len(text)
            for j in after.get(i, ()):
                text = facts[j].text
                where[j] = [length + 1, length + 1 + len(text)]
                pieces.append(" " + text)
                length += 1 + len(text)

        document = "".join(pieces)
        if options.no_questions:
            return {**row, "text": document}
        questions = []
        for j in range(asked):
            fact = facts[j]
            question = rng.choice(fact.attribute.questions).replace("{p}", fact.person)
            questions.append(
                {
                    "question": QUESTION.replace("{q}", question),
                    "response": " " + fact.value,
                    "evidence": where[j],
                }
            )
        return {**row, "document": document, "questions": questions}


def load_tokenizer(directory: str | Path | None) -> Any:
    """The fast tokenizer (tokenizer.json) of a model directory; None for None."""
    if directory is None:
        return None
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        raise BadInput(f"--tokenizer {directory}: there is no tokenizer.json in this directory")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


_MAKER: FactMaker | None = None


def _adopt(maker: FactMaker) -> None:
    global _MAKER
    _MAKER = maker


def _make_lines(numbers: range) -> str:
    assert _MAKER is not None
    rows = [json.dumps(_MAKER.make(n), ensure_ascii=False) for n in numbers]
    return "".join(row + "\n" for row in rows)


def make_rows(maker: FactMaker, documents: int, workers: int = 1, chunk: int = 64) -> Iterator[str]:
    """JSON lines in order, `chunk` documents a piece; `workers` changes nothing but the speed."""
    chunks = [range(i, min(i + chunk, documents)) for i in range(0, documents, chunk)]
    if workers <= 1:
        _adopt(maker)
        yield from map(_make_lines, chunks)
        return
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else None)
    with context.Pool(workers, initializer=_adopt, initargs=(maker,)) as pool:
        yield from pool.imap(_make_lines, chunks)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--books",
        nargs="+",
        required=True,
        metavar="F",
        help='books: .jsonl or .jsonl.xz, each line an object with a "text"',
    )
    add(
        "--output",
        required=True,
        metavar="F.jsonl",
        help="where the documents go, a JSON object a line",
    )
    add("--documents", type=int, required=True, metavar="N", help="how many documents")
    add(
        "--tokens",
        type=int,
        nargs=2,
        default=(500, 1000),
        metavar=("LO", "HI"),
        help="length of a document with its facts, drawn evenly from LO..HI (default: 500 1000)",
    )
    add(
        "--facts-per-1000",
        type=float,
        default=20.0,
        metavar="R",
        help="facts in every 1000 tokens, as far as they fit in 4/5 of the text (default: 20)",
    )
    add(
        "--questions",
        type=int,
        default=8,
        metavar="Q",
        help="questions a document, each about another fact, if it has so many (default: 8)",
    )
    add(
        "--no-questions",
        action="store_true",
        help="plain text to train on: the same documents as id and text, without questions",
    )
    add("--seed", type=int, default=0, help="another seed gives other documents (default: 0)")
    add(
        "--split",
        choices=("train", "dev"),
        default="train",
        help="one full name in ten is kept for dev and never occurs in train (default: train)",
    )
    add(
        "--echo",
        type=float,
        default=0.5,
        metavar="P",
        help="share of facts that the next sentence says once more (default: 0.5)",
    )
    add(
        "--kinds",
        type=int,
        nargs=2,
        metavar=("LO", "HI"),
        help="kinds of facts (colours of coats, towns, pets ...) in a document, drawn from LO..HI; "
        "with few kinds only the name tells the facts apart (default: all kinds)",
    )
    add(
        "--depth",
        type=float,
        metavar="D",
        help="put the asked facts at this fraction of the document, 0 to 1 (default: anywhere)",
    )
    add(
        "--tokenizer",
        metavar="DIR",
        help="directory with tokenizer.json, to count real tokens (default: 4 characters a token)",
    )
    add(
        "--workers",
        type=int,
        default=1,
        metavar="W",
        help="processes; the output does not depend on it (default: 1)",
    )
    add("--overwrite", action="store_true", help="replace the output if it exists")
    return parser


def run(args: argparse.Namespace) -> None:
    """Write the file that the command line asks for."""
    output = Path(args.output)
    if output.exists() and not args.overwrite:
        raise BadInput(f"--output {output}: exists already; give another name or --overwrite")
    if args.documents < 1:
        raise BadInput(f"--documents {args.documents}: give 1 or more")
    if args.workers < 1:
        raise BadInput(f"--workers {args.workers}: give 1 or more")
    options = Options(
        tokens=tuple(args.tokens),
        facts_per_1000=args.facts_per_1000,
        kinds=None if args.kinds is None else tuple(args.kinds),
        questions=args.questions,
        seed=args.seed,
        split=args.split,
        echo=args.echo,
        depth=args.depth,
        no_questions=args.no_questions,
    )
    tokenizer = load_tokenizer(args.tokenizer)
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    say(f"reading {len(args.books)} files of books")
    books = read_books(args.books)
    say(f"{len(books)} books, {sum(map(len, books)):,} paragraphs")
    maker = FactMaker(books, options, tokenizer)
    start = last = time.monotonic()
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    done = characters = 0
    with open(partial, "w", encoding="utf-8") as file:
        for lines in make_rows(maker, args.documents, args.workers):
            file.write(lines)
            done += lines.count("\n")
            characters += len(lines)
            if time.monotonic() - last > 2:
                last = time.monotonic()
                say(f"{done:,} of {args.documents:,} documents, {done / (last - start):,.0f}/s")
    os.replace(partial, output)
    seconds = max(time.monotonic() - start, 1e-9)
    say(f"{output}: {done:,} documents, {characters / 1e6:.1f} MB, {done / seconds:,.0f}/s")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    try:
        run(args)
    except BadInput as error:
        print(f"make_facts.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
