"""Domain names as malware makes them, and as people do: the data of the demo.

Each family below follows a published description of its domain-generation algorithm (``Family.source`` names it; the
code was written for this project). A generator takes a *campaign* and yields the names of that campaign in the order
in which the malware would try them. Campaign 0 is a published one where its parameters are known; the others are
later days for the families that are seeded by the date, other seeds or later places in the sequence for those with a
hard-coded seed. So names held out from training can come from campaigns the models have not seen, as in life.

Everything is a pure function of its arguments: the same campaign gives the same names on every machine.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from itertools import islice
from pathlib import Path

BENIGN = "benign"
"""What the ``family`` column says of a name that no malware made."""

_U32 = 0xFFFFFFFF
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One malware family: its name, how its names are made, and who published that."""

    name: str
    source: str
    generate: Callable[[int], Iterator[str]]


@cache
def words(section: str) -> tuple[str, ...]:
    """The words of one section of ``words.txt``, in the file's order.

    Raises:
        KeyError: there is no such section.
    """
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in Path(__file__).with_name("words.txt").read_text(encoding="ascii").splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), [])
        elif not line.startswith("#"):
            current += line.split()
    return tuple(sections[section])


def _ror32(value: int, n: int) -> int:
    value &= _U32
    return ((value >> n) | (value << (32 - n))) & _U32


def _rol32(value: int, n: int) -> int:
    return _ror32(value, (32 - n) % 32)


def _signed(value: int) -> int:
    """The low 32 bits as a signed number, which is what a C ``int`` holds after an overflow."""
    return ((value & _U32) ^ 0x80000000) - 0x80000000


def _day(first: date, campaign: int) -> date:
    return first + timedelta(days=campaign)


def _seed(published: int, campaign: int) -> int:
    """A 31-bit seed per campaign; campaign 0 is the published seed itself, whatever its size."""
    return published if campaign == 0 else (published + campaign * 0x9E3779B1) & 0x7FFFFFFF or 1


# The first is published; the rest are ours, in its manner: words run together, and a few letters more.
_BANJORI_SEEDS = (
    "earnestnessbiophysicalohax",
    "marketgardenhistoricalmue",
    "silverharborquietlyob",
    "pioneerorchestraticket",
    "lanternsurveyorium",
    "harvestcompanionablyzo",
    "meadowarchitecturekip",
    "thunderlibrarianesq",
)


def banjori(campaign: int) -> Iterator[str]:
    """Rewrite the first four letters of a fixed name again and again."""
    name = _BANJORI_SEEDS[campaign % len(_BANJORI_SEEDS)]
    a, b, c, d = (ord(letter) - 97 for letter in name[:4])
    skip = campaign // len(_BANJORI_SEEDS) * 10
    while True:
        # The description works on ASCII codes; 97 = 19 (mod 26) is what its sums carry along.
        a = (a + d + 97) % 26
        b = (a + 2 * b + 2 * 97) % 26
        c = (a + c + 97 - 1) % 26
        d = (b + c + d + 2 * 97) % 26
        if skip:
            skip -= 1
            continue
        yield "".join(_LETTERS[i] for i in (a, b, c, d)) + name[4:] + ".com"


def corebot(campaign: int) -> Iterator[str]:
    """Linear congruential generator seeded by the date; the alphabet misses ``z`` and ``9``, as in the sample."""
    day = _day(date(2015, 9, 8), campaign)
    alphabet = _LETTERS[:25] + "012345678"
    state = (0x1DB98930 + day.year + ((1 << 16) + (day.month << 8) | day.day)) & _U32

    def draw() -> int:
        nonlocal state
        state = (1664525 * state + 1013904223) & _U32
        return state

    for _ in range(40):
        length = 12 + draw() % 12
        yield "".join(alphabet[draw() % len(alphabet)] for _ in range(length)) + ".ddns.net"


def taus88(year: int, month: int, day: int) -> Iterator[str]:
    """Letters ``a`` to ``y`` by three 32-bit shift registers (L'Ecuyer's taus88) that start as the three numbers."""
    while True:
        year = (((year << 3 & _U32) ^ year) >> 11) ^ ((year & 0xFFFFFFF0) << 17 & _U32)
        month = (((month << 2 & _U32) ^ month) >> 25) ^ ((month & 0xFFFFFFF8) << 4 & _U32)
        day = (((day << 13 & _U32) ^ day) >> 19) ^ ((day & 0xFFFFFFFE) << 12 & _U32)
        yield _LETTERS[(year ^ month ^ day) % 25]


