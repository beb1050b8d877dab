// The Node SDK: what its manual shows, with promises in the place of callbacks.

'use strict';

const [assert, crypto, fs, snowflake] = ['assert', 'crypto', 'fs', 'snowflake-sdk'].map(require);
const { version } = require('snowflake-sdk/package.json');

snowflake.configure({ logLevel: 'OFF', additionalLogToConsole: false });
const of = process.env;
const FINE = '✓';
const UNICODE = 'Zoë 🦊 李小龙 مريم e\u0301 \'"\\';
const REFUSED = 'drop table customers';
const trials = [];

const say = (facts) => console.log(JSON.stringify(facts));
const scenario = (name, trial) => trials.push([name, trial]);
const same = (got, wanted) => assert.deepStrictEqual(got, wanted);
const pause = (milliseconds) => new Promise((done) => { setTimeout(done, milliseconds); });

async function waitUntil(holds) {
  const until = Date.now() + 60000;
  while (!await holds()) {
    if (Date.now() > until) throw new Error('not within a minute');
    await pause(50);
  }
}

// Has the test do something: `expire` the sessions at Snowflake, or `restart` the agent.
async function please(wish) {
  const file = `${of.HOME}/please`;
  fs.writeFileSync(`${file}.draft`, wish);
  fs.renameSync(`${file}.draft`, file);
  await waitUntil(() => !fs.existsSync(file));
}

async function connect() {
  const connection = snowflake.createConnection({
    account: of.SNOWFLAKE_ACCOUNT, username: of.SNOWFLAKE_USER, authenticator: 'OAUTH', token: of.SNOWFLAKE_TOKEN,
    database: of.SNOWFLAKE_DATABASE, schema: of.SNOWFLAKE_SCHEMA,
  });
  await new Promise((done, fail) => { connection.connect((error) => (error ? fail(error) : done())); });
  return connection;
}

// A statement, when it is done.
const finished = (on, sqlText, more) => new Promise((done, fail) => {
  on.execute({ sqlText, ...more, complete: (error, statement) => (error ? fail(error) : done(statement)) });
});
// Its rows.
const rowsOf = (on, sqlText, more) => new Promise((done, fail) => {
  on.execute({ sqlText, ...more, complete: (error, _, rows) => (error ? fail(error) : done(rows)) });
});
const errorOf = (promise) => promise.then((got) => assert.fail(`no error: ${JSON.stringify(got)}`), (error) => error);

let connection;
const rows = (sqlText, binds) => rowsOf(connection, sqlText, { binds });

scenario('connect', async () => {
  connection = await connect();
  same(await rows('select current_database() as D, current_schema() as S'), [{ D: 'ANALYTICS', S: 'PUBLIC' }]);
});

scenario('a small result', async () => {
  const few = await rows('select id, credit from customers where id < 3 order by id');
  same(few, [{ ID: 1, CREDIT: 17.37 }, { ID: 2, CREDIT: 34.74 }]);
});

scenario('a large result, in parts', async () => {
  const large = "select seq4() as N, 'row ' || seq4() as T from table(generator(rowcount => 90000))";
  const sums = (all) => [all.length, new Set(all.map((row) => row.N)).size, all.reduce((sum, row) => sum + row.N, 0)];
  const all = await rows(large);
  same(sums(all), [90000, 90000, 4049955000]);
  same(all[70000].T, `row ${all[70000].N}`);
  const statement = await finished(connection, large, { streamResult: true });
  const streamed = [];
  for await (const row of statement.streamRows()) streamed.push(row);
  same(sums(streamed), [90000, 90000, 4049955000]);
});

scenario('an empty result', async () => {
  const statement = await finished(connection, 'select id, name from customers where id < 0');
  same([statement.getNumRows(), statement.getColumns().map((column) => column.getName())], [0, ['ID', 'NAME']]);
});

scenario('every type', async () => {
  const [row] = await rows(`
    select 42 as A, 1.50::number(10, 2) as B, 1.25::float as C, true as D, '2024-02-29'::date as E,
      '13:14:15.123456'::time as F, '2024-02-29 13:14:15.123456'::timestamp_ntz as G,
      to_binary('CAFE', 'HEX') as H`);
  const [zoned] = await rows("select '2024-02-29 13:14:15.123456 +0000'::timestamp_tz as A");
  const [nested] = await rows(`
    select parse_json('{"a": [1, "ü", null]}') as A, array_construct(1, 2), object_construct('k', 1) as C`);
  same([row.A, row.B, row.C, row.D], [42, 1.5, 1.25, true]);
  same([row.E, row.G, zoned.A].map((moment) => moment.getTime()), [
    Date.UTC(2024, 1, 29), Date.UTC(2024, 1, 29, 13, 14, 15, 123), Date.UTC(2024, 1, 29, 13, 14, 15, 123)]);
  same(row.F, '13:14:15');
  same([...row.H], [0xca, 0xfe]);
  same(Object.values(nested), [{ a: [1, 'ü', null] }, [1, 2], { k: 1 }]);
  const [exact] = await rowsOf(connection, 'select 123456789012345678901234567890.12::number(38, 2) as N', {
    fetchAsString: ['Number'],
  });
  same(exact.N, '123456789012345678901234567890.12');
});

scenario('NULLs', async () => {
  const [row] = await rows('select null as A, null::int as B, null::varchar as C, null::date as D, null::float as E');
  same({ ...row }, { A: null, B: null, C: null, D: null, E: null });
});

