"""A plain HTTP CONNECT proxy: the way around the agent that tests try from inside a pod.

python connect_proxy.py --listen 10.77.1.2:3128
"""

from __future__ import annotations

import argparse
import asyncio
import sys

import program

LARGEST_HEAD = 16 * 1024
CONNECT_SECONDS = 10.0


class BadRequest(Exception):
    """A request that is no CONNECT, with the status line to answer it by."""


async def read_target(reader: asyncio.StreamReader) -> tuple[str, int]:
    """Reads the request's head and returns the host and port that the client wants."""
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), CONNECT_SECONDS)
    except (asyncio.LimitOverrunError, asyncio.IncompleteReadError, TimeoutError):
        raise BadRequest("400 Bad Request") from None
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    if len(words) != 3:
        raise BadRequest("400 Bad Request")
    if words[0] != "CONNECT":
        raise BadRequest("405 Method Not Allowed")
    try:
        return program.parse_address(words[1])
    except program.StartError:
        raise BadRequest("400 Bad Request") from None


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Moves bytes one way until the sender is done, then tells the receiver so."""
    try:
        while data := await reader.read(64 * 1024):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.close()


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serves one client."""
    try:
        host, port = await read_target(reader)
        try:
            connecting = asyncio.open_connection(host, port)
            answers, questions = await asyncio.wait_for(connecting, CONNECT_SECONDS)
        except (OSError, TimeoutError) as error:
            print(f"connect_proxy: no way to {host}:{port}: {error}", file=sys.stderr)
            raise BadRequest("502 Bad Gateway") from None
        print(f"connect_proxy: {host}:{port}", file=sys.stderr)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            await asyncio.gather(relay(reader, questions), relay(answers, writer))
        finally:
            questions.close()
    except BadRequest as error:
        writer.write(f"HTTP/1.1 {error}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    except OSError:
        pass
    finally:
        writer.close()


async def main(options: argparse.Namespace) -> None:
    """Serves until a signal comes."""
    stop = program.stop_on_signal()
    listener = program.bind(options.listen)
    await asyncio.start_server(handle, sock=listener, limit=LARGEST_HEAD)
    program.announce([listener])
    await stop.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--listen", required=True, metavar="ADDR:PORT")
    program.run(main(parser.parse_args()))
