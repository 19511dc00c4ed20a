"""Create or update the two automations that pick up runs whose process or machine was lost.

    python deployments/automations.py

The first calls a run crashed that has not been heard of for three heartbeats, which Prefect itself
never does. The second begins a crashed run of a deployment again; it finds its finished blocks in
the store. Both look at our flows only. A run that crashes each time is given up by the flow itself
(``MOST_RUNS`` in flows/limits.py), and one that never came to run is not begun again: nothing would
count how often.
"""

from __future__ import annotations

import argparse
from datetime import timedelta
from typing import Any

from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

FLOWS = ["pyramid", "sweep"]
"""The flows that are looked after, by name."""

HEARTBEAT_SECONDS = 60
"""How often a run is heard of; PREFECT_FLOWS_HEARTBEAT_FREQUENCY in deployments/prefect.yaml."""


MOVED_ON = ["AwaitingRetry", "Running", "Cancelling", "Cancelled"]
"""The states after a crash in which a run is no longer to be begun again."""

CALM_SECONDS = 30.0
"""How long a run stays crashed before it is begun again. Of one that is cancelled in its first
seconds Prefect tells that it crashed and, up to nine seconds later on a busy machine, that it was
cancelled."""


def automations(within: timedelta, calm: timedelta) -> list[Automation]:
    """Return both; *within* is how long a run may be silent, *calm* how long it stays crashed."""
    runs = ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]})
    have_run = ResourceSpecification({**runs.root, "prefect.run-count": ["!0"]})
    ours = ResourceSpecification(
        {"prefect.resource.role": ["flow"], "prefect.resource.name": FLOWS}
    )
    # A run without a deployment, as a sweep has them inside, has nobody who would pick it up.
    deployed = ResourceSpecification({"prefect.resource.role": ["deployment"]})
    lost = Automation(
        name="pyramid: lost runs have crashed",
        description="A run that has not been heard of for three heartbeats is called crashed.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match=runs,
            match_related=ours,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"not heard of for {within.total_seconds():.0f} s",
            )
        ],
    )
    crashed = Automation(
        name="pyramid: crashed runs go on",
        description="A run that stays crashed is begun again; it does what is missing.",
        # Not at once: of a run that is killed, the runner tells, and a moment later the worker too.
        # Begun again at each, it would run twice.
        trigger=EventTrigger(
            after={"prefect.flow-run.Crashed"},
            expect={f"prefect.flow-run.{name}" for name in MOVED_ON},
            match=have_run,
            match_related=[ours, deployed],
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=calm,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.SCHEDULED,
                name="AwaitingRetry",
                message="picked up after a crash; what is finished stays",
            )
        ],
    )
    return [lost, crashed]


def apply(automation: Automation) -> None:
    """Create an automation, or update the one of its name."""
    try:
        known: Any = Automation.read(
            name=automation.name
        )  # synchronous here, by Prefect's types maybe not
        automation.id = known.id
    except ValueError:
        automation.create()
    else:
        automation.update()


def main() -> None:
    """Apply both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--within", type=float, default=3 * HEARTBEAT_SECONDS, metavar="SECONDS",
                        help="how long a run may be silent [%(default)s]")  # fmt: skip
    parser.add_argument("--calm", type=float, default=CALM_SECONDS, metavar="SECONDS",
                        help="how long a crashed run is left alone [%(default)s]")  # fmt: skip
    given = parser.parse_args()
    for automation in automations(timedelta(seconds=given.within), timedelta(seconds=given.calm)):
        apply(automation)
        print(automation.name)


if __name__ == "__main__":
    main()
