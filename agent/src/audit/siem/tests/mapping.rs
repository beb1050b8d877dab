//! Which record becomes what.

use serde_json::{Value, json};
use uuid::Uuid;

use super::super::super::samples::{approval, caller, checkpoint, event, outcome, session, statement};
use super::mapped;
use crate::audit::{Approval, EventKind, OutcomeStatus, Record, Ruling, Statement, Verdict};

fn one(record: impl Into<Record>) -> Value {
    several(vec![record.into()]).remove(0)
}

fn several(records: Vec<Record>) -> Vec<Value> {
    mapped(records).iter().map(|event| serde_json::from_str(&event.json).unwrap()).collect()
}

fn of_kind(kind: &str, effect: &str, objects: &[&str], verdict: Verdict) -> Statement {
    let mut statement = statement(Uuid::now_v7(), "text", verdict);
    (statement.kind, statement.effect) = (kind.to_owned(), effect.to_owned());
    statement.objects = objects.iter().map(ToString::to_string).collect();
    statement
}

#[test]
fn a_statement_is_an_activity_of_its_verb_on_its_first_object() {
    for (kind, effect, activity) in [
        ("SELECT", "read", 4),
        ("INSERT", "write", 5),
        ("COPY INTO LOCATION", "exfiltration", 5),
        ("ALTER WAREHOUSE", "admin", 2),
        ("CREATE TABLE", "write", 6),
        ("DROP TABLE", "destructive", 7),
        ("SHOW", "read", 8),
        ("SELECT; DROP TABLE", "destructive", 7),
        ("BLOCK", "opaque", 99),
    ] {
        let mapped = one(of_kind(kind, effect, &[], Verdict::Allow));
        assert_eq!(mapped["activity_id"], activity, "{kind}");
        assert_eq!(mapped["database"]["name"], "acme.snowflakecomputing.com");
    }
    let table = one(of_kind("SELECT", "read", &["\"A.B\".S.T", "X"], Verdict::Allow));
    assert_eq!(
        (&table["table"]["name"], &table["database"]["name"]),
        (&json!("\"A.B\".S.T"), &json!("\"A.B\""))
    );
    assert_eq!(table["unmapped"]["objects"], json!(["\"A.B\".S.T", "X"]));
    let stage = one(of_kind("GET", "exfiltration", &["@DB.S.STAGE"], Verdict::Allow));
    assert_eq!((&stage["databucket"]["name"], &stage["type"]), (&json!("@DB.S.STAGE"), &json!("Databucket")));
}

#[test]
fn the_decision_and_its_weight_can_be_told() {
    for (effect, verdict, severity, disposition) in [
        ("read", Verdict::Allow, "Informational", "Allowed"),
        ("destructive", Verdict::Allow, "Low", "Allowed"),
        ("read", Verdict::Deny, "Medium", "Blocked"),
        ("opaque", Verdict::Hold, "High", "Blocked"),
    ] {
        let mapped = one(of_kind("CALL", effect, &[], verdict));
        assert_eq!((&mapped["severity"], &mapped["disposition"]), (&json!(severity), &json!(disposition)));
        assert_eq!(mapped["policy"]["name"], "reads");
    }
}

#[test]
fn a_request_of_the_rest_interfaces_is_a_call_of_an_api() {
    let mut call = of_kind("DROP TABLE", "destructive", &["DB.S.T"], Verdict::Deny);
    call.sql = "DELETE /api/v2/databases/DB/schemas/S/tables/T?ifExists=true".to_owned();
    let mut outcome = outcome(call.id);
    outcome.status = OutcomeStatus::Refused;
    for mapped in several(vec![call.clone().into(), outcome.into()]) {
        assert_eq!((&mapped["class_uid"], &mapped["activity_name"]), (&json!(6003), &json!("Delete")));
        assert_eq!(mapped["api"]["operation"], "DELETE /api/v2/databases/DB/schemas/S/tables/T");
        assert_eq!(mapped["resources"], json!([{ "name": "DB.S.T" }]));
        assert_eq!(mapped["unmapped"]["request"], call.sql);
    }
    let mut text = of_kind("UNKNOWN", "opaque", &[], Verdict::Deny);
    text.sql = "DELETE /api/v2/x from y".to_owned();
    assert_eq!(one(text)["class_uid"], 6005, "what only looks like one is a text");
}

