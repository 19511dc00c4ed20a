"""Make the arrays of levels: their metadata, and nothing else yet."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyramid_core.image import Codec, fill_scalar
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.stores import Storage


def create_level(plan: PyramidPlan, storage: Storage, level: Level) -> None:
    """Write the metadata of one level, where it is not there yet; nothing of groups above it."""
    import zarr
    from zarr.buffer import default_buffer_prototype

    options: dict[str, Any] = {}
    if plan.zarr_format == 2:
        options |= {"chunk_key_encoding": {"name": "v2", "separator": "/"}, "order": "C"}
    else:
        options["chunk_key_encoding"] = {"name": "default", "separator": "/"}
        options["dimension_names"] = [axis.name for axis in plan.axes]
    array = zarr.create_array(
        zarr.storage.MemoryStore(),
        shape=level.shape,
        chunks=level.chunks,
        shards=level.shards,
        dtype=np.dtype(plan.dtype),
        compressors=_compressor(plan.codec, plan.zarr_format, plan.dtype),
        filters=None,
        fill_value=fill_scalar(plan.source.fill, plan.dtype),
        zarr_format=plan.zarr_format,
        **options,
    )
    # Made in memory, since zarr would ask a store five times for each level. Of Zarr v2, .zattrs
    # goes first: a kill in between must not lose it.
    made = array.metadata.to_buffer_dict(default_buffer_prototype())
    for name in sorted(made, reverse=True):
        if not storage.read(f"{level.path}/{name}"):
            storage.write(f"{level.path}/{name}", made[name].to_bytes())


def _compressor(codec: Codec, zarr_format: int, dtype: str) -> Any:
    """Return the codec as zarr takes it in each format."""
    if codec.name == "none":
        return None
    if zarr_format == 2:
        import numcodecs

        shuffle = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}.get(codec.shuffle, 1)
        make = {
            "zstd": lambda: numcodecs.Zstd(codec.level),
            "gzip": lambda: numcodecs.GZip(codec.level),
            "zlib": lambda: numcodecs.Zlib(codec.level),
            "blosc": lambda: numcodecs.Blosc(codec.cname, codec.level, shuffle),
        }
        return make[codec.name]()
    from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

    if codec.name == "blosc":
        shuffle_name: Any = codec.shuffle or "shuffle"
        cname: Any = codec.cname
        return BloscCodec(
            cname=cname, clevel=codec.level, shuffle=shuffle_name, typesize=np.dtype(dtype).itemsize
        )
    # zlib is not a codec of Zarr v3; gzip is the same compression in another envelope.
    return ZstdCodec(level=codec.level) if codec.name == "zstd" else GzipCodec(level=codec.level)
