"""How fast the driver hands out blocks, and that it does not grow: ``python -m tests.benchmarks.driver``.

A plan of ten million blocks is driven with an executor that does nothing and no store: what is left
is the driver's own work, which bounds how many workers one driver can feed.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import time
from concurrent.futures import Executor, Future
from typing import Any

from pyramid_core.flight import run_blocks
from pyramid_core.grid import Shape
from pyramid_core.image import Codec, ImageInfo
from pyramid_core.job import BlockResult, LevelJob, level_job
from pyramid_core.params import PyramidParams
from pyramid_core.plan import plan_pyramid


class Nowhere(Executor):
    """Gives the same answer at once for every block."""

    def submit(self, fn: Any, *args: Any, **_: Any) -> Future[Any]:  # type: ignore[override] # as it is called here
        """Answer for the block without running anything."""
        done: Future[Any] = Future()
        done.set_result(fn(*args))
        return done


def no_work(job: LevelJob, index: Shape, present: Any) -> BlockResult:  # noqa: ARG001 - a task's form
    """Return what a block that took no time returns."""
    return BlockResult(job.level.index, index, 0.0, job.driver)


def drive(blocks: int) -> tuple[int, float]:
    """Hand out so many blocks of a petabyte; return how many came back, and the seconds it took."""
    info = ImageInfo(
        location="/nowhere.zarr", path="0", in_group=True, shape=(100_000,) * 3, dtype="|u1",
        chunks=(128,) * 3, shards=None, fill=0, zarr_format=3, key_prefix="c", separator="/",
        codec=Codec("zstd", 0), axes=(), scale=(1.0,) * 3, translation=(0.0,) * 3, name="nowhere",
    )  # fmt: skip
    params = PyramidParams(source="/nowhere.zarr", target="/nowhere else.zarr", edges="partial")
    plan = plan_pyramid(info, params)
    level = plan.levels[0]
    job = level_job(plan, level)
    first = ((job, index, None) for index in itertools.islice(level.blocks, blocks))
    start = time.perf_counter()
    count = sum(1 for _ in run_blocks(no_work, first, Nowhere(), 64))
    return count, time.perf_counter() - start


def main() -> None:
    """Print blocks per second and the memory before and after."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.driver", description=__doc__)
    parser.add_argument("--blocks", type=int, default=10_000_000)
    asked = parser.parse_args()
    drive(10_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count, seconds = drive(asked.blocks)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{count:,} blocks in {seconds:.0f} s: {count / seconds:,.0f} blocks/s; peak memory "
          f"{before / 1024:.0f} MiB after 10,000 blocks, {after / 1024:.0f} MiB at the end")  # fmt: skip


if __name__ == "__main__":
    main()
