//! What people and drivers send every day, by effect.

use super::super::Effect::{Admin, Destructive, Exfiltration, None, Opaque, Read, Session, Write};
use super::super::classify;
use super::check;

#[test]
fn texts_without_a_statement_have_no_effect() {
    check(&[
        (None, ""),
        (None, " \n\t"),
        (None, ";;; ;"),
        (None, "-- only a comment"),
        (None, "/* one */ // two\n-- three"),
        (None, "/*!50000 DROP TABLE t */"),
    ]);
    assert!(classify(" ; -- x").statements.is_empty());
}

#[test]
fn queries_read() {
    check(&[
        (Read, "SELECT 1"),
        (Read, "select * from db.s.t where a = 'x;DROP TABLE t'"),
        (Read, "select 'it''s \\'; drop table t --'"),
        (Read, "select \"drop table t; \"\"x\" from t"),
        (Read, "select $$ drop table t; $$"),
        (Read, "with a as (select 1), b (x) as (select * from a) select * from b"),
        (Read, "(select 1) union all (select 2)"),
        (Read, "values (1), (2)"),
        (Read, "select * from table(result_scan('01b2-x'))"),
        (Read, "select * from table(result_scan(last_query_id()))"),
        (Read, "select $1, $2:a.b::string from @stage/path (file_format => f)"),
        (Read, "select * from @~/x t, @%tab"),
        (Read, "select v:a[0].b, c['x'], {'k': 1} from t, lateral flatten(input => v) f"),
        (Read, "select insert('abc', 1, 2, 'x'), replace(a, 'b'), truncate(1.5), get(v, 0) from t"),
        (Read, "select case when a then left(b, 1) else insert(c, 1, 1, 'y') end from t"),
        (Read, "select a as \"delete\", t.update, t.\"drop\" from t"),
        (Read, "select * from t at(offset => -60) join u before(statement => 'x') on t.a = u.a"),
        (Read, "select my_function(a), db.s.f(b) from t"),
        (Read, "select snowflake.cortex.complete('m', 'p'), ai_classify(a, ['x']) from t"),
        (Read, "select system$typeof(a), system$clustering_information('t') from t"),
        (
            Read,
            "select * from t match_recognize(partition by a order by b measures c as d pattern (^ x+ $) define x as c > 1)",
        ),
        (
            Read,
            "select array_agg(x) within group (order by y) over (partition by z) from t qualify row_number() over (order by a) = 1",
        ),
        (Read, "select a->b, transform(x, y int -> y + 1) from t"),
        (Read, "select * from identifier('db.s.t')"),
        (Read, "select * from identifier($t)"),
        (Read, "select * from t where ts > :1 and b = ?"),
        (Read, "select * exclude (a) rename (b as c) from t limit 10"),
        (Read, "show tables ->> select * from $1"),
    ]);
}

#[test]
fn looking_around_reads() {
    check(&[
        (Read, "show tables"),
        (Read, "show /* JDBC:DatabaseMetaData.getTables() */ tables like 'a%' in schema \"D\".\"S\""),
        (Read, "show grants to role r"),
        (Read, "describe table t"),
        (Read, "desc view v"),
        (Read, "describe procedure p(number)"),
        (Read, "list @s/path pattern = '.*x'"),
        (Read, "ls @~"),
        (Read, "explain select * from t"),
        (Read, "explain using json delete from t"),
        (Read, "explain using text insert into t select 1"),
        (Read, "call system$wait(1)"),
    ]);
}

#[test]
fn the_session_is_the_caller_s_own() {
    check(&[
        (Session, "BEGIN"),
        (Session, "begin transaction name t1"),
        (Session, "start transaction"),
        (Session, "COMMIT"),
        (Session, "commit work;"),
        (Session, "ROLLBACK"),
        (Session, "ALTER SESSION SET autocommit=false"),
        (Session, "alter session set query_tag = 'x', timezone = 'UTC'"),
        (Session, "alter session unset timezone, query_tag"),
        (Session, "use role analyst"),
        (Session, "use warehouse wh"),
        (Session, "use db.s"),
        (Session, "use secondary roles all"),
        (Session, "use secondary roles r1, r2"),
        (Session, "set x = 1"),
        (Session, "set (a, b) = (1, 'z')"),
        (Session, "set m = (select max(a) from t)"),
        (Session, "unset x"),
        (Session, "unset (a, b)"),
        (Session, "use role identifier($r)"),
    ]);
}

