use super::*;
use crate::snowflake::actions::ACTIONS;
use crate::sql::Statement;

fn judged(method: &Method, path: &str) -> Option<(String, Effect, String)> {
    let call = RestCall::parse(method, path)?;
    let classification = call.classification("", &RestBody::default());
    let statement = classification.statements.first()?;
    let object = statement.objects.first().map(|object| object.name.clone()).unwrap_or_default();
    Some((statement.kind.clone(), classification.effect, object))
}

#[test]
fn a_call_is_judged_by_its_method_and_path() {
    let table = "/api/v2/databases/sales/schemas/%22my%20schema%22/tables";
    for (method, path, kind, effect, object) in [
        (Method::GET, "/api/v2/databases", "SHOW", Effect::Read, "?"),
        (Method::GET, table, "SHOW", Effect::Read, r#"SALES."my schema""#),
        (Method::GET, &format!("{table}/t"), "DESCRIBE TABLE", Effect::Read, r#"SALES."my schema".T"#),
        (Method::DELETE, &format!("{table}/t"), "DROP TABLE", Effect::Destructive, r#"SALES."my schema".T"#),
        (Method::POST, table, "REST POST TABLE", Effect::Opaque, r#"SALES."my schema""#),
        (Method::PUT, "/api/v2/warehouses/wh", "REST PUT WAREHOUSE", Effect::Opaque, "WH"),
        (Method::GET, "/api/v2/roles/r/grants", "SHOW", Effect::Read, "R"),
        (Method::GET, "/api/v2/databases/d/schemas/s/stages/x/files", "LIST", Effect::Read, "@D.S.X"),
        (Method::POST, "/api/v2/cortex/inference:complete", "CORTEX INFERENCE", Effect::Read, ""),
        (Method::POST, "/api/v2/cortex/agent:run", "CORTEX AGENT", Effect::Opaque, ""),
        (Method::POST, "/api/v2/databases/d/schemas/s/agents/a:run", "CORTEX AGENT", Effect::Opaque, "D.S.A"),
        (
            Method::POST,
            "/api/v2/databases/d/schemas/s/cortex-search-services/docs:query",
            "CORTEX SEARCH",
            Effect::Read,
            "D.S.DOCS",
        ),
    ] {
        let expected = Some((kind.to_owned(), effect, object.to_owned()));
        assert_eq!(judged(&method, path), expected, "{method} {path}");
    }
}

#[test]
fn what_is_not_known_or_could_be_read_in_two_ways_is_no_call() {
    for (method, path) in [
        (Method::GET, "/api/v2/"),
        (Method::GET, "/api/v2/secrets"),
        (Method::GET, "/api/v2/databases/"),
        (Method::GET, "/api/v2/databases//schemas"),
        (Method::GET, "/api/v2/databases/../users"),
        (Method::GET, "/api/v2/databases/%2e%2e/schemas"),
        (Method::GET, "/api/v2/databases/a%2Fb"),
        (Method::GET, "/api/v2/databases/a;b"),
        (Method::GET, "/api/v2/databases/a%3Arun"),
        (Method::GET, "/api/v2/databases/a%00"),
        (Method::GET, "/api/v2/databases/%ff"),
        (Method::GET, "/api/v2/databases/d/schemas/s/stages/x/files/a.csv"),
        (Method::GET, "/api/v2/databases/d/schemas/s/stages/x/files/a.csv:presigned-url"),
        (Method::GET, "/api/v2/databases/d/schemas/s/services/x/logs"),
        (Method::GET, "/api/v2/warehouses/wh:suspend"),
        (Method::POST, "/api/v2/warehouses:suspend"),
        (Method::POST, "/api/v2/warehouses/wh/grants:suspend"),
        (Method::POST, "/api/v2/warehouses/wh:suspend:resume"),
        (Method::POST, "/api/v2/warehouses/wh:SUSPEND"),
        (Method::POST, "/api/v2/warehouses/wh:use"),
        (Method::POST, "/api/v2/warehouses/wh:undrop"),
        (Method::POST, "/api/v2/nothings/x:suspend"),
        (Method::POST, "/api/v2/databases/d/schemas/s/tables/t:suspend"),
        (Method::POST, "/api/v2/databases/d/schemas/s/tables/t:get-tags"),
        (Method::POST, "/api/v2/databases/d/schemas/s/tables:as-select"),
        (Method::POST, "/api/v2/databases/d/schemas/s/stages/x/files/a.csv:presigned-url"),
        (Method::POST, "/api/v2/databases/d/schemas/s/replication:enable"),
        (Method::POST, "/api/v2/warehouses/wh/grants:revoke"),
        (Method::POST, "/api/v2/users/u/programmatic-access-tokens"),
        (Method::GET, "/api/v2/cortex/inference:complete"),
        (Method::POST, "/api/v2/cortex/inference:other"),
        (Method::PATCH, "/api/v2/databases/d"),
        (Method::HEAD, "/api/v2/databases/d"),
        (Method::POST, "/api/v2/remote-build/execute"),
    ] {
        assert_eq!(RestCall::parse(&method, path), None, "{method} {path}");
    }
}

/// The only statement of an action, with the query string and the body of its request.
fn done(path: &str, query: &str, body: &str) -> (Statement, String) {
    let call = RestCall::parse(&Method::POST, &format!("/api/v2/{path}")).expect(path);
    assert_eq!(RestCall::parse(&Method::POST, &call.path()), Some(call.clone()), "{path}");
    let query = call.query(Some(query)).unwrap();
    let mut classification = call.classification(&query, &RestBody::parse(body.as_bytes()).unwrap());
    let statement = classification.statements.pop().unwrap();
    assert_eq!((classification.statements.len(), classification.effect), (0, statement.effect), "{path}");
    let objects: Vec<&str> = statement.objects.iter().map(|object| object.name.as_str()).collect();
    let objects = objects.join(" ");
    (statement, objects)
}

#[test]
fn an_action_is_judged_as_the_statement_that_does_the_same() {
    let in_schema = |rest: &str| format!("databases/d/schemas/s/{rest}");
    for (path, kind, effect, objects) in [
        ("warehouses/wh:suspend".to_owned(), "ALTER WAREHOUSE", Effect::Admin, "WH"),
        ("warehouses/wh:abort".to_owned(), "ALTER WAREHOUSE", Effect::Admin, "WH"),
        ("compute-pools/p:stop-all-services".to_owned(), "ALTER COMPUTE POOL", Effect::Admin, "P"),
        (in_schema("tasks/t:execute"), "EXECUTE TASK", Effect::Opaque, "D.S.T"),
        (in_schema("tasks/t:resume"), "ALTER TASK", Effect::Admin, "D.S.T"),
        (in_schema("procedures/p(NUMBER):call"), "CALL", Effect::Opaque, "D.S.P(NUMBER)"),
        (in_schema("functions/f:execute"), "REST EXECUTE FUNCTION", Effect::Opaque, "D.S.F"),
        (in_schema("tables/t:undrop"), "UNDROP TABLE", Effect::Opaque, "D.S.T"),
        (in_schema("tables/%22a%20b%22:suspend-recluster"), "ALTER TABLE", Effect::Opaque, r#"D.S."a b""#),
        (in_schema("dynamic-tables/t:refresh"), "ALTER DYNAMIC TABLE", Effect::Opaque, "D.S.T"),
        ("external-volumes/v:undrop".to_owned(), "UNDROP EXTERNAL VOLUME", Effect::Admin, "V"),
        ("users/u:set-tags".to_owned(), "ALTER USER", Effect::Admin, "U"),
        ("roles/r/grants:revoke".to_owned(), "REVOKE", Effect::Admin, "R"),
        ("databases/d/database-roles/r/future-grants:revoke".to_owned(), "REVOKE", Effect::Admin, "D.R"),
        ("databases/d/replication:enable".to_owned(), "ALTER DATABASE", Effect::Exfiltration, "D"),
        ("databases/d/failover:primary".to_owned(), "ALTER DATABASE", Effect::Admin, "D"),
        // Whose other object is not known.
        (in_schema("tables/t:swap-with"), "ALTER TABLE", Effect::Destructive, "D.S.T ?"),
    ] {
        let (statement, named) = done(&path, "", "");
        assert_eq!(
            (statement.kind.as_str(), statement.effect, named.as_str()),
            (kind, effect, objects),
            "{path}"
        );
        assert_eq!(statement.features.contains(&Feature::UnknownObject), objects.contains('?'), "{path}");
    }
    let tags = judged(&Method::GET, "/api/v2/databases/d:get-tags");
    assert_eq!(tags, Some(("DESCRIBE DATABASE".to_owned(), Effect::Read, "D".to_owned())));
}

#[test]
fn every_action_is_one_statement_that_names_its_object() {
    for (verb, collections, sql) in ACTIONS {
        for (collection, one, _) in COLLECTIONS {
            // Of grants there is none by its name.
            if sql.is_empty() || collection == "grants" || !collections.contains(&collection) {
                continue;
            }
            let classification = classify(&sql.replace("{}", one));
            let [statement] = classification.statements.as_slice() else { panic!("{collection}:{verb}") };
            let has = |name: &str| statement.objects.iter().any(|object| object.name == name);
            assert!(has("X") && has("Y") == sql.contains(" y"), "{collection}:{verb}: {statement:?}");
            assert!(statement.kind.contains(one) || statement.kind == "CALL", "{}", statement.kind);
            assert_eq!(classification.effect == Effect::Read, verb == "get-tags", "{collection}:{verb}");
        }
    }
}

#[test]
fn the_other_object_of_an_action_is_named_if_the_request_names_it_in_one_way() {
    let table = "databases/d/schemas/s/tables/t";
    for (verb, query, body, objects) in [
        ("swap-with", "targetName=u", "", "D.S.T D.S.U"),
        ("swap-with", "targetName=%22u%22&targetDatabase=e&targetSchema=r", "", r#"D.S.T E.R."u""#),
        ("swapwith", "targetTableName=u", "", "D.S.T D.S.U"),
        ("swap-with", "targetName=u&targetTableName=v", "", "D.S.T ?"),
        ("swap-with", "targetName=e.r.u", "", "D.S.T ?"),
        ("swap-with", "targetName=u&targetDatabase=e.r", "", "D.S.T ?"),
        ("clone", "", r#"{"name":"u"}"#, "D.S.U D.S.T"),
        ("clone", "targetSchema=r", r#"{"name":"u"}"#, "D.R.U D.S.T"),
        ("clone", "targetName=v", r#"{"name":"u"}"#, "? D.S.T"),
        ("clone", "", r#"{"name":7}"#, "? D.S.T"),
        ("create-like", "", r#"{"name":"u"}"#, "D.S.U D.S.T"),
    ] {
        assert_eq!(done(&format!("{table}:{verb}"), query, body).1, objects, "{verb} {query} {body}");
    }
    assert_eq!(done("warehouses/a:rename", "", r#"{"name":"b"}"#).1, "A B");
    assert_eq!(done("warehouses/a:rename", "targetDatabase=d", r#"{"name":"b"}"#).1, "A ?");
}

#[test]
fn what_takes_the_place_of_another_is_destructive() {
    let clone = "databases/d/schemas/s/tables/t:clone";
    for (mode, effect) in [
        ("", Effect::Opaque),
        ("createMode=errorIfExists", Effect::Opaque),
        ("createMode=orReplace", Effect::Destructive),
        ("createMode=ORREPLACE", Effect::Destructive),
    ] {
        let (statement, _) = done(clone, mode, "");
        assert_eq!((statement.kind.as_str(), statement.effect), ("CREATE TABLE", effect), "{mode}");
        assert_eq!(statement.actions.contains(&Action::Replace), effect == Effect::Destructive, "{mode}");
        assert!(statement.features.contains(&Feature::Clone), "{mode}");
        let (statement, _) = done("databases/d/schemas/s/tables", mode, r#"{"name":"t"}"#);
        assert_eq!((statement.kind.as_str(), statement.effect), ("REST POST TABLE", effect), "{mode}");
    }
}

#[test]
fn a_body_is_nothing_an_object_or_a_list_of_objects() {
    for body in ["", "{}", "[]", r#"[{"a":1},{"a":2}]"#] {
        assert!(RestBody::parse(body.as_bytes()).is_ok(), "{body}");
    }
    for body in [" ", "1", "[1]", "[[]]", r#"{"name":"a","NAME":"b"}"#, r#"[{"a":1,"a":2}]"#] {
        assert!(RestBody::parse(body.as_bytes()).is_err(), "{body}");
    }
}

#[test]
fn upstream_it_is_read_as_here() {
    let path = "/api/v2/databases/a%20b/schemas/%53/functions/f(NUMBER,%20TEXT)";
    let call = RestCall::parse(&Method::GET, path).unwrap();
    let upstream = call.path();
    assert_eq!(upstream, "/api/v2/databases/a%20b/schemas/S/functions/f%28NUMBER%2C%20TEXT%29");
    assert_eq!(RestCall::parse(&Method::GET, &upstream), Some(call.clone()));
    assert_eq!(call.query(Some("like=a%25&showLimit=10")).unwrap(), "like=a%25&showLimit=10");
    assert_eq!(call.query(None).unwrap(), "");
    for query in ["liek=a", "like=a&like=b", "like=a&%6cike=b", "token=x"] {
        assert!(call.query(Some(query)).is_err(), "{query}");
    }
}
