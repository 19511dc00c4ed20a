"""The flow: a thin layer of Prefect over ``pyramid_core``.

Importing it sets defaults of Prefect's settings, which Prefect reads when it is itself imported.
``[tool.prefect]`` in pyproject.toml says the same, but is read in the root of the checkout only.
The user's own settings go first.
"""

import os

DEFAULTS = {
    # The hidden server's own limit of 20 s fails where a first start takes 16.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # No telemetry; works offline without an error in the log.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The core's own lines appear in the run's log; it logs outside of flows too.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "pyramid_core",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}

for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)
