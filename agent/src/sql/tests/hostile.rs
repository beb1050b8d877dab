//! Texts that try to look harmless. The letters are those of the misreadings that were measured with `sqlparser` alone.

use super::super::Effect::{self, Admin, Destructive, Exfiltration, None, Opaque, Read, Session, Write};
use super::super::classify;
use super::check;

#[test]
fn a_end_does_not_swallow_the_rest() {
    check(&[
        (Destructive, "SHOW TABLES END; DROP TABLE t"),
        (Destructive, "USE ROLE x END; DROP TABLE t"),
        (Destructive, "SELECT a FROM t x END; DROP TABLE u"),
        (Destructive, "LIST @s END; DROP TABLE t"),
        (Destructive, "BEGIN TRANSACTION END; DROP TABLE t"),
        (Destructive, "DESC TABLE t END; DROP TABLE t"),
        (Opaque, "COMMIT END DROP TABLE t"),
        (Opaque, "SHOW TABLES END"),
        (Opaque, "SELECT a FROM t x END"),
        (Opaque, "USE ROLE x END"),
    ]);
}

#[test]
fn b_the_flow_operator_splits() {
    check(&[
        (Destructive, "SELECT 1 ->> DELETE FROM t"),
        (Destructive, "SELECT 1 ->> delete FROM t WHERE a = 1"),
        (Destructive, "SELECT 1->>TRUNCATE t"),
        (Destructive, "SELECT * FROM @s->>DROP TABLE t"),
        (Write, "SELECT 1 ->> UNDROP TABLE t"),
        (Exfiltration, "SELECT 1 ->> COPY INTO @s FROM t"),
        (Session, "SELECT 1 ->> USE r"),
        (Opaque, "SELECT 1 ->> EXECUTE IMMEDIATE $x"),
        (Session, "SELECT 1 ->> ROLLBACK"),
        (Destructive, "SELECT (1 ->> DROP TABLE t)"),
    ]);
}

#[test]
fn c_only_two_dollars_quote() {
    check(&[
        (Destructive, "SELECT $a$; DROP TABLE t; SELECT $a$"),
        (Opaque, "SELECT a$$; DROP TABLE t; --$$"),
        (Opaque, "SELECT $$a$$$; DROP TABLE t; SELECT $$b$$"),
        (Opaque, "SELECT $$ open; DROP TABLE t"),
    ]);
}

#[test]
fn d_foreign_quotes_and_comments_are_opaque() {
    check(&[
        (Opaque, "SELECT 1 # ; DROP TABLE t"),
        (Opaque, "SELECT `; DROP TABLE t; SELECT `"),
        (Read, "SELECT '#', \"`\", $$#`$$ -- #`"),
        (Opaque, "SELECT \\"),
    ]);
}

#[test]
fn e_comments_end_where_all_agree_or_are_opaque() {
    check(&[
        (Opaque, "SELECT 1 --x\r; DROP TABLE t"),
        (Opaque, "SELECT 1 --x\u{2028}; DROP TABLE t"),
        (Read, "SELECT 1 --x\r\n + 2"),
        (Opaque, "SELECT 1 /* /* */ ; DROP TABLE t -- */"),
        (Opaque, "SELECT 1 /*/ ; DROP TABLE t /*/"),
        (Opaque, "SELECT 1 /* x /*/ ; DROP TABLE t"),
        (Opaque, "SELECT 1 /* ; DROP TABLE t"),
        (Destructive, "DROP/**/TABLE/**/t"),
        (Destructive, "/* x */ DROP -- y\n TABLE // z\n t"),
        (Destructive, "SELECT 1; -- x\nDROP TABLE t"),
        (Destructive, "--\nDROP TABLE t"),
        (Destructive, "dr/**/op; DROP TABLE t"),
    ]);
}

#[test]
fn f_stage_and_file_paths_hide_nothing() {
    check(&[
        (Opaque, "SELECT * FROM @s/a//b; DROP TABLE t"),
        (Opaque, "LIST @s/a--b\n; DROP TABLE t"),
        (Opaque, "LIST @s/a/*b; DROP TABLE t */"),
        (Opaque, "LIST @s/'; DROP TABLE t --'"),
        (Destructive, "LIST @s; DROP TABLE t"),
        (Destructive, "LIST @s/a;DROP TABLE t"),
        (Destructive, "PUT file:///tmp/x @s; DROP TABLE t"),
        (Destructive, "PUT file:///tmp/x;DROP TABLE t"),
        (Opaque, "PUT file:///tmp/x' @s; DROP TABLE t --'"),
        (Opaque, "PUT file:///tmp/* @s; DROP TABLE t /* */"),
        (Opaque, "SELECT file://x\n; DROP TABLE t"),
    ]);
}

