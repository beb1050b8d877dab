"""A server with Snowflake's certificate and log, for machines on which the emulated Snowflake is too much.

    python plain_upstream.py --listen 10.77.1.2:443 --network 10.77.3.0/24 --certificate c.pem --key k.pem --log log

It answers every request with an empty page, and logs connections, requests, and what ended without one, as
`upstream.py` does.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
from pathlib import Path

import program
from emulator.request_log import RequestLog

LARGEST_HEAD = 16 * 1024
IDLE_SECONDS = 20.0
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


async def serve(log: RequestLog, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serves one client until it has nothing more to say."""
    peer = program.format_address(writer.get_extra_info("peername"))
    local = program.format_address(writer.get_extra_info("sockname"))
    requests = 0
    try:
        while True:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), IDLE_SECONDS)
            requests += 1
            method, path, *_ = [*head.split(b"\r\n", 1)[0].decode("latin-1").split(" "), "", ""]
            log.write("request", method=method, path=path, peer=peer, local=local, status=200)
            writer.write(ANSWER)
            await writer.drain()
    except (asyncio.LimitOverrunError, asyncio.IncompleteReadError, TimeoutError, OSError):
        pass
    finally:
        if requests == 0:
            log.write("silent", peer=peer, local=local)
        writer.close()


async def main(options: argparse.Namespace) -> None:
    """Serves until a signal comes."""
    stop = program.stop_on_signal()
    log = RequestLog(options.log)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(options.certificate, options.key)
    listeners = []
    for address in options.listen + [address for text in options.network for address in program.addresses_in(text)]:
        listener = program.bind(address)
        await asyncio.start_server(
            lambda reader, writer: serve(log, reader, writer), sock=listener, ssl=tls, limit=LARGEST_HEAD
        )
        listeners.append(listener)
    program.announce(listeners)
    await stop.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--listen", action="append", required=True, metavar="ADDR:PORT", help="repeat for several")
    parser.add_argument("--network", action="append", default=[], metavar="NET", help="listen in all of it, on 443")
    parser.add_argument("--certificate", type=Path, required=True, help="PEM chain for the account's host name")
    parser.add_argument("--key", type=Path, required=True, help="PEM key of the certificate")
    parser.add_argument("--log", type=Path, required=True, help="JSON-lines file to append to")
    program.run(main(parser.parse_args()))
