//! What the data path counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::audit::EventKind;

#[derive(Default)]
pub struct Counts {
    /// Events, recorded or not.
    pub events: Family<EventLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EventLabels {
    kind: &'static str,
}

impl Counts {
    pub fn events(&self, kind: EventKind, count: u64) {
        self.events.get_or_create(&EventLabels { kind: kind.as_str() }).inc_by(count);
    }
}