#[test]
fn g_changes_inside_queries_are_found() {
    check(&[
        (Destructive, "WITH x AS (SELECT 1) DELETE FROM t"),
        (Write, "WITH x AS (SELECT 1) UPDATE t SET a = 1"),
        (Write, "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x"),
        (Destructive, "WITH x AS (DELETE FROM t RETURNING a) SELECT * FROM x"),
        (Destructive, "WITH x AS (((DELETE FROM t))) SELECT 1"),
        (Destructive, "SELECT * FROM (DELETE FROM t)"),
        (Destructive, "SELECT * FROM t WHERE a IN (DELETE FROM t)"),
        (Destructive, "SELECT * FROM (TRUNCATE TABLE t)"),
        (Destructive, "CREATE VIEW v AS DELETE FROM t"),
        (Destructive, "CREATE TABLE v AS (DELETE FROM t)"),
        (Destructive, "COPY INTO @s FROM (DELETE FROM t)"),
        (Destructive, "INSERT INTO t (DELETE FROM u)"),
        (Destructive, "SET x = (DROP TABLE t)"),
        (Opaque, "SELECT * FROM (CALL p())"),
        (Opaque, "SELECT * FROM (EXECUTE IMMEDIATE $x)"),
        (Destructive, "SELECT * FROM (EXECUTE IMMEDIATE 'DROP TABLE t')"),
        (Exfiltration, "SELECT * FROM (COPY INTO @s FROM t)"),
    ]);
}

#[test]
fn g_blocks_do_what_their_statements_do() {
    check(&[
        (Destructive, "BEGIN DROP TABLE t; END"),
        (Destructive, "BEGIN SELECT 1; DROP TABLE t; END;"),
        (Destructive, "DECLARE x INT; BEGIN IF (1=1) THEN DROP TABLE t; END IF; END"),
        (Destructive, "BEGIN IF (1=2) THEN SELECT 1; ELSE DROP TABLE t; END IF; END"),
        (Destructive, "BEGIN FOR i IN 1 TO 3 DO DROP TABLE t; END FOR; END"),
        (Destructive, "BEGIN FOR i IN 1 TO 3 LOOP DROP TABLE t; END LOOP; END"),
        (Destructive, "BEGIN LOOP TRUNCATE t; BREAK; END LOOP; END"),
        (Destructive, "BEGIN REPEAT DROP TABLE t; UNTIL (TRUE) END REPEAT; END"),
        (Destructive, "BEGIN CASE (x) WHEN 1 THEN DROP TABLE t; END CASE; END"),
        (Destructive, "BEGIN SELECT 1; EXCEPTION WHEN OTHER THEN DROP TABLE t; END"),
        (Destructive, "BEGIN BEGIN BEGIN DROP TABLE t; END; END; END"),
        (Destructive, "BEGIN LET r RESULTSET := (DROP TABLE t); END"),
        (Destructive, "BEGIN LET x := CASE WHEN 1=1 THEN 1 END; DROP TABLE t; END"),
        (Destructive, "BEGIN SELECT CASE WHEN 1=1 THEN 1; DROP TABLE t; END"),
        (Destructive, "BEGIN SELECT (1; DROP TABLE t; END"),
        (Destructive, "BEGIN ASYNC (DROP TABLE t); END"),
        (Destructive, "BEGIN RETURN 1; END; DROP TABLE t"),
        (Destructive, "BEGIN RETURN 1; END DROP TABLE t"),
        (Destructive, "DECLARE DROP TABLE t; BEGIN RETURN 1; END"),
        (Destructive, "DECLARE p PROCEDURE() RETURNS INT AS BEGIN DROP TABLE t; END; BEGIN RETURN 1; END"),
        (Destructive, "BEGIN x := (SELECT 1); y := (DELETE FROM t); END"),
        (Destructive, "BEGIN EXECUTE IMMEDIATE 'DROP TABLE t'; END"),
        (Opaque, "BEGIN LET q := 'DROP ' || 'TABLE t'; EXECUTE IMMEDIATE :q; END"),
        (Opaque, "BEGIN LET r RESULTSET := (EXECUTE IMMEDIATE :q); END"),
        (Opaque, "BEGIN p(); END"),
        (Opaque, "BEGIN SELECT 1"),
        (Destructive, "LET x := (DROP TABLE t)"),
        (Destructive, "EXCEPTION WHEN OTHER THEN DROP TABLE t"),
        (Destructive, "IF (TRUE) THEN DROP TABLE t"),
    ]);
}

