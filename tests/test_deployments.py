"""What an operator starts from holds together, as far as that shows without Docker and a server."""

from __future__ import annotations

import fnmatch
import importlib
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import entry_points, requires
from itertools import pairwise
from pathlib import Path
from typing import Any

import prefect.settings
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from prefect import Flow
from prefect.events.schemas.automations import Posture
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate

import flows  # noqa: F401 - sets what Prefect reads when it is imported

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deployments"
PREFECT = yaml.safe_load((FOLDER / "prefect.yaml").read_text())
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
README = (FOLDER / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if name != "postgres"}
DEPLOYMENTS: list[dict[str, Any]] = PREFECT["deployments"]
RUN_ENVIRONMENT: dict[str, str] = DEPLOYMENTS[0]["work_pool"]["job_variables"]["env"]

# They are scripts and no package.
serve: Any = importlib.import_module("deployments.serve")
automations: Any = importlib.import_module("deployments.automations")

our_services = pytest.mark.parametrize("service", OURS)
all_deployments = pytest.mark.parametrize("settings", DEPLOYMENTS, ids=lambda d: str(d["name"]))


def instructions() -> list[list[str]]:
    """Return the words of each line of the Dockerfile, lines that go on joined."""
    text = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


def commands(service: str) -> Iterator[list[str]]:
    """Yield the commands of a service, those of a shell script one by one."""
    command = OURS[service]["command"]
    lines = command[-1].splitlines() if isinstance(command, list) else [command]
    for line in lines:
        yield shlex.split(line)


def flow_of(settings: dict[str, Any]) -> Flow[Any, Any]:
    """Return the flow that an entrypoint names, as a worker finds it."""
    module, _, name = settings["entrypoint"].rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    assert isinstance(flow, Flow)
    return flow


# --- Dockerfile and compose.yaml ---------------------------------------------------------------


@our_services
def test_every_service_of_ours_runs_the_one_image(service: str) -> None:
    """It is built from deployments/Dockerfile, with the checkout as its context."""
    settings = OURS[service]
    assert settings["image"] == "zarr-pyramid-flow"
    context = FOLDER / settings["build"]["context"]
    assert context.resolve() == ROOT
    assert (context / settings["build"]["dockerfile"]).resolve() == FOLDER / "Dockerfile"
    (argument,) = settings["build"]["args"]
    assert any(words[0] == "ARG" and words[1].startswith(argument) for words in instructions())


@our_services
def test_every_command_of_a_service_is_there(service: str) -> None:
    """Its program is one that the package or its dependencies install, its file one of the checkout."""
    scripts = {point.name for point in entry_points(group="console_scripts")}
    dask = {point.name for point in entry_points(group="dask_cli")}
    for program, *words in commands(service):
        if program == "python":
            assert (ROOT / words[0]).is_file()
        elif program == "dask":
            assert words[0] in dask
        else:
            assert program in scripts
        for option, value in pairwise(words):
            assert option != "--prefect-file" or (ROOT / value).is_file()
            assert option != "--pool" or value == DEPLOYMENTS[0]["work_pool"]["name"]


def test_the_work_pool_is_made_before_it_is_deployed_to() -> None:
    """The deploy step makes the process pool of prefect.yaml, deploys all, then looks after the runs."""
    pool, deploy, automate = commands("deploy")
    assert (*pool[1:3], pool[-1]) == ("work-pool", "create", DEPLOYMENTS[0]["work_pool"]["name"])
    assert pool[pool.index("--type") + 1] == "process"
    assert "--all" in deploy
    assert automate[-1] == "deployments/automations.py"


@pytest.mark.parametrize("service", SERVICES)
def test_what_a_service_waits_for_can_come_true(service: str) -> None:
    """It names services of the file; one that has to be healthy says how that is seen."""
    waits = SERVICES[service].get("depends_on", {})
    assert set(waits) <= set(SERVICES)
    if isinstance(waits, dict):
        for name, wait in waits.items():
            if wait["condition"] == "service_healthy":
                assert SERVICES[name]["healthcheck"]["test"]
            else:  # one that ends is not started again when it has ended well
                assert (wait["condition"], SERVICES[name]["restart"]) == (
                    "service_completed_successfully",
                    "on-failure",
                )


