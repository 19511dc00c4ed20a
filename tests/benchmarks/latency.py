"""A connection that takes time: passes TCP on to an address and holds what is asked back a while."""

from __future__ import annotations

import asyncio
import sys

SECONDS = 0.020


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float
) -> None:
    try:
        while data := await reader.read(2**18):
            if delay:
                await asyncio.sleep(delay)
            writer.write(data)
            await writer.drain()
    except (ConnectionError, asyncio.CancelledError):
        pass
    finally:
        writer.close()


async def _serve(host: str, port: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(host, port)
        await asyncio.gather(_pass_on(reader, forth, SECONDS), _pass_on(back, writer, 0.0))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=2**20)
    own = server.sockets[0].getsockname()
    print(f"http://{own[0]}:{own[1]}", flush=True)
    # Ends with our parent, which holds the other end.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    at, _, number = sys.argv[1].removeprefix("http://").partition(":")
    asyncio.run(_serve(at, int(number)))
