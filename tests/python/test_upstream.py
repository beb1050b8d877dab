"""The emulated Snowflake's protocol, spoken by hand: what drivers do rarely, and what they never do."""

from __future__ import annotations

import json
import threading
import time
import unittest
import uuid

import fixtures
from fixtures import UpstreamCase


class Sessions(UpstreamCase):
    def test_login_answers_with_all_that_drivers_need(self) -> None:
        with self.upstream.client() as client:
            data = client.login()["data"]
            self.assertEqual(data["displayUserName"], "SVC_AGENTS")
            expected = {
                "databaseName": "SANDBOX",
                "schemaName": "PUBLIC",
                "warehouseName": "WH2",
                "roleName": "ANALYST",
            }
            self.assertEqual(data["sessionInfo"], expected)
            self.assertGreater(data["sessionId"], 2**32)
            self.assertGreater(data["masterValidityInSeconds"], data["validityInSeconds"])
            self.assertNotEqual(data["token"], data["masterToken"])
            self.assertEqual(client.rows("select current_role(), 'current_role()'"), [["ANALYST", "current_role()"]])

    def test_a_wrong_host_is_no_account(self) -> None:
        with self.upstream.client() as client:
            login = json.dumps({"data": {"LOGIN_NAME": "svc_agents", "PASSWORD": fixtures.PASSWORD}}).encode()
            for host in ("other.snowflakecomputing.com", "localhost.evil", ""):
                status, _ = client.raw("POST", "/session/v1/login-request", login, host=host)
                self.assertEqual(status, 404, host)
            self.assertEqual(client.raw("POST", "/session/v1/login-request", login, host="LOCALHOST:443")[0], 200)

    def test_tokens_must_be_known_and_live(self) -> None:
        with self.session() as client:
            self.assert_refused(client.call("POST", "/session/heartbeat", authorization=""), "390101")
            self.assert_refused(
                client.call("POST", "/session/heartbeat", authorization='Snowflake Token="ey.made.up"'),
                "390104",
            )
            self.assert_refused(
                client.call("POST", "/session/heartbeat", authorization=f'Snowflake Token="{client.master}"'),
                "390104",
            )
            self.assertTrue(client.call("POST", "/session/heartbeat")["success"])
            self.assertTrue(client.call("POST", "/session?delete=true")["success"])
            self.assert_refused(client.query("select 1"), "390111")
            renewal = {"oldSessionToken": client.token, "requestType": "RENEW"}
            client.token = client.master
            self.assert_refused(client.call("POST", "/session/token-request", renewal), "390111")

    def test_renewal_replaces_both_tokens(self) -> None:
        with self.session() as client:
            old, master = client.token, client.master
            renewal = {"oldSessionToken": old, "requestType": "RENEW"}
            self.assert_refused(client.call("POST", "/session/token-request", renewal), "390115")
            client.token = master
            data = client.call("POST", "/session/token-request", renewal)["data"]
            self.assertEqual(len({old, master, data["sessionToken"], data["masterToken"]}), 4)
            self.assert_refused(client.call("POST", "/session/token-request", renewal), "390115")
            client.token = old
            self.assert_refused(client.query("select 1"), "390112")
            client.token = data["sessionToken"]
            self.assertEqual(client.rows("select 1"), [["1"]])

    def test_an_issued_token_leaves_the_others_alone(self) -> None:
        with self.session() as client:
            first = client.token
            client.token = client.master
            issue = {"oldSessionToken": first, "requestType": "ISSUE"}
            second = client.call("POST", "/session/token-request", issue)["data"]["sessionToken"]
            for token in (first, second):
                client.token = token
                self.assertEqual(client.rows("select 1"), [["1"]])
            self.assert_refused(client.call("POST", "/session/token-request", {"requestType": "STEAL"}), "390400")

    def test_an_unknown_database_is_not_created(self) -> None:
        with self.upstream.client() as client:
            body = {"data": {"LOGIN_NAME": "svc_agents", "PASSWORD": fixtures.PASSWORD}}
            answer = client.call("POST", "/session/v1/login-request?databaseName=nowhere", body)
            self.assertIsNone(answer["data"]["sessionInfo"]["databaseName"])
            client.token = answer["data"]["token"]
            self.assert_refused(client.query("select * from customers"), "090105")


