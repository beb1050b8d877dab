//! Events that a workload can cause at will: each is recorded, up to a rate; beyond it they are counted, and the count
//! is recorded. Else one workload could fill the journal's disk, and nobody on the node would get through any more.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::audit::EventKind;

/// Of one kind, from one workload, so many events are recorded one by one in each window.
const EVENTS: u64 = 200;
const WINDOW: Duration = Duration::from_secs(10);

/// The events of the current windows.
#[derive(Default)]
pub struct Noise {
    windows: Mutex<HashMap<Source, Window>>,
}

/// What is counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    /// The workload's cgroup; empty where it is not known.
    pub cgroup: String,
    pub kind: EventKind,
}

struct Window {
    since: Instant,
    events: u64,
}

/// Events that were not recorded one by one.
#[derive(Debug, PartialEq, Eq)]
pub struct Suppressed {
    pub source: Source,
    pub events: u64,
}

impl Noise {
    /// Counts an event; whether it is to be recorded by itself.
    pub fn admits(&self, source: Source, now: Instant) -> bool {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.entry(source).or_insert(Window { since: now, events: 0 });
        window.events += 1;
        window.events <= EVENTS
    }

    /// Ends the windows that are over, or all; what was suppressed in them.
    pub fn end_windows(&self, now: Instant, all: bool) -> Vec<Suppressed> {
        let mut suppressed = Vec::new();
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.retain(|source, window| {
            let goes_on = !all && now.saturating_duration_since(window.since) < WINDOW;
            if !goes_on && window.events > EVENTS {
                suppressed.push(Suppressed { source: source.clone(), events: window.events - EVENTS });
            }
            goes_on
        });
        suppressed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_recorded_or_counted() {
        let (noise, now) = (Noise::default(), Instant::now());
        let source = |cgroup: &str| Source { cgroup: cgroup.into(), kind: EventKind::UnknownOperation };
        let recorded = (0..1000).filter(|_| noise.admits(source("/loud"), now)).count() as u64;
        assert_eq!(recorded, EVENTS);
        assert!(noise.admits(source("/quiet"), now), "others are not concerned");
        assert!(noise.end_windows(now + WINDOW / 2, false).is_empty());
        let expected = Suppressed { source: source("/loud"), events: 1000 - EVENTS };
        assert_eq!(noise.end_windows(now + WINDOW, false), [expected]);
        assert!(noise.admits(source("/loud"), now + WINDOW), "a new window begins");
        assert!(noise.end_windows(now, true).is_empty());
    }
}
