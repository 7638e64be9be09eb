"""Write the inputs every fixture starts from: tests/reference/texts.json and pairs.json,
tests/tiny_vocab.txt.

    python tests/reference/make_inputs.py [--out DIR]     DIR stands for tests/

Standard library only, no randomness but a seeded `random.Random`. The three files are committed;
this script is their provenance, and the SHA-256 of each is recorded in the fixtures that were
computed from it."""

import argparse
import json
import random
import re
import string
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parent.parent
VOCABULARY_SIZE = 640
PAIRS = 313  # 19 full batches of 16 and a ragged one of 9, so that 10 epochs are 200 steps

WORDS = """
able about above across after again against almost along already although always among another answer appear apple
around autumn balance bank basket beautiful because become before behind believe below beside between beyond bicycle
birth black blossom board boat bottle branch bread breakfast bridge bright bring brother build butter cabin candle
capital carbon careful castle catalogue cautious centre century chair chance change chapter chemical child choice
circle circuit citizen clever climate cloud coast coffee collect colour comfort common company compare compass complete
concert connect consider constant contain contract cotton country courage cousin cover create crystal culture curious
current curtain custom damage danger daughter debate decide deliver demand describe desert design detail device diamond
dinner direct discover disease distance divide doctor double doubt dragon drawer dream during dusty early earth
eastern economy effort eight electric element elephant empire empty energy engine enough entire equal error escape
evening event every evidence exact example except exchange exercise expect explain express extreme fabric factory
fair familiar family famous farmer fashion father favour feather fellow festival fever field figure final finger finish
fire flavour flight floor flower folded follow foreign forest forget formal forward fossil fountain fragile frame
freedom friend frozen future garden gather general gentle giant glacier glass golden govern grain gravity great
green ground growth guard guest guide habit half hammer handle happen harbour harvest hazard health heavy helmet
hidden history hollow honest horizon hospital hotel hour house human hundred hungry ice idea image imagine import
improve include increase indeed industry inform injury insect inside instead invent island ivory jacket jewel
journey judge jungle justice kettle keyboard kingdom kitchen kitten knee ladder language lantern large later laugh
leader learn leather legend lemon length lesson letter level library light limit linen liquid listen little lonely
lunar machine magnet maintain manage marble margin market master matter meadow measure medicine melody member memory
merchant metal method middle mighty mineral minute mirror mixture modern moment money monsoon morning mother motion
mountain muscle museum music mystery narrow nation nature needle neighbour nervous network never night noble noise
normal north nothing notice novel number object observe ocean offer office often opinion orange orbit order ordinary
organ origin other outside oxygen oyster package paint palace paper parade parent partner passage patient pattern
""".split()

SENTENCES = """
The weather is lovely today.
It's so sunny outside!
He drove to the stadium.
A man is playing guitar.
The cat sits outside.
The new movie is awesome.
What is Deep Learning?
Deep Learning is...
How do I change the chain on an old bicycle?
Boil the potatoes until a fork slides in without resistance.
She had never seen the sea, though she had drawn it many times.
The committee postponed its decision until the auditors had reported.
Water expands by about nine percent when it freezes.
My neighbour's dog barks whenever the postman comes near the gate.
Interest rates rose again, and with them the price of everything bought on credit.
The violinist broke a string in the second movement and played on.
Please find attached the minutes of last Tuesday's meeting.
Is there a train to Lisbon that leaves before noon on Sundays?
Rust forms when iron meets oxygen in the presence of moisture.
I would rather walk than wait for a bus that may never come.
The patient was discharged with instructions to rest and to return in a week.
In 1969 two people walked on the Moon while a third circled above them.
Nobody knows who painted the small chapel above the village.
The recipe calls for two cups of flour, a pinch of salt and plenty of patience.
Whales sing, but nobody is certain to whom.
A good index is worth more than a good table of contents.
The court ruled that the contract had been void from the start.
Turn left at the bakery, then go straight on until you smell the river.
We apologise for the delay; the connecting flight has been held for you.
The glacier has lost a third of its volume within a single lifetime.
Bees dance to tell one another where the flowers are.
You can lead a horse to water, but you can't make it drink.
Our data suggest, but do not prove, that sleep consolidates memory.
The old lighthouse keeper wrote a letter each night and posted none.
Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.
Never attribute to malice that which is adequately explained by a missing semicolon.
The tailor measured twice, cut once, and still got it wrong.
How much wood would a woodchuck chuck if a woodchuck could chuck wood?
The quick brown fox jumps over the lazy dog.
Colourless green ideas sleep furiously.
Wind turbines slow down in storms so as not to tear themselves apart.
The museum is free on the first Sunday of the month, and crowded.
A neutrino can pass through a light-year of lead without noticing.
He whispered, "Don't look now - but we're being followed."
The stock market doesn't like surprises; neither do I.
""".strip().splitlines()

