"""Open an array or an OME-Zarr image; says what was found where there is neither."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pyramid_core.arrays import open_array
from pyramid_core.errors import LocationError, PyramidError, system_errors
from pyramid_core.grid import MAX_AXES, Grid, Shape
from pyramid_core.image import AXIS_TYPES, Axis, Codec, Fill, ImageInfo
from pyramid_core.layout import MOST_PARTS
from pyramid_core.ngff import Dataset, Multiscales, document_of, parse_multiscales
from pyramid_core.record import record_of
from pyramid_core.stores import (
    Storage,
    absolute,
    is_linked,
    join,
    open_storage,
    shown,
    split,
)

if TYPE_CHECKING:
    import zarr


@dataclass(frozen=True)
class Image:
    """An image that was opened for reading."""

    info: ImageInfo
    """What is known of it."""

    @property
    def array(self) -> zarr.Array[Any]:
        """The base array, read-only: zarrs, which is faster, would write all the same."""
        import zarr

        store = open_storage(self.info.location).zarr_store()
        return zarr.open_array(store, path=self.info.path, mode="r")


@dataclass(frozen=True)
class Node:
    """A Zarr node."""

    kind: Literal["array", "group"]
    """What it is."""
    zarr_format: Literal[2, 3]
    """Version of the format."""
    attributes: dict[str, Any]
    """Its attributes."""


def open_image(location: str) -> Image:
    """Open a Zarr array (v2 or v3), a group with its base at ``0``, or an OME-Zarr image.

    Axes, voxel size, translation, units and channels come from the image's metadata where it has
    any. Only metadata is read.

    Args:
        location: A path, ``file://``, a ``.zip``, ``s3://``, ``http(s)://``.

    Raises:
        LocationError: If there is no such image; says what was found there.
    """
    location = absolute(location)
    with system_errors(LocationError, f"{shown(location)} cannot be read"):
        storage = open_storage(location)
        node = read_node(storage, "")
        if node is None:
            raise LocationError(_nothing(storage))
        if node.kind == "array":
            return Image(_open_lone_array(storage))
        return Image(_open_group(storage, node))


def open_level(storage: Storage, path: str) -> ImageInfo:
    """Return what one array in a group says of itself.

    Raises:
        LocationError: If there is no such array, or it cannot be used.
    """
    return _bare(storage, path, in_group=True)


def read_node(storage: Storage, path: str) -> Node | None:
    """Return what Zarr node lies at a path, or None.

    Raises:
        LocationError: If its metadata is not JSON.
    """
    at = f"{path}/" if path else ""
    if (v3 := storage.read_json(f"{at}zarr.json")) is not None:
        kind = v3.get("node_type")
        if kind not in ("array", "group"):
            msg = f"{shown(join(storage.location, path))}: zarr.json is neither array nor group"
            raise LocationError(msg)
        attributes = v3.get("attributes") or {}
        if not isinstance(attributes, dict):
            msg = f"{shown(join(storage.location, path))}: its attributes are not a JSON object"
            raise LocationError(msg)
        return Node(kind, 3, attributes)
    for name, kind in ((".zarray", "array"), (".zgroup", "group")):
        if storage.read_json(at + name) is not None:
            attributes = storage.read_json(f"{at}.zattrs") or {}
            return Node(kind, 2, attributes)  # type: ignore[arg-type] # one of the two above
    return None


def _nothing(storage: Storage) -> str:
    place = shown(storage.location)
    found = storage.names()
    if not found:
        return f"{place} holds no Zarr array or group: nothing was found there"
    listed = ", ".join(found[:5]) + (" ..." if len(found) > 5 else "")
    zarrs = [name for name in found if name.endswith(".zarr")]
    hint = f"; did you mean {join(place, zarrs[0])}?" if zarrs else ""
    return f"{place} holds no Zarr array or group, but {len(found)} other things: {listed}{hint}"


def _open_lone_array(storage: Storage) -> ImageInfo:
    """Open an array that was named itself; the group around it may say what it is."""
    parent, name = split(storage.location)
    if storage.is_zip or not parent:
        return _bare(storage, "", in_group=False)
    around = open_storage(parent)
    group = read_node(around, "") if around.objects is not None else None
    if group is None or group.kind != "group":
        return _bare(storage, "", in_group=False)
    if record := record_of(group.attributes, shown(parent)):
        _refuse_unfinished(record, around, name)
    multiscales = parse_multiscales(group.attributes)
    if multiscales is None:
        return _bare(around, name, in_group=True)
    for number, dataset in enumerate(multiscales.datasets):
        if dataset.path == name:
            # A coarser level of an image is no base: the names of levels beside it are taken.
            return _described(around, multiscales, dataset, in_group=number == 0)
    # The group is the image of another base; levels of this one have no place in it.
    return _bare(around, name, in_group=False)


def _refuse_unfinished(record: dict[str, Any], storage: Storage, name: str = "") -> None:
    """Refuse what a build that is not finished has written; the base that it is given is whole."""
    if record.get("in_place") and name in ("", record["plan"]["paths"][0]):
        return
    what = "a test image" if "phantom" in record else "an image"
    msg = (
        f"{shown(storage.location)} holds {what} that was not finished; "
        f"run the command that made it again, or delete it"
    )
    raise LocationError(msg)


def _open_group(storage: Storage, node: Node) -> ImageInfo:
    if record := record_of(node.attributes, shown(storage.location)):
        _refuse_unfinished(record, storage)
    multiscales = parse_multiscales(node.attributes)
    if multiscales is not None:
        return _described(storage, multiscales, multiscales.datasets[0], in_group=True)
    base = read_node(storage, "0")
    if base is not None and base.kind == "array":
        bare = _bare(storage, "0", in_group=not storage.is_zip)
        return replace(bare, labels_fault=_labels_fault(storage, *_label_group(storage)))
    place = shown(storage.location)
    if said := container(storage, node):
        msg = said
    elif base is not None:
        msg = f"{place} holds several images or groups; give one of them, like {place}/0"
    else:
        found = ", ".join(n for n in storage.names() if not n.startswith((".z", "zarr.json")))
        msg = (
            f"{place} is a Zarr group without a multiscales document and without an array 0; "
            f"it holds: {found[:200] or 'nothing'}"
            + (f"; if one is the image, give {place}/{found.split(', ')[0]}" if found else "")
        )
    raise LocationError(msg)


def container(storage: Storage, node: Node) -> str:
    """Say what a group holds that is no image but has images in it; nothing of another group."""
    document = document_of(node.attributes)
    if document.get("multiscales"):
        return ""
    place = shown(storage.location)
    if "bioformats2raw.layout" in document:
        return (
            f"{place} is made by bioformats2raw and holds several images or groups; "
            f"give one of them, like {place}/0"
        )
    for kind, members, example in (("plate", "wells", "A/1"), ("well", "images", "0")):
        if kind in document:
            held = document[kind].get(members) if isinstance(document[kind], dict) else None
            first = held[0] if isinstance(held, list) and held else None
            path = first.get("path", example) if isinstance(first, dict) else example
            one = f"{place}/{path}" + ("/0" if kind == "plate" else "")
            return f"{place} is a {kind} of several images; give one of them, like {one}"
    return ""


def _described(
    storage: Storage, multiscales: Multiscales, dataset: Dataset, *, in_group: bool
) -> ImageInfo:
    """Return what an image says of itself in its document."""
    bare = _bare(storage, dataset.path, in_group=in_group and not storage.is_zip)
    if len(multiscales.axes) != len(bare.shape):
        msg = (
            f"{shown(storage.location)}: the document names {len(multiscales.axes)} axes but "
            f"{dataset.path} has shape {bare.shape}"
        )
        raise LocationError(msg)
    held, listed = _label_group(storage)
    return replace(
        bare,
        axes=multiscales.axes,
        scale=dataset.scale,
        translation=dataset.translation,
        name=multiscales.name or bare.name,
        channels=multiscales.channels,
        ngff_version=multiscales.version,
        levels=tuple(d.path for d in multiscales.datasets),
        labels=tuple(_labels(storage, listed)),
        labels_fault=_labels_fault(storage, held, listed),
    )


def _label_group(storage: Storage) -> tuple[list[str], Any]:
    """Return what lies in the group ``labels``, as far as it can be listed, and what it names."""
    held = [] if storage.is_zip or not storage.listable else storage.names("labels")
    if storage.is_zip or (storage.listable and not held):
        return [], None
    group = read_node(storage, "labels")
    return held, document_of(group.attributes).get("labels") if group else None


def _labels_fault(storage: Storage, held: list[str], listed: Any) -> str:
    """Say what is wrong with a group ``labels`` that does not list what it holds."""
    held = [n for n in held if not n.startswith((".z", "zarr.json"))]
    if held and not isinstance(listed, list):
        some = ", ".join(held[:5])
        return f"labels/ holds {some} but has no list of the names, so no validator would take it"
    for name in listed if isinstance(listed, list) else ():
        if isinstance(name, str) and is_linked(storage.location, f"labels/{name}"):
            return f"labels/{name} is a link, and what lies elsewhere is not ours to change"
    return ""


def _labels(storage: Storage, listed: Any) -> list[ImageInfo]:
    """Return the label images that the group ``labels`` names."""
    found = []
    for name in dict.fromkeys(listed if isinstance(listed, list) else ()):
        if (
            not isinstance(name, str)
            or ".." in name.split("/")
            or name.startswith("/")
            or not name.isprintable()
        ):
            msg = f"{shown(storage.location)}: label {name!r} leads out of the image"
            raise LocationError(msg)
        found.append(open_image(join(storage.location, f"labels/{name}")).info)
    return found


def _bare(storage: Storage, path: str, *, in_group: bool) -> ImageInfo:
    """Return what an array says of itself."""
    array = _open(storage, path)
    dtype = array.dtype
    n = len(array.shape)
    metadata = array.metadata
    names = tuple(str(name or "") for name in getattr(metadata, "dimension_names", None) or ())
    names = names if any(names) else ()  # nulls alone say no more than nothing
    codec, notes = _codec(array)
    prefix, separator = _chunk_keys(array)
    return ImageInfo(
        location=storage.location,
        path=path,
        in_group=in_group,
        shape=tuple(map(int, array.shape)),
        dtype=dtype.str,
        chunks=tuple(map(int, array.chunks)),
        shards=tuple(map(int, array.shards)) if array.shards else None,
        fill=_fill(metadata.fill_value, dtype),
        zarr_format=metadata.zarr_format,
        key_prefix=prefix,
        separator=separator,
        codec=codec,
        axes=_named_axes(names),
        scale=(1.0,) * n,
        translation=(0.0,) * n,
        name=image_name(storage.location, path),
        dimension_names=names,
        listable=storage.listable,
        notes=notes,
    )


def _open(storage: Storage, path: str) -> zarr.Array[Any]:
    from zarr.errors import UnstableSpecificationWarning

    place = shown(join(storage.location, path))
    try:
        with warnings.catch_warnings():
            # Types that zarr warns of are refused below.
            warnings.simplefilter("ignore", UnstableSpecificationWarning)
            array = open_array(storage, path)
        chunks = array.chunks
    except FileNotFoundError as error:
        msg = f"{shown(storage.location)}: there is no array at {path!r}, which its metadata names"
        raise LocationError(msg) from error
    except (PyramidError, OSError):
        raise  # the store, or the file system, could not be asked
    except Exception as error:  # zarr refuses bad metadata with many kinds of error
        reason = " ".join(str(error).split())[:200]
        msg = f"{place}: the array's metadata cannot be used: {type(error).__name__}: {reason}"
        raise LocationError(msg) from error
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        msg = f"{place} is of type {array.dtype}; bool, integers and floats up to 64 bits are built"
        raise LocationError(msg)
    if array.shards and (parts := Grid(array.shards, chunks).size) > MOST_PARTS:
        raise LocationError(f"{place} has {parts:,} chunks in a shard; {MOST_PARTS:,} can be read")
    if not 1 <= array.ndim <= MAX_AXES or not all(0 < n < 2**62 for n in (*array.shape, *chunks)):
        shape = f"{array.shape}; an image has 2 to 5 axes, none of length zero or above 2^62"
        msg = f"{place} has shape {shape}; its chunks are {chunks}"[:500]
        raise LocationError(msg)
    return array


def _named_axes(names: Shape | tuple[str, ...]) -> tuple[Axis, ...]:
    """Return the axes that ``dimension_names`` tell of, where they are those of NGFF."""
    known = [str(name) for name in names if name in AXIS_TYPES]
    ordered = sorted(known, key=list(AXIS_TYPES).index)
    fits = len(known) == len(names) == len(set(known)) and known == ordered
    return (
        tuple(Axis(name) for name in known) if fits and sum(n in "zyx" for n in known) > 1 else ()
    )


def image_name(location: str, path: str = "") -> str:
    """Return the name of an image from its location: that of its folder without suffixes."""
    parent, name = split(location)
    if not name and parent:
        name = split(parent)[1]
    for suffix in (".zip", ".zarr", ".ome"):
        name = name.removesuffix(suffix)
    return name or path or "image"


def _fill(value: Any, dtype: np.dtype[Any]) -> Fill:
    """Return a fill value as JSON can say it; Zarr v2's null is zero."""
    if value is None:
        return False if dtype.kind == "b" else 0.0 if dtype.kind == "f" else 0
    number: Fill = np.asarray(value, dtype.newbyteorder("=")).item()
    if isinstance(number, float) and not np.isfinite(number):
        return "NaN" if np.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    return number