def test_ports_are_open_to_this_machine_alone() -> None:
    """Prefect's server asks nobody who he is, so its only port is bound to loopback."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:4200:4200"]


def test_no_password_is_in_the_files() -> None:
    """It comes from the environment, has no default, and its file is left out of git and of the image."""
    text = (FOLDER / "compose.yaml").read_text()
    used = re.findall(r"\$\{POSTGRES_PASSWORD(.*?)\}", text)
    assert len(used) == 2
    assert any(more.startswith(":?") for more in used)
    assert all(more == "" or more.startswith(":?") for more in used)
    url = SERVICES["server"]["environment"]["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    assert url == "postgresql+asyncpg://prefect:${POSTGRES_PASSWORD}@postgres/prefect"
    assert ".env" in (FOLDER / ".gitignore").read_text().split()
    assert "**/.env" in (ROOT / ".dockerignore").read_text().split()


def test_the_server_keeps_its_leases_and_tells_nobody() -> None:
    """Leases outlive a restart on the volume of Prefect's home; PostgreSQL's driver comes with Prefect."""
    server = SERVICES["server"]
    environment = server["environment"]
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    leases = importlib.import_module(environment["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"])
    assert leases.__name__.endswith(".filesystem")
    assert leases.ConcurrencyLeaseStorage
    assert server["volumes"] == ["prefect:/prefect"]
    assert any("PREFECT_HOME=/prefect" in words for words in instructions())
    needs = {Requirement(line).name for line in requires("prefect") or []}
    assert "asyncpg" in needs


def test_every_setting_of_prefect_that_is_named_exists() -> None:
    """A variable that Prefect does not know would be passed over in silence."""
    named = set(RUN_ENVIRONMENT) | set(re.findall(r"\bPREFECT_[A-Z_]+\b", README))
    for service in OURS.values():
        named |= set(service.get("environment", {}))
    named |= set(re.findall(r"\bPREFECT_[A-Z_]+\b", (FOLDER / "Dockerfile").read_text()))
    named -= {"DO_NOT_TRACK"}  # not one of Prefect's
    assert len(named) > 8
    assert [name for name in sorted(named) if not hasattr(prefect.settings, name)] == []


def test_the_worker_and_the_dask_workers_see_the_same_images() -> None:
    """A run hands locations to the cluster, so /data is one volume; every volume is declared."""
    assert SERVICES["worker"]["volumes"] == SERVICES["dask-worker"]["volumes"]
    assert SERVICES["worker"]["volumes"] == ["${PYRAMID_DATA:-data}:/data"]
    mounted = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    names = {re.sub(r"\$\{\w+:-(\w+)\}", r"\1", mount).split(":")[0] for mount in mounted}
    assert names == set(COMPOSE["volumes"])


def test_a_dask_worker_has_one_thread() -> None:
    """memory_limit is that of a process: further threads would wait for its memory."""
    (words,) = commands("dask-worker")
    assert words[words.index("--nthreads") + 1] == "1"
    (scheduler,) = commands("scheduler")
    assert (scheduler[:2], words[2]) == (["dask", "scheduler"], "tcp://scheduler:8786")


def test_what_the_dockerfile_copies_is_there() -> None:
    """Each path is in the checkout, and .dockerignore lets it through and nothing else."""
    copied = {
        path
        for words in instructions()
        if words[0] == "COPY" and not words[1].startswith("--from")
        for path in words[1:-1]
    }
    assert {path for path in copied if not (ROOT / path).exists()} == set()
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    assert {line[1:] for line in ignore if line.startswith("!")} == copied
    needed = {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "constraints.txt"}
    assert needed <= copied


def test_the_image_has_a_python_that_the_package_takes() -> None:
    """Its minor version is pinned, one that the package says it supports, and the same in both stages."""
    (image,) = {words[1] for words in instructions() if words[0] == "FROM"}
    found = re.fullmatch(r"python:(3\.\d+)-slim", image)
    assert found
    assert SpecifierSet(PROJECT["requires-python"]).contains(found[1])
    assert f"Programming Language :: Python :: {found[1]}" in PROJECT["classifiers"]


def test_the_image_runs_as_a_user_with_what_was_tested() -> None:
    """Not as root, by a number that Kubernetes can check; with the versions of constraints.txt."""
    *_, last = [words for words in instructions() if words[0] == "USER"]
    assert last[1] == "$UID"
    assert ["ARG", "UID=1000"] in instructions()
    installs = [words for words in instructions() if "install" in words and words[0] == "RUN"]
    assert any("constraints.txt" in words for words in installs)
    assert any("NUMBA_CACHE_DIR=/tmp/numba" in words for words in instructions())


# --- prefect.yaml ------------------------------------------------------------------------------


@all_deployments
def test_a_deployment_is_found_and_described(settings: dict[str, Any]) -> None:
    """Its entrypoint names a flow by its module; who reads the UI is told what it is for."""
    assert flow_of(settings).name in ("pyramid", "sweep")
    assert settings["description"].endswith(".")
    assert "pyramid" in settings["tags"]
    assert settings["work_pool"]["name"] == "pyramids"
    assert settings["work_pool"]["job_variables"]["env"] == RUN_ENVIRONMENT


@all_deployments
def test_the_parameters_of_a_deployment_fit_the_form(settings: dict[str, Any]) -> None:
    """Of the deployment, its triggers and its schedules; the server would refuse others at the run."""
    flow = flow_of(settings)
    schema = parameter_schema(flow).model_dump_for_openapi()
    given = settings.get("parameters", {})
    kinds = settings.get("triggers", []) + settings.get("schedules", [])
    for asked in [given, *(given | kind.get("parameters", {}) for kind in kinds)]:
        assert set(asked) <= set(schema["properties"])
        validate(asked, schema, raise_on_error=True, ignore_required=True)
    for trigger in settings.get("triggers", []):
        assert flow.validate_parameters(given | trigger["parameters"])
    if settings.get("schedules"):
        assert flow.validate_parameters(given)


def test_parameters_stand_at_the_deployment_not_at_a_schedule() -> None:
    """Switching a schedule off and on in the UI loses those of the schedule; a slug finds it again."""
    schedules = [s for settings in DEPLOYMENTS for s in settings.get("schedules", [])]
    assert [schedule["slug"] for schedule in schedules] == ["nightly", "often"]
    assert not any("parameters" in schedule for schedule in schedules)
    assert [schedule["active"] for schedule in schedules] == [True, False]


def test_a_sweep_never_waits_for_another_of_its_kind() -> None:
    """One that still runs does what the next would, which is cancelled; builds wait for their turn."""
    limits = {settings["name"]: settings["concurrency_limit"] for settings in DEPLOYMENTS}
    assert limits == {
        "pyramid": {"limit": 8, "collision_strategy": "ENQUEUE"},
        "sweep-nightly": {"limit": 1, "collision_strategy": "CANCEL_NEW"},
        "sweep-often": {"limit": 1, "collision_strategy": "CANCEL_NEW"},
    }


# --- serve.py ----------------------------------------------------------------------------------


@all_deployments
def test_serve_makes_the_deployment_of_prefect_yaml(settings: dict[str, Any]) -> None:
    """Name, flow, parameters, schedules, tags, limit, trigger and entrypoint are the file's."""
    made = serve._deployment(settings)
    assert (made.name, made.flow_name) == (settings["name"], flow_of(settings).name)
    assert (made.description, made.entrypoint) == (settings["description"], settings["entrypoint"])
    assert (made.tags, made.parameters) == (settings["tags"], settings.get("parameters", {}))
    assert {
        "limit": made.concurrency_limit,
        "collision_strategy": made.concurrency_options.collision_strategy.value,
    } == settings["concurrency_limit"]
    when = ("slug", "active", "cron", "interval", "timezone")
    asked = [{**dict.fromkeys(when), **s} for s in settings.get("schedules", [])]
    assert [_as_written(schedule) for schedule in made.schedules] == asked
    trigger = ("type", "enabled", "match", "expect", "for_each", "parameters")
    written = [{key: t[key] for key in trigger} for t in settings.get("triggers", [])]
    dumped = [t.model_dump(mode="json", include=set(trigger)) for t in made.triggers]
    assert dumped == written