#[test]
fn an_outcome_has_who_and_what_and_the_beginning_of_the_text() {
    let mut statement = of_kind("SELECT", "read", &["DB.S.T"], Verdict::Allow);
    statement.sql = format!("\0{}", "\u{1f409}".repeat(2000));
    let outcome = outcome(statement.id);
    let mapped = several(vec![statement.clone().into(), outcome.into()]);
    assert_eq!(mapped[0]["query_info"]["query_string"], statement.sql);
    let excerpt = format!("\0{}…", "\u{1f409}".repeat(1023));
    assert_eq!(mapped[1]["query_info"], json!({ "query_string": excerpt, "uid": "01b2c3d4-0000-query" }));
    for key in ["actor", "table", "database", "src_endpoint", "policy", "activity_id"] {
        assert_eq!(mapped[0][key], mapped[1][key], "{key}");
    }
    assert_eq!((&mapped[1]["status"], &mapped[1]["unmapped"]["rows"]), (&json!("Success"), &json!(42)));
}

#[test]
fn a_ruling_has_by_whom_and_why_and_what_ran_is_allowed() {
    for (ruling, approver, disposition, message) in [
        (Ruling::Approved, "kim", "Allowed", "UPDATE of agent-7 approved by kim"),
        (Ruling::Denied, "kim", "Blocked", "UPDATE of agent-7 denied by kim"),
        (Ruling::Expired, "", "Blocked", "UPDATE of agent-7 expired"),
    ] {
        let held = of_kind("UPDATE", "write", &["DB.S.T"], Verdict::Hold);
        let approval = Approval { ruling, approver: approver.to_owned(), ..approval(held.id) };
        let ran = outcome(held.id);
        let mapped = several(vec![held.into(), approval.into(), ran.into()]);
        let [held, ruled, ran] = mapped.as_slice() else { panic!("{mapped:?}") };
        assert_eq!((&held["disposition"], &ran["disposition"]), (&json!("Blocked"), &json!("Allowed")));
        assert_eq!((&ruled["disposition"], &ruled["message"]), (&json!(disposition), &json!(message)));
        assert_eq!(ruled["status_detail"], "month-end correction");
        assert_eq!(ruled["unmapped"]["ruling"], ruling.as_str());
        assert_eq!(ruled["metadata"]["correlation_uid"], held["metadata"]["correlation_uid"]);
    }
}

#[test]
fn logins_name_who_and_as_whom() {
    let logon = one(session());
    assert_eq!(
        (&logon["user"]["name"], &logon["actor"]["user"]["name"]),
        (&json!("SVC_AGENTS"), &json!("agent-7"))
    );
    assert_eq!(logon["unmapped"]["rule"], "analysts");
    let mut refused = event(EventKind::LoginRefused);
    refused.caller = Some(caller());
    let refused = one(refused);
    assert_eq!((&refused["class_uid"], &refused["status"]), (&json!(3002), &json!("Failure")));
    assert_eq!(refused["user"]["name"], "agent-7");
    assert_eq!(one(event(EventKind::LoginRefused))["user"]["name"], "unknown");
}

#[test]
fn an_attempt_to_get_around_is_a_finding_with_its_evidence() {
    let finding = one(event(EventKind::TunnelRefused));
    assert_eq!((&finding["class_uid"], &finding["severity"]), (&json!(2004), &json!("High")));
    assert_eq!(finding["evidences"][0]["actor"]["process"]["xattributes"]["cgroup"], "/pods/analyst");
    assert_eq!(finding["finding_info"]["desc"], "GET /unknown");
}

#[test]
fn a_checkpoint_goes_with_what_proves_it_and_without_its_leaves() {
    let mapped = one(checkpoint(7));
    assert_eq!((&mapped["class_uid"], &mapped["activity_name"]), (&json!(6002), &json!("Sign")));
    assert_eq!(mapped["message"], "The records 1 to 1 are signed");
    let unmapped = mapped["unmapped"].as_object().unwrap();
    let mut names: Vec<&str> = unmapped.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["first_seq", "key", "last_seq", "number", "previous", "root", "signature"]);
}
