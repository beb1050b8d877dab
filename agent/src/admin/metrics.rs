//! Metrics for Prometheus: `GET /metrics`, on the control runtime, so that a slow scrape holds nothing up.
//!
//! No label's value comes from outside, and nothing of a statement is ever in one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;

use super::status::EndpointCounts;
use crate::audit::delivery::{Monitor, Status};
use crate::audit::payload::Payloads;
use crate::audit::{Journal, Written};
use crate::capture::{AttemptKind, Capture, Endpoints};
use crate::proxy::Proxy;
use crate::reconcile;

/// Scrapes that are answered at a time.
const AT_ONCE: usize = 16;
const PAUSE: Duration = Duration::from_secs(1);
/// Scrapes that wait.
const BACKLOG: u32 = 64;
const FORMAT: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// Everything that is measured.
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    pub fn new(proxy: &Arc<Proxy>, capture: &Arc<Capture>, sinks: Vec<Monitor>) -> Self {
        let mut registry = Registry::with_prefix("snowfence");
        registry.register(
            "events",
            "Events of the trail, by kind, with those that came too fast to be recorded one by one",
            proxy.counts.events.clone(),
        );
        registry.register_collector(Box::new(Trail(proxy.journal.clone())));
        registry.register_collector(Box::new(Held(Arc::clone(proxy))));
        if let Some(payloads) = &proxy.payloads {
            registry.register_collector(Box::new(Spool(Arc::clone(payloads))));
        }
        if !sinks.is_empty() {
            registry.register_collector(Box::new(Sinks(sinks)));
        }
        registry.register_collector(Box::new(Kernel {
            capture: Arc::clone(capture),
            endpoints: proxy.endpoints.clone(),
        }));
        Self { registry }
    }

    /// Adds what comparisons with Snowflake's history count.
    pub fn reconcile(&mut self, counts: &reconcile::Counts) {
        counts.register(&mut self.registry);
    }

    /// Serves scrapes until it is aborted.
    pub async fn serve(self, listener: TcpListener) {
        let metrics = Arc::new(self);
        let places = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Descriptors come back.
                    tracing::warn!(%error, "a scrape cannot be answered");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let metrics = Arc::clone(&metrics);
            tokio::spawn(async move {
                let _place = place;
                let service = service_fn(|request| {
                    let answer = metrics.answer(&request);
                    async move { Ok::<_, std::convert::Infallible>(answer) }
                });
                let mut server = hyper::server::conn::http1::Builder::new();
                server.timer(TokioTimer::new()).keep_alive(false).max_buf_size(16 * 1024);
                if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                    tracing::debug!(%error, "a scrape ended");
                }
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        if request.uri().path() != "/metrics" || request.method() != Method::GET {
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        }
        let mut text = String::new();
        if prometheus_client::encoding::text::encode(&mut text, &self.registry).is_err() {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            return response;
        }
        response.headers_mut().insert(CONTENT_TYPE, FORMAT);
        *response.body_mut() = Full::new(text.into());
        response
    }
}

/// Opens the port. An agent that takes over listens beside the one before it.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The journal, and whether it takes what begins.
#[derive(Debug)]
struct Trail(Journal);

impl Collector for Trail {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Written { last_seq, bytes, failing, full, .. } = *self.0.written().borrow();
        for (name, help, value) in [
            ("journal_last_seq", "The last record of the journal", last_seq),
            ("journal_bytes", "Records in the journal", number(bytes)),
            (
                "journal_limit_bytes",
                "Room for records: beyond it, statements are refused",
                number(self.0.limit()),
            ),
            (
                "journal_refuses",
                "Whether statements are refused, as they cannot be recorded",
                i64::from(failing || full),
            ),
            (
                "journal_salvages",
                "How often the journal was damaged, and what could be read of it was kept",
                number(self.0.salvages()),
            ),
        ] {
            gauge(&mut encoder, name, help, value)?;
        }
        Ok(())
    }
}

/// What waits for a person.
struct Held(Arc<Proxy>);

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Held")
    }
}

impl Collector for Held {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let waiting = i64::try_from(self.0.approvals.waiting()).unwrap_or(i64::MAX);
        gauge(&mut encoder, "held_statements", "Statements that wait for a person to rule", waiting)
    }
}

/// Where payloads are.
#[derive(Debug)]
struct Spool(Arc<Payloads>);

