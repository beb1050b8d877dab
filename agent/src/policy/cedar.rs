//! Cedar: policies and schema in, a decision out.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::str::FromStr;

use cedar_policy::{
    Authorizer, Context, Decision as CedarDecision, Entities, Entity, EntityId, EntityTypeName, EntityUid,
    PolicyId, PolicySet, Request, RestrictedExpression as Value, Schema, ValidationMode, Validator,
};
use miette::Diagnostic;

use super::{Decision, PolicyError, Subject, Verdict, label};
use crate::config::position;
use crate::sql::{Action, Effect, ObjectKind, Statement};

/// The built-in policy.
pub const DEFAULT: &str = include_str!("default.cedar");
/// What policies can speak of.
pub const SCHEMA: &str = include_str!("schema.cedarschema");

/// A validated set of policies.
pub struct Policy {
    authorizer: Authorizer,
    policies: PolicySet,
}

impl Policy {
    /// Reads a policy file, or takes the built-in policy.
    pub fn load(path: Option<&Path>) -> Result<Self, PolicyError> {
        match path {
            None => Self::parse(Path::new("built-in policy"), DEFAULT),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| PolicyError::read(path, source))?;
                Self::parse(path, &text)
            }
        }
    }

    /// Parses and validates a policy text; `path` is for the messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, PolicyError> {
        let invalid = |offset: usize, message: String| {
            let (line, column) = position(text, offset);
            PolicyError::Invalid { path: path.to_owned(), line, column, message }
        };
        let parsed = PolicySet::from_str(text).map_err(|errors| {
            let offset =
                errors.labels().and_then(|mut labels| labels.next()).map_or(0, |label| label.offset());
            invalid(offset, errors.to_string())
        })?;
        // Policies go by their `@id` from here on.
        let mut policies = PolicySet::new();
        for policy in parsed.policies() {
            let id = policy.annotation("id").map_or_else(|| policy.id().clone(), PolicyId::new);
            policies
                .add(policy.new_id(id))
                .map_err(|error| invalid(0, format!("expected each @id once: {error}")))?;
        }
        if parsed.templates().next().is_some() {
            return Err(invalid(0, "policy templates are not supported".into()));
        }
        let (schema, _) =
            Schema::from_cedarschema_str(SCHEMA).map_err(|error| invalid(0, error.to_string()))?;
        let validation = Validator::new(schema).validate(&policies, ValidationMode::Strict);
        if let Some(error) = validation.validation_errors().next() {
            let offset =
                error.labels().and_then(|mut labels| labels.next()).map_or(0, |label| label.offset());
            return Err(invalid(offset, error.to_string()));
        }
        Ok(Self { authorizer: Authorizer::new(), policies })
    }

    pub(super) fn decide_statement(&self, subject: &Subject<'_>, statement: &Statement) -> Decision {
        self.decide_facts(
            subject,
            &Facts {
                effect: statement.effect,
                kind: &statement.kind,
                actions: statement.actions.iter().map(label).collect(),
                objects: statement.objects.iter().map(|object| object.name.clone()).collect(),
                features: statement.features.iter().map(label).collect(),
                leaves_role: leaves_role(subject, statement),
            },
        )
    }

    /// Decides on a text without a statement.
    pub(super) fn decide_empty(&self, subject: &Subject<'_>) -> Decision {
        self.decide_facts(subject, &Facts { effect: Effect::None, ..Facts::default() })
    }

    fn decide_facts(&self, subject: &Subject<'_>, facts: &Facts<'_>) -> Decision {
        let asked = self.ask(subject, facts, false);
        if asked.verdict == Verdict::Allow {
            return asked;
        }
        match self.ask(subject, facts, true) {
            approved if approved.verdict == Verdict::Allow => {
                Decision { verdict: Verdict::Hold, policy: approved.policy }
            }
            _ => asked,
        }
    }

    /// One question to Cedar. An error in a policy denies: a `forbid` that fails must not be skipped.
    fn ask(&self, subject: &Subject<'_>, facts: &Facts<'_>, approved: bool) -> Decision {
        let deny = |policy: &str| Decision { verdict: Verdict::Deny, policy: policy.to_owned() };
        let Some((request, entities)) = request(subject, facts, approved) else {
            return deny("invalid-request");
        };
        let response = self.authorizer.is_authorized(&request, &self.policies, &entities);
        if response.diagnostics().errors().next().is_some() {
            return deny("policy-error");
        }
        let mut reasons: Vec<_> = response.diagnostics().reason().map(ToString::to_string).collect();
        reasons.sort_unstable();
        match response.decision() {
            CedarDecision::Allow => Decision { verdict: Verdict::Allow, policy: reasons.join(", ") },
            CedarDecision::Deny if reasons.is_empty() => deny("no-policy-allows-it"),
            CedarDecision::Deny => deny(&reasons.join(", ")),
        }
    }
}

