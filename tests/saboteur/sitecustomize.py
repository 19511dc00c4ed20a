"""Makes blocks of a flow run slow, or fail: Python imports this by itself where it is on PYTHONPATH.

The tests put it there, by the job variables of a single run; nothing else of the run is changed.
"""

import os

if "PREFECT__FLOW_RUN_ID" in os.environ:
    import time
    from pathlib import Path
    from typing import Any

    from pyramid_core import execute, layout

    layout._WORTHWHILE = 1  # one chunk is one block, so that a small image has many
    _brake = os.environ.get("SABOTEUR_BRAKE", "")
    _stuck = os.environ.get("SABOTEUR_STUCK", "")
    _fault = os.environ.get("SABOTEUR_FAULT", "")
    _real = execute.build_block

    def build_block(job: Any, index: Any, present: Any) -> Any:
        """Build a block slowly, not before minutes have passed, or fail at level 1, as long as the file that says so is there."""
        if _brake and Path(_brake).exists():
            time.sleep(float(os.environ.get("SABOTEUR_SECONDS", "3")))
        if _stuck and Path(_stuck).exists():
            Path(_stuck).with_suffix(".met").touch()
            time.sleep(300)
        result = _real(job, index, present)
        if _fault and job.level.path == "1" and Path(_fault).exists():
            kind = Path(_fault).read_text()
            if kind == "passing":
                Path(_fault).unlink(missing_ok=True)
                raise ConnectionResetError("the store hung up")
            raise ValueError("corrupt chunk")
        return result

    execute.build_block = build_block