def cryptolocker(campaign: int) -> Iterator[str]:
    """Shift registers seeded by the date; the name's number is added to the year. 1,000 names of 12 to 15 letters."""
    today = _day(date(2014, 1, 7), campaign)
    suffixes = (".com", ".net", ".biz", ".ru", ".org", ".co.uk", ".info")
    for number in range(1000):
        year, month, day = (65537 * part for part in (today.year + number, today.month, today.day))
        length = 12 + ((day >> 3 ^ year >> 8 ^ year >> 11) & 3)
        yield "".join(islice(taus88(year, month, day), length)) + suffixes[number % 7]


class _ParkMiller:
    """The minimal standard generator by Schrage's method, without the correction of negative values."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def below(self, bound: int) -> int:
        quotient, rest = divmod(self.state, 127773)
        self.state = (16807 * rest - 2836 * quotient) & _U32
        return self.state % bound


def dircrypt(campaign: int) -> Iterator[str]:
    """8 to 20 letters drawn from one Park-Miller sequence."""
    generator = _ParkMiller(_seed(0xF2113C2A, campaign))
    for _ in range(30):
        length = generator.below(13) + 8
        yield "".join(_LETTERS[generator.below(26)] for _ in range(length)) + ".com"


def fobber(campaign: int) -> Iterator[str]:
    """Congruential generator with a rotation: 17 letters in one version, 10 in the other."""
    state, add, length, suffix = (
        (0xC87C8A78, -1719405398, 17, ".net") if campaign % 2 == 0 else (0x851A3E59, -1916503263, 10, ".com")
    )
    state = _seed(state, campaign // 2)
    for _ in range(300):
        letters = []
        for _ in range(length):
            state = _ror32(321167 * state + add, 16)
            letters.append(_LETTERS[(state & 0x17FF) % 26])
        yield "".join(letters) + suffix


def kraken(campaign: int) -> Iterator[str]:
    """Version 1: every name has a seed of its own, made from its number; 6 to 11 letters under a dynamic-DNS host."""
    hosts = (".dyndns.org", ".yi.org", ".dynserv.com", ".mooo.com")
    for offset in range(20):
        number = 1000015 + campaign * 20 + offset
        product = _signed((number + 2) * (number + 7) * number)
        ninth = -(-product // 9) if product < 0 else product // 9  # C rounds towards zero
        state = _signed(ninth + (number * 3 + 1) * number + 0x8924541)
        draws = []
        for _ in range(3):
            state = _signed(1103515245 * state + 12435)
            draws.append((state >> 8) & 0x7FFF)
        length = (draws[0] * draws[1] - draws[2]) % 6 + 6
        letters = []
        for _ in range(length):
            state = _signed(1103515245 * state + 12435)
            letters.append(_LETTERS[((state >> 8) & 0x7FFF) % 26])
        yield "".join(letters) + hosts[number % 4]


def locky(campaign: int) -> Iterator[str]:
    """Version of February 2016: multiply, rotate by 7, add; 8 names for every two days, 5 to 15 letters."""
    day = _day(date(2016, 2, 28), campaign * 2)
    suffixes = ("ru", "pw", "eu", "in", "yt", "pm", "us", "fr", "de", "it", "be", "uk", "nl", "tf")
    key = 62

    def mix(value: int) -> int:
        return _ror32(0xB11924E1 * value, 7)

    base = mix(day.year + 0x1BF5)
    base = mix(base + key + 0x27100001)
    base = mix(base + day.day // 2 + 0x27100001)
    base = mix(base + day.month + 0x2709A354)
    for number in range(8):
        state = (mix(_rol32(number, 21) + base + _rol32(key, 17) + 0x27100001) + 0x27100001) & _U32
        length = state % 11 + 5
        letters = []
        for i in range(length):
            state = (mix(_rol32(state, i)) + 0x27100001) & _U32
            letters.append(_LETTERS[state % 25])
        yield "".join(letters) + "." + suffixes[(mix(state) + 0x27100001) % len(suffixes)]


def matsnu(campaign: int) -> Iterator[str]:
    """Nouns and verbs in turn until 13 characters are reached, some joined by hyphens; 10 names a day."""
    days = (_day(date(2015, 1, 1), campaign) - date(1970, 1, 1)).days
    dictionaries = (words("nouns"), words("verbs"))
    state = 1
    for number in range(1, 11):
        name, turn = "", 0
        while len(name) <= 12:
            for factor in (0xEF5EB, days, 0x39339, number):
                state = state * factor & 0xFFFF
            state ^= 0xEF5EB & 0xFFFF
            name += dictionaries[turn][state % len(dictionaries[turn])] + ("-" if state & 1 else "")
            turn ^= 1
        yield name.rstrip("-") + ".com"


def padcrypt(campaign: int) -> Iterator[str]:
    """SHA-256 of the date and a number; digits of the hash become letters; 24 names a day, 16 letters of eleven."""
    day = _day(date(2016, 3, 6), campaign)
    suffixes = ("com", "co.uk", "de", "org", "net", "eu", "info", "online", "co", "cc", "website")
    for number in range(24):
        digest = hashlib.sha256(f"{day.day}-{day.month}-{day.year}:{number}".encode()).hexdigest()
        name = digest[3:19].translate(str.maketrans("0123456789", "abcdnfolmk"))
        last = int(digest[-1], 16)
        yield name + "." + suffixes[last if last < len(suffixes) else 0]


def ramdo(campaign: int) -> Iterator[str]:
    """16 letters by sums and exclusive-ors of a seed and the name's number."""
    seed = 0xD5FFF + campaign
    for number in range(20):
        step = 2 * seed * (number + 1)
        state = step ^ (26 * seed * number)
        letters = []
        for i in range(16):
            state &= _U32
            letters.append(_LETTERS[state % 26])
            state += state ^ (step * i * i * 26)
        yield "".join(letters) + ".org"