/// What is asked about.
struct Facts<'a> {
    effect: Effect,
    kind: &'a str,
    actions: Vec<String>,
    objects: Vec<String>,
    features: Vec<String>,
    leaves_role: bool,
}

impl Default for Facts<'_> {
    fn default() -> Self {
        Self {
            effect: Effect::Opaque,
            kind: "",
            actions: Vec::new(),
            objects: Vec::new(),
            features: Vec::new(),
            leaves_role: false,
        }
    }
}

/// Whether the statement takes another role than the one that the rule fixes.
fn leaves_role(subject: &Subject<'_>, statement: &Statement) -> bool {
    let Some(fixed) = subject.role else { return false };
    let is_fixed = |name: &str| name.eq_ignore_ascii_case(fixed);
    let mut roles = statement.objects.iter().filter(|object| object.kind == ObjectKind::Role);
    statement.actions.contains(&Action::Use) && roles.any(|role| !is_fixed(&role.name))
}

fn request(subject: &Subject<'_>, facts: &Facts<'_>, approved: bool) -> Option<(Request, Entities)> {
    let caller = uid("Caller", &format!("{}#{}", subject.issuer, subject.subject))?;
    let account = uid("Account", subject.account)?;
    let action = uid("Action", &label(&facts.effect))?;
    let groups: HashSet<_> = subject.groups.iter().filter_map(|group| uid("Group", group)).collect();
    let text = |value: &str| Value::new_string(value.to_owned());
    let texts = |values: &[String]| Value::new_set(values.iter().cloned().map(Value::new_string));
    let context = Context::from_pairs(
        [
            ("kind", text(facts.kind)),
            ("actions", texts(&facts.actions)),
            ("objects", texts(&facts.objects)),
            ("features", texts(&facts.features)),
            ("cgroup", text(subject.cgroup)),
            ("uid", Value::new_long(subject.uid.into())),
            ("rule", text(subject.rule)),
            ("user", text(subject.user)),
            ("role", text(subject.role.unwrap_or_default())),
            ("leavesRole", Value::new_bool(facts.leaves_role)),
            ("approved", Value::new_bool(approved)),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    )
    .ok()?;
    let attributes = HashMap::from([
        ("issuer".to_owned(), text(subject.issuer)),
        ("subject".to_owned(), text(subject.subject)),
    ]);
    let parents = groups.iter().cloned().map(|group| Entity::new_no_attrs(group, HashSet::new()));
    let entities =
        parents.chain([Entity::new(caller.clone(), attributes, groups.clone()).ok()?]).collect::<Vec<_>>();
    let entities = Entities::from_entities(entities, None).ok()?;
    Some((Request::new(caller, action, account, context, None).ok()?, entities))
}

fn uid(kind: &str, id: &str) -> Option<EntityUid> {
    Some(EntityUid::from_type_name_and_id(EntityTypeName::from_str(kind).ok()?, EntityId::new(id)))
}
