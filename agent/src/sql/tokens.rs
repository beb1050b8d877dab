//! Reads one statement from its tokens alone: the main path for everything but queries, and never less cautious than
//! the tree of a parser.

use std::collections::HashSet;
use std::ops::Range;

use super::source::Tokens;
use super::types::{Action, Effect, Feature, Object, Statement};
use super::{MAX_NESTING, ddl, dml, relations, rights, scan, scripting, session};

/// Objects of one statement that are reported.
const MAX_OBJECTS: usize = 1_000;

/// What is known of a statement so far. Effects only ever rise.
pub(super) struct Reading {
    pub kind: String,
    pub effect: Effect,
    actions: Vec<Action>,
    objects: Vec<Object>,
    seen: HashSet<Object>,
    features: Vec<Feature>,
}

impl Reading {
    pub(super) fn new(kind: impl Into<String>, effect: Effect) -> Self {
        Self {
            kind: kind.into(),
            effect,
            actions: Vec::new(),
            objects: Vec::new(),
            seen: HashSet::new(),
            features: Vec::new(),
        }
    }

    /// A statement of one action.
    pub(super) fn of(kind: impl Into<String>, effect: Effect, action: Action) -> Self {
        let mut reading = Self::new(kind, effect);
        reading.act(action);
        reading
    }

    /// A statement that cannot be judged.
    pub(super) fn unknown() -> Self {
        let mut reading = Self::new("UNKNOWN", Effect::Opaque);
        reading.feature(Feature::Unparsed);
        reading
    }

    pub(super) fn raise(&mut self, effect: Effect) {
        self.effect = self.effect.worse(effect);
    }

    pub(super) fn act(&mut self, action: Action) {
        if !self.actions.contains(&action) {
            self.actions.push(action);
        }
    }

    pub(super) fn feature(&mut self, feature: Feature) {
        if !self.features.contains(&feature) {
            self.features.push(feature);
        }
    }

    pub(super) fn object(&mut self, object: Object) {
        if object.name == super::objects::UNKNOWN_NAME {
            self.feature(Feature::UnknownObject);
        }
        if self.objects.len() >= MAX_OBJECTS {
            self.feature(Feature::Truncated);
        } else if self.seen.insert(object.clone()) {
            self.objects.push(object);
        }
    }

    /// Whether an object of this name and kind is known, whatever is done to it.
    pub(super) fn names(&self, name: &str) -> bool {
        self.objects.iter().take(8).any(|object| object.name == name)
    }

    /// Drops the actions of a statement that is not run.
    pub(super) fn forget_actions(&mut self) {
        self.actions.clear();
    }

    /// Adds what a part of the statement does.
    pub(super) fn absorb(&mut self, other: Self) {
        self.raise(other.effect);
        other.actions.into_iter().for_each(|action| self.act(action));
        other.objects.into_iter().for_each(|object| self.object(object));
        other.features.into_iter().for_each(|feature| self.feature(feature));
    }

    /// Adds what a text inside the statement does.
    pub(super) fn absorb_text(&mut self, statements: Vec<Statement>) {
        for statement in statements {
            self.raise(statement.effect);
            statement.actions.into_iter().for_each(|action| self.act(action));
            statement.objects.into_iter().for_each(|object| self.object(object));
            for feature in statement.features {
                if feature != Feature::MultiStatement {
                    self.feature(feature);
                }
            }
        }
    }

    pub(super) fn into_statement(self, text: Range<usize>) -> Statement {
        Statement {
            text,
            kind: self.kind,
            effect: self.effect,
            actions: self.actions,
            objects: self.objects,
            features: self.features,
        }
    }
}

/// Reads the statement that `tokens` are, which stands `nesting` texts or statements deep.
pub(super) fn read(tokens: Tokens<'_>, nesting: u8) -> Reading {
    if nesting > MAX_NESTING {
        return Reading::unknown();
    }
    if super::split::opens_block(tokens, 0) {
        return scripting::block(tokens, nesting);
    }
    let mut reading = by_first_word(tokens, nesting);
    if let Some(at) = scripting::inline_block(tokens) {
        reading.feature(Feature::StoredBody);
        reading.absorb(scripting::block(tokens.from(at), nesting));
        scan::scan(tokens.slice(0, at), &mut reading, nesting, scan::Verbs::InPlace);
    } else {
        scan::scan(tokens, &mut reading, nesting, scan::Verbs::InPlace);
    }
    reading
}

