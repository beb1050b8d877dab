//! Accepts redirected connections, and finds out whose they are.

use std::{sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::spawn_blocking,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    cgroups::Cgroups,
    endpoints::Endpoints,
    flows::{Flow, Flows},
    namespace::Namespace,
};

/// A connection to the agent's port in one of the namespaces.
#[derive(Debug)]
pub struct Accepted {
    pub stream: TcpStream,
    /// None: nobody was redirected here, so the connection came straight to the port. To be refused.
    pub flow: Option<Flow>,
}

/// What accepting needs.
pub(super) struct Acceptor {
    pub(super) flows: Flows,
    pub(super) endpoints: Endpoints,
    pub(super) cgroups: Arc<Cgroups>,
    pub(super) accepted: mpsc::Sender<Accepted>,
    /// Until this is cancelled, connections wait in the listeners' queues.
    pub(super) gate: CancellationToken,
}

impl Acceptor {
    /// Accepts, once the gate is open, until nobody wants the connections any more.
    pub(super) async fn run(
        self: Arc<Self>,
        listener: Arc<TcpListener>,
        namespace: Arc<Namespace>,
        netns_cookie: u64,
    ) {
        const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(50);
        self.gate.cancelled().await;
        while !self.accepted.is_closed() {
            let (stream, source) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // The client has gone away, or there are no descriptors left: neither ends the listener.
                    tracing::warn!(netns_cookie, %error, "cannot accept a connection");
                    sleep(PAUSE_AFTER_ERROR).await;
                    continue;
                }
            };
            let flow = match self.flows.take(netns_cookie, source) {
                Some(record) => {
                    let (acceptor, namespace) = (Arc::clone(&self), Arc::clone(&namespace));
                    let complete = move || {
                        Flow::from_record(&record, source, namespace, &acceptor.endpoints, &acceptor.cgroups)
                    };
                    spawn_blocking(complete).await.ok().flatten()
                }
                None => None,
            };
            if self.accepted.send(Accepted { stream, flow }).await.is_err() {
                return;
            }
        }
    }
}
