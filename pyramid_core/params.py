"""What a user may ask for: the form in the Prefect UI, the command line and the Python call in one.

What the image is needed for is checked by ``plan_pyramid``, not here.
"""

from __future__ import annotations

import os
import re
import shlex
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from pyramid_core.errors import RequestError
from pyramid_core.urls import refuse_secrets

Method = Literal["mean", "median", "mode", "min", "max", "stride"]
"""How a window of voxels becomes one voxel."""

METHODS: tuple[Method, ...] = get_args(Method)

Edges = Literal["exact", "partial", "trim"]
Compression = Literal["source", "zstd", "lz4", "none"]
NgffVersion = Literal["auto", "0.4", "0.5"]
Existing = Literal["resume", "replace", "fail"]
VerifyMode = Literal["sample", "full", "none"]
PhantomKind = Literal["blobs", "ramp", "labels", "random", "sparse"]
TestImage = Literal["none", PhantomKind]

SPACE_UNITS = frozenset(
    """
    angstrom attometer centimeter decimeter exameter femtometer foot gigameter hectometer inch
    kilometer megameter meter micrometer mile millimeter nanometer parsec petameter picometer
    terameter yard yoctometer yottameter zeptometer zettameter
    """.split()
)
"""Units of length that NGFF 0.4 and 0.5 allow (section "axes" of the specification)."""

TIME_UNITS = frozenset(
    """
    attosecond centisecond day decisecond exasecond femtosecond gigasecond hectosecond hour
    kilosecond megasecond microsecond millisecond minute nanosecond petasecond picosecond
    second terasecond yoctosecond yottasecond zeptosecond zettasecond
    """.split()
)
"""Units of time that NGFF allows."""

UNIT_SYMBOLS = {
    "m": "meter",
    "cm": "centimeter",
    "mm": "millimeter",
    "um": "micrometer",
    "µm": "micrometer",  # U+00B5, the micro sign of keyboards
    "μm": "micrometer",
    "micron": "micrometer",
    "nm": "nanometer",
    "pm": "picometer",
    "\u00c5": "angstrom",  # the letter
    "\u212b": "angstrom",  # the sign that looks like it
}
"""Symbols that people type, and the names that NGFF wants; neuroglancer refuses the symbols."""

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kMGTP]?)(i?)B?\s*", re.IGNORECASE)


def cpus() -> int:
    """Return how many CPUs this process may use."""
    # Not every system knows which CPUs a process is bound to.
    bound = getattr(os, "sched_getaffinity", None)
    return len(bound(0)) if bound else os.cpu_count() or 1


def parse_size(text: str | int) -> int:
    """Return a size in bytes from a number or a text; GB is 10^9, GiB is 2^30.

    Raises:
        ValueError: If the text is not a size above zero.

    Example:
        >>> parse_size("2GB"), parse_size("512 MiB"), parse_size(1000)
        (2000000000, 536870912, 1000)
    """
    match = _SIZE.fullmatch(str(text))
    if match is None or isinstance(text, bool):
        msg = f"a size is a number of bytes or a text like 2GB or 512MiB, not {text!r}"
        raise ValueError(msg)
    number, prefix, binary = match.groups()
    base = 1024 if binary else 1000
    # Not a float: it would lose the last digits of a large number of bytes.
    size = int(Decimal(number) * base ** " KMGTP".index(prefix.upper() or " "))
    if size <= 0:
        msg = f"a size must be above zero, not {text!r}"
        raise ValueError(msg)
    return size


def human(size: float) -> str:
    """Return a number of bytes as a person reads it.

    >>> human(999), human(2_500_000), human(1.2e15)
    ('999 B', '2.5 MB', '1.2 PB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} PB"


def _split(value: Any) -> Any:
    """Read ``2,2,2`` and ``2 2 2`` as a list, so command line, form and JSON agree."""
    if isinstance(value, str):
        return [part for part in re.split(r"[\s,x]+", value.strip().strip("[]()")) if part]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [value]
    return value


def _none_if_blank(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() in ("", "none") else value


def _none_if_zero(value: Any) -> Any:
    """Read 0 as not asked: a form has no other way to leave a number open."""
    value = value.strip().lower() if isinstance(value, str) else value
    return None if value in ("", "none", "0", 0) and value is not False else value


PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[PositiveInt | None, BeforeValidator(_none_if_zero)]
IntList = Annotated[list[PositiveInt], BeforeValidator(_split)]
FloatList = Annotated[
    list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], BeforeValidator(_split)
]


def _check_location(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        msg = "a location is needed: a path, file://, s3:// or http(s)://"
        raise ValueError(msg)
    return value


Location = Annotated[str, Field(pattern=r"\S"), BeforeValidator(_check_location)]


class _Asked(BaseModel):
    """What all that is asked has in common. Fields of a base that is named last come first."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True
    )

    @field_validator("source", "target", "inbox", "outbox", check_fields=False)
    @classmethod
    def _refuse_secrets(cls, value: str | None) -> str | None:
        return value and refuse_secrets(value)


