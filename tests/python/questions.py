"""How long the questions of deploy/clickhouse.md take, and how much of the tables they read, by the ClickHouse engine.

    snowfence schema print > schema.sql
    python questions.py --schema schema.sql --guide deploy/clickhouse.md --rows 2000000

Fills the tables with statements of 90 days, by 1,000 callers in 2,000 pods on 200 nodes, each on 20 of 5,000 tables; one in 2,000 is
held, and half of these are approved; each has an outcome. Each question is asked three times, and the median is told; also how long a server of 16 cores would take for
100,000,000 statements, by the time of a core that these took.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from pathlib import Path

from chdb.session import Session

CHUNK = 1_000_000
TIMES = 3
# Of an ordinary server.
CORES = 16
DAYS = 90
QUESTION = re.compile(r"^### (.+?)\n.*?```sql\n(.*?)```", re.M | re.S)
# An identifier of a number: any, but the same each time.
IDENTIFIER = "reinterpretAsUUID(bitShiftLeft(toUInt128(cityHash64({0})), 64) + toUInt128({0}))"
# Of 20 that the caller uses.
TABLE = "(number % 1000 * 5 + cityHash64(number, 3) % 20) % 5000"
KEY = f"""concat('node-', toString(number % 200)) AS node,
    toUUID('00000000-0000-0000-0000-000000000001') AS journal, number AS seq,
    now64(6) - toIntervalMicrosecond(({{rows}} - number) * intDiv({DAYS * 86_400_000_000}, {{rows}})) AS time"""
CALLER = "'https://idp.example' AS issuer, concat('agent-', toString(number % 1000)) AS subject"
WORKLOAD = f"""if(number % 2000 = 7, '/pods/analyst', concat('/pods/pod-', toString(number % 2000))) AS cgroup,
    1 AS pid, 1000 AS uid, 'python3' AS comm, '/usr/bin/python3' AS executable, {CALLER}, ['analysts'] AS groups"""
HELD = "cityHash64(number, 6) % 2000 = 1"
STATEMENT = f"""{IDENTIFIER.format("number")} AS id, {IDENTIFIER.format("intDiv(number, 40) + 1000000000000")} AS session,
    toString(cityHash64(number, 1)) AS request_id, 'acme.snowflakecomputing.com' AS account, 'SVC_AGENTS' AS user,
    if(cityHash64(number, 2) % 10000 = 0, 'ACCOUNTADMIN', 'ANALYST') AS role,
    concat('SELECT * FROM table_', toString({TABLE}), ' WHERE id = ', toString(cityHash64(number, 4)),
           if(cityHash64(number, 5) % 100000 = 0, ' AND salaries > 0', '')) AS sql,
    'select' AS kind, if(cityHash64(number, 6) % 200 = 0, 'destructive', 'read') AS effect, ['select'] AS actions,
    [if({TABLE} = 42, 'SALES.PUBLIC.ORDERS', concat('SALES.PUBLIC.TABLE_', toString({TABLE})))] AS objects, [] AS features,
    multiIf(cityHash64(number, 6) % 200 = 0, 'deny', {HELD}, 'hold', 'allow') AS verdict,
    'reads' AS policy, false AS describe_only, 0 AS binds"""
APPROVED = "cityHash64(number, 9) % 2 = 0"
APPROVAL = f"""{IDENTIFIER.format("number")} AS statement, if({APPROVED}, 'approved', 'denied') AS ruling,
    'https://idp.example' AS approver_issuer, concat('steward-', toString(number % 10)) AS approver, 'ticket' AS reason"""
OUTCOME = f"""{IDENTIFIER.format("number")} AS statement,
    if(cityHash64(number, 6) % 200 = 0 OR ({HELD} AND NOT {APPROVED}), 'refused', 'succeeded') AS status, toString(cityHash64(number, 7)) AS query_id,
    cityHash64(number, 8) % 1000 AS rows, '' AS code, '' AS message, 1500 AS duration_us, 2048 AS response_bytes,
    {CALLER}"""
SESSION = f"""{IDENTIFIER.format("intDiv(number, 40) + 1000000000000")} AS id, 'acme.snowflakecomputing.com' AS account,
    'analysts' AS rule, 'SVC_AGENTS' AS user, 'ANALYST' AS role, '1' AS snowflake_session, 'PythonConnector' AS client"""
EVENT = f"""{IDENTIFIER.format("number")} AS id, if(number % 500 = 0, 'tunnel_refused', 'session_closed') AS kind,
    'acme.snowflakecomputing.com' AS account, 'host' AS detail"""
# Each table with its columns, and which statements have a row there.
TABLES = (
    ("statements", (WORKLOAD, STATEMENT), "true"),
    ("approvals", (APPROVAL,), HELD),
    ("outcomes", (OUTCOME,), "true"),
    ("sessions", (WORKLOAD, SESSION), "number % 40 = 0"),
    ("events", (WORKLOAD, EVENT), "number % 50 = 0"),
)


def fill(session: Session, rows: int) -> None:
    """Fills the tables in chunks, as they come in."""
    for start in range(0, rows, CHUNK):
        count = min(CHUNK, rows - start)
        for table, columns, which in TABLES:
            select = ", ".join((KEY.format(rows=rows), *columns))
            names = re.findall(r"\bAS (\w+)", select)
            session.query(
                f"INSERT INTO snowfence.{table} ({', '.join(names)})"
                f" SELECT {select} FROM numbers({start}, {count}) WHERE {which}"
                " SETTINGS max_partitions_per_insert_block = 0"
            )
    # They would count as the first question's time.
    while session.query("SELECT count() FROM system.merges", "TSV").bytes() != b"0\n":
        time.sleep(1)


def ask(session: Session, sql: str) -> dict[str, float]:
    """Asks a question; seconds, seconds of a core, rows and bytes."""
    seconds, core_seconds = [], []
    for _ in range(TIMES):
        began, core_began = time.monotonic(), time.process_time()
        result = session.query(sql, "Null")
        seconds.append(time.monotonic() - began)
        core_seconds.append(time.process_time() - core_began)
    return {
        "seconds": statistics.median(seconds),
        "core_seconds": statistics.median(core_seconds),
        "rows": result.storage_rows_read(),
        "bytes": result.storage_bytes_read(),
    }


def main(options: argparse.Namespace) -> None:
    """Fills, asks, and prints."""
    with tempfile.TemporaryDirectory(prefix="questions-") as folder:
        session = Session(folder)
        try:
            for statement in options.schema.read_text().split(";\n"):
                if statement.strip():
                    session.query(statement)
            fill(session, options.rows)
            count = "SELECT sum(total_rows) FROM system.tables WHERE database = 'snowfence'"
            total = int(session.query(count, "TSV").bytes())
            found = []
            for title, sql in QUESTION.findall(options.guide.read_text()):
                if "query_history" not in sql:
                    found.append({"question": title} | ask(session, sql))
        finally:
            session.close()
    if options.json:
        print(json.dumps({"statements": options.rows, "rows": total, "questions": found}))
        return
    print(f"{options.rows:,} statements, {total:,} rows in all tables\n")
    print("| question | seconds | rows read | of all rows | MB read | core ns a row | at 100 M |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for each in found:
        rows, core_seconds = each["rows"], each["core_seconds"]
        cells = (
            each["question"],
            f"{each['seconds']:.3f}",
            f"{rows:,}",
            f"{rows / total:.1%}",
            f"{each['bytes'] / 1e6:.1f}",
            f"{core_seconds * 1e9 / max(rows, 1):.0f}",
            f"{core_seconds * 100e6 / options.rows / CORES:.2f} s",
        )
        print(f"| {' | '.join(cells)} |")
    print(f"\nAt 100 M: on {CORES} cores, if time grows with rows, and all cores have work.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--schema", type=Path, required=True, metavar="FILE", help="the DDL")
    parser.add_argument("--guide", type=Path, required=True, metavar="FILE", help="where the questions are")
    parser.add_argument("--rows", type=int, default=2_000_000, metavar="N", help="statements")
    parser.add_argument("--json", action="store_true", help="print JSON")
    main(parser.parse_args())
