//! Which objects a text names.

use super::super::{Access, ObjectKind, classify};

fn names(sql: &str) -> Vec<String> {
    let mut names: Vec<String> = classify(sql)
        .statements
        .iter()
        .flat_map(|statement| &statement.objects)
        .map(|object| object.name.clone())
        .collect();
    names.sort();
    names
}

#[track_caller]
fn check(sql: &str, wanted: &[&str]) {
    assert_eq!(names(sql), wanted, "{sql}");
}

#[test]
fn relations_of_queries() {
    check(
        "select * from a, db.s.b x join \"C\" on 1 = 1 left join \"mixed Case\".d using (k)",
        &["\"mixed Case\".D", "A", "C", "DB.S.B"],
    );
    check("select extract(year from d), trim(both ' ' from e) from t where a is distinct from b", &["T"]);
    check(
        "select * from (select * from a) x, (b join c on 1 = 1) where exists (select 1 from d)",
        &["A", "B", "C", "D"],
    );
    check("select * from a, lateral flatten(input => a.v), table(generator(rowcount => 1)), b", &["A", "B"]);
    check("select * from @db.s.st/path/x.csv", &["@DB.S.ST"]);
    check("select * from identifier('db.t') union all select * from table('u')", &["DB.T", "U"]);
    check("select * from identifier($x)", &["?"]);
    check("select * from table($x)", &["?"]);
    check("select a from t limit 5", &["T"]);
    check("insert into t (a) select a from s", &["S", "T"]);
    check(
        "merge into t using s on t.a = s.a when matched then update set b = (select max(b) from u)",
        &["S", "T", "U"],
    );
    check("create view v as with x as (select * from t) select * from x", &["T", "V"]);
}

#[test]
fn ctes_are_no_objects_but_hide_none() {
    check("with a as (select * from t), b (x, y) as (select * from a) select * from b, a", &["T"]);
    check("with secrets as (select * from secrets) select * from secrets", &["SECRETS"]);
    check("select * from (with secrets as (select 1) select * from secrets), secrets", &["SECRETS"]);
    check("with recursive r as (select 1 as n union all select n + 1 from r) select * from r", &[]);
    check(
        "with r as (select * from secrets union all select 1), secrets as (select 1) select * from r",
        &["SECRETS"],
    );
}

#[test]
fn quoting_changes_no_name() {
    for sql in [
        "drop table db.s.t",
        "DROP TABLE \"DB\".\"S\".\"T\"",
        "drop table if exists identifier('db.s.t')",
        "drop table Db.\"S\".t",
    ] {
        check(sql, &["DB.S.T"]);
    }
}

#[test]
fn kinds_and_accesses() {
    let of = |sql: &str| {
        let objects = classify(sql).statements.remove(0).objects;
        objects.iter().map(|object| (object.name.clone(), object.kind, object.access)).collect::<Vec<_>>()
    };
    let one = |name: &str, kind, access| (name.to_owned(), kind, access);
    assert_eq!(of("drop view v"), [one("V", ObjectKind::View, Access::Drop)]);
    assert_eq!(of("use warehouse w"), [one("W", ObjectKind::Warehouse, Access::Use)]);
    assert_eq!(of("call db.p(1)"), [one("DB.P", ObjectKind::Procedure, Access::Execute)]);
    assert_eq!(of("truncate table if exists t"), [one("T", ObjectKind::Table, Access::Write)]);
    assert_eq!(of("remove @~/x"), [one("@~", ObjectKind::Stage, Access::Drop)]);
    assert_eq!(
        of("create table t clone s"),
        [one("T", ObjectKind::Table, Access::Create), one("S", ObjectKind::Table, Access::Read)]
    );
    assert_eq!(
        of("copy into @st/x from t"),
        [one("@ST", ObjectKind::Stage, Access::Write), one("T", ObjectKind::Table, Access::Read)]
    );
    assert_eq!(
        of("grant role a to user b"),
        [one("A", ObjectKind::Role, Access::Grant), one("B", ObjectKind::User, Access::Grant)]
    );
    assert_eq!(
        of("alter table a swap with b"),
        [one("A", ObjectKind::Table, Access::Alter), one("B", ObjectKind::Table, Access::Alter)]
    );
    assert_eq!(
        of("select db.s.f(a) from t"),
        [one("T", ObjectKind::Table, Access::Read), one("DB.S.F", ObjectKind::Function, Access::Execute)]
    );
}
