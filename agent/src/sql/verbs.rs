//! The types of object that a statement can create, alter, drop …, and what each verb means for each class of them.
//!
//! | class     | CREATE       | ALTER | DROP        | UNDROP |
//! |-----------|--------------|-------|-------------|--------|
//! | `Data`    | write        | write | destructive | write  |
//! | `Admin`   | admin        | admin | destructive | admin  |
//! | `Outward` | exfiltration | admin | destructive | admin  |
//!
//! What a clause of the statement adds to this is in [`super::ddl`].

use super::source::Tokens;
use super::types::{Effect, ObjectKind};

/// What kind of thing an object is, as far as harm goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Data, code, and what computes on them inside the account.
    Data,
    /// Rights, people, money, connections.
    Admin,
    /// What carries data to others.
    Outward,
}

/// A verb with a type of object behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Create,
    Alter,
    Undrop,
}

/// A type of object, named by its words.
#[derive(Debug)]
pub(super) struct ObjectType {
    pub words: &'static [&'static str],
    pub kind: ObjectKind,
    pub class: Class,
}

impl ObjectType {
    pub(super) fn is(&self, words: &[&str]) -> bool {
        self.words == words
    }

    /// What `verb` does to an object of this type, if no clause says worse.
    pub(super) fn effect(&self, verb: Verb) -> Effect {
        match (self.class, verb) {
            (Class::Data, _) => Effect::Write,
            (Class::Outward, Verb::Create) => Effect::Exfiltration,
            (Class::Admin, _) | (Class::Outward, Verb::Alter | Verb::Undrop) => Effect::Admin,
        }
    }
}

/// The type of object whose words start at `at`, and the index behind them. The longest match counts.
pub(super) fn object_type(tokens: Tokens<'_>, at: usize) -> Option<(&'static ObjectType, usize)> {
    TYPES
        .iter()
        .filter(|object| tokens.phrase(at, object.words))
        .max_by_key(|object| object.words.len())
        .map(|object| (object, at + object.words.len()))
}

/// Words between the verb and the type that do not change the meaning for us.
pub(super) fn is_modifier(word: &str) -> bool {
    matches!(
        word,
        "GLOBAL"
            | "LOCAL"
            | "PUBLIC"
            | "RECURSIVE"
            | "SECURE"
            | "TEMP"
            | "TEMPORARY"
            | "TRANSIENT"
            | "VOLATILE"
    )
}

const fn row(words: &'static [&'static str], kind: ObjectKind, class: Class) -> ObjectType {
    ObjectType { words, kind, class }
}

use Class::{Admin, Data, Outward};
use ObjectKind as K;

