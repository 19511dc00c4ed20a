"""What a user asks for reads the same in every form, and what is wrong is said in one line."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pyramid_core.errors import RequestError
from pyramid_core.params import PyramidParams, human, parse_params, parse_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2GB", 2_000_000_000),
        ("2 gb", 2_000_000_000),
        ("2G", 2_000_000_000),
        ("1.5GB", 1_500_000_000),
        ("500MB", 500_000_000),
        ("512MiB", 536_870_912),
        ("512 mib", 536_870_912),
        ("1kB", 1_000),
        ("1KiB", 1_024),
        ("1TB", 10**12),
        ("3PiB", 3 * 2**50),
        ("1000", 1_000),
        ("1000B", 1_000),
        (1000, 1_000),
        ("9007199254740993", 2**53 + 1),  # a float would lose the 1
    ],
)
def test_a_size_is_read_as_it_is_written(text: str | int, expected: int) -> None:
    """Decimal prefixes are powers of 1000, binary ones of 1024."""
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    "text", ["", "much", "-2GB", "0", "0GB", "0.1B", "2 GB free", "2XB", "1e9", "nan", True, 0, -5]
)
def test_what_is_no_size_is_refused(text: Any) -> None:
    """Anything but a number above zero with a unit is an error that shows it."""
    with pytest.raises(ValueError, match="size") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


def test_a_size_is_printed_short() -> None:
    """Three digits and a unit, up to petabytes."""
    assert [human(n) for n in (0, 999, 999_600, 2_500_000, 3e9, 4e12, 5e15, 7e18)] == [
        "0 B", "999 B", "1 MB", "2.5 MB", "3 GB", "4 TB", "5 PB", "7e+03 PB",
    ]  # fmt: skip


FORMS: list[Any] = [
    [2, 3, 4],
    (2, 3, 4),
    ["2", "3", "4"],
    "2,3,4",
    "2 3 4",
    "2, 3, 4",
    " 2x3x4 ",
    "[2, 3, 4]",
    "(2, 3, 4)",
]


@pytest.mark.parametrize("form", FORMS, ids=repr)
@pytest.mark.parametrize("name", ["step", "chunks", "shards", "test_shape"])
def test_a_list_means_the_same_in_every_form(name: str, form: Any) -> None:
    """Command line, form and JSON agree."""
    params = parse_params({"source": "x", name: form})
    assert getattr(params, name) == [2, 3, 4]
    assert PyramidParams.model_validate_json(params.model_dump_json()) == params


@pytest.mark.parametrize("form", [[0.5, 0.25], "0.5,0.25", "0.5 0.25", "[0.5, 0.25]", "5e-1 .25"])
def test_a_list_of_lengths_means_the_same_in_every_form(form: Any) -> None:
    """Voxel sizes are read like the other lists."""
    assert parse_params({"source": "x", "voxel_size": form}).voxel_size == [0.5, 0.25]


def test_one_number_is_a_list_of_one() -> None:
    """A form or a command line may give a single number."""
    assert parse_params({"source": "x", "step": 2}).step == [2]
    assert parse_params({"source": "x", "step": "2"}).step == [2]


@pytest.mark.parametrize("name", ["target", "max_levels", "workers", "dask_address"])
@pytest.mark.parametrize("blank", ["", "  ", "none", "None", None])
def test_a_blank_means_not_asked(name: str, blank: str | None) -> None:
    """An empty field of the form leaves the default."""
    assert getattr(parse_params({"source": "x", name: blank}), name) is None


@pytest.mark.parametrize("name", ["max_levels", "workers"])
@pytest.mark.parametrize("zero", [0, "0", " 0 "])
def test_a_zero_means_not_asked(name: str, zero: Any) -> None:
    """A form has no other way to leave a number open; a location may well be named 0."""
    assert getattr(parse_params({"source": "x", name: zero}), name) is None
    assert parse_params({"source": "x", "target": "0"}).target == "0"


@pytest.mark.parametrize("name", ["step", "chunks", "shards", "voxel_size"])
def test_an_empty_list_is_the_default(name: str) -> None:
    """An empty text is an empty list: chosen, or as the source."""
    assert getattr(parse_params({"source": "x", name: ""}), name) == []
    assert getattr(parse_params({"source": "x"}), name) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("um", "micrometer"),
        ("\u00b5m", "micrometer"),  # the micro sign of keyboards
        ("\u03bcm", "micrometer"),  # the Greek letter
        ("micron", "micrometer"),
        ("nm", "nanometer"),
        ("mm", "millimeter"),
        ("\u00c5", "angstrom"),  # the letter
        ("\u212b", "angstrom"),  # the sign that looks the same
        (" micrometer ", "micrometer"),
        ("", ""),
    ],
)
def test_a_unit_gets_the_name_that_the_format_wants(given: str, expected: str) -> None:
    """Symbols that people type become words; words stay."""
    assert parse_params({"source": "x", "unit": given}).unit == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [("zyx", "zyx"), ("TCZYX", "tczyx"), ("c, y, x", "cyx"), ("t y x", "tyx"), ("", "")],
)
def test_axes_are_letters_in_order(given: str, expected: str) -> None:
    """Case and separators do not matter, the order does."""
    assert parse_params({"source": "x", "axes": given}).axes == expected


COMPLAINTS: list[tuple[dict[str, Any], str]] = [
    ({"source": ""}, "--source: a location is needed"),
    ({"source": "  "}, "--source: a location is needed"),
    ({"target": 5}, "--target: .*not 5"),
    ({"step": [0, 2]}, "--step: .*greater than or equal to 1.*not 0"),
    ({"step": "2,-2"}, "--step: .*greater than or equal to 1.*not '-2'"),
    ({"step": "2,two"}, "--step: .*integer.*not 'two'"),
    ({"step": [2.5]}, "--step: .*integer.*not 2.5"),
    ({"max_levels": -1}, "--max-levels: .*greater than or equal to 1.*not -1"),
    ({"method": "average"}, "--method: .*'mean', 'median'.*not 'average'"),
    ({"edges": "pad"}, "--edges: .*'exact', 'partial' or 'trim'.*not 'pad'"),
    ({"compression": "gzip"}, "--compression: .*not 'gzip'"),
    ({"ngff_version": "0.6"}, "--ngff-version: .*not '0.6'"),
    ({"axes": "xyz"}, "--axes: .*in that order.*'xyz'"),
    ({"axes": "zzyx"}, "--axes: .*at most once.*'zzyx'"),
    ({"axes": "abc"}, "--axes: .*tczyx.*'abc'"),
    ({"voxel_size": [0.0, 1]}, "--voxel-size: .*greater than 0.*not 0"),
    ({"voxel_size": "nan"}, "--voxel-size: .*not 'nan'"),
    ({"voxel_size": "inf,1"}, "--voxel-size: .*finite.*not 'inf'"),
    ({"unit": "pixel"}, "--unit: .*'pixel'.*try micrometer"),
    ({"unit": "second"}, "--unit: .*'second'"),  # a unit of time is none of the spatial axes
    ({"existing": "overwrite"}, "--existing: .*not 'overwrite'"),
    ({"verify": "maybe"}, "--verify: .*not 'maybe'"),
    ({"memory_limit": "lots"}, "--memory-limit: .*'lots'"),
    ({"workers": "-1"}, "--workers: .*not '-1'"),
    ({"test_image": "cat"}, "--test-image: .*not 'cat'"),
    ({"test_shape": "256,0"}, "--test-shape: .*not '0'"),
    ({"speed": "fast"}, "--speed: .*not permitted"),
]


@pytest.mark.parametrize(("wrong", "message"), COMPLAINTS, ids=lambda case: str(case)[:30])
def test_what_is_wrong_is_said_in_one_line_that_names_the_option(
    wrong: dict[str, Any], message: str
) -> None:
    """The option is spelled as on the command line; pydantic's report is not shown."""
    with pytest.raises(RequestError, match=message) as caught:
        parse_params({"source": "x", **wrong})
    text = str(caught.value)
    assert "\n" not in text
    assert "pydantic" not in text
    assert len(text) < 200


