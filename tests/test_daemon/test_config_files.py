"""Strict reading of YAML, and problems that name their place."""

from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field

from daemon.config_files import Document, Problems, overrides_from, read_document, validated
from daemon.errors import ConfigError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    count: int = Field(default=3, ge=1)
    price: Decimal = Decimal(1)
    is_on: bool = False
    password: str = Field(default="none", max_length=8)


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    inner: Inner = Inner()
    rows: tuple[Row, ...] = ()
    sizes: tuple[int, ...] = ()


class Strict(BaseModel):
    needed: int


def read(tmp_path: Path, text: str) -> tuple[Document, Problems]:
    path = tmp_path / "some.yaml"
    path.write_text(text, encoding="utf-8")
    problems = Problems()
    return read_document(path, problems, name="some.yaml"), problems


def outcome(tmp_path: Path, text: str) -> list[str]:
    """Problems of a file read as Outer."""
    document, problems = read(tmp_path, text)
    validated(Outer, document, problems)
    return problems.texts


def test_a_good_file_has_no_problems(tmp_path: Path) -> None:
    document, problems = read(tmp_path, "inner:\n  count: 5\nrows: [{name: a}]\nsizes: [1, 2]\n")

    result = validated(Outer, document, problems)

    problems.raise_if_any()
    assert result == Outer(inner=Inner(count=5), rows=(Row(name="a"),), sizes=(1, 2))


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_file_means_defaults(tmp_path: Path, text: str) -> None:
    document, problems = read(tmp_path, text)

    assert validated(Outer, document, problems) == Outer()
    assert problems.texts == []


def test_broken_yaml_names_line_and_column(tmp_path: Path) -> None:
    _, problems = read(tmp_path, "inner:\n  count: 5\n  price: [1, 2\nrows: []\n")

    assert len(problems.texts) == 1
    assert problems.texts[0].startswith("some.yaml line 4 column 5: not valid YAML: ")


def test_tabs_are_refused_with_their_place(tmp_path: Path) -> None:
    _, problems = read(tmp_path, "inner:\n\tcount: 5\n")

    assert problems.texts[0].startswith("some.yaml line 2 column 1: not valid YAML: found")


def test_duplicate_keys_are_refused_with_both_places(tmp_path: Path) -> None:
    _, problems = read(tmp_path, "inner:\n  count: 5\n  price: 1\n  count: 6\ninner: {}\n")

    assert sorted(problems.texts) == [
        "some.yaml line 4 column 3: inner.count is already given in line 2: remove one",
        "some.yaml line 5 column 1: inner is already given in line 1: remove one",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2\n", "some.yaml: the file must hold keys and values"),
        ("just text\n", "some.yaml: the file must hold keys and values"),
        ("day: 2026-02-30\n", "some.yaml: not valid YAML: day is out of range for month"),
        ("a: !!python/object:os.system x\n", "some.yaml line 1 column 4: not valid YAML: could"),
        ("a: b: c\n", "some.yaml line 1 column 5: not valid YAML: mapping values"),
        ("a: 1\n---\nb: 2\n", "some.yaml line 2 column 1: not valid YAML: but found another"),
        ("? [a]\n: 1\n", "some.yaml line 1 column 3: not valid YAML: found unhashable key"),
        ("a: \x07\n", "some.yaml: not valid YAML: unacceptable character #x0007"),
    ],
)
def test_files_that_are_not_settings_are_refused(tmp_path: Path, text: str, message: str) -> None:
    _, problems = read(tmp_path, text)

    assert problems.texts[0].startswith(message)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    problems = Problems()

    read_document(tmp_path / "none.yaml", problems)

    assert "none.yaml: the file does not exist: create it" in problems.texts[0]


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    problems = Problems()

    read_document(tmp_path / "latin.yaml", problems)
    read_document(tmp_path, problems)

    assert "latin.yaml: the file cannot be read: 'utf-8' codec" in problems.texts[0]
    assert "the file cannot be read: " in problems.texts[1]


