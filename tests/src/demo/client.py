"""Runs the statements of its arguments one after the other on one connection."""

import json
import os
import sys

import snowflake.connector

connection = snowflake.connector.connect(
    account=os.environ["SNOWFLAKE_ACCOUNT"],
    user=os.environ["SNOWFLAKE_USER"],
    authenticator="oauth",
    token=os.environ["SNOWFLAKE_TOKEN"],
    database=os.environ["SNOWFLAKE_DATABASE"],
    schema=os.environ["SNOWFLAKE_SCHEMA"],
    warehouse=os.environ["SNOWFLAKE_WAREHOUSE"],
)
cursor = connection.cursor()
for sql in sys.argv[1:]:
    try:
        outcome = {"rows": cursor.execute(sql).fetchall()}
    except snowflake.connector.errors.Error as error:
        outcome = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps({"sql": sql, **outcome}, default=str), flush=True)
connection.close()