def test_a_source_is_needed() -> None:
    """The only field without a default is asked for by its name."""
    with pytest.raises(RequestError, match=r"^--source: field required$"):
        parse_params({})


def test_all_that_is_wrong_is_said_at_once() -> None:
    """Two mistakes are two complaints of one error."""
    with pytest.raises(RequestError, match=r"--axes: .*; --unit: .*"):
        parse_params({"source": "x", "axes": "q", "unit": "q"})


def test_parameters_stay_as_they_are() -> None:
    """They are frozen, and what is unknown is refused."""
    params = PyramidParams(source="x")
    with pytest.raises(ValidationError, match="frozen"):
        params.source = "y"  # type: ignore[misc] # the claim
    with pytest.raises(ValidationError, match="Extra inputs"):
        PyramidParams(source="x", colour="red")  # type: ignore[call-arg] # the claim


def test_defaults_are_those_of_the_contract() -> None:
    """The table of section 5 of the design, written out."""
    assert PyramidParams(source="x").model_dump() == {
        "source": "x",
        "target": None,
        "step": [],
        "max_levels": None,
        "method": "mean",
        "edges": "exact",
        "chunks": [],
        "shards": [],
        "compression": "source",
        "ngff_version": "auto",
        "axes": "",
        "voxel_size": [],
        "unit": "",
        "existing": "resume",
        "verify": "sample",
        "memory_limit": "2GB",
        "workers": None,
        "dask_address": None,
        "test_image": "none",
        "test_shape": [256, 256, 256],
    }


