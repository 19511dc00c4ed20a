"""zarr's store of objects, made sure that nothing stored is taken for background."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from obstore.exceptions import BaseError
from zarr.storage import ObjectStore

from pyramid_core.errors import PyramidError, StoreError
from pyramid_core.remote import PAUSES, asked, is_listed, may_pass, told

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class SureStore(ObjectStore[Any]):
    """zarr's store, that takes nothing for absent which a listing shows; its errors are ours."""

    def __init__(self, store: Any, *, read_only: bool = False, place: str = ""):
        super().__init__(store, read_only=read_only)
        self.place = place

    def __str__(self) -> str:
        """Return the place, without secrets."""
        return self.place

    def with_read_only(self, read_only: bool = False) -> SureStore:
        """Return the same, for reading or for writing."""
        return type(self)(self.store, read_only=read_only, place=self.place)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return an object or a part of it; None only where no listing shows it."""
        begin = time.monotonic()
        for pause in (*PAUSES, None):
            try:
                found = await super().get(key, prototype, byte_range)
                if found is not None or not await asyncio.to_thread(self._is_listed, key):
                    return found
                lacks = f"{self.place}: {key} is listed, but the store says that it is not there"
                failed: PyramidError = StoreError(lacks)
                again = True
            except BaseError as error:
                failed, again = told(error, self.place), may_pass(error, begin)
            if not again or pause is None:
                break
            await asyncio.sleep(pause)
        raise failed

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object."""
        await self._told(super().set(key, value))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object where there is none."""
        await self._told(super().set_if_not_exists(key, value))

    async def _told(self, write: Awaitable[None]) -> None:
        try:
            await write
            return
        except (BaseError, OSError) as error:
            failed = told(error, self.place)
        raise failed

    def _is_listed(self, key: str) -> bool:
        return asked(self.place, lambda: is_listed(self.store, key))
