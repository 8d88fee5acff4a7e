"""The demo's name generators: against published names where there are any, and as sources of data."""

import re
import sys
from itertools import islice
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # examples/ is no installed package

from examples.dga import families  # noqa: E402

# The first names of each family for the day or seed its description shows.
PUBLISHED = {
    ("banjori", 0): ["kwtoestnessbiophysicalohax.com", "rvcxestnessbiophysicalohax.com"],
    ("corebot", 0): ["lkhylm0mhyfuhg.ddns.net", "s63234wluv5v365bwp5.ddns.net", "afe6mfy23xcxgfa.ddns.net"],
    ("dircrypt", 0): ["rauggyguyp.com", "llullzza.com", "mluztamhnngwgh.com", "mycojenxktsmozzthdv.com"],
    ("fobber", 0): ["vhkintjtksyxgjrzz.net", "btpnxlsfdqbhzazyx.net", "ukfmknjdenthvktgc.net"],
    ("kraken", 0): ["ibbwnhgh.mooo.com", "smhburg.dyndns.org", "clwafrfuuxq.yi.org", "ivxcxbj.dynserv.com"],
    ("locky", 0): ["gegjiimqmlgtdmk.tf", "pccibcjncnhjn.yt", "rddipikmrap.us", "mmhmkqfc.be", "vkcims.pm"],
    ("padcrypt", 0): ["elkfcfnacacmofdf.com", "mkmeeefncfnfdmbm.de", "ffcdcnbmmnaeddcd.com", "ddkfodnaadmbmofo.co.uk"],
    ("ramnit", 0): ["knpqxlxcwtlvgrdyhd.com", "nvlyffua.com", "hgyudheedieibxy.com", "anrylixwcbnjopdd.com"],
    ("simda", 0): ["gatyfus.com", "lyvyxor.com", "vojyqem.com", "qetyfuv.com", "puvyxil.com"],
    ("symmi", 15): ["ogovugtuipawi.ddns.net", "afowkaupbabe.ddns.net", "ipkureleakm.ddns.net"],
}


@pytest.mark.parametrize(("family", "campaign"), PUBLISHED)
def test_published_names(family: str, campaign: int) -> None:
    expected = PUBLISHED[family, campaign]
    assert list(islice(families.FAMILIES[family].generate(campaign), len(expected))) == expected


def test_suppobox_walks_its_dictionary_as_published() -> None:
    # Campaign 12 begins at a tick divisible by 8. In the published lists eight such names are
    # wouldinstead rememberinstead wouldexplain rememberexplain wouldbright rememberbright wouldinside rememberinside.
    dictionary = families.words("suppobox")
    pairs = []
    for name in islice(families.suppobox(12), 8):
        label = families.label_of(name)
        [pair] = [(one, two) for one in dictionary[:128] for two in dictionary[128:] if one + two == label]
        pairs.append(pair)
    first, second = zip(*pairs, strict=True)
    assert first == first[:2] * 4
    assert second[0::2] == second[1::2]
    assert (len(set(first)), len(set(second))) == (2, 4)


def test_cryptolocker_names_have_12_to_15_letters_and_miss_z() -> None:
    names = [families.label_of(name) for name in families.cryptolocker(0)]
    assert len(names) == 1000
    assert {len(name) for name in names} == {12, 13, 14, 15}
    assert set("".join(names)) == set("abcdefghijklmnopqrstuvwxy")


def test_matsnu_joins_its_two_dictionaries() -> None:
    either = "|".join(sorted({*families.words("nouns"), *families.words("verbs")}, key=len, reverse=True))
    for campaign in range(50):
        names = list(families.matsnu(campaign))
        assert len(names) == 10
        for name in names:
            label = families.label_of(name)
            assert re.fullmatch(f"(?:(?:{either})-?){{2,}}", label)
            assert 12 <= len(label) < 28


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family_makes_valid_labels_and_the_same_ones_again(family: str) -> None:
    for campaign in (0, 1, 4000):
        names = list(islice(families.FAMILIES[family].generate(campaign), 50))
        assert names == list(islice(families.FAMILIES[family].generate(campaign), 50))
        for name in names:
            assert re.fullmatch(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z]+)+", name)
            assert len(families.label_of(name)) <= 50


@pytest.mark.parametrize("family", families.FAMILIES)
def test_samples_are_different_and_leave_out_what_is_excluded(family: str) -> None:
    first = families.sample(family, first=0, count=300, per_campaign=8)
    seen = {families.label_of(name) for name in first}
    assert len(seen) == 300
    later = families.sample(family, first=0, count=50, per_campaign=8, exclude=seen)
    assert not seen & {families.label_of(name) for name in later}


def test_a_family_that_runs_dry_says_so() -> None:
    with pytest.raises(ValueError, match=r"simda makes only \d+ different names .*; asked for 99999"):
        families.sample("simda", first=0, count=99_999, per_campaign=1)


def test_families_are_named_in_order_and_say_their_source() -> None:
    assert list(families.FAMILIES) == sorted(families.FAMILIES)
    for name, family in families.FAMILIES.items():
        assert name == family.name
        assert re.search(r", 201\d$|\(a collection\)", family.source)


def test_benign_names_are_seeded_and_different() -> None:
    names = families.sample_benign(seed=5, count=2000)
    assert names == families.sample_benign(seed=5, count=2000)
    assert names != families.sample_benign(seed=6, count=2000)
    labels = {families.label_of(name) for name in names}
    assert len(labels) == 2000
    assert not labels & {families.label_of(n) for n in families.sample_benign(seed=5, count=100, exclude=labels)}


def test_word_lists_hold_what_the_algorithms_need() -> None:
    assert len(families.words("suppobox")) == 384
    for section in ("site", "suppobox", "nouns", "verbs"):
        words = families.words(section)
        assert len(set(words)) == len(words) >= 300
        assert all(re.fullmatch("[a-z]+", word) for word in words)
    with pytest.raises(KeyError):
        families.words("absent")
