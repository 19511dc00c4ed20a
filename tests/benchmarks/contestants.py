"""Who builds: we, what people use today, and the codec alone, which nobody can beat.

Each is a context manager, so that what it starts (a cluster) is not measured; it yields a function
that builds all levels of the group ``field`` in a folder. Those of ``REWRITING`` write level 0 too.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from tests.benchmarks.cases import Case, compressors, create_array

Run = Callable[[Case, str], float | None]
"""Builds; of ours, returns the seconds that gate and commit took together."""

Contestant = Callable[[Case], AbstractContextManager[Run]]

THREADS = 2
"""Everybody computes on as many CPUs; how many threads wait for the disk is their own affair."""


@contextmanager
def ours(
    _: Case, *, elsewhere: bool = False, verify: str = "sample", dask_address: str | None = None
) -> Iterator[Run]:
    """Build as a user does, without the start of a process."""
    from pyramid_core import PyramidParams
    from pyramid_core.build import Steps, build_level, run_plan
    from pyramid_core.plan import plan_pyramid
    from pyramid_core.reader import open_image
    from pyramid_core.verify import gate
    from pyramid_core.writer import commit

    def run(case: Case, place: str) -> float:
        took: list[float] = []

        def timed(step: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any) -> Any:
                start = time.perf_counter()
                found = step(*given)
                took.append(time.perf_counter() - start)
                return found

            return call

        params = PyramidParams(
            source=f"{place}/field",
            target=f"{place}/out.zarr" if elsewhere else None,
            step=list(case.step),
            method=case.method,
            max_levels=len(case.levels),
            verify=verify,
            shards=[case.shard] * 3 if case.shard else [],
            dask_address=dask_address,
        )
        # What build_pyramid does, step by step.
        plan = plan_pyramid(open_image(params.source).info, params)
        run_plan(plan, Steps(build_level, timed(gate), timed(commit)))
        return sum(took)

    yield run


@contextmanager
def ours_on_dask(case: Case, *, workers: int) -> Iterator[Run]:
    """Build on processes of a Dask cluster that is there."""
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        ours(case, dask_address=cluster.scheduler_address) as run,
    ):
        yield run


@contextmanager
def pyramid_sampler(case: Case, *, processes: bool) -> Iterator[Run]:
    """Build by pyramid_sampler; it leaves the codec of new arrays to zarr, so zarr is told."""
    import dask
    from distributed import Client, LocalCluster
    from pyramid_sampler import Downsampler

    def empty(group: zarr.Group, **options: Any) -> Any:
        return group.create_array(**options, compressors=compressors(case) or None)

    def run(case: Case, place: str) -> None:
        sampler = Downsampler(place, case.step, case.levels[0], (case.chunk,) * 3)
        sampler.downsample(len(case.levels), "field")

    zarr.Group.empty = empty  # type: ignore[method-assign, assignment] # this process ends with the run
    if processes:
        with (
            LocalCluster(n_workers=THREADS, threads_per_worker=1, dashboard_address=None) as c,
            Client(c),
        ):
            yield run
    else:
        with dask.config.set(scheduler="threads", num_workers=THREADS):
            yield run


@contextmanager
def tensorstore(_: Case) -> Iterator[Run]:
    """Build by TensorStore's downsample driver, slab by slab, which it copies fastest."""
    import tensorstore as ts

    context = ts.Context(
        {"data_copy_concurrency": {"limit": THREADS}, "cache_pool": {"total_bytes_limit": 0}}
    )

    def opened(case: Case, place: str, level: int) -> Any:
        driver: Any = {"driver": "file", "path": f"{place}/field/{level}/"}
        if case.remote:
            bucket, _, path = place.removeprefix("s3://").partition("/")
            driver = {"driver": "s3", "bucket": bucket, "path": f"{path}/field/{level}/",
                      "endpoint": _endpoint(), "aws_region": "us-east-1"}  # fmt: skip
        spec = {"driver": "zarr3", "kvstore": driver}
        return ts.open(spec, context=context, open=True).result()

    def run(case: Case, place: str) -> None:
        for level, shape in enumerate(case.levels[1:], start=1):
            create_array(case, _store(case, place), f"field/{level}", shape)
            fine = ts.downsample(opened(case, place, level - 1), list(case.step), case.method)
            coarse = opened(case, place, level)
            height = case.shard or case.chunk
            for start in range(0, shape[0], height):
                slab = slice(start, min(start + height, shape[0]))
                coarse[slab].write(fine[slab]).result()

    yield run


@contextmanager
def dask_coarsen(_: Case) -> Iterator[Run]:
    """Build by ``dask.array.coarsen`` and ``to_zarr``, as recipes on the web do."""
    import dask
    import dask.array as da

    def run(case: Case, place: str) -> None:
        store = _store(case, place)
        for level, shape in enumerate(case.levels[1:], start=1):
            fine = da.from_zarr(zarr.open_array(store, path=f"field/{level - 1}", mode="r"))
            steps = dict(enumerate(case.step))
            coarse = da.coarsen(np.mean, fine, steps).astype(case.dtype)
            array = create_array(case, store, f"field/{level}", shape)
            write_unit = array.shards or array.chunks
            da.to_zarr(coarse.rechunk(write_unit), array)

    with dask.config.set(scheduler="threads", num_workers=THREADS):
        yield run


