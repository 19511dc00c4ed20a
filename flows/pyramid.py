"""Build an image pyramid as a Prefect flow; ``python flows/pyramid.py --help`` for the options."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

import flows  # noqa: F401 - sets what Prefect reads when it is imported
from pyramid_core.start import leave_ctrl_c, mind_ctrl_c

if __name__ == "__main__":
    mind_ctrl_c("pyramid.py")  # the imports below take seconds

# isort: split
from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.settings import PREFECT_API_URL

from flows import reports, server, tasks
from flows.form import takes
from flows.limits import bounded_runs, limits, when_free
from flows.stops import ended_in_time
from pyramid_core.answers import summary
from pyramid_core.build import BuildResult, Steps, plan_build, run_plan
from pyramid_core.errors import PyramidError, RequestError, printable
from pyramid_core.options import Parser, add_params, given_params
from pyramid_core.params import PyramidParams
from pyramid_core.preview import write_preview
from pyramid_core.progress import is_news
from pyramid_core.report import write_report
from pyramid_core.shell import DONE, USUAL, guarded, signal_behind, silent_libraries
from pyramid_core.stores import shown

DEMO = {"source": "data/phantom.zarr", "test_image": "blobs"}
"""What is built when nothing is asked for."""

DEMO_PICTURE, DEMO_REPORT = "data/phantom.png", "data/phantom.html"
"""Where its picture and its report are put; nothing is put beside a user's data unasked."""


def _run_name() -> str:
    return f"pyramid of {shown(str(runtime.flow_run.parameters['source']))}"  # without passwords


@flow(name="pyramid", flow_run_name=_run_name, persist_result=False)
@takes(PyramidParams)
def build_pyramid(**parameters: Any) -> BuildResult | State:
    """Build the levels of an image, each from the one before it, and publish it as OME-Zarr.

    Run it again after a crash: it does what is missing and ends with the same bytes.
    """
    logging.getLogger("pyramid_core").setLevel(logging.INFO)
    try:
        with bounded_runs(), ended_in_time():
            return _build(parameters)
    except PyramidError as error:
        return tasks.failed(error)


def _build(parameters: dict[str, Any]) -> BuildResult:
    """Run the tasks; called one after another, so that a cancel reaches the one that runs."""
    validated: Any = tasks.validate(parameters, return_state=True)
    params: PyramidParams = validated.result()
    if params.test_image != "none":
        tasks.create_test_image(params)
    plan = tasks.plan(params)
    steps = Steps(tasks.build_level, tasks.verify, tasks.write_multiscales_metadata)
    with limits(plan):
        result = when_free(lambda: run_plan(plan, steps))
    # The image is published: a picture that cannot be drawn is a failed task, no failed run.
    drawn: Any = tasks.preview(plan, return_state=True)
    reports.show_result(result, drawn.result() if drawn.is_completed() else None)
    return result


def main() -> int:
    """Run the flow from the command line and return the exit status."""
    parser = Parser(
        prog="pyramid.py",
        usage="python flows/pyramid.py [SOURCE] [OPTION ...]",
        description="Build an image pyramid as a Prefect flow; of a test image, if none is named.",
        examples=(
            "python flows/pyramid.py",
            "python flows/pyramid.py scan.zarr --edges partial --target scan.ome.zarr",
        ),
    )
    add_params(parser)
    arguments = parser.parse_args()
    with silent_libraries(USUAL):
        return guarded(lambda: _run(arguments), parser.prog, hasty=True)


def _run(arguments: argparse.Namespace) -> int:
    is_demo = not (arguments.source or arguments.source_)
    params = given_params(arguments, **(DEMO if is_demo else {}))
    plan_build(params)  # what is wrong is said before a server is started
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):  # the log in the UI keeps every line
            handler.addFilter(_helps)
    server.start()
    try:
        result = build_pyramid(**params.model_dump())
    except RuntimeError as error:
        if not str(error).startswith("Failed to reach API"):
            raise
        url = shown(str(PREFECT_API_URL.value()))
        msg = (
            f"no Prefect server answers at {url} (PREFECT_API_URL); start it, "
            f"unset the variable, or use pyramid build, which needs none"
        )
        raise RequestError(msg) from error
    print(printable(summary(result)))
    if is_demo:
        print(f"picture: {write_preview(params.source, DEMO_PICTURE)}")
        print(f"report:  {write_report(result, DEMO_REPORT)}")
    return DONE


def _helps(record: logging.LogRecord) -> bool:
    """Return whether a line of the log tells a person at a terminal something."""
    text = record.getMessage()
    # A task that is done is told of by the core, in numbers.
    is_told = record.name == "prefect.task_runs" and text == "Finished in state Completed()"
    # Met by a signal between two states of a task, Prefect fails, with a screen of traceback.
    if record.exc_info and signal_behind(record.exc_info[1]):
        return False
    # Nothing is to be seen at a server that starts without pages and ends with the run.
    is_told = is_told or (server.is_own() and text.startswith("View at "))
    return is_news(record) and not is_told


if __name__ == "__main__":
    leave_ctrl_c()  # the command minds it from here on
    sys.exit(main())
