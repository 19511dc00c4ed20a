"""The command line: ``pyramid plan | build | verify | preview | view | phantom``, without Prefect.

Exit status: 0 done; 1 it failed, or ``verify`` found defects; 2 what was asked is wrong; 130, 143
and 129 stopped by Ctrl-C, SIGTERM and a closed terminal.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, get_args

from pyramid_core.errors import printable
from pyramid_core.options import Parser, add_params, add_saying, given_params
from pyramid_core.params import PHANTOM_KINDS, VerifyMode, parse_params
from pyramid_core.progress import shown_progress
from pyramid_core.shell import (
    DONE,
    FAILED,
    QUIET,
    USUAL,
    VERBOSE,
    guarded,
    painted,
    silent_libraries,
)
from pyramid_core.version import VERSION

_IMAGE = "the image, like scan.zarr or s3://bucket/scan.zarr"

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    with silent_libraries(getattr(given, "say", USUAL)):
        return guarded(lambda: int(given.run(given)), parser.prog, hasty=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="pyramid",
        usage="pyramid COMMAND ...   (pyramid COMMAND -h for its options)",
        description="Build exact image pyramids from Zarr, published as OME-Zarr.",
        examples=(
            "pyramid plan scan.zarr                     # what it would cost; writes nothing",
            "pyramid build scan.zarr --edges partial    # levels 1, 2, ... beside the base",
            "pyramid build scan.zarr --target s3://bucket/scan.ome.zarr",
            "pyramid verify scan.zarr --verify full",
            "pyramid preview scan.zarr -o scan.png",
        ),
    )
    parser.add_argument("--version", action="version", version=f"zarr-pyramid-flow {VERSION}",
                        help="show the version")  # fmt: skip
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", required=True)
    _add_plan(commands)
    _add_build(commands)
    _add_verify(commands)
    _add_preview(commands)
    _add_view(commands)
    _add_phantom(commands)
    return parser


def _command(
    commands: Any, name: str, words: str, text: str, run: Command, *examples: str
) -> argparse.ArgumentParser:
    """Add a command; *words* are those that follow its name, for the usage."""
    usage = f"pyramid {name} {words}"
    command: argparse.ArgumentParser = commands.add_parser(
        name, usage=usage, help=text, description=text, examples=examples
    )
    command.set_defaults(run=run)
    return command


def _add_plan(commands: Any) -> None:
    text = "say what would be built and what it costs; writes nothing"
    plan = _command(
        commands, "plan", "SOURCE [OPTION ...]", text, _plan,
        "pyramid plan scan.zarr",
        "pyramid plan scan.zarr --step 1,2,2 --memory-limit 500MB",
        "pyramid plan scan.zarr --json | jq .cost.bytes_written",
    )  # fmt: skip
    add_saying(plan)
    add_params(plan)


def _plan(arguments: argparse.Namespace) -> int:
    params = given_params(arguments)
    from pyramid_core.answers import plan_answer, work_of
    from pyramid_core.build import plan_build

    plan = plan_build(params)
    if arguments.json:
        _print_json(plan_answer(plan))
    elif arguments.say != QUIET:
        print(printable(plan))
        if arguments.say == VERBOSE:
            print(f"\n{printable(work_of(plan))}")
    return DONE


def _add_build(commands: Any) -> None:
    text = "build what is asked, or what is missing of it; verify; publish"
    build = _command(
        commands, "build", "SOURCE [OPTION ...]", text, _build,
        "pyramid build scan.zarr --edges partial --unit micrometer --voxel-size 2,0.5,0.5",
        "pyramid build scan.zarr --target scan.ome.zarr --shards 512,512,512",
        "pyramid build labels.zarr --method mode --report labels.html",
    )  # fmt: skip
    build.add_argument("--report", metavar="REPORT.html",
                       help="write a report there: one HTML file")  # fmt: skip
    add_saying(build)
    add_params(build)


def _build(arguments: argparse.Namespace) -> int:
    params = given_params(arguments)
    from pyramid_core.answers import build_answer, summary
    from pyramid_core.build import build_pyramid
    from pyramid_core.report import refuse_report, write_report

    if arguments.report:
        refuse_report(arguments.report, params)
    with shown_progress(arguments.say) as progress:
        result = build_pyramid(params, progress=progress)
    if arguments.json:
        _print_json(build_answer(result))
    elif arguments.say != QUIET:
        print(printable(summary(result)))
    if arguments.report:
        path = write_report(result, arguments.report)
        if arguments.say != QUIET and not arguments.json:
            print(printable(f"report:  {path}"))
    return DONE


def _add_verify(commands: Any) -> None:
    text = "check an OME-Zarr image, whoever made it; changes nothing"
    verify = _command(
        commands, "verify", "LOCATION [OPTION ...]", text, _verify,
        "pyramid verify scan.zarr",
        "pyramid verify s3://bucket/scan.ome.zarr --verify full",
        "pyramid verify scan.zarr -q && echo right",
    )  # fmt: skip
    verify.add_argument("location", metavar="LOCATION", help=_IMAGE)
    verify.add_argument("--verify", choices=get_args(VerifyMode), default="sample", dest="mode",
                        help="which blocks are computed again [sample]")  # fmt: skip
    add_saying(verify)


def _verify(arguments: argparse.Namespace) -> int:
    from pyramid_core.answers import verify_answer
    from pyramid_core.verify import verify_pyramid

    verification = verify_pyramid(arguments.location, arguments.mode)
    if arguments.json:
        _print_json(verify_answer(verification))
    elif arguments.say != QUIET or not verification.ok:
        verdict, *details = printable(verification).splitlines()
        color = "green" if verification.ok else "red"
        print("\n".join([painted(verdict, color, sys.stdout), *details]))
    return DONE if verification.ok else FAILED


def _add_preview(commands: Any) -> None:
    text = "draw an image and its levels as a PNG; reads coarse levels only"
    preview = _command(
        commands, "preview", "LOCATION [-o PREVIEW.png]", text, _preview,
        "pyramid preview scan.zarr",
        "pyramid preview https://host/scan.ome.zarr -o scan.png",
    )  # fmt: skip
    preview.add_argument("location", metavar="LOCATION", help=_IMAGE)
    preview.add_argument("-o", "--output", metavar="PREVIEW.png",
                         help="the file; an earlier PNG is replaced [NAME.png]")  # fmt: skip


def _preview(arguments: argparse.Namespace) -> int:
    from pyramid_core.preview import write_preview
    from pyramid_core.reader import image_name

    name = arguments.output or f"{image_name(arguments.location)}.png"
    print(printable(write_preview(arguments.location, name)))
    return DONE


def _add_view(commands: Any) -> None:
    view = _command(
        commands, "view", "LOCATION [OPTION ...]",
        "open an image in Neuroglancer, served by this machine, or in napari", _view,
        "pyramid view scan.ome.zarr",
        "pyramid view s3://bucket/scan.ome.zarr --no-browser",
    )  # fmt: skip
    view.add_argument("location", metavar="LOCATION", help="the image")
    view.add_argument("--browser", action=argparse.BooleanOptionalAction, default=True,
                      help="open it in a browser too, where there is a screen")  # fmt: skip
    view.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS",
                      help="address of this machine to serve at [127.0.0.1]")  # fmt: skip
    view.add_argument("--napari", action="store_true", help="in napari, if it is installed")


def _view(arguments: argparse.Namespace) -> int:
    from pyramid_core.view import show, show_in_napari

    if arguments.napari:
        show_in_napari(arguments.location)
    else:
        show(arguments.location, bind=arguments.bind, browser=arguments.browser)
    return DONE


def _add_phantom(commands: Any) -> None:
    phantom = _command(
        commands, "phantom", "LOCATION [OPTION ...]", "write a test image", _phantom,
        "pyramid phantom data/blobs.zarr",
        "pyramid phantom data/cells.zarr --test-image labels --test-shape 512,512,512",
    )  # fmt: skip
    phantom.add_argument("location", metavar="LOCATION", help="where it is written")
    phantom.add_argument("--test-image", choices=PHANTOM_KINDS, default="blobs", dest="kind",
                         help="what it shows [blobs]")  # fmt: skip
    phantom.add_argument("--test-shape", nargs="+", default=["256,256,256"], metavar="N,N,N",
                         dest="shape", help="its shape [256,256,256]")  # fmt: skip


def _phantom(arguments: argparse.Namespace) -> int:
    shape = parse_params({"source": "-", "test_shape": " ".join(arguments.shape)}).test_shape
    from pyramid_core.phantom import write_phantom

    info = write_phantom(arguments.location, kind=arguments.kind, shape=tuple(shape))
    print(f"{info.location}: {arguments.kind}, {'x'.join(map(str, info.shape))}, {info.dtype}")
    return DONE


def _print_json(answer: dict[str, Any]) -> None:
    print(json.dumps(answer, indent=2, allow_nan=False))


if __name__ == "__main__":
    sys.exit(main())