#[test]
fn h_what_follows_into_decides_a_copy() {
    check(&[
        (Exfiltration, "COPY INTO '@s/p' FROM t"),
        (Exfiltration, "COPY INTO $$@s/p$$ FROM t"),
        (Exfiltration, "COPY/**/INTO/**/@s FROM t"),
        (Exfiltration, "COPY INTO IDENTIFIER('@s') FROM t"),
        (Opaque, "COPY INTO IDENTIFIER($x) FROM t"),
        (Opaque, "COPY INTO :x FROM t"),
        (Opaque, "COPY INTO ? FROM t"),
        (Write, "COPY INTO IDENTIFIER('t') FROM @s"),
    ]);
}

#[test]
fn j_functions_with_effects_are_found_anywhere() {
    check(&[
        (Admin, "SELECT \"SYSTEM$ABORT_SESSION\"(1)"),
        (Admin, "SELECT a FROM t WHERE SYSTEM$CANCEL_QUERY('x') = 'y'"),
        (Admin, "SELECT UPPER(LOWER(system$abort_session/**/(1)))"),
        (Admin, "SELECT IDENTIFIER('system$abort_session')(1)"),
        (Opaque, "SELECT IDENTIFIER($f)(1)"),
        (Opaque, "SELECT IDENTIFIER(:f)(1)"),
        (Exfiltration, "SELECT SYSTEM$SEND_EMAIL('i', 'a', 'b', 'c')"),
        (Admin, "SELECT * FROM TABLE(SYSTEM$NEW())"),
        (Admin, "SET x = SYSTEM$ABORT_SESSION(1)"),
        (Admin, "EXPLAIN SELECT SYSTEM$ABORT_SESSION(1)"),
        (Admin, "BEGIN RETURN SYSTEM$ABORT_SESSION(1); END"),
        (Admin, "CREATE FUNCTION f() RETURNS INT AS 'SYSTEM$ABORT_SESSION(1)'"),
        (Admin, "SELECT 1; CALL SYSTEM$ABORT_SESSION(1)"),
    ]);
}

#[test]
fn k_what_snowflake_does_not_have_is_opaque() {
    for sql in [
        "KILL 1",
        "VACUUM t",
        "ANALYZE TABLE t",
        "UNLOAD ('select 1') TO 's3://x'",
        "EXPORT DATA OPTIONS (uri = 'x') AS SELECT 1",
        "ATTACH DATABASE 'x' AS y",
        "COPY t TO 'x'",
        "RENAME TABLE a TO b",
        "PRAGMA x",
        "PRINT 1",
        "LOCK TABLES t WRITE",
        "PREPARE p AS DELETE FROM t",
        "DISCARD ALL",
        "CACHE TABLE t",
        "SELECT a INTO t2 FROM t",
        "EXPLAIN ANALYZE DELETE FROM t",
        "DESCRIBE DELETE FROM t",
        "DESCRIBE TABLE t DROP TABLE u",
        "LOAD DATA INPATH 'x' INTO TABLE t",
        "TABLE t",
        "FROM t SELECT a",
        "!source x",
        "x := 1 + 1",
        "COMMIT AND CHAIN",
        "USE ROLE a DROP TABLE t",
        "BEGIN TRANSACTION DROP TABLE t",
        "ALTER SESSION SET x = (SELECT 1)",
        "ALTER SESSION SET a = 1 DROP TABLE t",
        "UNSET x y",
        "SELECT 1 DROP TABLE t",
        "SELECT 1 USE ROLE accountadmin",
    ] {
        let effect = classify(sql).effect;
        assert!(matches!(effect, Opaque | Destructive), "{sql}: {effect:?}");
    }
}

