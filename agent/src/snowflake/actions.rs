//! Actions of objects by the REST interfaces (`POST …/tables/t:swap-with`): which there are, and what each is in SQL. They
//! are judged as that, so that what a policy says of `ALTER WAREHOUSE` or `UNDROP TABLE` holds for them too.
//!
//! Source: the specifications of the interfaces that Snowflake publishes, of version 10.10. Left out: what gives addresses
//! of the storage (`presigned-url`), what carries a statement or the whole of a new object (`tables:as-select`,
//! `services:execute-job` …), and `warehouses/w:use`, which is for sessions.

use hyper::Method;

/// The action's name, whose it is, and the statement of SQL that does the same; empty where there is none. In it `{}` is the
/// type of the object, `x` the object, and `y` another one that the request names.
pub(super) type Known = (&'static str, &'static [&'static str], &'static str);

pub(super) const ACTIONS: [Known; 38] = [
    ("abort", &["warehouses"], "ALTER {} x ABORT ALL QUERIES"),
    ("add-live-version", &["notebooks"], "ALTER {} x ADD LIVE VERSION FROM LAST"),
    ("call", &["procedures"], "CALL x()"),
    ("clone", &CLONED, "CREATE {} y CLONE x"),
    ("commit", &["notebooks"], "ALTER {} x COMMIT"),
    ("convert-to-managed", &["iceberg-tables"], "ALTER {} x CONVERT TO MANAGED"),
    ("create-like", &["iceberg-tables", "tables"], "CREATE {} y LIKE x"),
    ("create_like", &["tables"], "CREATE {} y LIKE x"),
    ("disable", &["failover"], "ALTER {} x DISABLE FAILOVER TO ACCOUNTS a"),
    ("disable", &["replication"], "ALTER {} x DISABLE REPLICATION TO ACCOUNTS a"),
    ("disable", &["warehouses"], "ALTER {} x DISABLE"),
    ("enable", &["failover"], "ALTER {} x ENABLE FAILOVER TO ACCOUNTS a"),
    ("enable", &["replication"], "ALTER {} x ENABLE REPLICATION TO ACCOUNTS a"),
    ("enable", &["warehouses"], "ALTER {} x ENABLE"),
    ("execute", &["alerts", "tasks"], "EXECUTE {} x"),
    // Which function it is in SQL, and what it does, is not known here.
    ("execute", &["functions", "user-defined-functions"], ""),
    ("execute", &["notebooks"], "EXECUTE {} x()"),
    ("get-tags", &TAGGED, "DESCRIBE {} x"),
    ("primary", &["failover"], "ALTER {} x PRIMARY"),
    ("refresh", &["dynamic-tables", "iceberg-tables", "pipes", "replication"], "ALTER {} x REFRESH"),
    ("rename", &["event-tables", "notebooks", "sequences", "tags"], "ALTER {} x RENAME TO y"),
    ("rename", &["user-defined-functions", "warehouses"], "ALTER {} x RENAME TO y"),
    ("resume", &SUSPENDED, "ALTER {} x RESUME"),
    ("resume-recluster", &CLUSTERED, "ALTER {} x RESUME RECLUSTER"),
    ("resume_recluster", &["tables"], "ALTER {} x RESUME RECLUSTER"),
    ("revoke", &["future-grants", "grants"], "REVOKE ALL FROM {} x"),
    ("set-tags", &TAGGED, "ALTER {} x SET TAG t = ''"),
    ("stop-all-services", &["compute-pools"], "ALTER {} x STOP ALL"),
    ("stopallservices", &["compute-pools"], "ALTER {} x STOP ALL"),
    ("suspend", &SUSPENDED, "ALTER {} x SUSPEND"),
    ("suspend-recluster", &CLUSTERED, "ALTER {} x SUSPEND RECLUSTER"),
    ("suspend_recluster", &["tables"], "ALTER {} x SUSPEND RECLUSTER"),
    ("swap-with", &["dynamic-tables", "tables"], "ALTER {} x SWAP WITH y"),
    ("swapwith", &["tables"], "ALTER {} x SWAP WITH y"),
    ("undrop", &["databases", "schemas"], "UNDROP {} x"),
    ("undrop", &["dynamic-tables", "iceberg-tables", "tables"], "UNDROP {} x"),
    ("undrop", &["external-volumes", "tags"], "UNDROP {} x"),
    ("unset-tags", &TAGGED, "ALTER {} x UNSET TAG t"),
];

const CLONED: [&str; 9] = [
    "alerts",
    "database-roles",
    "databases",
    "dynamic-tables",
    "iceberg-tables",
    "schemas",
    "sequences",
    "streams",
    "tables",
];
const CLUSTERED: [&str; 3] = ["dynamic-tables", "iceberg-tables", "tables"];
const SUSPENDED: [&str; 6] =
    ["compute-pools", "cortex-search-services", "dynamic-tables", "services", "tasks", "warehouses"];
const TAGGED: [&str; 25] = [
    "alerts",
    "api-integrations",
    "catalog-integrations",
    "compute-pools",
    "database-roles",
    "databases",
    "dynamic-tables",
    "event-tables",
    "functions",
    "iceberg-tables",
    "image-repositories",
    "network-policies",
    "notebooks",
    "notification-integrations",
    "pipes",
    "procedures",
    "roles",
    "schemas",
    "streams",
    "tables",
    "tasks",
    "user-defined-functions",
    "users",
    "views",
    "warehouses",
];

/// What belongs to an object without a name of its own, and whose it can be.
const BELONGINGS: [(&str, &[&str]); 4] = [
    ("failover", &["databases"]),
    ("future-grants", &["database-roles", "roles"]),
    ("grants", &["database-roles", "roles", "users"]),
    ("replication", &["databases"]),
];

/// The action of a path, as SQL says it. `segments` is the path without what follows the colon.
pub fn action(method: &Method, segments: &[&str], verb: &str) -> Option<&'static str> {
    let of = match segments {
        [.., collection, _name] if segments.len().is_multiple_of(2) => collection,
        [.., collection, _name, belonging] => {
            let (_, owners) = BELONGINGS.iter().find(|(known, _)| known == belonging)?;
            owners.contains(collection).then_some(belonging)?
        }
        _ => return None,
    };
    let needed = if verb == "get-tags" { Method::GET } else { Method::POST };
    let known = ACTIONS.iter().find(|(name, collections, _)| *name == verb && collections.contains(of));
    known.filter(|_| *method == needed).map(|(.., sql)| *sql)
}
