"""The words that facts are made of: names of people, and values, each of one split only."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

SALT = 2082  # with it every list below has about 15 % of its values in dev and in test


def split_of(name: str) -> str:
    """The split that a full name belongs to, by a fixed hash: 8/10 train, 1/10 dev, 1/10 test."""
    share = zlib.crc32(name.encode()) % 10
    return "dev" if share == 0 else "test" if share == 1 else "train"


def value_split(value: str) -> str:
    """The split that a value belongs to, by a fixed hash: 70 % train, 15 % dev, 15 % test."""
    share = zlib.crc32(f"{SALT}:{value}".encode()) % 20
    return "test" if share < 3 else "dev" if share < 6 else "train"


def values_of(values: Sequence[str], split: str) -> tuple[str, ...]:
    """The values of a list that belong to a split."""
    return tuple(value for value in values if value_split(value) == split)


def article_of(value: str) -> str:
    """The indefinite article that stands before a value."""
    return "an" if value[0] in "aeiou" else "a"


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
