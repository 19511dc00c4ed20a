"""Serve the deployments of prefect.yaml without a work pool: ``python deployments/serve.py``.

One process that stays: it waits for runs and starts each in a process of its own on this machine.
"""

from __future__ import annotations

import importlib
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).with_name("prefect.yaml")


def main() -> None:
    """Serve until Ctrl-C, which pauses the deployments."""
    deployments = yaml.safe_load(FILE.read_text())["deployments"]
    for name, value in deployments[0]["work_pool"]["job_variables"]["env"].items():
        os.environ.setdefault(name, value)  # what a work pool gives to each run
    from prefect import serve
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        sys.exit(
            "serve.py needs a server that stays up: run `prefect server start`, and here "
            "`export PREFECT_API_URL=http://127.0.0.1:4200/api`"
        )
    serve(*map(_deployment, deployments))


def _deployment(settings: dict[str, Any]) -> Any:
    from prefect.client.schemas.objects import ConcurrencyLimitConfig
    from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger
    from prefect.types.entrypoint import EntrypointType

    module, _, name = settings["entrypoint"].rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    return flow.to_deployment(
        settings["name"],
        description=settings["description"],
        tags=settings["tags"],
        parameters=settings.get("parameters", {}),
        concurrency_limit=ConcurrencyLimitConfig(**settings["concurrency_limit"]),
        schedules=[_schedule(**schedule) for schedule in settings.get("schedules", [])],
        triggers=[DeploymentEventTrigger(**trigger) for trigger in settings.get("triggers", [])],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def _schedule(*, interval: float | None = None, **settings: Any) -> Any:
    from prefect.schedules import Schedule

    every = None if interval is None else timedelta(seconds=interval)
    return Schedule(interval=every, **settings)


if __name__ == "__main__":
    main()