class _Image(_Asked):
    """Which image, and where its pyramid goes."""

    source: Location = Field(
        description="Location of the image, like /data/scan.zarr or s3://bucket/scan.zarr: a Zarr "
        "array, an OME-Zarr image (its finest level), or a group with its base at 0."
    )
    target: Annotated[str | None, BeforeValidator(_none_if_blank)] = Field(
        default=None,
        description="Location of the OME-Zarr image to write. Empty: in place, the levels beside "
        "the base, which must lie in a group.",
    )


class _Build(_Asked):
    """How levels are built, and what that may cost."""

    step: IntList = Field(
        default=[],
        description="Voxels of one level that become one voxel of the next: a number per axis, z "
        "before y before x, like 2, 2, 2. Empty: chosen from shape, chunks and voxel size.",
    )
    max_levels: Count = Field(
        default=None,
        description="At most this many levels, the base included. "
        "Empty or 0: as many as the chunks ask for.",
    )
    method: Method = Field(
        default="mean",
        description="How a window of voxels becomes one voxel: its mean, median, minimum, maximum, "
        "commonest value (mode, for labels) or first voxel (stride).",
    )
    edges: Edges = Field(
        default="exact",
        description="What happens where a shape is no multiple of the step: exact refuses, "
        "partial takes the voxels that there are, trim drops them.",
    )
    chunks: IntList = Field(
        default=[],
        description="Shape of a chunk of the levels written, in voxels. Empty: as the source.",
    )
    shards: IntList = Field(
        default=[],
        description="Shape of a shard of the levels written, in voxels. Empty: no shards.",
    )
    compression: Compression = Field(
        default="source", description="Codec of the levels written; source inherits the base's."
    )
    ngff_version: NgffVersion = Field(
        default="auto",
        description="Version of OME-Zarr; auto is 0.5, or in place what the base's format allows.",
    )
    axes: str = Field(
        default="",
        description="Names of the axes, like zyx or tczyx. Empty: from the image's metadata, "
        "else the last letters of tczyx.",
    )
    voxel_size: FloatList = Field(
        default=[],
        description="Extent of a voxel of the source per axis, t and c included. "
        "Empty: from the metadata, else 1.",
    )
    unit: str = Field(
        default="", description="Unit of the spatial axes, like micrometer. Empty: as the metadata."
    )
    existing: Existing = Field(
        default="resume",
        description="What to do where an image is: resume goes on with it or leaves it if it is "
        "finished, replace builds it anew, fail refuses.",
    )
    verify: VerifyMode = Field(
        default="sample",
        description="Blocks that are computed again before the image is published: a sample, all "
        "(full) or none.",
    )
    memory_limit: str | int = Field(
        default="2GB", description="Hard limit per process, like 2GB (10^9 bytes) or 500MB."
    )
    workers: Count = Field(
        default=None,
        description="Threads, or processes on Dask. Empty or 0: one per CPU and a few more, "
        "since some wait; for object stores at least 8.",
    )
    dask_address: Annotated[str | None, BeforeValidator(_none_if_blank)] = Field(
        default=None,
        description="Address of a Dask scheduler, or local for processes on this machine. "
        "Empty: threads.",
    )

    @field_validator("memory_limit")
    @classmethod
    def _check_memory_limit(cls, value: str | int) -> str | int:
        parse_size(value)
        return value

    @field_validator("axes")
    @classmethod
    def _check_axes(cls, value: str) -> str:
        value = "".join(value.replace(",", " ").split()).lower()
        if value != "".join(sorted(set(value), key="tczyx".find)) or set(value) - set("tczyx"):
            msg = f"axes are letters of tczyx in that order, each at most once, not {value!r}"
            raise ValueError(msg)
        return value

    @field_validator("unit")
    @classmethod
    def _check_unit(cls, value: str) -> str:
        unit = UNIT_SYMBOLS.get(value.strip(), value.strip())
        if unit and unit not in SPACE_UNITS:
            msg = f"{value!r} is not a unit of length that OME-Zarr knows; try micrometer"
            raise ValueError(msg)
        return unit

    @property
    def memory_bytes(self) -> int:
        """``memory_limit`` in bytes."""
        return parse_size(self.memory_limit)