#[test]
fn dynamic_texts_are_decoded_and_judged() {
    check(&[
        (Destructive, "EXECUTE IMMEDIATE 'DROP TABLE t'"),
        (Destructive, "EXECUTE IMMEDIATE $$ DROP TABLE t $$"),
        (Destructive, "EXECUTE IMMEDIATE 'DR\\x4fP TABLE t'"),
        (Destructive, "EXECUTE IMMEDIATE 'DR\\u004fP TABLE t'"),
        (Destructive, "EXECUTE IMMEDIATE 'DR\\117P TABLE t'"),
        (Destructive, "EXECUTE IMMEDIATE 'SELECT 1;\\nDROP TABLE t'"),
        (Destructive, "EXECUTE IMMEDIATE 'SELECT 1 --\\n; DROP TABLE t'"),
        (Destructive, "EXECUTE IMMEDIATE 'EXECUTE IMMEDIATE ''DROP TABLE t'''"),
        (Destructive, "EXECUTE IMMEDIATE $$ BEGIN EXECUTE IMMEDIATE 'DROP TABLE t'; END $$"),
        (Opaque, "EXECUTE IMMEDIATE 'SELECT ' || $x"),
        (Opaque, "EXECUTE IMMEDIATE ('SELECT 1')"),
        (Opaque, "EXECUTE IMMEDIATE 'SELECT 1' 'DROP'"),
        (None, "EXECUTE IMMEDIATE ''"),
        (Read, "EXECUTE IMMEDIATE 'SELECT ?' USING (x)"),
        (Destructive, "EXECUTE IMMEDIATE 'SELECT ?' USING (x) DROP TABLE t"),
        (Opaque, "EXECUTE IMMEDIATE 'SELECT ?' USING (x) x"),
    ]);
    let deep = (0..12).fold("SELECT 1".to_owned(), |sql, _| {
        format!("EXECUTE IMMEDIATE '{}'", sql.replace('\\', "\\\\").replace('\'', "\\'"))
    });
    assert_eq!(classify(&deep).effect, Opaque);
}

#[test]
fn unicode_spells_no_keyword_unseen() {
    for sql in [
        "DROP\u{a0}TABLE t",
        "DROP\u{3000}TABLE t",
        "\u{feff}DROP TABLE t",
        "DR\u{200b}OP TABLE t",
        "\u{ff24}\u{ff32}\u{ff2f}\u{ff30} TABLE t",
        "DROP\u{0}TABLE t",
        "SELECT 1\u{0}; DROP TABLE t",
        "DELETE FROM \u{17f}",
        "E\u{445}ECUTE IMMEDIATE 'x'",
        "DROP\u{b}TABLE t",
        "SELECT\u{200b}1",
        "SELECT 1\u{ff1b} DROP TABLE t",
        "SELECT 1\u{37e} DROP TABLE t",
        "\u{131}NSERT INTO t VALUES (1)",
        "SELECT 1 \u{ad}",
        "SELECT \u{2018}; DROP TABLE t; SELECT \u{2019}",
    ] {
        let effect = classify(sql).effect;
        assert!(matches!(effect, Opaque | Destructive), "{sql:?}: {effect:?}");
    }
    check(&[(Read, "SELECT größe, \"日本\", 名前 FROM tabelle_ü WHERE x = '\u{200b}'")]);
}

#[test]
fn brackets_and_quotes_must_close() {
    check(&[
        (Opaque, "SELECT (1"),
        (Opaque, "SELECT 1)"),
        (Opaque, "SELECT [1)"),
        (Opaque, "SELECT 'x"),
        (Opaque, "SELECT \"x"),
        (Opaque, "SELECT 'x\\'"),
        (Destructive, "SELECT (1; DROP TABLE t"),
        (Destructive, "SELECT 1); DROP TABLE t; SELECT (1"),
        (Opaque, "SELECT 'a\\' ; DROP TABLE t --"),
        (Destructive, "SELECT 'a\\\\'; DROP TABLE t --'"),
        (Destructive, "SELECT \"a\\\"; DROP TABLE t --\""),
        (Destructive, "SELECT 'a'''; DROP TABLE t --'"),
    ]);
}

#[test]
fn names_and_places_that_mislead_do_not() {
    check(&[
        (Destructive, "CREATE PROCEDURE p(language VARCHAR) RETURNS INT AS $$ BEGIN DROP TABLE t; END $$"),
        (Destructive, "CREATE PROCEDURE p() RETURNS INT LANGUAGE NEW AS $$ BEGIN DROP TABLE t; END $$"),
        (Opaque, "WITH p AS PROCEDURE () RETURNS INT AS $$ BEGIN RETURN 1; END $$ CALL q()"),
        (Opaque, "WITH x AS (SELECT 1), p AS PROCEDURE () RETURNS INT LANGUAGE JAVA AS $$ x $$ CALL p()"),
        (Opaque, "WITH x AS (SELECT 1)"),
        (Opaque, "CALL db.s.SYSTEM$WAIT(1)"),
        (Admin, "ALTER TABLE t MODIFY (COLUMN a UNSET MASKING POLICY)"),
        (Destructive, "ALTER TABLE t DROP (a, b)"),
        (Destructive, "CREATE VIEW v AS BEGIN; DROP TABLE t"),
        (Opaque, "BEGIN WORK DROP TABLE t"),
        (Opaque, "COPY INTO @ s FROM t"),
        (Opaque, "SELECT a FROM t INTO OUTFILE 'x'"),
        (Read, "SELECT v:delete FROM t"),
    ]);
}