NAMED = {
    "empty": [""],
    "white space": [
        " ",
        "   ",
        "\t",
        "\n",
        "\r\n",
        " \t\n\r ",
        "\u00a0",
        "\u3000\u2003",
        "\u2028",
        "\u2029",
        "\x0b\x0c",
    ],
    "spaced": [
        "  leading and trailing  ",
        "\n\nnew lines\n\naround\n",
        "tabs\tbetween\twords",
        "many      spaces",
        "no\u00a0break\u00a0spaces",
        "wide\u3000spaces\u2003here",
        "line\u2028separator and paragraph\u2029separator",
        "\u00a0\u2003\u3000trimmed on both sides\u3000\u2003\u00a0",
    ],
    "control": [
        "\x00",
        "a\x00b",
        "NUL at the end\x00",
        "\x00NUL at the start",
        "bell\x07 and back\x08space",
        "escape \x1b[31mred\x1b[0m sequence",
        "file\x1cgroup\x1drecord\x1eunit\x1fseparators",
        "\x1c\x1dseparators around\x1e\x1f",
        "next\x85line",
        "\x85next lines around\x85",
        "vertical\x0btab and form\x0cfeed",
        "delete\x7f and C1 \x80\x9f",
        "".join(map(chr, range(32))),
        "".join(map(chr, range(127, 161))),
    ],
    "invisible": [
        "zero\u200bwidth\u200cspaces\u200dhere",
        "\ufeffbyte order mark",
        "soft\u00adhyphen",
        "word\u2060joiner",
        "left\u200eto\u200fright marks",
        "\u202eright to left override\u202c",
        "\u2066isolated\u2069",
        "variation\ufe0f selector\ufe0e",
        "\u180e Mongolian vowel separator",
        "\u2800 Braille blank",
        "\U000e0001\U000e0041 tag characters",
    ],
    "strange": [
        "replacement \ufffd character",
        "private use \ue000 \U000f0000",
        "noncharacters \ufffe \uffff \U0010ffff",
        "unassigned \u0378 \U0003fffd",
        "\ufffd",
    ],
    "accents": [
        "Caf\u00e9 na\u00efve r\u00e9sum\u00e9 d\u00e9j\u00e0 vu",
        "Cafe\u0301 nai\u0308ve re\u0301sume\u0301 de\u0301ja\u0300 vu",
        "\u00c5ngstr\u00f6m, \u00d8rsted, \u00c6gir, \u0152uvre, stra\u00dfe, STRA\u1e9eE",
        "\u0130stanbul'da \u0131\u015f\u0131k, \u011f\u00fcne\u015f ve \u00e7i\u00e7ek",
        "Za\u017c\u00f3\u0142\u0107 g\u0119\u015bl\u0105 ja\u017a\u0144",
        "P\u0159\u00edli\u0161 \u017elu\u0165ou\u010dk\u00fd k\u016f\u0148 \u00fap\u011bl \u010f\u00e1belsk\u00e9 \u00f3dy",
        "\u0110\u1eb7ng V\u0103n Ng\u1eef, ti\u1ebfng Vi\u1ec7t",
        "\u0301\u0302\u0303 only combining marks",
        "Z\u0351\u036b\u0343a\u0322\u0321\u0346l\u0334\u0335g\u0336\u0337o\u0338\u0321 he comes",
        "a\u0301\u0302\u0303\u0304\u0305\u0306\u0307\u0308",
        "\u1e69 s\u0323\u0307 s\u0307\u0323 in three spellings",
        "\u212b \u2126 \u212a look-alikes",
    ],
    "scripts": [
        "\u0421\u044a\u0435\u0448\u044c \u0436\u0435 \u0435\u0449\u0451 \u044d\u0442\u0438\u0445 \u043c\u044f\u0433\u043a\u0438\u0445 \u0444\u0440\u0430\u043d\u0446\u0443\u0437\u0441\u043a\u0438\u0445 \u0431\u0443\u043b\u043e\u043a",
        "\u039e\u03b5\u03c3\u03ba\u03b5\u03c0\u03ac\u03b6\u03c9 \u03c4\u03b7\u03bd \u03c8\u03c5\u03c7\u03bf\u03c6\u03b8\u03cc\u03c1\u03b1 \u03b2\u03b4\u03b5\u03bb\u03c5\u03b3\u03bc\u03af\u03b1, \u03bb\u03cc\u03b3\u03bf\u03c2, \u039b\u039f\u0393\u039f\u03a3",
        "\u05de\u05d4 \u05e9\u05dc\u05d5\u05de\u05da \u05d4\u05d9\u05d5\u05dd? \u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd",
        "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u060c \u0643\u064a\u0641 \u062d\u0627\u0644\u0643 \u0627\u0644\u064a\u0648\u0645\u061f",
        "\u0627\u064e\u0644\u0652\u0639\u064e\u0631\u064e\u0628\u0650\u064a\u0651\u064e\u0629\u064f with vowel signs",
        "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e, \u0906\u092a \u0915\u0948\u0938\u0947 \u0939\u0948\u0902?",
        "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
        "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4, \ud55c\uad6d\uc5b4 \ubb38\uc7a5\uc785\ub2c8\ub2e4.",
        "\u1112\u1161\u11ab\u1100\u1173\u11af in conjoining letters",
        "\u10d2\u10d0\u10db\u10d0\u10e0\u10ef\u10dd\u10d1\u10d0 \u0562\u0561\u0580\u0565\u0582 \u12a0\u12db \u1794\u17b6\u1793",
        "Mixed \u041c\u043e\u0441\u043a\u0432\u0430 and \u6771\u4eac and \u0395\u03bb\u03bb\u03ac\u03b4\u03b1 in one line",
        "\u0b85\u0bae\u0bcd\u0bae\u0bbe \u0c05\u0c2e\u0c4d\u0c2e \u0d05\u0d2e\u0d4d\u0d2e",
    ],
    "CJK": [
        "\u6df1\u5ea6\u5b66\u4e60\u662f\u4ec0\u4e48\uff1f",
        "\u6771\u4eac\u90fd\u306b\u4f4f\u3093\u3067\u3044\u307e\u3059\u3002\u30d7\u30ed\u30b0\u30e9\u30e0\u3092\u66f8\u304f\u3002",
        "\u304c\u304e\u3050 \u304b\u3099\u304d\u3099\u304f\u3099 \uff76\uff9e\uff77\uff9e",
        "\uff26\uff55\uff4c\uff4c \uff37\uff49\uff44\uff54\uff48 \uff11\uff12\uff13",
        "extension A \u3400\u4dbf and B \U00020000\U0002a6df and G \U00030000",
        "compatibility \uf900\ufaff \U0002f800",
        "\u4e2d\u6587English\u6df7\u5408text",
        "\u3220\u3299\u337f\u2f00\u3007",
    ],
    "emoji": [
        "I \u2764\ufe0f this \U0001f600\U0001f680",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family",
        "\U0001f44d\U0001f3fd thumbs \U0001f1eb\U0001f1f7\U0001f1e7\U0001f1f7 flags",
        "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
        "\U0001f600",
        "1\ufe0f\u20e3 keycap \u2122 \u00a9 \u00ae",
        "party\U0001f389time\U0001f389",
        ":-) ;-) <3 \u00af\\_(\u30c4)_/\u00af",
    ],
    "compatibility": [
        "\ufb01nd the \ufb03ne \ufb02ag",
        "x\u00b2 + y\u00b3 = z\u207f, H\u2082O, \u00bd cup",
        "\U0001d400\U0001d41b\U0001d4ec \u2102\u2115\u211d",
        "\u2460\u2461\u2462 \u2167 \u33a2",
        "\u201ccurly\u201d \u2018quotes\u2019 \u2013 dashes \u2014 and\u2026 dots",
        "\u20ac100, \u00a35, \u00a5700, \u20b91,000, 50\u00a2",
        "\u2200x \u2208 S: \u2203y \u2264 x \u2227 \u00ac(y = 0)",
        "\u2192 \u21d2 \u2190 \u2713 \u2717 \u2605",
        "\u00b5m \u03bcm \u00b0C \u2103 \u2030",
    ],
    "case": [
        "HELLO WORLD",
        "hello world",
        "hElLo WoRlD",
        "iPhone, eBay, McDonald's, NaCl, pH",
        "\u01c4 \u01c5 \u01c6",
        "\u0149 \u01f0",
    ],
    "punctuation": [
        "!",
        "?!?!?!",
        string.punctuation,
        "state-of-the-art, well-known, e-mail",
        "don't can't won't it's o'clock 'tis",
        "(a) [b] {c} <d> |e| /f/ \\g\\",
        "...",
        "wait... what?! no way!!!",
        "\u00bfQu\u00e9? \u00a1No! \u00ab oui \u00bb",
        "a,b;c:d.e",
        "_underscored_ *starred* ~struck~ `ticked`",
    ],
    "special tokens": [
        "[CLS]",
        "[SEP]",
        "a [SEP] b",
        "the capital of France is [MASK].",
        "the capital of France is[MASK].",
        "[PAD] [PAD]",
        "[UNK] unknown",
        "[mask] [sep] [cls]",
        "[unused5] ##ing ##s",
        "[CLS] already wrapped [SEP]",
        "[ MASK ] and [MASK",
        "[MASK][MASK]",
    ],
    "numbers": [
        "0",
        "3.14159265358979",
        "1,234,567.89",
        "-273.15 and +42",
        "1e-12 6.02e23 0xDEADBEEF",
        "2024-02-29T23:59:60Z",
        "+44 (0)20 7946 0958",
        "192.168.0.1:8080 and fe80::1",
        "\u0661\u0662\u0663 \u0967\u0968\u0969 \uff14\uff15\uff16",
        "9" * 120,
    ],
    "addresses": [
        "https://www.example.org/path/to/page?query=value&other=%20#fragment",
        "someone.else+tag@mail.example.co.uk",
        "/usr/local/lib/python3.11/site-packages/__init__.py",
        "C:\\Users\\Name\\Documents\\file (1).txt",
        "git@example.com:owner/repository.git",
        "550e8400-e29b-41d4-a716-446655440000",
        "aGVsbG8gd29ybGQsIHRoaXMgaXMgYmFzZTY0IGVuY29kZWQgdGV4dA==",
        "xn--mnchen-3ya.example",
        "@handle #hashtag $TICKER",
    ],
    "code": [
        "def add(a: int, b: int) -> int:\n    return a + b\n",
        "for (int i = 0; i < n; ++i) { sum += values[i] * 2; }",
        '{"name": "value", "list": [1, 2.5, null, true], "nested": {"a": {}}}',
        "SELECT id, COUNT(*) FROM users WHERE age >= 18 GROUP BY id HAVING COUNT(*) > 1;",
        '<div class="card"><p>Hello &amp; welcome</p><!-- comment --></div>',
        "find . -name '*.py' | xargs grep -n \"TODO\" > out.txt 2>&1",
        "^(?:[a-z0-9!#$%&'*+/=?^_`{|}~-]+)@[^\\s]+$",
        "\\frac{\\partial L}{\\partial w} = \\sum_{i=1}^{n} x_i (y_i - \\hat{y}_i)",
        "# Title\n\n- item *one*\n- item **two**\n\n| a | b |\n|---|---|\n",
        "lambda x: x if x else None  # comment\n\tindented()",
        "snake_case camelCase PascalCase kebab-case SCREAMING_SNAKE",
        "x = [i**2 for i in range(10) if i % 2 == 0]",
    ],
    "long words": [
        "a" * 99,
        "a" * 100,
        "a" * 101,
        "b" * 5000,
        "Donaudampfschifffahrtselektrizit\u00e4tenhauptbetriebswerkbauunterbeamtengesellschaft",
        "pneumonoultramicroscopicsilicovolcanoconiosis",
        "short " + "z" * 101 + " short",
        "\u00e9" * 100,
        "e\u0301" * 60,
        "antidisestablishmentarianism supercalifragilisticexpialidocious",
    ],
    "limit": [
        *(" ".join(["word"] * n) for n in (126, 127, 128, 253, 254, 255, 256, 257)),
        *("." * n for n in (254, 255, 300)),
        *("\u6df1" * n for n in (253, 254, 255, 600)),
        " ".join(["word"] * 253) + " unbelievability",
        " ".join(["word"] * 252) + " unbelievability of it",
        " ".join(["pneumonoultramicroscopic"] * 60),
        "\U0001f600 " * 255,
        "x" * 101 + " " + " ".join(["word"] * 300),
        " ".join(["word"] * 254) + " [SEP] tail",
        " \n ".join(["a"] * 254) + "   ",
        "don't " * 100,
    ],
}