class PyramidParams(_Build, _Image):
    """What to build, from which image, and how much it may cost."""

    test_image: TestImage = Field(
        default="none",
        description="Make a test image at the source first, if nothing is there: bright blobs, a "
        "ramp, labels, noise (random), or a volume that is nearly empty (sparse).",
    )
    test_shape: IntList = Field(
        default=[256, 256, 256], description="Shape of the test image; ignored without one."
    )

    def command(self, **changes: object) -> str:
        """Return the command line that asks for the same with *changes* made.

        >>> PyramidParams(source="a b.zarr", step=[2, 2]).command(edges="partial")
        "pyramid build --source 'a b.zarr' --step 2,2 --edges partial"
        """
        asked = self.model_copy(update=changes)
        words = ["pyramid", "build"]
        for name, field in type(self).model_fields.items():
            value = getattr(asked, name)
            if value != field.default:
                text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
                words += [f"--{name.replace('_', '-')}", shlex.quote(text)]
        return " ".join(words)


class _Inbox(_Asked):
    """Which images, and where their pyramids go."""

    inbox: Location = Field(
        description="Location below which every image is looked for: a folder or s3://. Bare Zarr "
        "arrays, groups with a base, OME-Zarr images, wells of plates, series of bioformats2raw."
    )
    outbox: Annotated[str | None, BeforeValidator(_none_if_blank)] = Field(
        default=None,
        description="Location below which the pyramids go, each at the path that its image has in "
        "the inbox. Empty: in place, the levels beside each base.",
    )
    settle_seconds: Annotated[float, Field(ge=0)] = Field(
        default=60.0,
        description="An image that has changed within this many seconds is still being written: it "
        "is built last, or by the next sweep if it goes on changing.",
    )
    compare_objects: bool = Field(
        default=False,
        description="Whether a source has changed since its pyramid was built: compare the times "
        "of all its objects, not only of its metadata. Slow for large images.",
    )
    dry_run: bool = Field(default=False, description="Only say what would be built.")
    deployment: Annotated[str | None, BeforeValidator(_none_if_blank)] = Field(
        default=None,
        description="Deployment that builds each image, like pyramid/pyramid, on the machines of "
        "its work pool. Empty: this run builds one image after another.",
    )


class SweepParams(_Build, _Inbox):
    """Which images of an inbox to build, and how."""

    edges: Edges = Field(
        default="partial",
        description="What happens where a shape is no multiple of the step: partial takes the "
        "voxels that there are, trim drops them, exact refuses.",
    )
    existing: Existing = Field(
        default="replace",
        description="What to do with an image whose source or request has changed since its build "
        "was begun: replace builds it anew, resume and fail refuse it.",
    )

    def params(self, source: str, target: str | None) -> PyramidParams:
        """Return what is asked of one image."""
        shared = {name: getattr(self, name) for name in _Build.model_fields}
        return PyramidParams(source=source, target=target, **shared)


Params = TypeVar("Params", bound=_Asked)


def parse_params(values: dict[str, Any]) -> PyramidParams:
    """Return the parameters, or one readable error in place of pydantic's report.

    Raises:
        RequestError: If a value is wrong; names the parameter as the command line spells it.

    Example:
        >>> parse_params({"source": "x.zarr", "step": "2 2 2"}).step
        [2, 2, 2]
    """
    return _parse(PyramidParams, values)


def parse_sweep_params(values: dict[str, Any]) -> SweepParams:
    """Return the parameters of a sweep, as ``parse_params`` does those of a build.

    >>> parse_sweep_params({"inbox": "data", "step": "2 2 2"}).edges
    'partial'
    """
    return _parse(SweepParams, values)


def _parse(model: type[Params], values: dict[str, Any]) -> Params:
    try:
        return model(**values)
    except ValidationError as error:
        raise RequestError("; ".join(_complaint(e) for e in error.errors())) from error


def _complaint(error: Any) -> str:
    where = [str(part) for part in error["loc"]] or ["parameters"]
    message = re.sub(r"^Value error, ", "", error["msg"])
    found = error.get("input")
    shown = "" if error["type"] in ("missing", "value_error") else f", not {found!r}"
    return f"--{where[0].replace('_', '-')}: {message[0].lower()}{message[1:]}{shown}"


PHANTOM_KINDS: tuple[str, ...] = get_args(PhantomKind)