#[test]
fn changes_write() {
    check(&[
        (Write, "insert into t values (1)"),
        (Write, "insert into t (a, b) with x as (select 1) select * from x"),
        (Write, "insert all when a > 1 then into t1 else into t2 select a from s"),
        (Write, "insert into identifier($t) (a) select 1"),
        (Write, "update t set a = 1 where b = 2"),
        (Write, "update t set a = 1"),
        (
            Write,
            "merge into t using s on t.a = s.a when matched then update set b = 1 when not matched then insert (a) values (1)",
        ),
        (Write, "copy into t from @s/path file_format = (type = csv)"),
        (Write, "copy into t (a, b) from (select $1, $2 from @s)"),
        (Write, "copy into t from 's3://bucket/path' credentials = (aws_key_id = 'x')"),
        (Write, "put file:///tmp/data_*.csv @s auto_compress = true"),
        (Write, "put 'file:///tmp/x y.csv' '@s/path'"),
        (Write, "put file://c:\\temp\\x.csv @~"),
        (Write, "put file:///tmp/* @%t"),
        (Write, "undrop table t"),
        (Write, "create table t (a int)"),
        (Write, "create table if not exists t as select * from s"),
        (Write, "create temporary table t (a int)"),
        (Write, "create table t clone s at (offset => -60)"),
        (Write, "create dynamic table d target_lag = '1 hour' warehouse = w as select a from t"),
        (Write, "create view v as select * from t"),
        (Write, "create secure materialized view v as select 1 as a"),
        (Write, "create schema s"),
        (Write, "create transient database d data_retention_time_in_days = 0"),
        (Write, "create stage s file_format = (type = csv)"),
        (Write, "create temporary stage s"),
        (Write, "create stream st on table t"),
        (Write, "create sequence q"),
        (Write, "create file format f type = json"),
        (Write, "create task k schedule = '1 minute' as insert into t select 1"),
        (Write, "create pipe p as copy into t from @s"),
        (Write, "create function f(a int) returns int as 'a * 2'"),
        (Write, "create function f(a int) returns int language javascript as 'return DROP'"),
        (
            Write,
            "create procedure p() returns int language sql as $$ begin insert into t values (1); return 1; end $$",
        ),
        (
            Write,
            "create procedure p() returns int language sql as begin let x := 1; update t set a = :x; return x; end",
        ),
        (
            Write,
            "create procedure p() returns int language python runtime_version = '3.11' handler = 'h' as $$ import os $$",
        ),
        (Write, "create or alter view v as select 1 as a"),
        (Write, "alter table t add column c int"),
        (Write, "alter table t rename to u"),
        (Write, "alter table t alter column c drop not null, d drop default"),
        (Write, "alter table t drop constraint k"),
        (Write, "alter table t cluster by (a)"),
        (Write, "alter dynamic table d refresh"),
        (Write, "alter stage s refresh"),
        (Write, "alter pipe p refresh"),
        (Write, "alter database d set comment = 'x'"),
        (Write, "comment on table t is 'drop table t;'"),
        (Write, "execute immediate 'insert into t values (1)'"),
        (
            Write,
            "begin insert into t values (1); if (1 = 1) then update t set a = 2 where b = 3; end if; end",
        ),
        (
            Write,
            "declare x int default 0; begin for r in (select a from t) do insert into u values (1); end for; return x; exception when other then return -1; end;",
        ),
        (Write, "begin transaction; insert into t values (1); commit"),
    ]);
}

#[test]
fn blocks_that_only_compute_read() {
    check(&[
        (Read, "begin return 1; end"),
        (Read, "begin let x := case when 1 = 1 then 2 else 3 end; return x; end;"),
        (Read, "declare c cursor for select a from t; begin open c; fetch c into x; close c; return x; end"),
        (
            Read,
            "begin let i := 0; while (i < 3) do i := i + 1; end while lab; loop break lab2; end loop lab2; return i; end",
        ),
        (Read, "begin case when x then return 1; else return 2; end case; end"),
        (Read, "begin case (x) when 1 then y := 1; else y := 2; end; return y; end"),
        (Read, "begin select a into :x from t; return x; end"),
        (Read, "begin let r resultset := async (select 1); await r; return table(r); end"),
    ]);
}

