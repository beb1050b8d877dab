use super::*;
use crate::sql::classify;

fn decide(policy: &Policy, subject: &Subject<'_>, sql: &str) -> (Verdict, String) {
    let decision = policy.decide(subject, &classify(sql));
    (decision.verdict, decision.policy)
}

#[test]
fn the_built_in_policy_lets_people_read_and_write_but_not_destroy() {
    let policy = Policy::load(None).unwrap();
    let subject = Subject::default();
    for (sql, verdict, by) in [
        ("select 1", Verdict::Allow, "reads-allowed"),
        ("", Verdict::Allow, "reads-allowed"),
        ("begin", Verdict::Allow, "reads-allowed"),
        ("insert into t values (1)", Verdict::Allow, "writes-allowed"),
        ("update t set a = 1 where b = 2", Verdict::Allow, "writes-allowed"),
        ("update t set a = 1", Verdict::Hold, "bulk-writes-held"),
        ("drop table t", Verdict::Deny, "destructive-denied"),
        ("select 1; drop table t", Verdict::Deny, "destructive-denied"),
        ("grant role a to user b", Verdict::Deny, "admin-denied"),
        ("copy into @s from t", Verdict::Deny, "exfiltration-denied"),
        ("frobnicate", Verdict::Deny, "opaque-denied"),
    ] {
        assert_eq!(decide(&policy, &subject, sql), (verdict, by.to_owned()), "{sql}");
    }
}

#[test]
fn a_fixed_role_is_kept() {
    let policy = Policy::load(None).unwrap();
    let free = Subject::default();
    let fixed = Subject { role: Some("ANALYST"), ..Subject::default() };
    assert_eq!(decide(&policy, &free, "use role accountadmin").0, Verdict::Allow);
    assert_eq!(decide(&policy, &fixed, "use role analyst").0, Verdict::Allow);
    assert_eq!(decide(&policy, &fixed, "use warehouse w").0, Verdict::Allow);
    assert_eq!(decide(&policy, &fixed, "use secondary roles none").0, Verdict::Allow);
    for sql in [
        "use role accountadmin",
        "use role identifier('accountadmin')",
        "use secondary roles all",
        "use secondary roles accountadmin",
        "execute immediate 'use secondary roles all'",
        "execute immediate $$begin use role accountadmin; end$$",
        "begin use secondary roles all; end",
        "select 1; use secondary roles all",
    ] {
        assert_eq!(decide(&policy, &fixed, sql).0, Verdict::Deny, "{sql}");
    }
}

#[test]
fn policies_see_groups_objects_and_workload() {
    let policy = Policy::parse(
        Path::new("t.cedar"),
        r#"@id("cleaners") permit (principal in Group::"cleaners", action == Action::"destructive", resource)
           when { context.objects.contains("TMP") && context.cgroup like "/pods/*" };"#,
    )
    .unwrap();
    let groups = ["cleaners".to_owned()];
    let subject = Subject { groups: &groups, cgroup: "/pods/x", ..Subject::default() };
    assert_eq!(decide(&policy, &subject, "drop table tmp"), (Verdict::Allow, "cleaners".into()));
    assert_eq!(decide(&policy, &subject, "drop table t"), (Verdict::Deny, "no-policy-allows-it".into()));
    assert_eq!(decide(&policy, &Subject { groups: &[], ..subject }, "drop table tmp").0, Verdict::Deny);
}

#[test]
fn a_wrong_policy_names_its_place() {
    for (text, line) in [
        ("permit (principal, action, resource)", 1),
        (
            "permit (principal, action, resource);\n permit (principal, action == Action::\"reed\", resource);",
            2,
        ),
        ("\n\npermit (principal, action, resource) when { context.colour == \"red\" };", 3),
    ] {
        match Policy::parse(Path::new("t.cedar"), text) {
            Err(PolicyError::Invalid { line: found, message, .. }) => assert_eq!(found, line, "{message}"),
            other => panic!("{text}: {:?}", other.map(|_| ())),
        }
    }
}
