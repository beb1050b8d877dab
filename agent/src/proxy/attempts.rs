//! What the capture tells: attempts to get around the agent are recorded, and addresses that are said to be Snowflake's
//! are asked who they are.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

use super::{Proxy, workload};
use crate::audit::{Event, EventKind, Workload};
use crate::capture::{Attempt, AttemptKind, Suspect, Told};

/// Addresses that are asked at a time. Whoever controls a name server could have the agent ask any.
const ASKED_AT_ONCE: usize = 4;

impl Proxy {
    /// Records attempts until there are no more.
    pub async fn record_attempts(self: Arc<Self>, mut told: mpsc::Receiver<Told>) {
        while let Some(told) = told.recv().await {
            let event = match told {
                Told::Attempt(attempt) => {
                    self.counts.events(event_kind(attempt.kind), 1);
                    one(attempt)
                }
                Told::Suppressed { kind, cgroup, attempts } => {
                    self.counts.events(event_kind(kind), attempts);
                    let workload = Workload { cgroup, ..Workload::default() };
                    Event {
                        workload: Some(workload).filter(|workload| !workload.cgroup.is_empty()),
                        ..Event::new(event_kind(kind), too_fast(attempts))
                    }
                }
            };
            let cgroup = event.workload.as_ref().map(|workload| workload.cgroup.as_str());
            tracing::warn!(kind = event.kind.as_str(), cgroup, detail = event.detail);
            if let Err(error) = self.journal.append(vec![event.into()]).await {
                tracing::error!(%error, "an attempt to get around the agent could not be recorded");
            }
        }
    }

    /// Asks addresses who they are until there are no more.
    pub async fn ask_suspects(self: Arc<Self>, mut suspects: mpsc::Receiver<Suspect>) {
        let places = Arc::new(Semaphore::new(ASKED_AT_ONCE));
        while let Some(Suspect { address, name }) = suspects.recv().await {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let proxy = Arc::clone(&self);
            tokio::spawn(async move {
                proxy.confirms(address, &name).await;
                drop(place);
            });
        }
    }

    /// Asks an address that is said to be Snowflake's whether it is, and holds it for Snowflake's from now on if so.
    pub async fn confirms(&self, address: SocketAddr, name: &str) -> bool {
        let is_proved = self.foreign.proves(address, name, self.dialer.dial(address)).await;
        tracing::debug!(%address, name, is_proved, "asked an address who it is");
        if is_proved && let Err(error) = self.endpoints.confirm(address.ip()) {
            tracing::warn!(%address, %error, "an address of Snowflake's is not covered");
        }
        is_proved
    }
}

/// How it is said that so many events were not recorded one by one.
pub fn too_fast(events: u64) -> String {
    format!("{events} more events of this kind came too fast to be recorded one by one")
}

fn one(attempt: Attempt) -> Event {
    let labelled = |label, value: Option<String>| value.map(|value| format!("{label} {value}"));
    let name = Some(attempt.name.clone()).filter(|name| !name.is_empty());
    let parts = [
        labelled("to", attempt.destination.map(|address| address.to_string())),
        labelled("from", attempt.source.map(|address| address.to_string())),
        labelled("name", name),
        Some(attempt.detail).filter(|detail| !detail.is_empty()),
    ];
    let detail = parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
    Event {
        workload: attempt.workload.as_ref().map(workload),
        account: attempt.name,
        ..Event::new(event_kind(attempt.kind), detail)
    }
}

fn event_kind(kind: AttemptKind) -> EventKind {
    match kind {
        AttemptKind::Datagram => EventKind::DatagramRefused,
        AttemptKind::RawSocket => EventKind::RawSocketRefused,
        AttemptKind::Name => EventKind::NameGuarded,
        AttemptKind::Tunnel => EventKind::TunnelRefused,
        AttemptKind::Packet => EventKind::PacketDropped,
        AttemptKind::Perimeter => EventKind::PerimeterDropped,
        AttemptKind::ListenerProbe => EventKind::NoFlow,
        AttemptKind::AgentSilent => EventKind::AgentSilent,
        AttemptKind::Diversion => EventKind::Diverted,
        AttemptKind::OldSocket => EventKind::OldConnection,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_told_in_one_line() {
        let attempt = Attempt {
            kind: AttemptKind::Name,
            workload: None,
            source: Some("10.0.0.1:40000".parse().unwrap()),
            destination: Some("10.0.0.2:443".parse().unwrap()),
            name: "acme.snowflakecomputing.com".into(),
            detail: "more".into(),
        };
        let event = one(attempt);
        assert_eq!(
            event.detail,
            "to 10.0.0.2:443, from 10.0.0.1:40000, name acme.snowflakecomputing.com, more"
        );
        assert_eq!(
            (event.kind, event.account.as_str()),
            (EventKind::NameGuarded, "acme.snowflakecomputing.com")
        );
    }
}