def _as_written(made: Any) -> dict[str, Any]:
    """Return a schedule in the words of prefect.yaml."""
    interval: timedelta | None = getattr(made.schedule, "interval", None)
    return {
        "slug": made.slug,
        "active": made.active,
        "cron": getattr(made.schedule, "cron", None),
        "interval": None if interval is None else interval.total_seconds(),
        "timezone": made.schedule.timezone,
    }


# --- automations.py ----------------------------------------------------------------------------


def test_the_automations_look_after_our_flows_after_three_heartbeats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Heartbeats come as prefect.yaml sets them; both automations are limited to what it deploys."""
    applied: list[Any] = []
    monkeypatch.setattr(automations, "apply", applied.append)
    monkeypatch.setattr(sys, "argv", ["automations.py"])
    automations.main()
    lost, _ = applied
    assert [a.name for a in applied] == [
        "pyramid: lost runs have crashed",
        "pyramid: crashed runs go on",
    ]
    seconds = int(RUN_ENVIRONMENT["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    assert lost.trigger.within == timedelta(seconds=3 * seconds)
    names = sorted({flow_of(settings).name for settings in DEPLOYMENTS})
    for automation in applied:
        related = automation.trigger.match_related
        first = related[0] if isinstance(related, list) else related
        assert first.model_dump() == {
            "prefect.resource.role": ["flow"],
            "prefect.resource.name": names,
        }
        assert automation.trigger.for_each == {"prefect.resource.id"}


def test_a_run_that_is_called_crashed_twice_is_begun_again_once() -> None:
    """The runner tells of a kill, and the worker a moment later: begun again at each, it would run twice and rebuild what the first has published."""
    _, crashed = automations.automations(timedelta(seconds=180), timedelta(seconds=30))
    trigger = crashed.trigger
    assert trigger.posture == Posture.Proactive
    assert trigger.after == {"prefect.flow-run.Crashed"}
    names = ("AwaitingRetry", "Running", "Cancelling", "Cancelled")
    assert trigger.expect == {f"prefect.flow-run.{name}" for name in names}
    assert trigger.within >= timedelta(seconds=10)  # Prefect's shortest; the second comes after 2


# --- README.md ---------------------------------------------------------------------------------


def fenced(language: str) -> list[str]:
    """Return the fenced blocks of a language in the operator's page."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_both_ways_to_tell_of_an_image_fire_the_trigger(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page shows, in Python and for curl, is what the trigger of prefect.yaml looks for."""
    emitted: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "prefect.events.emit_event", lambda event, **more: emitted.append({"event": event, **more})
    )
    (python,) = [block for block in fenced("python") if "emit_event" in block]
    exec(compile(python, "README.md", "exec"), {})
    (curl,) = [block for block in fenced("bash") if "/events" in block]
    body = re.search(r"<<EVENT\n(.*?)\nEVENT", curl, re.DOTALL)
    assert body
    text = body[1].replace("$(cat /proc/sys/kernel/random/uuid)", "u")
    (posted,) = json.loads(text.replace("$(date -u +%FT%TZ)", datetime.now(UTC).isoformat()))
    (trigger,) = DEPLOYMENTS[0]["triggers"]
    for event in [*emitted, posted]:
        assert [event["event"]] == trigger["expect"]
        name = event["resource"]["prefect.resource.id"]
        assert fnmatch.fnmatch(name, trigger["match"]["prefect.resource.id"])
        assert set(event["payload"]) == {"path"}
    assert trigger["parameters"]["source"] == "{{ event.payload.path }}"


def test_the_files_and_links_of_the_operators_page_exist() -> None:
    """Each link, and each path of ours that is named as code."""
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", README)
    paths = re.findall(r"\b(?:deployments|flows|tests)/[\w/.-]+\.(?:py|yaml)\b", README)
    assert links
    assert [path for path in links if "://" not in path and not (FOLDER / path).exists()] == []
    assert [path for path in paths if not (ROOT / path).exists()] == []
