"""A web server of byte ranges with latency and a bandwidth a connection, in its own process; faults if asked for."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

LATENCY_S = 0.030
BYTES_PER_S = 80e6
PIECE = 256 * 1024


@contextmanager
def range_server(
    root: Path, *, latency_s: float = LATENCY_S, bytes_per_s: float = BYTES_PER_S, faults: float = 0.0
) -> Iterator[str]:
    """Serve a folder; the address. faults: share of requests that are answered 503, cut short or dropped."""
    here, there = multiprocessing.Pipe()
    arguments = (str(root), latency_s, bytes_per_s, faults, there)
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=arguments, daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.terminate()
        process.join()


def _serve(root: str, latency_s: float, bytes_per_s: float, faults: float, ready: Connection) -> None:
    asyncio.run(_main(Path(root), latency_s, bytes_per_s, faults, ready))


async def _main(root: Path, latency_s: float, bytes_per_s: float, faults: float, ready: Connection) -> None:
    rng = random.Random(0)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await _head(reader):
                await asyncio.sleep(latency_s)
                fault = rng.choice(("503", "cut", "drop")) if rng.random() < faults else ""
                if fault == "drop" or not await _answer(root, head, writer, bytes_per_s, fault):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    ready.send(server.sockets[0].getsockname()[1])
    async with server:
        await server.serve_forever()


async def _head(reader: asyncio.StreamReader) -> str:
    try:
        return (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return ""


async def _answer(root: Path, head: str, writer: asyncio.StreamWriter, bytes_per_s: float, fault: str) -> bool:
    """Answer a GET or HEAD; False when the connection ends with it."""
    method, target, _ = head.split("\r\n", 1)[0].split(" ", 2)
    path = root / target.split("?")[0].lstrip("/")
    if fault == "503":
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        return True
    if not path.is_file():
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        return True
    size = path.stat().st_size
    found = re.search(r"(?im)^range: bytes=(\d*)-(\d*)", head)
    low, high = 0, size
    if found:
        low = int(found[1]) if found[1] else max(0, size - int(found[2]))
        high = min(size, int(found[2]) + 1) if found[1] and found[2] else size
    status = f"206 Partial Content\r\nContent-Range: bytes {low}-{high - 1}/{size}" if found else "200 OK"
    etag = f'"{path.stat().st_mtime_ns}"'
    writer.write(
        f"HTTP/1.1 {status}\r\nContent-Length: {high - low}\r\nAccept-Ranges: bytes\r\nETag: {etag}\r\n"
        "Last-Modified: Wed, 01 Jan 2020 00:00:00 GMT\r\nContent-Type: application/octet-stream\r\n\r\n".encode()
    )
    if method == "HEAD":
        await writer.drain()
        return True
    end = low + (high - low) // 2 if fault == "cut" else high
    with path.open("rb") as file:
        file.seek(low)
        while low < end:
            data = file.read(min(PIECE, end - low))
            writer.write(data)
            await writer.drain()
            low += len(data)
            await asyncio.sleep(len(data) / bytes_per_s)
    return not fault