def texts() -> list[dict[str, str]]:
    """Every text with its kind: hand-written corner cases, sentences, and word sequences of 1 to
    2,000 words."""
    chosen = [{"kind": kind, "text": text} for kind, group in NAMED.items() for text in group]
    chosen += [{"kind": "sentences", "text": sentence} for sentence in SENTENCES]
    draw = random.Random(0)
    for words in (
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        10,
        12,
        15,
        20,
        25,
        30,
        40,
        50,
        64,
        80,
        100,
        128,
        150,
        200,
        240,
        300,
        500,
    ):
        chosen.append(
            {"kind": "words", "text": " ".join(draw.choices(WORDS, k=words)).capitalize() + "."}
        )
    for words in (1000, 2000):
        chosen.append({"kind": "words", "text": " ".join(draw.choices(WORDS, k=words))})
    return chosen


ROLES = """
accountant archivist baker beekeeper bookbinder bricklayer carpenter cartographer chemist choreographer curator dentist
diver economist editor electrician farmer florist forester gardener geologist glazier historian interpreter jeweller
joiner journalist judge lawyer librarian lifeguard locksmith machinist mason mechanic midwife miller nurse optician
painter pharmacist physicist pilot plumber potter printer ranger roofer sailor seamstress shepherd surgeon surveyor
tailor teacher translator upholsterer veterinarian watchmaker weaver welder
""".split()
SETTINGS = (
    """
a coastal town|a children's hospital|the mountain railway|a family workshop|an airport hangar|the national archive
a village school|a research station|the harbour authority|a busy kitchen|a travelling theatre|the regional court
a wind farm|an old monastery|the city council|a small publisher|a night shelter|the botanical garden|a steel mill
an insurance office|a caf\u00e9 chain|the river police|a mobile clinic|a solar start-up
""".strip()
    .replace("\n", "|")
    .split("|")
)
VERBS = """
repairs plans measures inspects records teaches designs cleans tests delivers explains restores prepares compares
orders counts maintains reviews sketches assembles
""".split()
OBJECTS = (
    """
wooden boats|tax returns|copper pipes|clinical trials|old manuscripts|safety valves|school timetables|wedding cakes
tram engines|legal contracts|greenhouse plants|stained glass|blood samples|mountain paths|printing plates|leather seats
bridge bearings|sheep and goats|weather balloons|concert programmes|loan applications|ship's radios|roof timbers
dental crowns|museum catalogues|traffic signals
""".strip()
    .replace("\n", "|")
    .split("|")
)
SKILLS = (
    """
patience|arithmetic|first aid|soldering|careful listening|French|spreadsheets|night work|hand tools|public speaking
hygiene rules|double-entry bookkeeping|reading maps|colour matching|negotiation|knots and ropes|microscopy
stock control|animal handling|welding (MIG)|proofreading|risk assessment|customer care|CAD drawing|statistics
driving licence C|archiving|fault finding|team leadership|budgeting|project planning|plant names|sewing
chemical safety|navigation|copy editing|interviewing|sharpening blades|pastry|web publishing
""".strip()
    .replace("\n", "|")
    .split("|")
)