def _chunk_keys(array: zarr.Array[Any]) -> tuple[str, str]:
    """Return prefix and separator of the chunk keys."""
    metadata: Any = array.metadata
    if metadata.zarr_format == 2:
        return "", metadata.dimension_separator
    encoding = metadata.chunk_key_encoding
    return "c" if encoding.name == "default" else "", encoding.separator


def _codec(array: zarr.Array[Any]) -> tuple[Codec, tuple[str, ...]]:
    """Return the codec that levels inherit: the base's, if every viewer reads it."""
    found = [_configuration(c) for c in array.compressors]
    if not found:
        return Codec("none"), ()
    name, settings = found[0]
    level = int(settings.get("level", settings.get("clevel", 0)))
    if len(found) == 1 and name in ("zstd", "gzip", "zlib"):
        return Codec(name, level), ()  # type: ignore[arg-type] # one of the three above
    if len(found) == 1 and name == "blosc":
        shuffle = settings.get("shuffle", 1)
        shuffles = {0: "noshuffle", 1: "shuffle", 2: "bitshuffle", -1: "shuffle"}
        shuffle = shuffles.get(shuffle, str(shuffle))
        return Codec("blosc", level, str(settings.get("cname", "lz4")), shuffle), ()
    names = "+".join(name for name, _ in found)
    note = f"the base is compressed by {names}, which not every viewer reads; levels get zstd"
    return Codec("zstd", level=3), (note,)


def _configuration(codec: Any) -> tuple[str, dict[str, Any]]:
    """Return name and settings of a codec of zarr (v3) or numcodecs (v2)."""
    if hasattr(codec, "get_config"):
        config = dict(codec.get_config())
        return str(config.pop("id")), config
    document = codec.to_dict()
    return str(document["name"]), dict(document.get("configuration") or {})
