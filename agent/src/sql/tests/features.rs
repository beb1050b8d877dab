//! What a policy may want to know beyond the effect, and how a classification is printed.

use super::super::{Action, Feature, MAX_TEXT_BYTES, ObjectKind, classify};
use super::features_of;

#[test]
fn features_are_told() {
    for (feature, sql) in [
        (Feature::AiFunction, "select ai_complete('m', 'p')"),
        (Feature::AiFunction, "select snowflake.cortex.summarize(a) from t"),
        (Feature::AiFunction, "call snowflake.cortex.x()"),
        (Feature::Clone, "create table t clone s"),
        (Feature::DynamicSql, "execute immediate 'select 1'"),
        (Feature::DynamicSql, "begin execute immediate :q; end"),
        (Feature::ExternalLocation, "copy into 's3://b' from t"),
        (Feature::ExternalLocation, "copy into t from 's3://b'"),
        (Feature::ExternalLocation, "create stage s url = 's3://b'"),
        (Feature::Limit, "select a from t limit 5"),
        (Feature::Limit, "select top 5 a from t"),
        (Feature::Limit, "select a from t fetch first 5 rows only"),
        (Feature::MultiStatement, "select 1; select 2"),
        (Feature::NoWhere, "delete from t"),
        (Feature::NoWhere, "delete from t where true"),
        (Feature::NoWhere, "update t set a = 1 where 1 = 1 or not false"),
        (Feature::OrAlter, "create or alter table t (a int)"),
        (Feature::OrReplace, "create or replace table t (a int)"),
        (Feature::Overwrite, "insert overwrite into t select 1"),
        (Feature::Stage, "list @s"),
        (Feature::Stage, "select * from @s"),
        (Feature::StoredBody, "create task k as select 1"),
        (Feature::SystemFunction, "select system$typeof(1)"),
        (Feature::Temporary, "create temp table t (a int)"),
        (Feature::TimeTravel, "select * from t at (timestamp => 'x'::timestamp)"),
        (Feature::UnknownObject, "select * from identifier($t)"),
        (Feature::Unparsed, "whatever this is"),
    ] {
        assert!(features_of(sql).contains(&feature), "{feature:?}: {sql}: {:?}", features_of(sql));
    }
}

#[test]
fn features_are_not_told_in_vain() {
    for (feature, sql) in [
        (Feature::NoWhere, "delete from t where id = 1"),
        (Feature::Limit, "select * from (select a from t limit 5)"),
        (Feature::MultiStatement, "select 1;"),
        (Feature::SystemFunction, "select 'system$typeof(1)'"),
        (Feature::ExternalLocation, "create stage s"),
        (Feature::Unparsed, "select a from t where b = 'x'"),
    ] {
        assert!(!features_of(sql).contains(&feature), "{feature:?}: {sql}");
    }
}

#[test]
fn kinds_name_verb_and_type() {
    for (kind, sql) in [
        ("SELECT", "with x as (select 1) select * from x"),
        ("DROP TABLE", "drop table t"),
        ("CREATE DYNAMIC TABLE", "create or replace transient dynamic table t as select 1"),
        ("COPY INTO LOCATION", "copy into @s from t"),
        ("COPY INTO TABLE", "copy into t from @s"),
        ("ALTER WAREHOUSE", "alter warehouse w suspend"),
        ("ALTER SESSION", "alter session set a = 1"),
        ("BLOCK", "begin return 1; end"),
        ("BEGIN", "start transaction"),
        ("EXECUTE IMMEDIATE", "execute immediate 'select 1'"),
        ("UNKNOWN", "blah"),
    ] {
        assert_eq!(classify(sql).statements[0].kind, kind, "{sql}");
    }
}

#[test]
fn statements_say_where_they_stand() {
    let sql = " select 1 ; /* ü */ drop table t ;; ";
    let found = classify(sql);
    let texts: Vec<&str> = found.statements.iter().map(|statement| &sql[statement.text.clone()]).collect();
    assert_eq!(texts, ["select 1", "drop table t"]);
}

#[test]
fn an_explained_statement_is_not_an_action() {
    assert_eq!(classify("explain delete from t").statements[0].actions, [Action::Explain]);
}

#[test]
fn long_texts_are_opaque_unread() {
    let longest = format!("select '{}'", "x".repeat(MAX_TEXT_BYTES - 9));
    assert_eq!(longest.len(), MAX_TEXT_BYTES);
    assert!(features_of(&longest).iter().all(|feature| *feature != Feature::TooLarge));
    assert_eq!(features_of(&format!("{longest} ")), [Feature::TooLarge]);
}

#[test]
fn printed_in_snake_case_without_the_range() {
    let printed = serde_json::to_value(classify("copy into 's3://b' from t")).unwrap();
    assert_eq!(
        printed,
        serde_json::json!({
            "statements": [{
                "kind": "COPY INTO LOCATION",
                "effect": "exfiltration",
                "actions": ["copy_into_location"],
                "objects": [
                    {"name": "?", "kind": "stage", "access": "write"},
                    {"name": "T", "kind": "table", "access": "read"},
                ],
                "features": ["external_location", "unknown_object"],
            }],
            "effect": "exfiltration",
        })
    );
}

#[test]
fn the_results_of_earlier_queries_are_named() {
    let results = |sql: &str| -> Vec<String> {
        let objects = classify(sql).statements.into_iter().flat_map(|statement| statement.objects);
        objects.filter(|object| object.kind == ObjectKind::QueryResult).map(|object| object.name).collect()
    };
    let id = "01b1c2d3-0000-1111-2222-333344445555";
    for sql in [
        "select * from table(result_scan('01b1c2d3-0000-1111-2222-333344445555'))",
        "select * from table ( RESULT_SCAN ( $$01b1c2d3-0000-1111-2222-333344445555$$ ) ) where 1 = 1",
        "execute immediate 'select * from table(result_scan(''01b1c2d3-0000-1111-2222-333344445555''))'",
        "with a as (select * from table(\"RESULT_SCAN\"('01b1c2d3-0000-1111-2222-333344445555'))) select 1",
        "begin let x := (select * from table(result_scan('01b1c2d3-0000-1111-2222-333344445555'))); end",
    ] {
        assert_eq!(results(sql), [id], "{sql}");
    }
    for sql in [
        "select * from table(result_scan($id))",
        "select * from table(result_scan(?))",
        "select * from table(result_scan('01b1' || 'c2d3'))",
        "select * from table(result_scan((select max(id) from t)))",
        "select * from table(result_scan(last_query_id() || ''))",
    ] {
        assert_eq!(results(sql), ["?"], "{sql}");
    }
    for sql in [
        "select * from table(result_scan(last_query_id()))",
        "select * from table(result_scan(last_query_id(-2)))",
        "select 'result_scan(''x'')'",
        "select result_scan from t",
    ] {
        assert_eq!(results(sql), Vec::<String>::new(), "{sql}");
    }
}
