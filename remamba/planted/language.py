"""The English of the facts: people, values, and the sentences that state and ask for them.

planted.py puts these facts into books; examples/make_tiny.py teaches their words to a tokenizer.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

DEV_SHARE = 10  # one full name in so many belongs to the dev split


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


def split_of(name: str) -> str:
    """Which split a full name belongs to, "train" or "dev": a fixed hash, so never both."""
    return "dev" if zlib.crc32(name.encode()) % DEV_SHARE == 0 else "train"
