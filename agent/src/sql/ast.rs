//! The second reader: `sqlparser`'s tree of a statement, which may make a verdict worse.
//!
//! The tree is never cloned, formatted or logged: those recurse without a limit on chains like `1+1+1…`, as dropping it
//! does. So only statements of a bounded number of tokens get here, and all of it runs on a stack that can grow.

use std::ops::ControlFlow;

use sqlparser::ast::{
    AlterTableOperation, CopyIntoSnowflakeKind, MergeAction, Statement as Tree, Visit, Visitor,
};
use sqlparser::dialect::SnowflakeDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;

use super::lexer::Kind;
use super::scan;
use super::source::Tokens;
use super::tokens::Reading;
use super::types::{Action, Effect, Feature};

/// Tokens of the longest statement that is parsed.
const MAX_TOKENS: usize = 4_000;

/// Stack that must be left before a parse; otherwise it runs on a new one of [`STACK_SIZE`] bytes.
const RED_ZONE: usize = 1024 * 1024;
const STACK_SIZE: usize = 8 * 1024 * 1024;

/// Raises `reading` by what the statement's tree contains. Where there is no tree, the token reader stands alone: then, and in
/// any query, a verb with its partner anywhere inside makes the statement opaque.
pub(super) fn raise(tokens: Tokens<'_>, reading: &mut Reading) {
    let queries = matches!(
        tokens.word(0),
        "" | "SELECT" | "VALUES" | "WITH" | "INSERT" | "UPDATE" | "DELETE" | "MERGE" | "CREATE" | "COPY"
    );
    // The call of an anonymous procedure is beyond the parser, and was read with its body.
    if !queries || matches!(reading.kind.as_str(), "CALL" | "UNKNOWN") {
        return;
    }
    if let Some(found) = effect(tokens) {
        reading.raise(found.effect);
        found.actions.into_iter().for_each(|action| reading.act(action));
    } else {
        reading.feature(Feature::Unparsed);
        if tokens.word(0) != "CREATE" && scan::has_stray_verb(tokens) {
            reading.raise(Effect::Opaque);
        }
    }
    // To the parser, `SELECT 1 DELETE FROM t` is a column with an alias. Nobody means that.
    if reading.kind == "SELECT" && scan::has_stray_verb(tokens) {
        reading.raise(Effect::Opaque);
    }
}

/// The worst effect in the statement's tree, `None` without a tree.
fn effect(tokens: Tokens<'_>) -> Option<Found> {
    // What the two lexers read differently never gets to the parser.
    let parsable = tokens.len() <= MAX_TOKENS
        && (0..tokens.len()).all(|at| match tokens.kind(at) {
            Some(Kind::Variable) => !tokens.raw(at).ends_with('$') && !tokens.raw(at).contains("$$"),
            Some(Kind::Flow | Kind::File) => false,
            _ => true,
        });
    if !parsable {
        return None;
    }
    let text = tokens.plain_text();
    stacker::maybe_grow(RED_ZONE, STACK_SIZE, || {
        let mut parser = Parser::new(&SnowflakeDialect).try_with_sql(&text).ok()?;
        let tree = parser.parse_statement().ok()?;
        if parser.peek_token_ref().token != Token::EOF {
            return None;
        }
        let mut found = Found { effect: Effect::None, actions: Vec::new() };
        let _: ControlFlow<()> = tree.visit(&mut found);
        Some(found)
    })
}

/// What a tree contains.
struct Found {
    effect: Effect,
    actions: Vec<Action>,
}

impl Visitor for Found {
    type Break = ();

    fn pre_visit_statement(&mut self, statement: &Tree) -> ControlFlow<()> {
        let (effect, action) = judge(statement);
        self.effect = self.effect.worse(effect);
        self.actions.extend(action);
        ControlFlow::Continue(())
    }
}

/// What one node of the tree does. Only what Snowflake has is known here; all else is opaque.
fn judge(statement: &Tree) -> (Effect, Option<Action>) {
    match statement {
        Tree::Query(_) => (Effect::Read, None),
        Tree::Insert(insert) => {
            let effect = if insert.overwrite { Effect::Destructive } else { Effect::Write };
            (effect, Some(Action::Insert))
        }
        Tree::Update(_) => (Effect::Write, Some(Action::Update)),
        Tree::Delete(_) => (Effect::Destructive, Some(Action::Delete)),
        Tree::Merge(merge) => {
            let deletes =
                merge.clauses.iter().any(|clause| matches!(clause.action, MergeAction::Delete { .. }));
            (if deletes { Effect::Destructive } else { Effect::Write }, Some(Action::Merge))
        }
        Tree::Truncate(_) => (Effect::Destructive, Some(Action::Truncate)),
        Tree::Drop { .. } | Tree::DropFunction(_) | Tree::DropProcedure { .. } => {
            (Effect::Destructive, Some(Action::Drop))
        }
        Tree::CopyIntoSnowflake { kind, .. } => match kind {
            CopyIntoSnowflakeKind::Table => (Effect::Write, None),
            CopyIntoSnowflakeKind::Location => (Effect::Exfiltration, Some(Action::CopyIntoLocation)),
        },
        Tree::AlterTable(table) => {
            let loses = table.operations.iter().any(|operation| {
                matches!(
                    operation,
                    AlterTableOperation::DropColumn { .. } | AlterTableOperation::SwapWith { .. }
                )
            });
            (if loses { Effect::Destructive } else { Effect::Write }, Some(Action::Alter))
        }
        // What is created, and what it replaces, the token reader knows better.
        Tree::CreateTable(_)
        | Tree::CreateView(_)
        | Tree::CreateSchema { .. }
        | Tree::CreateDatabase { .. }
        | Tree::CreateFunction(_)
        | Tree::CreateProcedure { .. }
        | Tree::CreateStage { .. }
        | Tree::CreateFileFormat { .. }
        | Tree::CreateSequence { .. }
        | Tree::CreateType { .. }
        | Tree::CreateIndex(_) => (Effect::Write, Some(Action::Create)),
        Tree::CreateRole(_)
        | Tree::CreateUser(_)
        | Tree::CreateWarehouse(_)
        | Tree::CreateSecret { .. }
        | Tree::CreatePolicy(_) => (Effect::Admin, Some(Action::Create)),
        Tree::Grant(_) => (Effect::Admin, Some(Action::Grant)),
        Tree::Revoke(_) => (Effect::Admin, Some(Action::Revoke)),
        _ => (Effect::Opaque, None),
    }
}
