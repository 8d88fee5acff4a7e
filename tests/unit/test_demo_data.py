"""The demo's encoding, its CSV reader and how it finds its files."""

import string
from pathlib import Path

import numpy as np
import pytest
from tiltyard.demo.data import ALPHABET, LabelledName, encode_names, find_demo, load_names
from tiltyard.errors import ConfigError, InvalidArgumentError

ROOT = Path(__file__).resolve().parents[2]


def test_a_name_is_padded_from_the_left_and_numbered_as_in_the_tutorial() -> None:
    # The first row of the tutorial's data is [0 ... 0, 28, 16, 32, 23, 29, 32, 30, 19, 26, 17]: qeulrushof.
    row = encode_names(["qeulrushof.net"])
    assert row.dtype == np.float32
    assert row.tolist() == [[0.0] * 40 + [28, 16, 32, 23, 29, 32, 30, 19, 26, 17]]


def test_every_allowed_character_has_its_own_number() -> None:
    assert set(ALPHABET) == {*string.ascii_lowercase, *string.digits, "-"}
    assert encode_names([ALPHABET])[0, -37:].tolist() == list(range(1, 38))


def test_capitals_suffixes_and_long_labels() -> None:
    assert (encode_names(["ABC.co.uk"]) == encode_names(["abc"])).all()
    assert encode_names(["z" + "a" * 50]).tolist() == [[12.0] * 50]
    assert encode_names([]).shape == (0, 50)


@pytest.mark.parametrize(
    ("name", "said"), [("", "nothing before"), (".com", "nothing before"), ("a_b.com", "'_'"), ("straße", "'ß'")]
)
def test_names_that_cannot_be_encoded_are_refused(name: str, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        encode_names(["fine.com", name])


@pytest.mark.parametrize(("main", "generated", "right"), [(0.51, True, True), (0.5, True, False), (0.5, False, True)])
def test_a_name_is_judged_at_one_half(main: float, generated: bool, right: bool) -> None:
    assert LabelledName(session_id="s", name="a.com", generated=generated, family="x").correct(main) is right


def test_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "heldout.csv"
    path.write_text("session_id,name,label,family\ns1,gatyfus.com,1,simda\ns1,bluehub.de,0,benign\n")
    assert load_names(path) == [
        LabelledName(session_id="s1", name="gatyfus.com", generated=True, family="simda"),
        LabelledName(session_id="s1", name="bluehub.de", generated=False, family="benign"),
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("name,label\n", 1),
        ("session_id,name,label,family\ns1,a.com,1,simda\ns1,b.com,yes,simda\n", 3),
        ("session_id,name,label,family\ns1,b.com,1\n", 2),
        ("session_id,name,label,family\n,b.com,1,simda\n", 2),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "heldout.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_names(path)
    assert refused.value.line == line
    assert str(path) in str(refused.value)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_names(tmp_path / "absent.csv")
    (tmp_path / "latin.csv").write_bytes(b"session_id,name,label,family\ns1,stra\xdfe.de,0,benign\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_names(tmp_path / "latin.csv")


def test_the_demo_is_found_from_any_folder_of_a_checkout() -> None:
    files = find_demo(start=ROOT / "tests" / "unit")
    assert files == find_demo(ROOT / "examples" / "dga")
    assert files.names == ROOT / "examples" / "dga" / "heldout.csv"


def test_a_missing_demo_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--models DIR"):
        find_demo(start=tmp_path)
    with pytest.raises(ConfigError, match=r"champion/saved_model\.pb"):
        find_demo(tmp_path)


def test_the_shipped_names_are_5000_in_about_1500_sessions() -> None:
    names = load_names(find_demo(start=ROOT).names)
    assert len(names) == 5_000
    assert sum(name.generated for name in names) == 2_500
    assert 1_300 <= len({name.session_id for name in names}) <= 1_500
    assert len({name.name.partition(".")[0] for name in names}) == 5_000
    assert all((name.family == "benign") is not name.generated for name in names)
    assert encode_names(name.name for name in names).shape == (5_000, 50)