#[test]
fn administration() {
    check(&[
        (Admin, "grant select on table t to role r"),
        (Admin, "grant role a to user b"),
        (Admin, "grant ownership on all tables in schema s to role r copy current grants"),
        (Admin, "revoke usage on warehouse w from role r"),
        (Admin, "create user u password = 'x'"),
        (Admin, "alter user u set default_role = r"),
        (Admin, "create role r"),
        (Admin, "create warehouse w"),
        (Admin, "alter warehouse w suspend"),
        (Admin, "alter account set timezone = 'UTC'"),
        (Admin, "alter account set session policy p"),
        (Admin, "alter session policy p set session_idle_timeout_mins = 5"),
        (Admin, "create resource monitor m with credit_quota = 1"),
        (Admin, "create network policy p allowed_ip_list = ('1.2.3.4')"),
        (
            Admin,
            "create masking policy p as (v string) returns string -> case when 1 = 1 then v else '*' end",
        ),
        (Admin, "create storage integration i type = external_stage"),
        (Admin, "create security integration i type = oauth"),
        (Admin, "create secret s type = password"),
        (Admin, "alter table t modify column c set masking policy p"),
        (Admin, "alter table t modify column c unset masking policy"),
        (Admin, "alter table t drop row access policy p"),
        (Admin, "alter table t drop all row access policies"),
        (Admin, "alter task k resume"),
        (Admin, "alter task k suspend"),
        (Admin, "alter task k modify as insert into t values (1)"),
        (Admin, "alter alert a resume"),
        (Admin, "alter schema s enable managed access"),
        (Admin, "alter share s remove accounts = x"),
        (Admin, "select system$cancel_all_queries(1)"),
        (Admin, "select system$some_new_function()"),
        (Admin, "call system$abort_session(1)"),
    ]);
}

#[test]
fn ways_out() {
    check(&[
        (Exfiltration, "copy into @s from t"),
        (Exfiltration, "copy into @~/x from (select * from t)"),
        (Exfiltration, "copy into @%t from t"),
        (Exfiltration, "copy into '@s/p' from t"),
        (Exfiltration, "copy into @\"My Stage\"/x from t"),
        (Exfiltration, "copy into 's3://b/p' from t"),
        (Exfiltration, "copy into 'azure://a.blob.core.windows.net/c' from t"),
        (Exfiltration, "copy files into @a from @b"),
        (Exfiltration, "get @s file:///tmp/"),
        (Exfiltration, "get @~/x 'file:///tmp/'"),
        (Exfiltration, "create share s"),
        (Exfiltration, "alter share s add accounts = o.a"),
        (Exfiltration, "alter share s set accounts = a"),
        (Exfiltration, "grant usage on database d to share s"),
        (Exfiltration, "create stage s url = 's3://b/p'"),
        (Exfiltration, "alter stage s set url = 's3://b/p'"),
        (Exfiltration, "create external function f(a int) returns int api_integration = i as 'https://x'"),
        (Exfiltration, "create network rule r type = host_port mode = egress value_list = ('x')"),
        (Exfiltration, "create external access integration i allowed_network_rules = (r) enabled = true"),
        (
            Exfiltration,
            "create procedure p() returns int language python external_access_integrations = (i) handler = 'h' as $$ x $$",
        ),
        (Exfiltration, "alter database d enable replication to accounts o.a"),
        (Exfiltration, "create replication group g object_types = databases allowed_accounts = o.a"),
        (Exfiltration, "create failover group g object_types = databases allowed_accounts = o.a"),
        (Exfiltration, "create listing l share s as 'x: 1'"),
        (Exfiltration, "select get_presigned_url(@s, 'x')"),
        (Exfiltration, "call system$send_email('i', 'a@b', 's', 'b')"),
    ]);
}

