"""The history of the emulated Snowflake: what was executed and who logged in, to whom it is shown, and in which form."""

from __future__ import annotations

import time
import unittest

from fixtures import Client, UpstreamCase

SCHEMA = "snowflake.information_schema"
VIEWS = "snowflake.account_usage"
ALL = "include_client_generated_statement => true"


def texts(client: Client, more: str = "") -> list[str | None]:
    rows = client.rows(f"select query_text from table({SCHEMA}.query_history_by_user(user_name => 'SVC_AGENTS'{more}))")
    return [row[0] for row in rows]


class History(UpstreamCase):
    def test_what_was_executed_is_there_with_its_session_and_its_end(self) -> None:
        with self.session() as client:
            client.query("use role snowfence_auditor")
            query_id = client.query("select 'marked' as here")["data"]["queryId"]
            client.query("select nothing from nowhere")
            rows = client.rows(
                f"select query_id, user_name, execution_status, error_code, session_id = {client.rows('select current_session()')[0][0]},"
                f" end_time >= start_time from table({SCHEMA}.query_history()) where query_text like 'select %marked%here'"
                " or query_text like 'select nothing%' order by start_time"
            )
            self.assertEqual(rows[0], [query_id, "SVC_AGENTS", "SUCCESS", None, "1", "1"])
            self.assertEqual(rows[1][2], "FAILED_WITH_ERROR")

    def test_children_of_a_text_with_several_have_rows_of_their_own(self) -> None:
        with self.session() as client:
            client.query("select 'c1'; select 'c2'", parameters={"MULTI_STATEMENT_COUNT": 2})
            found = texts(client)
            for text in ("select 'c1'; select 'c2'", "select 'c1'", "select 'c2'"):
                self.assertIn(text, found)

    def test_what_a_driver_runs_for_itself_is_shown_on_request_alone(self) -> None:
        with self.session() as client:
            client.query("select 'for itself'", isInternal=True)
            self.assertNotIn("select 'for itself'", texts(client))
            self.assertIn("select 'for itself'", texts(client, f", {ALL}"))

    def test_a_span_has_its_ends_and_no_more_than_seven_days(self) -> None:
        with self.session() as client:
            client.query("select 'now'")
            now = int(time.time() * 1_000_000)
            span = ", end_time_range_start => to_timestamp_ltz({}, 6), end_time_range_end => to_timestamp_ltz({}, 6)"
            self.assertIn("select 'now'", texts(client, span.format(now - 10_000_000, now + 1_000_000)))
            self.assertNotIn("select 'now'", texts(client, span.format(now - 20_000_000, now - 10_000_000)))
            ask = f"select 1 from table({SCHEMA}.query_history(%s))"
            week = 7 * 24 * 3600 * 1_000_000
            for more, code in (
                (span[2:].format(now - week - 1, now), "090064"),
                ("result_limit => 10001", "001021"),
                ("result_limit => 0", "001021"),
                ("time_range_start => to_timestamp_ltz(1, 6)", "001044"),
            ):
                self.assert_refused(client.query(ask % more), code)

    def test_others_are_shown_to_whom_it_was_granted(self) -> None:
        with self.session() as client:
            client.query("select 'of the service'")
        with self.session("other", "other") as client:
            self.assertEqual(texts(client), [])
            for view in ("query_history", "login_history", "sessions"):
                self.assert_refused(client.query(f"select 1 from {VIEWS}.{view}"), "002003")
            client.query("use role snowfence_auditor")
            self.assertIn("select 'of the service'", texts(client))
            self.assert_refused(client.query(f"select password from {VIEWS}.login_history"), "000904")
            self.assert_refused(client.query(f"select 1 from {VIEWS}.users"), "002003")

    def test_a_login_leads_from_a_session_to_an_address(self) -> None:
        with self.upstream.client() as stranger:
            stranger.login(password="wrong", CLIENT_APP_ID="Guess")
        with self.session() as client:
            client.query("use role snowfence_auditor")
            client.query("select 'with a login'")
            rows = client.rows(
                f"select l.client_ip, l.first_authentication_factor, l.is_success from {VIEWS}.query_history q"
                f" join {VIEWS}.sessions s on s.session_id = q.session_id"
                f" join {VIEWS}.login_history l on l.event_id = s.login_event_id"
                " where q.query_text = 'select ''with a login'''"
            )
            self.assertEqual(rows, [["127.0.0.1", "PASSWORD", "YES"]])
            failed = client.rows(
                "select error_code, reported_client_type from"
                f" table({SCHEMA}.login_history_by_user(user_name => 'svc_agents')) where is_success = 'NO'"
            )
            self.assertIn(["390100", "Guess"], failed)


if __name__ == "__main__":
    unittest.main()