def pairs() -> list[list[str]]:
    """Synthetic (job, skills) pairs; no text stands twice in either column, so no two rows of a
    batch coincide.

    Every seventh is one line, every eleventh longer than the tiny model's 64 tokens."""
    draw = random.Random(1)
    made: list[list[str]] = []
    seen: set[str] = set()
    while len(made) < PAIRS:
        role, setting = draw.choice(ROLES), draw.choice(SETTINGS)
        short, long = len(made) % 7 == 6, len(made) % 11 == 10
        sentences = 6 if long else 1 if short else draw.randint(1, 2)
        tasks = [f"{draw.choice(VERBS)} {draw.choice(OBJECTS)}" for _ in range(2 * sentences)]
        job = f"The {role} at {setting} " + ". Also ".join(
            f"{one} and {two}" for one, two in zip(tasks[::2], tasks[1::2], strict=True)
        )
        job = f"{role.capitalize()}: {tasks[0]}" if short else job + "."
        skills = ", ".join(draw.sample(SKILLS, 24 if long else draw.randint(2, 6)))
        if job not in seen and skills not in seen:
            seen |= {job, skills}
            made.append([job, skills])
    return made


def vocabulary(corpus: list[str]) -> list[str]:
    """A WordPiece vocabulary: special tokens, single characters, some of the corpus's words, its
    most frequent endings.

    A word stands whole when it is short or its last letter's code is even; the others must be
    pieced together, as with a real vocabulary."""
    words = Counter(re.findall(r"[a-z]+", " ".join(corpus).lower()))
    characters = sorted(
        set(string.ascii_lowercase + string.digits + string.punctuation) | set("\u6df1\u5ea6\u20ac")
    )
    endings = Counter(
        f"##{word[cut:]}"
        for word in words
        for cut in range(1, len(word))
        if 2 <= len(word) - cut <= 4
    )
    pieces = ["[PAD]", *(f"[unused{i}]" for i in range(3)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += characters + [f"##{c}" for c in string.ascii_lowercase + string.digits]
    whole = [
        w for w, _ in sorted(words.items(), key=lambda item: (-item[1], item[0])) if len(w) > 1
    ]
    whole = [w for w in whole if len(w) < 5 or ord(w[-1]) % 2 == 0]
    common = [e for e, _ in sorted(endings.items(), key=lambda item: (-item[1], item[0]))]
    pieces += whole
    return pieces + common[: VOCABULARY_SIZE - len(pieces)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=TESTS, help="folder to write into (default: tests/)"
    )
    out = parser.parse_args().out
    (out / "reference").mkdir(parents=True, exist_ok=True)

    rows, examples = texts(), pairs()
    for name, content in (("texts.json", rows), ("pairs.json", examples)):
        (out / "reference" / name).write_text(
            json.dumps(content, indent=0) + "\n", encoding="ascii"
        )
    corpus = [text for pair in examples for text in pair] + SENTENCES
    pieces = vocabulary(corpus)
    if len(set(pieces)) != VOCABULARY_SIZE:
        raise SystemExit(
            f"{len(pieces)} pieces, {len(set(pieces))} different, {VOCABULARY_SIZE} wanted"
        )
    (out / "tiny_vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    print(f"{len(rows)} texts, {len(examples)} pairs, {len(pieces)} pieces")


if __name__ == "__main__":
    main()
