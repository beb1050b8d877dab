//! Statements that say who may do what.

use super::objects::{name, object};
use super::source::Tokens;
use super::tokens::Reading;
use super::types::{Access, Action, Effect, ObjectKind};
use super::verbs::object_type;

/// `GRANT … TO …`: administration; to a share it is a way out.
pub(super) fn grant(tokens: Tokens<'_>) -> Reading {
    let mut reading = Reading::of("GRANT", Effect::Admin, Action::Grant);
    rights(tokens, "TO", &mut reading);
    if tokens.top_level().any(|at| tokens.word(at) == "TO" && tokens.word(at + 1) == "SHARE") {
        reading.raise(Effect::Exfiltration);
    }
    reading
}

/// `REVOKE … FROM …`.
pub(super) fn revoke(tokens: Tokens<'_>) -> Reading {
    let mut reading = Reading::of("REVOKE", Effect::Admin, Action::Revoke);
    rights(tokens, "FROM", &mut reading);
    reading
}

/// The objects that a GRANT or REVOKE names: what is granted on, the role that is granted, and who gets it.
fn rights(tokens: Tokens<'_>, preposition: &str, reading: &mut Reading) {
    for at in tokens.top_level() {
        let granted_role = at == 1 && tokens.word(at).ends_with("ROLE");
        if !granted_role && !matches!(tokens.word(at), "ON" | "IN") && tokens.word(at) != preposition {
            continue;
        }
        let type_at = if granted_role { at } else { at + 1 };
        match object_type(tokens, type_at) {
            Some((object_type, behind)) => {
                if let Some((name, _)) = name(tokens, behind) {
                    reading.object(object(name, object_type.kind, Access::Grant));
                }
            }
            None if tokens.word(at) == preposition => {
                if let Some((name, _)) = name(tokens, type_at) {
                    reading.object(object(name, ObjectKind::Role, Access::Grant));
                }
            }
            // `ON ALL TABLES IN SCHEMA s` comes by its IN, `ON ACCOUNT` names nothing.
            None => {}
        }
    }
}