def test_every_field_says_what_it_means() -> None:
    """The form and the command line have nothing else to show."""
    assert all(field.description for field in PyramidParams.model_fields.values())


LISTS = st.lists(st.integers(1, 4096), max_size=5)
REQUESTS = st.fixed_dictionaries(
    {"source": st.text("ab/ '\"$`\\:%*\u00b5", min_size=1).filter(str.strip)},
    optional={
        "target": st.text("ab/ '\"$&;", min_size=1).filter(str.strip),
        "step": LISTS,
        "max_levels": st.none() | st.integers(1, 20),
        "method": st.sampled_from(["mean", "median", "mode", "min", "max", "stride"]),
        "edges": st.sampled_from(["exact", "partial", "trim"]),
        "chunks": LISTS,
        "axes": st.sampled_from(["", "zyx", "tczyx", "cyx"]),
        "voxel_size": st.lists(st.floats(1e-300, 1e300), max_size=5),
        "unit": st.sampled_from(["", "micrometer", "um"]),
        "memory_limit": st.sampled_from(["2GB", "512 MiB", "1000000"]),
        "workers": st.none() | st.integers(1, 64),
        "dask_address": st.sampled_from([None, "local", "tcp://host:8786"]),
        "test_shape": LISTS.filter(bool),
    },
)


def options_of(command: str) -> dict[str, Any]:
    """Read a command line as a shell and an option parser would."""
    words = shlex.split(command)
    assert words[:2] == ["pyramid", "build"]
    names, values = words[2::2], words[3::2]
    assert all(name.startswith("--") for name in names)
    return {
        name.removeprefix("--").replace("-", "_"): value
        for name, value in zip(names, values, strict=True)
    }


@given(REQUESTS)
def test_the_command_asks_for_the_same(request: dict[str, Any]) -> None:
    """Pasted into a shell, the command that we print has the parameters that we had."""
    params = PyramidParams(**request)
    assert parse_params(options_of(params.command())) == params


def test_the_command_holds_what_differs_from_the_defaults() -> None:
    """What is not asked is not repeated; what is changed is changed."""
    params = PyramidParams(source="my scan.zarr", step=[1, 2, 2], workers=3)
    assert params.command() == "pyramid build --source 'my scan.zarr' --step 1,2,2 --workers 3"
    assert params.command(edges="partial", workers=None) == (
        "pyramid build --source 'my scan.zarr' --step 1,2,2 --edges partial"
    )