#[test]
fn losses() {
    check(&[
        (Destructive, "drop table t"),
        (Destructive, "drop network policy p"),
        (Destructive, "drop user if exists u"),
        (Destructive, "drop whatever is new here"),
        (Destructive, "truncate table t"),
        (Destructive, "truncate t"),
        (Destructive, "delete from t"),
        (Destructive, "delete from t where a = 1"),
        (Destructive, "delete t"),
        (Destructive, "insert overwrite into t select 1"),
        (Destructive, "insert overwrite all into t1 into t2 select 1"),
        (Destructive, "merge into t using s on t.a = s.a when matched then delete"),
        (Destructive, "create or replace table t (a int)"),
        (Destructive, "create or replace view v as select 1 as a"),
        (Destructive, "create or replace temporary stage s"),
        (Destructive, "create or replace masking policy p as (v string) returns string -> v"),
        (Destructive, "create or alter table t (a int)"),
        (Destructive, "create or alter dynamic table t target_lag = '1 hour' warehouse = w as select 1 as a"),
        (Destructive, "alter table t swap with u"),
        (Destructive, "alter schema s swap with u"),
        (Destructive, "alter table t drop column c"),
        (Destructive, "alter table t drop c"),
        (Destructive, "alter table t drop data"),
        (Destructive, "alter table t drop default"),
        (Destructive, "remove @s/x"),
        (Destructive, "rm @~"),
        (Destructive, "execute immediate 'drop table t'"),
        (Destructive, "create task k as delete from t"),
        (Destructive, "create procedure p() returns int as 'begin drop table t; end'"),
        (Destructive, "create procedure p() returns int as begin drop table t; end"),
        (Destructive, "create alert a if (exists (select 1)) then drop table t"),
        (Destructive, "create alert a if (exists (select 1)) then begin drop table t; end"),
        (Destructive, "alter task k modify as drop table t"),
        (Destructive, "alter alert a modify action drop table t"),
    ]);
}

#[test]
fn what_the_text_does_not_tell_is_opaque() {
    check(&[
        (Opaque, "call p()"),
        (Opaque, "call db.s.p(1) into :x"),
        (Opaque, "call identifier($p)()"),
        (Opaque, "execute task k"),
        (Opaque, "execute alert a"),
        (Opaque, "execute notebook n()"),
        (Opaque, "execute immediate $q"),
        (Opaque, "execute immediate :q using (a)"),
        (Opaque, "execute immediate from @s/x.sql"),
        (Opaque, "create task k as call p()"),
        (Opaque, "with p as procedure () returns int language python handler = 'h' as $$ x $$ call p()"),
        (Write, "with p as procedure () returns int language sql as $$ begin return 1; end $$ call p()"),
        (Destructive, "with p as procedure () returns int as $$ begin drop table t; end $$ call p()"),
        (Destructive, "with p as procedure () returns int as begin drop table t; end call p()"),
    ]);
}

#[test]
fn the_drivers_bind_stage_is_theirs() {
    check(&[
        (Write, "CREATE TEMPORARY STAGE SYSTEM$BIND file_format=(type=csv)"),
        (
            Write,
            "create or replace temporary stage SYSTEM$BIND file_format=(type=csv field_optionally_enclosed_by='\"')",
        ),
        (Write, "CREATE OR REPLACE TEMPORARY STAGE \"D\".\"S\".SYSTEM$BIND"),
        (Write, "PUT 'file:///tmp/placeholder' '@SYSTEM$BIND/01b2' overwrite=true"),
        (Write, "PUT file:///tmp/placeholder/0 @SYSTEM$BIND/01b2/1"),
        (Destructive, "CREATE OR REPLACE STAGE SYSTEM$BIND"),
        (Destructive, "CREATE OR REPLACE TEMPORARY STAGE SYSTEM$BINDER"),
        (Exfiltration, "CREATE OR REPLACE TEMPORARY STAGE SYSTEM$BIND url = 's3://x'"),
    ]);
}

#[test]
fn the_worst_of_several_counts() {
    check(&[
        (Session, "select 1; use role r"),
        (Write, "insert into t values (1); select 1"),
        (Opaque, "insert into t values (1); call p()"),
        (Admin, "call p(); grant role a to user b"),
        (Destructive, "select 1; call p(); drop table t"),
    ]);
}