class Statements(UpstreamCase):
    def test_a_repeated_request_id_is_the_same_statement(self) -> None:
        with self.session() as client:
            client.query("create table once (a int)")
            request_id = str(uuid.uuid4())
            first = client.query("insert into once values (1)", request_id)
            again = client.query("insert into once values (1)", request_id, querySubmissionTime=7)
            self.assertEqual(first["data"]["queryId"], again["data"]["queryId"])
            self.assertEqual(client.rows("select count(*) from once"), [["1"]])
            self.assert_refused(client.query("insert into once values (2)", request_id), "390400")
            logged = [line["executed"] for line in self.upstream.lines() if request_id in line["query"]]
            self.assertEqual(logged, [True, False, False])
        with self.session() as other:
            self.assertEqual(other.query("select 5", request_id, agent="JavaScript/")["data"]["rowset"], [["5"]])

    def test_rows_as_json(self) -> None:
        with self.session() as client:
            sql = """select 1.50::number(10,2), true, null, 'ü', '2025-01-02'::date,
                '2025-01-02 03:04:05.678'::timestamp_ntz, '01:02:03'::time, 0.25::float, x'c0ff',
                '1969-12-31 23:59:59.5'::timestamp_ntz"""
            row = client.rows(sql)[0]
            expected = [
                "1.50",
                "1",
                None,
                "ü",
                "20090",
                "1735787045.678000000",
                "3723.000000000",
                "0.25",
                "C0FF",
            ]
            self.assertEqual(row, [*expected, "-0.500000000"])
            self.assertEqual(client.rows("select * from customers where 1 = 0"), [])
            asked = client.query("select 1", parameters={"PYTHON_CONNECTOR_QUERY_RESULT_FORMAT": "JSON"})
            self.assertEqual(asked["data"]["rowset"], [["1"]])
            self.assertEqual(client.query("select 1")["data"]["queryResultFormat"], "arrow")

    def test_errors_carry_the_query_id(self) -> None:
        with self.session() as client:
            for sql, code, state in (
                ("select * from nope", "002003", "42S02"),
                ("selec 1", "001003", "42000"),
                ("  -- nothing", "000900", "42601"),
                ("select 1; select 2", "000008", "0A000"),
                ("select 'open", "001003", "42000"),
                ("call no_such_procedure()", None, None),
                ("\0\ud800", None, None),
                ("(" * 50_000, None, None),
            ):
                answer = client.query(sql)
                self.assertFalse(answer["success"], sql)
                self.assertRegex(answer["code"], r"\A\d{6}\Z")
                self.assertEqual(len(answer["data"]["queryId"]), 36)
                if code:
                    self.assertEqual((answer["code"], answer["data"]["sqlState"]), (code, state), sql)
            self.assertEqual(client.rows("select 1"), [["1"]])

    def test_describing_does_not_execute(self) -> None:
        with self.session() as client:
            client.query("create table kept (a int)")
            described = client.query("insert into kept values (1)", describeOnly=True)
            self.assertEqual(described["data"]["rowtype"][0]["name"], "number of rows inserted")
            for sql in (
                "drop table kept",
                "truncate table kept",
                "use role nobody",
                "begin; drop table kept",
            ):
                client.query(sql, describeOnly=True, parameters={"MULTI_STATEMENT_COUNT": 0})
            self.assertEqual(client.rows("select count(*), current_role() from kept"), [["0", "ANALYST"]])
            columns = client.query("select id, name from customers", describeOnly=True)["data"]
            self.assertEqual([column["name"] for column in columns["rowtype"]], ["ID", "NAME"])
            self.assertFalse(self.upstream.lines()[-1]["executed"])

    def test_several_statements_stop_at_the_first_error(self) -> None:
        with self.session() as client:
            sql = "create table several (a int); insert into several values (1), (2); select * from several order by a"
            data = client.query(sql, parameters={"MULTI_STATEMENT_COUNT": 0}, agent="JavaScript/")["data"]
            children = data["resultIds"].split(",")
            self.assertEqual((len(children), data["resultTypes"].split(",")[1:]), (3, ["12544", "4096"]))
            last = client.result(children[2])
            self.assertEqual(last["data"]["rowset"], [["1"], ["2"]])
            sql = "insert into several values (3); select * from nope; insert into several values (4)"
            self.assert_refused(client.query(sql, parameters={"MULTI_STATEMENT_COUNT": "3"}), "002003")
            self.assertEqual(client.rows("select max(a) from several"), [["3"]])
            client.query("alter session set multi_statement_count = 0")
            self.assertTrue(client.query("select 1; select 2")["success"])

    def test_bindings(self) -> None:
        with self.session() as client:
            bindings = {"1": {"type": "FIXED", "value": "7"}, "2": {"type": "TEXT", "value": "it's"}}
            self.assertEqual(client.rows("select ?, ?", bindings=bindings), [["7", "it's"]])


