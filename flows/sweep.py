"""Sweep."""
from prefect import flow
@flow(name="sweep")
def sweep_inbox(inbox: str, outbox: str|None=None): ...