@contextmanager
def ome_zarr(_: Case) -> Iterator[Run]:
    """Build by ome-zarr-py's ``write_image``, which writes level 0 too."""
    import dask
    import dask.array as da
    from ome_zarr.writer import write_image

    def run(case: Case, place: str) -> None:
        image = da.from_zarr(f"{place}/field/0")
        group = zarr.open_group(f"{place}/out.zarr", mode="w")
        options = {"chunks": (case.chunk,) * 3, "compressors": compressors(case) or None}
        write_image(image, group, _factors(case), axes="zyx", storage_options=options)

    with dask.config.set(scheduler="threads", num_workers=THREADS):
        yield run


@contextmanager
def ngff_zarr(_: Case) -> Iterator[Run]:
    """Build by ngff-zarr's exact method, which writes level 0 too."""
    import dask
    import dask.array as da
    import ngff_zarr as nz

    def run(case: Case, place: str) -> None:
        image = nz.to_ngff_image(da.from_zarr(f"{place}/field/0"), dims=["z", "y", "x"])
        method = nz.Methods.ITKWASM_BIN_SHRINK
        levels = nz.to_multiscales(image, _factors(case), method=method, chunks=case.chunk)
        nz.to_ngff_zarr(f"{place}/out.zarr", levels, version="0.5")

    with dask.config.set(scheduler="threads", num_workers=THREADS):
        yield run


def _factors(case: Case) -> list[dict[str, int]]:
    """Return the factors of all levels from level 0."""
    return [
        {axis: s**level for axis, s in zip("zyx", case.step, strict=True)}
        for level in range(1, len(case.levels))
    ]


@contextmanager
def codec_floor(case: Case, *, writes: bool = False) -> Iterator[Run]:
    """Decode every chunk of the base and encode as many as the levels have, and nothing else.

    With numcodecs, whose C code releases the GIL. The files are read, since the bytes have to come
    from somewhere; nothing is reduced or assembled. What is encoded is thrown away, or written into
    files, each renamed once it is whole.
    """
    decode, encode = _codec(case)

    def run(case: Case, place: str) -> None:
        folder = Path(place, "field/floor")
        folder.mkdir()

        def put(number: int) -> None:
            encoded, file = encode(sample), folder / str(number)
            if writes:
                file.with_suffix(".partial").write_bytes(encoded)
                file.with_suffix(".partial").rename(file)

        files = [p for p in Path(place, "field/0/c").rglob("*") if p.is_file()]
        sample = np.frombuffer(decode(files[len(files) // 2].read_bytes()), case.dtype)
        count = sum(_chunks(case, shape) for shape in case.levels[1:])
        if case.kind == "sparse":
            count = round(count * len(files) / _chunks(case, case.levels[0]))
        with ThreadPoolExecutor(THREADS) as threads:
            for _ in threads.map(lambda path: len(decode(path.read_bytes())), files):
                pass
            for _ in threads.map(put, range(count)):
                pass

    yield run


def _chunks(case: Case, shape: tuple[int, ...]) -> int:
    return math.prod(-(-n // case.chunk) for n in shape)


def _codec(case: Case) -> tuple[Callable[[bytes], Any], Callable[[Any], Any]]:
    if case.codec == "none":
        return bytes, bytes
    import numcodecs

    if case.codec == "zstd":
        zstd = numcodecs.Zstd(0)
        return zstd.decode, zstd.encode
    from numcodecs import blosc

    blosc.use_threads = False
    lz4 = numcodecs.Blosc("lz4", 5, numcodecs.Blosc.SHUFFLE)
    return lz4.decode, lz4.encode


def _store(case: Case, place: str) -> Any:
    if not case.remote:
        return place
    import obstore.store
    from zarr.storage import ObjectStore

    return ObjectStore(obstore.store.from_url(place, client_options={"allow_http": True}))


def _endpoint() -> str:
    return os.environ["AWS_ENDPOINT_URL"]


IN_PLACE: dict[str, Contestant] = {
    "ours": ours,
    "ours, verify none": partial(ours, verify="none"),
    "pyramid_sampler, threads": partial(pyramid_sampler, processes=False),
    "pyramid_sampler, processes": partial(pyramid_sampler, processes=True),
    "TensorStore downsample": tensorstore,
    "dask coarsen + to_zarr": dask_coarsen,
    "codec floor": codec_floor,
    "codec floor, written": partial(codec_floor, writes=True),
}

REWRITING: dict[str, Contestant] = {
    "ours, with level 0": partial(ours, elsewhere=True),
    "ome-zarr write_image, with level 0": ome_zarr,
    "ngff-zarr bin_shrink, with level 0": ngff_zarr,
}

ON_DASK: dict[str, Contestant] = {
    "ours, 1 Dask process": partial(ours_on_dask, workers=1),
    "ours, 2 Dask processes": partial(ours_on_dask, workers=2),
}

CONTESTANTS = {**IN_PLACE, **REWRITING, **ON_DASK}


def able(name: str, case: Case) -> bool:
    """Return whether a contestant can do a case at all."""
    if case.remote:
        return name in ("ours", "ours, verify none", "TensorStore downsample",
                        "dask coarsen + to_zarr")  # fmt: skip
    if case.method == "mode":
        return name.startswith(("ours", "TensorStore", "codec floor"))
    if case.shard:
        return name.startswith("ours") or name in ("TensorStore downsample",
                                                   "dask coarsen + to_zarr")  # fmt: skip
    # It raises where the grid of chunks is not a cube.
    return len(set(case.step)) == 1 or not name.startswith("pyramid_sampler")