/// Each dangerous statement, dressed up in each of these ways, stays at least as bad.
#[test]
fn no_dress_makes_a_statement_harmless() {
    let statements = [
        "DROP TABLE t",
        "DROP DATABASE d",
        "TRUNCATE TABLE t",
        "DELETE FROM t WHERE a = 1",
        "INSERT INTO t VALUES (1)",
        "UPDATE t SET a = 1",
        "MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN DELETE",
        "CREATE TABLE t (a INT)",
        "CREATE OR REPLACE TABLE t (a INT)",
        "ALTER TABLE t DROP COLUMN c",
        "ALTER USER u SET PASSWORD = 'x'",
        "GRANT ROLE a TO USER b",
        "REVOKE ROLE a FROM USER b",
        "COPY INTO @s FROM t",
        "COPY INTO 's3://b/p' FROM t",
        "COPY INTO t FROM @s",
        "GET @s 'file:///tmp/'",
        "PUT 'file:///x' @s",
        "REMOVE @s",
        "UNDROP TABLE t",
        "CALL p()",
        "EXECUTE IMMEDIATE 'DROP TABLE t'",
        "EXECUTE TASK k",
        "CREATE SHARE s",
        "ALTER SHARE s ADD ACCOUNTS = a",
        "CREATE USER u",
        "ALTER ACCOUNT SET NETWORK_POLICY = p",
        "ALTER TASK k RESUME",
        "CREATE STAGE s URL = 's3://x'",
        "COMMENT ON TABLE t IS 'x'",
    ];
    for statement in statements {
        let literal = statement.replace('\'', "''");
        let lower = statement.to_lowercase();
        let spread = statement.replace(' ', " /* x */\n\t");
        let bare = classify(statement).effect;
        assert!(!matches!(bare, None | Read | Session), "{statement}: {bare:?}");
        for dressed in [
            lower,
            spread,
            format!("SELECT 1; {statement}"),
            format!("{statement}; SELECT 1"),
            format!("/* SELECT 1 */ {statement} -- SELECT 1"),
            format!("SELECT 1 ->> {statement}"),
            format!("BEGIN {statement}; END"),
            format!("BEGIN TRANSACTION; {statement}; COMMIT"),
            format!("DECLARE x INT; BEGIN IF (x = 1) THEN {statement}; END IF; END;"),
            format!("BEGIN SELECT 1; EXCEPTION WHEN OTHER THEN {statement}; END"),
            format!("EXECUTE IMMEDIATE '{literal}'"),
            format!("EXECUTE IMMEDIATE $$ {statement} $$"),
            format!("CREATE PROCEDURE p() RETURNS INT LANGUAGE SQL AS $$ BEGIN {statement}; END $$"),
            format!("CREATE PROCEDURE p() RETURNS INT LANGUAGE SQL AS BEGIN {statement}; END"),
            format!("CREATE TASK k AS {statement}"),
            format!("CREATE TASK k AS BEGIN {statement}; END"),
            format!("CREATE ALERT a IF (EXISTS (SELECT 1)) THEN {statement}"),
            format!("ALTER TASK k MODIFY AS {statement}"),
            format!("SHOW TABLES END; {statement}"),
        ] {
            let effect = classify(&dressed).effect;
            assert_eq!(worse(bare, effect), effect, "{dressed}: {effect:?}, bare {bare:?}");
        }
        for hidden in [
            format!("SELECT * FROM ({statement})"),
            format!("SELECT a FROM t WHERE a IN ({statement})"),
            format!("WITH x AS ({statement}) SELECT * FROM x"),
            format!("SELECT 1 {statement}"),
            format!("({statement})"),
            format!("SHOW TABLES; {statement}"),
        ] {
            let effect = classify(&hidden).effect;
            let comment = statement.starts_with("COMMENT")
                || statement.starts_with("PUT")
                || statement.starts_with("GET")
                || statement.starts_with("REMOVE");
            assert!(comment || !matches!(effect, None | Read | Session), "{hidden}: {effect:?}");
        }
    }
}

fn worse(one: Effect, other: Effect) -> Effect {
    one.worse(other)
}