class LongStatements(UpstreamCase):
    patience = 0.5

    def test_a_running_statement_is_in_the_log_already(self) -> None:
        with self.session() as client:
            waiting = client.query("select system$wait(20)", wait=False)
            self.assertEqual(waiting["code"], "333333")
            self.assertIn("select system$wait(20)", self.upstream.statements())
            client.call("POST", f"/queries/{waiting['data']['queryId']}/abort-request")

    def test_a_long_statement_is_in_progress_until_it_is_done(self) -> None:
        with self.session() as client:
            answer = client.query("select system$wait(2)", wait=False)
            codes = [answer["code"]]
            while answer["code"] is not None:
                self.assertTrue(answer["success"])
                answer = client.call("GET", answer["data"]["getResultUrl"])
                codes.append(answer["code"])
            self.assertEqual(answer["data"]["rowset"], [["waited 2 seconds"]])
            self.assertEqual(set(codes[:-1]), {"333333"})
            self.assertLess(len(codes), 8)

    def test_a_background_statement_can_be_watched_and_scanned(self) -> None:
        with self.session() as client:
            began = time.monotonic()
            answer = client.query("select count(*) from orders", asyncExec=True)
            self.assertEqual((answer["success"], answer["code"]), (True, "333334"))
            self.assertLess(time.monotonic() - began, self.patience)
            query_id = answer["data"]["queryId"]
            self.assertTrue(client.result(query_id)["success"])
            # Two slashes, as the connector 5.2 writes it.
            state = client.call("GET", f"/monitoring/queries//{query_id}")["data"]["queries"][0]
            self.assertEqual((state["status"], state["sqlText"]), ("SUCCESS", "select count(*) from orders"))
            scanned = client.query(f"select * from table(result_scan('{query_id}'))")
            self.assertEqual(scanned["data"]["total"], 1)
            failed = client.query("select * from nope", asyncExec=True)["data"]["queryId"]
            self.assert_refused(client.result(failed), "002003")
            state = client.call("GET", f"/monitoring/queries/{failed}")["data"]["queries"][0]
            self.assertEqual((state["status"], state["errorCode"]), ("FAILED_WITH_ERROR", "002003"))

    def test_other_users_see_nothing_of_a_query(self) -> None:
        with self.session() as client:
            query_id = client.query("select 'secret'")["data"]["queryId"]
        with self.session("other", "other") as stranger:
            self.assert_refused(stranger.result(query_id), "000709")
            self.assertEqual(stranger.call("GET", f"/monitoring/queries/{query_id}")["data"], {"queries": []})
            self.assert_refused(stranger.query(f"select * from table(result_scan('{query_id}'))"), "000709")
            self.assert_refused(stranger.call("POST", f"/queries/{query_id}/abort-request"), "000605")

    def test_waiting_statements_are_cancelled_by_both_ways(self) -> None:
        with self.session() as client:
            request_id = str(uuid.uuid4())
            waiting = client.query("call system$wait(30)", request_id, wait=False)
            self.assertTrue(client.call("POST", "/queries/v1/abort-request", {"requestId": request_id})["success"])
            self.assert_refused(client.finish(waiting), "000604")
            waiting = client.query("call system$wait(30)", wait=False)["data"]["queryId"]
            self.assertTrue(client.call("POST", f"/queries/{waiting}/abort-request", {})["success"])
            self.assert_refused(client.result(waiting), "000604")
            self.assert_refused(client.call("POST", f"/queries/{waiting}/abort-request", {}), "000605")

    def test_a_statement_in_the_engine_is_cancelled(self) -> None:
        with self.session() as client:
            endless = "select count(*) from orders a, orders b, orders c, orders d where a.amount + b.amount > c.amount"
            query_id = client.query(endless, wait=False)["data"]["queryId"]
            self.assertTrue(client.call("POST", f"/queries/{query_id}/abort-request", {})["success"])
            self.assert_refused(client.result(query_id), "000604")
            self.assertEqual(client.rows("select 1"), [["1"]])

    def test_a_repetition_waits_for_the_first(self) -> None:
        with self.session() as client:
            request_id = str(uuid.uuid4())
            first = client.query("select system$wait(1)", request_id, wait=False)
            second = client.query("select system$wait(1)", request_id, wait=False)
            self.assertEqual(first["data"]["queryId"], second["data"]["queryId"])

    def test_sessions_work_side_by_side(self) -> None:
        failures: list[object] = []

        def work(number: int) -> None:
            try:
                with self.session() as client:
                    client.query(f"create table mine_{number} (a int)")
                    for value in range(20):
                        client.query(f"insert into mine_{number} values ({value})")
                    rows = client.rows(f"select count(*), max(a) from mine_{number}")
                    if rows != [["20", "19"]]:
                        failures.append(rows)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])


if __name__ == "__main__":
    unittest.main()