static TYPES: &[ObjectType] = &[
    // Relations
    row(&["TABLE"], K::Table, Data),
    row(&["DYNAMIC", "TABLE"], K::Table, Data),
    row(&["DYNAMIC", "ICEBERG", "TABLE"], K::Table, Data),
    row(&["EVENT", "TABLE"], K::Table, Data),
    row(&["EXTERNAL", "TABLE"], K::Table, Data),
    row(&["HYBRID", "TABLE"], K::Table, Data),
    row(&["ICEBERG", "TABLE"], K::Table, Data),
    row(&["IMMUTABLE", "TABLE"], K::Table, Data),
    row(&["INTERACTIVE", "TABLE"], K::Table, Data),
    row(&["READ", "ONLY", "TABLE"], K::Table, Data),
    row(&["ONLINE", "FEATURE", "TABLE"], K::Table, Data),
    row(&["INDEX"], K::Unknown, Data),
    row(&["VIEW"], K::View, Data),
    row(&["INTERACTIVE", "MATERIALIZED", "VIEW"], K::View, Data),
    row(&["MATERIALIZED", "VIEW"], K::View, Data),
    row(&["SEMANTIC", "VIEW"], K::View, Data),
    // Containers
    row(&["DATABASE"], K::Database, Data),
    row(&["SCHEMA"], K::Schema, Data),
    // Loading and streaming
    row(&["FILE", "FORMAT"], K::FileFormat, Data),
    row(&["PIPE"], K::Pipe, Data),
    row(&["SEQUENCE"], K::Sequence, Data),
    row(&["STAGE"], K::Stage, Data),
    row(&["STREAM"], K::Stream, Data),
    // Code
    row(&["AGGREGATE", "FUNCTION"], K::Function, Data),
    row(&["ALERT"], K::Alert, Data),
    row(&["DATA", "METRIC", "FUNCTION"], K::Function, Data),
    row(&["DBT", "PROJECT"], K::Repository, Data),
    row(&["DCM", "PROJECT"], K::Repository, Data),
    row(&["EXTERNAL", "FUNCTION"], K::Function, Outward),
    row(&["FUNCTION"], K::Function, Data),
    row(&["NOTEBOOK"], K::Notebook, Data),
    row(&["NOTEBOOK", "PROJECT"], K::Notebook, Data),
    row(&["PROCEDURE"], K::Procedure, Data),
    row(&["STREAMLIT"], K::Streamlit, Data),
    row(&["TASK"], K::Task, Data),
    row(&["TYPE"], K::Unknown, Data),
    row(&["WORKSPACE"], K::Repository, Data),
    // Models and services
    row(&["AGENT"], K::Service, Data),
    row(&["CORTEX", "AGENT"], K::Service, Data),
    row(&["CORTEX", "SEARCH", "SERVICE"], K::Service, Data),
    row(&["DATASET"], K::Table, Data),
    row(&["EXPERIMENT"], K::Model, Data),
    row(&["MODEL"], K::Model, Data),
    row(&["MODEL", "MONITOR"], K::Model, Data),
    row(&["MCP", "SERVER"], K::Service, Admin),
    row(&["EXTERNAL", "MCP", "SERVER"], K::Service, Outward),
    row(&["SERVICE"], K::Service, Admin),
    row(&["JOB", "SERVICE"], K::Service, Admin),
    row(&["GATEWAY"], K::Service, Admin),
    row(&["COMPUTE", "POOL"], K::ComputePool, Admin),
    row(&["IMAGE", "REPOSITORY"], K::Repository, Data),
    row(&["GIT", "REPOSITORY"], K::Repository, Admin),
    // Marks and copies
    row(&["BACKUP", "SET"], K::Unknown, Data),
    row(&["CONTACT"], K::Unknown, Data),
    row(&["SNAPSHOT"], K::Unknown, Data),
    row(&["SNAPSHOT", "SET"], K::Unknown, Data),
    row(&["TAG"], K::Tag, Data),
    // People and rights
    row(&["ACCOUNT"], K::Account, Admin),
    row(&["APPLICATION"], K::Application, Admin),
    row(&["APPLICATION", "PACKAGE"], K::Application, Admin),
    row(&["APPLICATION", "ROLE"], K::Role, Admin),
    row(&["CLASS", "ROLE"], K::Role, Admin),
    row(&["DATABASE", "ROLE"], K::Role, Admin),
    row(&["MANAGED", "ACCOUNT"], K::Account, Admin),
    row(&["ORGANIZATION"], K::Account, Admin),
    row(&["ORGANIZATION", "ACCOUNT"], K::Account, Admin),
    row(&["ORGANIZATION", "PROFILE"], K::Account, Admin),
    row(&["ORGANIZATION", "USER"], K::User, Admin),
    row(&["ORGANIZATION", "USER", "GROUP"], K::User, Admin),
    row(&["ROLE"], K::Role, Admin),
    row(&["SECRET"], K::Secret, Admin),
    row(&["SERVICE", "ROLE"], K::Role, Admin),
    row(&["USER"], K::User, Admin),
    // Policies
    row(&["AGGREGATION", "POLICY"], K::Policy, Admin),
    row(&["AUTHENTICATION", "POLICY"], K::Policy, Admin),
    row(&["BACKUP", "POLICY"], K::Policy, Admin),
    row(&["FEATURE", "POLICY"], K::Policy, Admin),
    row(&["JOIN", "POLICY"], K::Policy, Admin),
    row(&["MAINTENANCE", "POLICY"], K::Policy, Admin),
    row(&["MASKING", "POLICY"], K::Policy, Admin),
    row(&["NETWORK", "POLICY"], K::Policy, Admin),
    row(&["PACKAGES", "POLICY"], K::Policy, Admin),
    row(&["PASSWORD", "POLICY"], K::Policy, Admin),
    row(&["PRIVACY", "POLICY"], K::Policy, Admin),
    row(&["PROJECTION", "POLICY"], K::Policy, Admin),
    row(&["ROW", "ACCESS", "POLICY"], K::Policy, Admin),
    row(&["SESSION", "POLICY"], K::Policy, Admin),
    row(&["SNAPSHOT", "POLICY"], K::Policy, Admin),
    row(&["STORAGE", "LIFECYCLE", "POLICY"], K::Policy, Admin),
    row(&["NETWORK", "RULE"], K::NetworkRule, Admin),
    // Money
    row(&["BUDGET"], K::ResourceMonitor, Admin),
    row(&["PROVISIONED", "THROUGHPUT"], K::ComputePool, Admin),
    row(&["RESOURCE", "MONITOR"], K::ResourceMonitor, Admin),
    row(&["WAREHOUSE"], K::Warehouse, Admin),
    row(&["ADAPTIVE", "WAREHOUSE"], K::Warehouse, Admin),
    row(&["INTERACTIVE", "WAREHOUSE"], K::Warehouse, Admin),
    // Ways in and out
    row(&["API", "INTEGRATION"], K::Integration, Admin),
    row(&["CATALOG", "INTEGRATION"], K::Integration, Admin),
    row(&["CONNECTION"], K::Integration, Admin),
    row(&["DATA", "EXCHANGE"], K::Listing, Outward),
    row(&["EXTERNAL", "ACCESS", "INTEGRATION"], K::Integration, Outward),
    row(&["EXTERNAL", "VOLUME"], K::ExternalVolume, Admin),
    row(&["FAILOVER", "GROUP"], K::ReplicationGroup, Outward),
    row(&["INTEGRATION"], K::Integration, Admin),
    row(&["LISTING"], K::Listing, Outward),
    row(&["EXTERNAL", "LISTING"], K::Listing, Outward),
    row(&["NOTIFICATION", "INTEGRATION"], K::Integration, Admin),
    row(&["OPENFLOW", "DATA", "PLANE", "INTEGRATION"], K::Integration, Admin),
    row(&["ORGANIZATION", "LISTING"], K::Listing, Outward),
    row(&["REPLICATION", "GROUP"], K::ReplicationGroup, Outward),
    row(&["SECURITY", "INTEGRATION"], K::Integration, Admin),
    row(&["SHARE"], K::Share, Outward),
    row(&["STORAGE", "INTEGRATION"], K::Integration, Admin),
];