impl Collector for Spool {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (name, help, value) in [
            ("spool_bytes", "Payloads in the spool", self.0.spooled()),
            (
                "spool_limit_bytes",
                "Room for payloads: statements are refused shortly before it is used up",
                self.0.room(),
            ),
        ] {
            gauge(&mut encoder, name, help, number(value))?;
        }
        let (name, help) = (
            "spool_deduplicated_bytes",
            "Payloads that were not written again, as the same was in the spool already",
        );
        counter(&mut encoder, name, help, self.0.deduplicated())?;
        let Some(archive) = self.0.archive() else { return Ok(()) };
        let help = "Payloads that are not in the archive";
        gauge(&mut encoder, "archive_pending_bytes", help, number(archive.pending_bytes))?;
        for (name, help, value) in [
            ("archived_bytes", "Payloads that were brought to the archive", archive.archived_bytes),
            ("archive_errors", "Tries to bring payloads to the archive that failed", archive.errors),
        ] {
            counter(&mut encoder, name, help, value)?;
        }
        Ok(())
    }
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> Result<(), std::fmt::Error> {
    let counter = ConstCounter::new(value);
    counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: i64,
) -> Result<(), std::fmt::Error> {
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
}

/// Bytes as a gauge has them.
fn number(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// How far the trail is delivered.
#[derive(Debug)]
struct Sinks(Vec<Monitor>);

impl Collector for Sinks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let sinks: Vec<Status> = self.0.iter().map(Monitor::status).collect();
        let label = |sink: &Status| [("sink", sink.name.clone())];
        let gauge = ConstGauge::new(0_i64).metric_type();
        let help = "The last record of the journal that has arrived, by sink";
        let mut family = encoder.encode_descriptor("sink_delivered_seq", help, None, gauge)?;
        for sink in &sinks {
            ConstGauge::new(sink.delivered).encode(family.encode_family(&label(sink))?)?;
        }
        let help = "Records that have not arrived, by sink";
        let mut family = encoder.encode_descriptor("sink_pending_records", help, None, gauge)?;
        for sink in &sinks {
            ConstGauge::new(sink.pending).encode(family.encode_family(&label(sink))?)?;
        }
        let counter = ConstCounter::new(0_u64).metric_type();
        let help = "Tries to deliver that failed, by sink";
        let mut family = encoder.encode_descriptor("sink_errors", help, None, counter)?;
        for sink in &sinks {
            ConstCounter::new(sink.errors).encode(family.encode_family(&label(sink))?)?;
        }
        let help = "Records that were refused for good, by sink";
        let mut family = encoder.encode_descriptor("sink_given_up_records", help, None, counter)?;
        for sink in &sinks {
            ConstCounter::new(sink.given_up).encode(family.encode_family(&label(sink))?)?;
        }
        Ok(())
    }
}

/// What the kernel programs count, and what is in their maps.
struct Kernel {
    capture: Arc<Capture>,
    endpoints: Endpoints,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kernel")
    }
}

impl Collector for Kernel {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counters = match self.capture.counters() {
            Ok(counters) => counters,
            Err(error) => {
                tracing::warn!(%error, "what the kernel programs have counted is not known");
                return Ok(());
            }
        };
        for (name, help, value) in [
            ("redirected_connections", "Connections that were led to the proxy", counters.redirected),
            ("lost_flows", "Connections refused because their record found no room", counters.flows_lost),
            (
                "lost_kernel_events",
                "Messages of the kernel programs that found no room",
                counters.events_lost,
            ),
            ("lost_dns_answers", "DNS answers that were not looked at", counters.dns_lost),
        ] {
            counter(&mut encoder, name, help, value)?;
        }
        let help = "Attempts to get around the agent, by kind, told or not";
        let mut family =
            encoder.encode_descriptor("attempts", help, None, ConstCounter::new(0_u64).metric_type())?;
        for (kind, value) in counters.attempts {
            ConstCounter::new(value).encode(family.encode_family(&[("kind", label(kind))])?)?;
        }
        let counts = EndpointCounts::of(self.endpoints.list().iter().map(|endpoint| endpoint.class));
        let help = "Networks in the endpoint sets, by why they are there";
        let mut family =
            encoder.encode_descriptor("endpoints", help, None, ConstGauge::new(0_i64).metric_type())?;
        for (class, value) in [
            ("declared", counts.declared),
            ("resolved", counts.resolved),
            ("confirmed", counts.confirmed),
            ("learnt", counts.learnt),
        ] {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            ConstGauge::new(value).encode(family.encode_family(&[("class", class)])?)?;
        }
        Ok(())
    }
}

fn label(kind: AttemptKind) -> &'static str {
    match kind {
        AttemptKind::Datagram => "datagram",
        AttemptKind::RawSocket => "raw_socket",
        AttemptKind::Name => "name",
        AttemptKind::Tunnel => "tunnel",
        AttemptKind::Packet => "packet",
        AttemptKind::Perimeter => "perimeter",
        AttemptKind::ListenerProbe => "listener_probe",
        AttemptKind::AgentSilent => "agent_silent",
        AttemptKind::Diversion => "diversion",
        AttemptKind::OldSocket => "old_socket",
    }
}
