"""The envelope of Snowflake's driver protocol, and the refusals that it carries."""

from __future__ import annotations

from typing import Any

IN_PROGRESS = "333333"
IN_PROGRESS_ASYNC = "333334"


class Refusal(Exception):
    """A refusal as Snowflake words it: six digits, a SQLSTATE and a message, sent with HTTP status 200."""

    def __init__(self, code: str, message: str, sql_state: str = "08001") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.sql_state = sql_state


def success(data: Any = None, code: str | None = None) -> dict[str, Any]:
    """The envelope of a successful answer."""
    return {"data": data, "code": code, "message": None, "success": True}


def failure(refusal: Refusal, query_id: str | None = None) -> dict[str, Any]:
    """The envelope of a refusal; with `query_id`, the form that a failed statement has."""
    data: dict[str, Any] | None = None
    if query_id is not None:
        data = {
            "internalError": False,
            "errorCode": refusal.code,
            "age": 0,
            "sqlState": refusal.sql_state,
            "queryId": query_id,
            "line": -1,
            "pos": -1,
            "type": "COMPILATION",
        }
    return {"data": data, "code": refusal.code, "message": refusal.message, "success": False}