def ramnit(campaign: int) -> Iterator[str]:
    """8 to 19 letters from ``a`` to ``y``; the generator is reseeded for each name by the product of two states."""
    generator = _ParkMiller(_seed(0x79159C10, campaign))
    for _ in range(100):
        before = generator.state
        length = generator.below(12) + 8
        after = generator.state
        yield "".join(_LETTERS[generator.below(25)] for _ in range(length)) + ".com"
        product = before * after
        generator.state = (product + product // 2**32) % 2**32


def simda(campaign: int) -> Iterator[str]:
    """Seven letters, consonant and vowel in turn, picked by dividing one growing number by 3, 5, 7, ..."""
    consonants, vowels = "qwrtpsdfghjklzxcvbnm", "eyuioa"
    step = sum(map(ord, "1676d5775e05c50b46baa5579d4fc7"))
    for number in range(1, 51):
        base = 0x45AE94B2 + (campaign * 50 + number) * step
        yield (
            "".join(
                vowels[base // (3 + 2 * i) % 6] if i % 2 else consonants[base // (3 + 2 * i) % 20] for i in range(7)
            )
            + ".com"
        )


def suppobox(campaign: int) -> Iterator[str]:
    """Two dictionary words; the bits of a slow clock (512 s a tick), shuffled, say which. 85 names from one start."""
    ticks = int((_day(date(2015, 1, 1), campaign) - date(1970, 1, 1)).total_seconds()) >> 9
    places = (3, 9, 13, 6, 2, 4, 11, 7, 14, 1, 10, 5, 8, 12, 0)
    dictionary = words("suppobox")
    for tick in range(ticks, ticks + 85):
        index = sum(((tick >> bit) & 1) << (14 - place) for bit, place in enumerate(places))
        yield dictionary[index >> 8] + dictionary[128 + (index & 0xFF)] + ".net"


def symmi(campaign: int) -> Iterator[str]:
    """Vowels and consonants in turn, the turn redrawn every second letter; 64 names in half a month."""
    year, half = divmod(campaign, 24)
    month, half = divmod(half, 2)
    state = 10000 * (half * 100 + month + 1) + 2015 + year + 42

    def draw() -> int:
        nonlocal state
        state = (state * 214013 + 2531011) & _U32
        return (state >> 16) & 0x7FFF

    # Both strings lose their last letter to an off-by-one error of the malware.
    letters = ("aeiou", "bcdfghklmnpqrstvwx")
    for _ in range(64):
        length, turn, name = 8 + draw() % 8, 0, ""
        for i in range(length):
            if i % 2 == 0:
                turn = 1 if draw() & 0x100 else 0
            choice = letters[(turn + i) % 2]
            name += choice[draw() % len(choice)]
        yield name + ".ddns.net"


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(name="banjori", source="J. Bader, The DGA of Banjori, 2015", generate=banjori),
        Family(name="corebot", source="J. Bader, The DGA of CoreBot, 2015", generate=corebot),
        Family(
            name="cryptolocker",
            source="S. Yazdi, A closer look at CryptoLocker's DGA, Fortinet, 2014",
            generate=cryptolocker,
        ),
        Family(name="dircrypt", source="J. Bader, The DGA of DirCrypt, 2015", generate=dircrypt),
        Family(name="fobber", source="J. Bader, domain_generation_algorithms (a collection), Fobber", generate=fobber),
        Family(name="kraken", source="J. Bader, Krakens two domain generation algorithms, 2015", generate=kraken),
        Family(name="locky", source="Forcepoint, Locky's new DGA: seeding the new domains, 2016", generate=locky),
        Family(name="matsnu", source="Check Point, Matsnu malware ID, technical brief, 2015", generate=matsnu),
        Family(name="padcrypt", source="L. Abrams and J. Bader, The DGA of PadCrypt 2.2.86.1, 2016", generate=padcrypt),
        Family(name="ramdo", source="J. Bader, domain_generation_algorithms (a collection), Ramdo", generate=ramdo),
        Family(name="ramnit", source="J. Bader, The DGA of Ramnit, 2014", generate=ramnit),
        Family(name="simda", source="J. Bader, The DGA of Simda (Shiz), 2015", generate=simda),
        Family(
            name="suppobox",
            source="J. Geffner, End-to-end analysis of a domain generating algorithm malware family, 2013",
            generate=suppobox,
        ),
        Family(name="symmi", source="J. Bader, The DGA of Symmi, 2015", generate=symmi),
    )
}
"""Every family, in alphabetical order."""


