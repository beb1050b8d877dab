"""Drives an unmodified connector for the tests: JSON with connection arguments and steps on stdin, outcomes on stdout.

A step is `[method, argument, …]` on a cursor; the outcome is its rows, or the exception as the user sees it. Beside
the cursor's methods there are `async` (execute_async, wait, fetch), `multi` (all results of a text with several
statements), `signal` (sends signal [1] to process [2]) and `write_pandas` (table [1], columns [2], options [3]).
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from typing import Any

warnings.simplefilter("ignore")

import snowflake.connector  # noqa: E402 - it warns at once


def outcome(cursor: Any, step: list[Any]) -> Any:
    """Runs one step."""
    method, *arguments = step
    if method == "signal":
        os.kill(arguments[1], arguments[0])
        # Its handler runs when the process next looks; until then the next step could be answered as before.
        time.sleep(0.3)
        return None
    if method == "async":
        cursor.execute_async(arguments[0])
        cursor.get_results_from_sfqid(cursor.sfqid)
        return cursor.fetchall()
    if method == "multi":
        cursor.execute(arguments[0], num_statements=arguments[1])
        results = [cursor.fetchall()]
        while cursor.nextset():
            results.append(cursor.fetchall())
        return results
    if method == "write_pandas":
        return write_pandas(cursor.connection, *arguments)
    getattr(cursor, method)(*arguments)
    return {"rows": cursor.fetchall(), "count": cursor.rowcount, "id": cursor.sfqid}


def write_pandas(connection: Any, table: str, columns: dict[str, list[Any]], options: dict[str, Any]) -> Any:
    """Writes a frame by way of a stage; whether all went well, and the numbers of files and rows."""
    import pandas
    from snowflake.connector import pandas_tools

    success, files, rows, _ = pandas_tools.write_pandas(connection, pandas.DataFrame(columns), table, **options)
    return [success, files, rows]


def guarded(work: Any, *arguments: Any) -> Any:
    """The result of `work`, or its Snowflake error as data."""
    try:
        return work(*arguments)
    except snowflake.connector.errors.Error as error:
        text = error.msg or str(error)
        return {
            "error": type(error).__name__,
            "errno": error.errno,
            "sqlstate": error.sqlstate,
            "message": text,
        }


def main() -> None:
    """Reads the work, does it, prints the outcomes."""
    work = json.load(sys.stdin)
    connection = guarded(lambda: snowflake.connector.connect(**work["connect"]))
    if isinstance(connection, dict):
        print(json.dumps({"refused": connection}))
        return
    cursor = connection.cursor()
    outcomes = [guarded(outcome, cursor, step) for step in work["steps"]]
    connection.close()
    print(json.dumps({"outcomes": outcomes}, default=str))


if __name__ == "__main__":
    main()
