//! Reads what the kernel programs send, and takes it to where it belongs.

use std::{sync::Arc, time::Duration};

use agent_common::{Event, event_kind};
use aya::maps::{MapData, RingBuf};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use super::{
    attempts::{Attempt, Suppression, Told},
    learner::Learner,
    origins::Origins,
    sys,
};

/// Events that are handled at once.
const AT_ONCE: usize = 256;
/// How often it is told what was suppressed.
const SUPPRESSION_INTERVAL: Duration = Duration::from_secs(10);

pub(super) struct Events {
    pub(super) suppression: Suppression,
    pub(super) origins: Arc<Origins>,
    pub(super) learner: Learner,
    /// Sockets in namespaces without a listener.
    pub(super) namespaces: mpsc::Sender<Vec<Event>>,
    /// Packets with a Snowflake name that were dropped.
    pub(super) guarded: mpsc::Sender<Event>,
    pub(super) told: mpsc::Sender<Told>,
}

impl Events {
    /// Runs until it is aborted.
    pub(super) async fn run(mut self, ring: RingBuf<MapData>) {
        // SAFETY: the ring buffer owns its descriptor, which stays the same and open as long as the buffer lives.
        let registered = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        let mut ring = match registered {
            Ok(ring) => ring,
            Err(error) => return tracing::error!(%error, "what the kernel programs tell is not heard"),
        };
        let mut ticks = interval(SUPPRESSION_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let totals = tokio::select! {
                ready = ring.readable_mut() => match ready {
                    Ok(mut ready) => {
                        ready.clear_ready();
                        None
                    }
                    Err(_) => return,
                },
                _ = ticks.tick() => Some(self.suppression.totals()),
            };
            loop {
                let events = read(ring.get_mut());
                if events.is_empty() {
                    break;
                }
                self.handle(events).await;
            }
            if let Some(totals) = totals {
                for told in self.suppression.tell(&totals, &self.origins) {
                    if self.told.send(told).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn handle(&mut self, events: Vec<Event>) {
        let is_about_namespaces =
            |event: &Event| matches!(event.kind, event_kind::SOCKET_CREATED | event_kind::ENDPOINT_HIT);
        let (namespaces, attempts): (Vec<Event>, Vec<Event>) =
            events.into_iter().partition(is_about_namespaces);
        if !namespaces.is_empty() {
            let _ = self.namespaces.send(namespaces).await;
        }
        for event in attempts {
            self.suppression.received(&event);
            let origins = Arc::clone(&self.origins);
            let attempt = spawn_blocking(move || Attempt::of(&event, &origins)).await;
            let Ok(Some(attempt)) = attempt else { continue };
            if event.kind == event_kind::NAME_GUARDED
                && let Some(destination) = attempt.destination
            {
                self.learner.learn(destination, &attempt.name, Duration::ZERO);
                // Its process tries again sooner if its socket is ended; if too many wait, it tries again all the same.
                let _ = self.guarded.try_send(event);
            }
            let _ = self.told.send(Told::Attempt(attempt)).await;
        }
    }
}

/// Takes waiting events, no more than [`AT_ONCE`].
fn read(ring: &mut RingBuf<MapData>) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < AT_ONCE {
        let Some(item) = ring.next() else { break };
        events.extend(sys::read::<Event>(&item));
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_another_size_are_ignored() {
        let mut bytes = vec![0; size_of::<Event>()];
        bytes[0] = 5;
        assert_eq!(sys::read::<Event>(&bytes).unwrap().kind, 5);
        assert!(sys::read::<Event>(&bytes[1..]).is_none());
        assert!(sys::read::<Event>(&[]).is_none());
    }
}
