//! What a classification consists of.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// What a text would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Classification {
    /// In the order of the text; none for a text of blanks and comments.
    pub statements: Vec<Statement>,
    /// The worst of the statements' effects (see [`Effect::worse`]).
    pub effect: Effect,
}

/// One statement, or one block of Snowflake Scripting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Statement {
    /// Bytes of the text, without the delimiter.
    #[serde(skip)]
    pub text: Range<usize>,
    /// The verb and the type of object, in upper case: `SELECT`, `DROP TABLE`, `COPY INTO LOCATION`, `BLOCK`, `UNKNOWN` …
    pub kind: String,
    pub effect: Effect,
    /// Each once, in the order of their discovery.
    pub actions: Vec<Action>,
    /// Each once; at most 1,000 (then the statement has [`Feature::Truncated`]).
    pub objects: Vec<Object>,
    /// Each once.
    pub features: Vec<Feature>,
}

/// What kind of harm a statement can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// No statement at all.
    None,
    Read,
    /// Changes only the session: `USE`, `SET`, transactions.
    Session,
    /// Adds or changes data or objects, and can be undone.
    Write,
    /// Changes who may do what, what it costs, or how the account works.
    Admin,
    /// Takes data out of the account, or opens the way to do so.
    Exfiltration,
    /// Loses data or objects.
    Destructive,
    /// Cannot be judged from the text.
    Opaque,
}

impl Effect {
    /// The worse of two effects. `Opaque` stands above `Write` and below all that is known to be worse.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        if other.rank() > self.rank() { other } else { self }
    }

    fn rank(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Read => 1,
            Self::Session => 2,
            Self::Write => 3,
            Self::Opaque => 4,
            Self::Admin => 5,
            Self::Exfiltration => 6,
            Self::Destructive => 7,
        }
    }
}

/// What a statement does, as its verbs say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Alter,
    Begin,
    Call,
    Comment,
    Commit,
    CopyFiles,
    CopyIntoLocation,
    CopyIntoTable,
    Create,
    Delete,
    Describe,
    Drop,
    Execute,
    Explain,
    Get,
    Grant,
    Insert,
    List,
    Merge,
    Put,
    Remove,
    Rename,
    Replace,
    Revoke,
    Rollback,
    Select,
    Set,
    Show,
    Swap,
    Truncate,
    Undrop,
    Unset,
    Update,
    Use,
}

/// Something that a statement names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Object {
    /// Dotted. Parts without quotes are in upper case; quotes stay only where the name would mean another without them.
    /// Stages start with `@` and come without a path. `?` where the text does not tell.
    pub name: String,
    pub kind: ObjectKind,
    pub access: Access,
}

/// The type of an object. Relations are `Table` where the text does not say more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    Account,
    Alert,
    Application,
    ComputePool,
    Database,
    ExternalVolume,
    FileFormat,
    Function,
    Integration,
    Listing,
    Model,
    NetworkRule,
    Notebook,
    Pipe,
    Policy,
    Procedure,
    ReplicationGroup,
    Repository,
    ResourceMonitor,
    Role,
    Schema,
    Secret,
    Sequence,
    Service,
    Share,
    Stage,
    Stream,
    Streamlit,
    Table,
    Tag,
    Task,
    User,
    View,
    Warehouse,
    /// The result of an earlier query, by that query's id.
    QueryResult,
    /// An object of a type without an entry here, or of one that the text does not tell.
    Unknown,
}

/// What a statement does to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    Alter,
    Create,
    Drop,
    Execute,
    /// The object is granted on, or is given or taken rights.
    Grant,
    Read,
    Use,
    Write,
}

/// What a policy may want to know beyond the effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// Calls a function that hands data to a language model.
    AiFunction,
    /// Copies an object with `CLONE`.
    Clone,
    /// Builds a statement at run time (`EXECUTE IMMEDIATE`).
    DynamicSql,
    /// Names a place outside Snowflake: a URL, an external function, volume, stage or access integration.
    ExternalLocation,
    /// Limits the number of rows at the top level (`LIMIT`, `TOP`, `FETCH`).
    Limit,
    /// The text has several statements.
    MultiStatement,
    /// `UPDATE` or `DELETE` whose condition is missing or names no column.
    NoWhere,
    /// `CREATE OR ALTER`.
    OrAlter,
    /// `CREATE OR REPLACE`.
    OrReplace,
    /// `INSERT OVERWRITE`.
    Overwrite,
    /// Reads or writes files of a stage.
    Stage,
    /// Contains the body of a procedure, function, task, alert or block.
    StoredBody,
    /// Calls a `SYSTEM$` function.
    SystemFunction,
    /// Creates a temporary object, which ends with the session.
    Temporary,
    /// Reads data as of an earlier time.
    TimeTravel,
    /// The text is longer than [`super::MAX_TEXT_BYTES`]; it was not looked into.
    TooLarge,
    /// Not all objects or statements are reported.
    Truncated,
    /// Names an object by a variable, so that the text does not tell which.
    UnknownObject,
    /// No grammar confirmed the reading: the verdict is the token reader's alone.
    Unparsed,
}

impl Classification {
    /// What is no text but does what a statement could: a call of another interface.
    pub fn of_call(
        kind: &str,
        effect: Effect,
        actions: impl IntoIterator<Item = Action>,
        objects: impl IntoIterator<Item = Object>,
    ) -> Self {
        let statement = Statement {
            text: 0..0,
            kind: kind.to_owned(),
            effect,
            actions: actions.into_iter().collect(),
            objects: objects.into_iter().collect(),
            features: Vec::new(),
        };
        Self { statements: vec![statement], effect }
    }

    /// The same, with a feature of each of its statements.
    #[must_use]
    pub fn with(mut self, feature: Feature) -> Self {
        for statement in &mut self.statements {
            statement.features.push(feature);
        }
        self
    }

    /// A text that is not looked into.
    pub(super) fn opaque(text: Range<usize>, feature: Feature) -> Self {
        let statement = Statement {
            text,
            kind: "UNKNOWN".to_owned(),
            effect: Effect::Opaque,
            actions: Vec::new(),
            objects: Vec::new(),
            features: vec![feature],
        };
        Self { statements: vec![statement], effect: Effect::Opaque }
    }
}
