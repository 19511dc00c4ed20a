"""Build an image pyramid as a Prefect flow; ``python flows/pyramid.py --help`` for the options."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from typing import Any

from flows.form import takes
from pyramid_core.cli import DONE, Parser, add_params, given_params, guarded, summary
from pyramid_core.params import PyramidParams, parse_params

# Before Prefect is imported: it reads its settings then. The user's own settings go first.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "pyramid_core")
# The core logs outside of flows too, where there is no run to send that to.
os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")

from prefect import flow

from flows import tasks
from pyramid_core.build import BuildResult, LevelReport, plan_build
from pyramid_core.owner import own
from pyramid_core.verify import still_to_build
from pyramid_core.workers import open_executor
from pyramid_core.writer import prepare, refresh

DEMO = {"source": "data/phantom.zarr", "test_image": "blobs"}
"""What is built when nothing is asked for."""


@flow(name="pyramid", flow_run_name="pyramid of {source}")
@takes(PyramidParams)
def build_pyramid(**parameters: Any) -> BuildResult:
    """Build the levels of an image, each from the one before it, and publish it as OME-Zarr.

    Run it again after a crash: it does what is missing and ends with the same bytes.
    """
    logging.getLogger("pyramid_core").setLevel(logging.INFO)
    start = time.perf_counter()
    params = parse_params(parameters)
    if params.test_image != "none":
        tasks.create_test_image(params)
    plan = tasks.validate(params)
    reports: list[LevelReport] = []
    targets = [image.target for image in plan.images]
    with own(*targets) as owner, open_executor(plan) as workers:
        left = still_to_build(plan, workers)
        if left is None:
            refresh(plan)
            return BuildResult.published(plan, time.perf_counter() - start)
        prepare(plan)
        for image in plan.images:
            for level in image.written:
                owner.check()
                reports.append(tasks.build_level(image, level, workers, owner))
        verification = tasks.verify(left, workers)
        owner.check()
        tasks.write_multiscales_metadata(plan)
    return BuildResult(plan, tuple(reports), time.perf_counter() - start, verification)


def main() -> int:
    """Run the flow from the command line and return the exit status."""
    parser = Parser(prog="pyramid.py", description=__doc__, allow_abbrev=False)
    add_params(parser)
    arguments = parser.parse_args()
    return guarded(lambda: _run(arguments), parser.prog)


def _run(arguments: argparse.Namespace) -> int:
    params = given_params(arguments, **({} if arguments.source or arguments.source_ else DEMO))
    plan_build(params)  # what is wrong is said before a server is started
    result = build_pyramid(**params.model_dump())
    print(summary(result))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