def test_a_number_with_an_exponent_alone_is_a_number(tmp_path: Path) -> None:
    document, problems = read(tmp_path, "a: 1e-6\nb: -2E5\nc: 1e\nd: e5\n")

    assert problems.texts == []
    assert document.values == {"a": 1e-6, "b": -2e5, "c": "1e", "d": "e5"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "inner:\n  coumt: 5\n",
            "some.yaml line 2: inner.coumt = 5: unknown key: did you mean count?",
        ),
        ("count: 5\n", "some.yaml line 1: count = 5: unknown key: it belongs to inner.count"),
        (
            "inner: {zzz: 1}\n",
            (
                "some.yaml line 1: inner.zzz = 1: unknown key: remove it, known are "
                "count, price, is_on, password"
            ),
        ),
        (
            "inner:\n  count: 0\n",
            (
                "some.yaml line 2: inner.count = 0: must be greater than or equal to 1 "
                "(the default is 3)"
            ),
        ),
        ("inner: {count: true}\n", "some.yaml line 1: inner.count = true: must be a number"),
        (
            'inner: {count: "5"}\n',
            "some.yaml line 1: inner.count = '5': must be a number, without quotes",
        ),
        (
            'inner: {price: "5"}\n',
            "some.yaml line 1: inner.price = '5': must be a number, without quotes",
        ),
        (
            "sizes:\n  - 1\n  - true\n",
            "some.yaml line 3: sizes[1] = true: must be a number",
        ),
        (
            "inner: {is_on: 1}\n",
            "some.yaml line 1: inner.is_on = 1: must be true or false, without quotes",
        ),
        (
            'inner: {is_on: "yes"}\n',
            "some.yaml line 1: inner.is_on = 'yes': must be true or false, without quotes",
        ),
        (
            "inner:\n",
            (
                "some.yaml line 1: inner = None: holds nothing: remove the key or put settings "
                "under it"
            ),
        ),
        ("inner: 5\n", "some.yaml line 1: inner = 5: must hold keys and values"),
        (
            "rows:\n  - name: a\n  - name: 5\n",
            'some.yaml line 3: rows[1].name = 5: must be text: write it in quotes, "5"',
        ),
        (
            "rows:\n  - name: a\n  - {}\n",
            "some.yaml line 3: rows[1]: the key name is missing: add it",
        ),
        (
            "inner: {password: 123456789}\n",
            (
                "some.yaml line 1: inner.password = (hidden): must be text: write it in quotes, "
                '"(hidden)" (the default is none)'
            ),
        ),
        (
            "inner: {password: much too long}\n",
            (
                "some.yaml line 1: inner.password = (hidden): must have at most 8 characters "
                "(the default is none)"
            ),
        ),
        (
            "inner: {count: redis://me:pw@host}\n",
            (
                "some.yaml line 1: inner.count = (hidden: holds a password): must be a valid "
                "integer, unable to parse string as an integer (the default is 3)"
            ),
        ),
    ],
)
def test_each_problem_names_file_line_key_value_and_remedy(
    tmp_path: Path, text: str, problem: str
) -> None:
    assert outcome(tmp_path, text) == [problem]


def test_a_long_value_is_shortened(tmp_path: Path) -> None:
    (problem,) = outcome(tmp_path, f"inner: {{count: {'x' * 200}}}\n")

    assert "..." in problem
    assert len(problem) < 200


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    problems = outcome(
        tmp_path,
        "inner:\n  count: -1\n  price: free\n  is_on: 1\nrows:\n  - {}\n  - {nam: b}\nsize: 1\n",
    )

    text = "\n".join(problems)
    for key in ("inner.count", "inner.price", "inner.is_on", "rows[0]", "rows[1]", "rows[1].nam"):
        assert key in text
    assert "size = 1: unknown key: did you mean sizes?" in text


def test_the_error_counts_its_problems() -> None:
    problems = Problems()
    problems.raise_if_any()
    problems.add("a.yaml line 1", "x")
    problems.add("a.yaml line 1", "x")
    problems.add("a.yaml line 2", "y")

    with pytest.raises(ConfigError) as error:
        problems.raise_if_any()

    assert str(error.value) == (
        "the configuration has 2 problems:\n  - a.yaml line 1: x\n  - a.yaml line 2: y"
    )


def test_a_required_value_that_is_missing_raises_at_once(tmp_path: Path) -> None:
    document, problems = read(tmp_path, "other: 1\n")

    with pytest.raises(ConfigError, match=r"some\.yaml: the key needed is missing: add it"):
        validated(Strict, document, problems)


def test_an_override_wins_and_is_named_as_the_place(tmp_path: Path) -> None:
    document, problems = read(tmp_path, "inner:\n  count: 5\n")
    document.override(("inner", "count"), "7", "environment variable X")
    document.override(("rows",), [{"nam": "a"}], "command line")

    result = validated(Outer, document, problems)

    assert result.inner.count == 7
    assert problems.texts == [
        "command line: rows[0]: the key name is missing: add it",
        "command line: rows[0].nam = 'a': unknown key: did you mean name?",
    ]


def test_an_override_through_a_value_replaces_it(tmp_path: Path) -> None:
    document, problems = read(tmp_path, "inner: 5\n")
    document.override(("inner", "count"), 7, "command line")

    assert validated(Outer, document, problems).inner.count == 7
    assert problems.texts == []


def test_a_value_can_be_taken_out_once(tmp_path: Path) -> None:
    document, _ = read(tmp_path, "inner: {count: 5}\nsizes: [1]\n")

    assert document.remove(("inner", "count"))
    assert not document.remove(("inner", "count"))
    assert not document.remove(("inner", "count", "deeper"))
    assert document.remove(("sizes", 0))
    assert document.values == {"inner": {}, "sizes": []}


def test_environment_variables_become_overrides() -> None:
    found = overrides_from(
        {
            "APP__BUS__URL": "null",
            "APP__FEED__INSTRUMENTS": "[Nifty, Sensex]",
            "APP__FEED__TIMEFRAME": "5",
            "APP__FEED__OTHER": "[Nifty",
            "APP_DIR": "x",
            "OTHER__A__B": "x",
        },
        "APP",
    )

    assert {location: value for location, (value, _) in found.items()} == {
        ("bus", "url"): None,
        ("feed", "instruments"): ["Nifty", "Sensex"],
        ("feed", "timeframe"): "5",
        ("feed", "other"): "[Nifty",
    }
    assert found["bus", "url"][1] == "environment variable APP__BUS__URL"


def test_an_alias_that_holds_itself_does_not_hang_the_reader(tmp_path: Path) -> None:
    problems = outcome(tmp_path, "rows: &rows [*rows]\n")

    assert problems
