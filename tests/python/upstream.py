"""The emulated Snowflake of the sandbox: fakesnow behind TLS, with what a real account has and fakesnow lacks.

    python upstream.py --listen 10.77.2.1:443 --listen '[fd77::1]:443' --certificate account.pem --key account.key \\
        --account acme.eu-west-1.snowflakecomputing.com --storage acme-stage.s3.eu-west-1.amazonaws.com \\
        --azure acmestage.blob.core.windows.net --gcs storage.googleapis.com \\
        --credentials credentials.json --log upstream.jsonl --database SANDBOX --schema PUBLIC --warehouse WH

The log has a line for each request ("event": "request", written before a statement runs and before the answer is
sent), and lines for TCP connections ("connection"), TLS connections without a request ("silent") and bytes that are
no HTTP ("malformed"). SIGUSR1 ends every session token at once, so that tests see clients renew theirs.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import warnings
from pathlib import Path

import program
import web
from emulator.application import Application, account_name
from emulator.credentials import Credentials
from emulator.engine import Engine
from emulator.request_log import RequestLog
from emulator.seed import seed
from emulator.sessions import Sessions
from emulator.storage import Storage
from emulator.transport import logging_protocol, logging_socket, tls_context


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--listen", action="append", required=True, metavar="ADDR:PORT", help="repeat for several")
    parser.add_argument("--network", action="append", default=[], metavar="NET", help="listen in all of it, on 443")
    parser.add_argument("--certificate", type=Path, required=True, help="PEM chain for the account's host name")
    parser.add_argument("--key", type=Path, required=True, help="PEM key of the certificate")
    parser.add_argument("--account", required=True, metavar="HOST", help="the account's host name")
    parser.add_argument("--alias", action="append", default=[], metavar="HOST", help="another name of the account")
    parser.add_argument("--storage", required=True, metavar="HOST", help="the name of the storage behind it")
    parser.add_argument("--azure", required=True, metavar="HOST", help="the same at Azure: ACCOUNT.blob.core.windows.net")
    parser.add_argument("--gcs", required=True, metavar="HOST", help="the same at Google's: storage.googleapis.com")
    parser.add_argument("--credentials", type=Path, required=True, help="JSON file of users and their secrets")
    parser.add_argument("--log", type=Path, required=True, help="JSON-lines file to append to")
    parser.add_argument("--database", required=True)
    parser.add_argument("--schema", required=True)
    parser.add_argument("--warehouse", required=True)
    parser.add_argument("--session-seconds", type=int, default=3600, help="validity of a session token")
    parser.add_argument("--master-seconds", type=int, default=14400, help="validity of a master token")
    parser.add_argument("--patience", type=float, default=45.0, help="seconds until a running query is 'in progress'")
    return parser.parse_args()


async def main(options: argparse.Namespace) -> None:
    """Wires everything together and serves until a signal comes."""
    stop = program.stop_on_signal()
    log = RequestLog(options.log)
    credentials = Credentials(options.credentials, account_name(options.account))
    tls = tls_context(options.certificate, options.key)
    addresses = options.listen + [address for text in options.network for address in program.addresses_in(text)]
    listeners = [program.bind(address, factory=logging_socket(log)) for address in addresses]
    engine = Engine()
    seed(engine, options.database.upper(), options.schema.upper())
    sessions = Sessions(options.session_seconds, options.master_seconds)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, sessions.expire_all)
    warehouse = options.warehouse.upper()
    hosts = [options.account, *options.alias]
    storage = Storage(options.storage.lower(), options.azure.lower(), options.gcs.lower())
    application = Application(hosts, credentials, sessions, engine, log, warehouse, options.patience, storage)
    await web.serve(application, listeners, stop, tls, logging_protocol(log), account=options.account)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s upstream %(levelname)s %(message)s")
    # Of no use to a reader: every failed statement, and with every result a hint for fakesnow's developers.
    logging.getLogger("fakesnow.server").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Arrow output on a DB-API result")
    program.run(main(arguments()))