scenario('Unicode', async () => {
  same((await rows('select ? as A', [UNICODE]))[0].A, UNICODE);
});

scenario('write', async () => {
  await rows('create table written (id int, name varchar)');
  const inserted = await finished(connection, "insert into written values (1, 'one'), (2, 'two')");
  same(inserted.getNumUpdatedRows(), 2);
  const updated = await finished(connection, "update written set name = 'zwei' where id = 2");
  same(updated.getNumUpdatedRows(), 1);
  await rows('delete from written where id = 1');
  same(await rows('select * from written'), [{ ID: 2, NAME: 'zwei' }]);
});

scenario('transaction', async () => {
  await rows('create table kept (id int)');
  await rows('begin');
  await rows('insert into kept values (1)');
  await rows('rollback');
  await rows('begin');
  await rows('insert into kept values (2)');
  await rows('commit');
  same(await rows('select id from kept'), [{ ID: 2 }]);
});

scenario('binds', async () => {
  same(await rows('select ? as A, ? as B, ? as C', [7, "it's", null]), [{ A: 7, B: "it's", C: null }]);
  await rows('create table bound (id int, name varchar)');
  await rows('insert into bound values (?, ?)', [[1, 'one'], [2, UNICODE]]);
  same(await rows('select * from bound order by id'), [{ ID: 1, NAME: 'one' }, { ID: 2, NAME: UNICODE }]);
});

scenario('describe', async () => {
  const statement = await finished(connection, 'select id, name, credit from customers', { describeOnly: true });
  same(statement.getColumns().map((column) => [column.getName(), column.getType(), column.getScale()]), [
    ['ID', 'fixed', 0], ['NAME', 'text', null], ['CREDIT', 'fixed', 2]]);
});

scenario('several statements in one text', async () => {
  const several = [];
  await new Promise((done, fail) => {
    connection.execute({
      sqlText: 'select 1 as A; select 2 as A',
      parameters: { MULTI_STATEMENT_COUNT: 2 },
      complete: (error, statement, of_one) => {
        if (error) { fail(error); return; }
        several.push(...of_one);
        if (statement.hasNext()) statement.NextResult(); else done();
      },
    });
  });
  same(several, [{ A: 1 }, { A: 2 }]);
});

scenario('asynchronous', async () => {
  const queryId = (await finished(connection, 'select 40 + 2 as A', { asyncExec: true })).getQueryId();
  await waitUntil(async () => !connection.isStillRunning(await connection.getQueryStatusThrowIfError(queryId)));
  const statement = await connection.getResultsFromQueryId({ queryId });
  const got = [];
  for await (const row of statement.streamRows()) got.push(row);
  same(got, [{ A: 42 }]);
});

scenario('cancel', async () => {
  const began = Date.now();
  const error = await new Promise((done) => {
    const statement = connection.execute({ sqlText: 'select system$wait(300)', complete: done });
    setTimeout(() => statement.cancel(() => {}), 1000);
  });
  same([error.code, error.sqlState], ['000604', '57014']);
  assert(Date.now() - began < 30000);
});

scenario("an error of Snowflake's", async () => {
  const error = await errorOf(rows('select no_such_column from customers'));
  same([error.name, error.code, error.sqlState], ['OperationFailedError', '002043', '02000']);
});

scenario('a refusal, once', async () => {
  const error = await errorOf(rows(REFUSED));
  same([error.name, error.code, error.sqlState], ['OperationFailedError', '003001', '42501']);
  assert(error.message.includes('DROP TABLE') && error.message.includes('no-drop'), error.message);
});

scenario('going on after a refusal', async () => {
  same(await rows('select count(*) as N from customers'), [{ N: 300 }]);
});

scenario('the session is renewed', async () => {
  const session = await rows('select current_session() as S');
  await please('expire');
  same(await rows('select current_session() as S'), session);
});

scenario('the agent restarts', async () => {
  await rows('create temporary table mine (id int)');
  await please('restart');
  await rows('insert into mine values (1)');
  same(await rows('select id from mine'), [{ ID: 1 }]);
});

// The numbers of so many sessions, which are all there at the same time.
async function sessions(count) {
  const all = await Promise.all(Array.from({ length: count }, connect));
  const numbers = await Promise.all(all.map(async (own) => (await rowsOf(own, 'select current_session() as S'))[0].S));
  await Promise.all(all.map((own) => new Promise((done) => { own.destroy(done); })));
  return new Set(numbers).size;
}

scenario('several sessions at once', async () => same(await sessions(5), 5));

scenario('100 sessions at once', async () => same(await sessions(100), 100));

scenario('files: PUT and GET', async () => {
  const folder = fs.mkdtempSync('/tmp/by_node-');
  const content = crypto.randomBytes(300000);
  fs.writeFileSync(`${folder}/data.bin`, content);
  await rows(`PUT file://${folder}/data.bin @~/by_node auto_compress=false`);
  fs.mkdirSync(`${folder}/out`);
  await rows(`GET @~/by_node/data.bin file://${folder}/out`);
  assert(content.equals(fs.readFileSync(`${folder}/out/data.bin`)));
});

(async () => {
  say({ client: `Node SDK ${version}` });
  for (const [name, trial] of trials) {
    try {
      say({ scenario: name, outcome: await trial() || FINE });
    } catch (error) {
      say({ scenario: name, failure: error.stack });
    }
  }
  // Whatever a driver leaves to be done keeps nobody waiting.
  process.exit(0);
})();