_PREFIXES = ("my", "the", "go", "get", "e", "i", "pro", "all", "top", "best")
_ENDINGS = ("hub", "ly", "shop", "online", "lab", "labs", "app", "tech", "club", "zone", "works", "ware", "ers", "24")
_SUFFIXES = ("com", "com", "com", "com", "org", "net", "de", "co.uk", "io", "info")


def benign(seed: int) -> Iterator[str]:
    """Names in the manner of honest sites, without end: one to three words, prefixes, endings, initials, hyphens."""
    rng = random.Random(seed)
    site = words("site")
    while True:
        one, two, three = rng.choice(site), rng.choice(site), rng.choice(site)
        name = rng.choices(
            (
                one + two,
                one + "-" + two,
                one + two + three,
                rng.choice(_PREFIXES) + one + two,
                one + rng.choice(_ENDINGS),
                one + two + rng.choice(_ENDINGS),
                one + str(rng.choice((1, 2, 3, 7, 21, 24, 99, 100, 365, 2000))),
                "".join(rng.choices(_LETTERS, k=rng.choice((2, 3)))) + "-" + one,
                "".join(rng.choices(_LETTERS, k=rng.choice((3, 4)))),
            ),
            weights=(30, 10, 15, 12, 10, 13, 3, 4, 3),
        )[0]
        yield name + "." + rng.choice(_SUFFIXES)


def label_of(name: str) -> str:
    """The part before the first dot: what the algorithm made, without the registry's or host's suffix."""
    return name.partition(".")[0]


def sample(
    family: str, *, first: int, count: int, per_campaign: int, exclude: AbstractSet[str] = frozenset()
) -> list[str]:
    """``count`` names of a family with different labels, from campaign ``first`` on.

    Args:
        family: a key of ``FAMILIES``.
        first: the first campaign that is asked.
        count: how many names are wanted.
        per_campaign: at most so many names are asked of each campaign.
        exclude: labels that must not occur.

    Raises:
        KeyError: there is no family of that name.
        ValueError: the family does not make that many names in 20,000 campaigns.
    """
    found: dict[str, str] = {}
    for campaign in range(first, first + 20_000):
        for name in islice(FAMILIES[family].generate(campaign), per_campaign):
            label = label_of(name)
            if label not in exclude:
                found.setdefault(label, name)
                if len(found) == count:
                    return list(found.values())
    raise ValueError(f"{family} makes only {len(found)} different names from campaign {first} on; asked for {count}")


def sample_benign(*, seed: int, count: int, exclude: AbstractSet[str] = frozenset()) -> list[str]:
    """``count`` benign names with different labels, none of them in ``exclude``."""
    found: dict[str, str] = {}
    for name in benign(seed):
        label = label_of(name)
        if label not in exclude:
            found.setdefault(label, name)
            if len(found) == count:
                break
    return list(found.values())
