//! Who asks by the SQL API. There is no login there: each request carries its caller's token. The trail has a session for
//! each caller all the same, so that one finds there what belongs together.

use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::sessions::{Owner, Session};
use super::{Proxy, workload};
use crate::audit::{self, AuditError};
use crate::capture::Workload;
use crate::identity::Principal;

/// Callers that are remembered. One that is not is given another session, no more.
const CALLERS: u64 = 20_000;
/// After so long without a request, a caller's next one begins another session.
const IDLE: Duration = Duration::from_hours(4);

/// The callers' sessions in the trail.
pub struct Callers {
    /// By who asks and the workload's cgroup.
    sessions: Cache<(Owner, u64), Uuid>,
    /// Held while a session is recorded, so that there is one.
    opening: Mutex<()>,
}

impl Default for Callers {
    fn default() -> Self {
        Self {
            sessions: Cache::builder().max_capacity(CALLERS).time_to_idle(IDLE).build(),
            opening: Mutex::default(),
        }
    }
}

impl Proxy {
    /// The session of a caller that was authenticated, with what the token of this request says of it. It is recorded when
    /// there is none yet.
    pub async fn session_of(
        &self,
        principal: Principal,
        account: &str,
        from: &Workload,
        client: impl FnOnce() -> String,
    ) -> Result<Session, AuditError> {
        let (caller, rule) = (principal.caller(), principal.rule());
        let key = (Owner::new(&principal, account), from.cgroup_id);
        let session = |id, principal: Principal| Session {
            id,
            account: account.to_owned(),
            role: principal.rule().role.clone().unwrap_or_default(),
            principal,
        };
        if let Some(id) = self.callers.sessions.get(&key) {
            return Ok(session(id, principal));
        }
        let _opening = self.callers.opening.lock().await;
        if let Some(id) = self.callers.sessions.get(&key) {
            return Ok(session(id, principal));
        }
        let id = Uuid::now_v7();
        let record = audit::Session {
            id,
            time: audit::now(),
            workload: workload(from),
            caller: caller.clone(),
            account: account.to_owned(),
            rule: rule.name.clone(),
            user: rule.user.clone(),
            role: rule.role.clone().unwrap_or_default(),
            snowflake_session: String::new(),
            client: client(),
        };
        self.journal.append(vec![record.into()]).await?;
        self.callers.sessions.insert(key, id);
        Ok(session(id, principal))
    }
}
