"""Run the benchmark: every case, every contestant, several times; medians as a table.

``python -m tests.benchmarks --help`` tells the options. Times are told as ratios to ours in the
same run, since machines differ and drift.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks.cases import Case, all_cases, linked_copy, make_volume
from tests.benchmarks.contestants import CONTESTANTS, IN_PLACE, able
from tests.child import running_child
from tests.s3 import running_moto

ROOT = Path(__file__).parents[2]
BUCKET = "benchmark"
COLUMNS = ("case", "size", "contestant", "run", "wall", "cpu", "peak", "read", "written", "objects",
           "ending")  # fmt: skip
PACKAGES = ("zarr", "zarrs", "obstore", "numba", "tensorstore", "pyramid_sampler", "dask",
            "ome-zarr", "ngff-zarr", "numcodecs", "numpy")  # fmt: skip

Row = dict[str, Any]


def main() -> None:
    """Run what is asked, print a table per case, and write every single run into a CSV."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="voxels along each axis [512]")
    parser.add_argument("--runs", type=int, default=5, help="runs of each contestant [5]")
    parser.add_argument("--cases", nargs="*", help="names of cases; all if none is given")
    parser.add_argument(
        "--only", nargs="*", choices=CONTESTANTS, metavar="ONLY",
        help="names of contestants [those in place]",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, help="where volumes are kept [a temporary one]")
    parser.add_argument("--csv", type=Path, help="where every run is written")
    asked = parser.parse_args()
    cases = [c for c in all_cases(asked.size) if not asked.cases or c.name in asked.cases]
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows: list[Row] = []
        for case in cases:
            names = [n for n in asked.only or IN_PLACE if able(n, case)]
            rows += run_case(case, names, asked.runs, folder)
            print(table(case, rows), flush=True)
            if asked.csv:
                write_csv(asked.csv, rows)
        shutil.rmtree(folder / "runs", ignore_errors=True)


def run_case(case: Case, names: list[str], runs: int, folder: Path) -> list[Row]:
    """Run all contestants of a case, again and again, so that drift hits all alike.

    In an order that is drawn anew each time: what one leaves (pages to be written, memory that the
    machine has at hand) would always help, or hinder, the same next one.
    """
    volume, rows = make_volume(case, folder), []
    places = folder / "runs" / case.name
    with served(case, volume) if case.remote else nullcontext() as upload:
        for number in range(runs):
            for name in random.Random(number).sample(names, len(names)):
                # A new place for each run, and nothing is deleted before the last: ext4 looks for
                # minutes at each inode that was deleted before it gives out another (measured: a
                # build in lz4 then takes up to 2.4 s, not 1.1).
                copy = places / f"{name} {number}.zarr"
                place = upload() if upload else str(linked_copy(volume, copy))
                before = count_objects(place)
                os.sync()  # or the kernel would write what the one before has left, beside this one
                took = once(name, case, place, places / f"{name} {number} warm-up")
                rows.append({"case": case.name, "size": case.size, "contestant": name,
                             "run": number, **took, "objects": count_objects(place) - before})  # fmt: skip
    return rows


def once(name: str, case: Case, place: str, spare: Path) -> Row:
    """Run a contestant once in a process of its own; what fails ends the benchmark."""
    told = json.dumps(case.told())
    command = [sys.executable, "-m", "tests.benchmarks.once", name, told, place, str(spare)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    took: Row = json.loads(done.stdout.splitlines()[-1])
    return took


def count_objects(place: str) -> int:
    """Return how many files lie in a folder; 0 of what lies elsewhere."""
    return sum(len(files) for _, _, files in os.walk(place))


@contextmanager
def served(case: Case, volume: Path) -> Iterator[Any]:
    """Yield a function that lays the base alone into an S3 that answers late, and says where."""
    import boto3
    import obstore
    from obstore.store import from_url

    with running_moto() as server, running_child("tests.benchmarks.latency", server) as late:
        os.environ.update(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", AWS_REGION="us-east-1",
                          AWS_ENDPOINT_URL=late.address(), AWS_ALLOW_HTTP="true")  # fmt: skip
        boto3.client("s3", endpoint_url=server, region_name="us-east-1").create_bucket(
            Bucket=BUCKET
        )
        place = f"s3://{BUCKET}/{case.name.replace(' ', '-').replace(',', '')}.zarr"
        store = from_url(place, endpoint=server, client_options={"allow_http": True})

        def upload() -> str:
            old = [meta["path"] for batch in obstore.list(store) for meta in batch]
            for path in old:
                obstore.delete(store, path)
            for file in filter(Path.is_file, volume.rglob("*")):
                obstore.put(store, str(file.relative_to(volume)), file)
            return place

        yield upload


def medians(case: Case, rows: list[Row]) -> dict[str, Row]:
    """Return the medians of each contestant in a case."""
    found: dict[str, Row] = {}
    for name in CONTESTANTS:
        mine = [r for r in rows if r["case"] == case.name and r["contestant"] == name]
        if mine:
            found[name] = {c: statistics.median(r[c] for r in mine) for c in COLUMNS[4:]}
    return found


def table(case: Case, rows: list[Row]) -> str:
    """Return the medians of a case as Markdown; ratios are theirs over ours, so above 1 we win."""
    found = medians(case, rows)
    first = next(iter(found.values()))
    z, y, x = case.levels[0]
    lines = [
        f"\n{case.name}: {z}x{y}x{x} {case.dtype.name}, {len(case.levels)} levels by {case.method}, "
        f"chunks of {case.chunk}\n",
        "| contestant | wall s | CPU s | wall, ours = 1 | CPU, ours = 1 | peak MB | read MB "
        "| written MB | objects | gate and commit ms |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        mega = [f"{row[c] / 1e6:.0f}" for c in ("peak", "read", "written")]
        ratios = [f"{row[c] / first[c]:.2f}" for c in ("wall", "cpu")]
        cells = [name, f"{row['wall']:.2f}", f"{row['cpu']:.2f}", *ratios, *mega]
        ending = f"{row['ending'] * 1e3:.0f}" if row["ending"] else "-"
        lines.append("| " + " | ".join([*cells, f"{row['objects']:.0f}", ending]) + " |")
    return "\n".join(lines)


def write_csv(path: Path, rows: list[Row]) -> None:
    """Write every run, below lines that say what ran, on what, and when."""
    with path.open("w", newline="") as file:
        versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        file.write(f"# {datetime.datetime.now(datetime.UTC):%Y-%m-%d}; Python "
                   f"{platform.python_version()}; {os.cpu_count()} CPUs, {_processor()}\n"
                   f"# {versions}\n")  # fmt: skip
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((n.partition(": ")[2] for n in lines if n.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
