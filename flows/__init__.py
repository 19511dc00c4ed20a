"""The flow: a thin layer of Prefect over ``pyramid_core``."""