fn by_first_word(tokens: Tokens<'_>, nesting: u8) -> Reading {
    match tokens.word(0) {
        "SELECT" | "VALUES" => query(tokens),
        "" if tokens.is_punct(0, b'(') => query(tokens),
        "WITH" => with(tokens, nesting),
        "INSERT" => dml::insert(tokens),
        "UPDATE" => dml::update(tokens),
        "DELETE" => dml::delete(tokens),
        "MERGE" => dml::merge(tokens),
        "TRUNCATE" => dml::truncate(tokens),
        "COPY" => dml::copy(tokens),
        "PUT" => dml::put(tokens),
        "GET" => dml::get(tokens),
        "LIST" | "LS" => dml::list(tokens),
        "REMOVE" | "RM" => dml::remove(tokens),
        // DEFINE is CREATE in the files of a DCM project.
        "CREATE" | "DEFINE" => ddl::create(tokens, nesting),
        "ALTER" => ddl::alter(tokens, nesting),
        "DROP" => ddl::drop(tokens),
        "UNDROP" => ddl::undrop(tokens),
        "COMMENT" => ddl::comment(tokens),
        "GRANT" => rights::grant(tokens),
        "REVOKE" => rights::revoke(tokens),
        "USE" => session::use_(tokens),
        "SET" => session::set(tokens),
        "UNSET" => session::unset(tokens),
        "BEGIN" | "START" | "COMMIT" | "ROLLBACK" => session::transaction(tokens),
        "SHOW" => session::show(tokens),
        "DESC" | "DESCRIBE" => session::describe(tokens),
        "EXPLAIN" => session::explain(tokens, nesting),
        "CALL" => session::call(tokens),
        "EXECUTE" => session::execute(tokens, nesting),
        word if scripting::starts_fragment(word, tokens) => scripting::fragment(tokens, nesting),
        _ => Reading::unknown(),
    }
}

/// `SELECT`, `VALUES` or a query in brackets.
pub(super) fn query(tokens: Tokens<'_>) -> Reading {
    let mut reading = Reading::of("SELECT", Effect::Read, Action::Select);
    relations::collect(tokens, &mut reading);
    // `SELECT … INTO :variable` is scripting; into anything else it is not Snowflake's.
    if (0..tokens.len()).any(|at| tokens.word(at) == "INTO" && !tokens.is_punct(at + 1, b':')) {
        reading.raise(Effect::Opaque);
    }
    if limits_rows(tokens) {
        reading.feature(Feature::Limit);
    }
    reading
}

/// Whether the rows are limited at the top level.
fn limits_rows(tokens: Tokens<'_>) -> bool {
    tokens.top_level().any(|at| match tokens.word(at) {
        "LIMIT" => tokens.word(at + 1) != "NULL",
        "FETCH" => true,
        "TOP" => at > 0 && matches!(tokens.word(at - 1), "SELECT" | "DISTINCT" | "ALL"),
        _ => false,
    })
}

/// `WITH … AS (…), … SELECT`, or an anonymous procedure with its call.
fn with(tokens: Tokens<'_>, nesting: u8) -> Reading {
    if let Some(at) = tokens.top_level().find(|at| tokens.phrase(*at, &["AS", "PROCEDURE"])) {
        return ddl::anonymous_procedure(tokens, at, nesting);
    }
    let verb = tokens.top_level().find(|at| {
        *at > 1
            && tokens.is_punct(at - 1, b')')
            && matches!(tokens.word(*at), "SELECT" | "VALUES" | "INSERT" | "UPDATE" | "DELETE" | "MERGE")
    });
    match verb.map_or(("", 0), |at| (tokens.word(at), at)) {
        ("SELECT" | "VALUES", _) => query(tokens),
        ("", _) => {
            let mut reading = query(tokens);
            // `WITH … AS (…) (SELECT …)` has its query in brackets.
            let bracketed =
                (1..tokens.len()).any(|at| tokens.is_punct(at - 1, b')') && tokens.is_punct(at, b'('));
            if !bracketed {
                reading.raise(Effect::Opaque);
            }
            reading
        }
        (_, at) => {
            let mut reading = by_first_word(tokens.from(at), nesting);
            relations::collect(tokens, &mut reading);
            reading
        }
    }
}
