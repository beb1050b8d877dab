//! One captured connection: whose it is, what it starts with, and what becomes of it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::foreign::Owner;
use super::reading::Reading;
use super::share::Share;
use super::{Proxy, revocation, service, splice};
use crate::audit::EventKind;
use crate::capture::{Accepted, EndpointClass, Flow};
use crate::tls::{Hello, HelloError, read_hello, trust};

const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection may be idle, or a request's header take. Drivers take the end of an idle connection well.
const IDLE_DEADLINE: Duration = Duration::from_mins(5);
/// A peer on HTTP/2 that does not answer to pings is gone.
const PING_INTERVAL: Duration = Duration::from_mins(1);

/// What every request of a connection has in common.
pub struct Peer {
    pub flow: Flow,
    /// The name of the TLS handshake, lower case.
    pub server_name: String,
    pub share: Arc<Share>,
}

/// Serves a connection to its end.
pub async fn serve(proxy: Arc<Proxy>, Accepted { stream, flow }: Accepted) {
    let Some(flow) = flow else {
        let peer = stream.peer_addr().map(|peer| peer.to_string()).unwrap_or_default();
        proxy.event(EventKind::NoFlow, None, None, "", format!("connection from {peer}")).await;
        return;
    };
    let share = proxy.shares.of(flow.workload.cgroup_id);
    let Some(_slot) = share.connection() else {
        // Not an orderly end, after which connector 4.x would not try again.
        splice::abort(&stream);
        let detail = format!("to {}: this workload has too many connections open", flow.destination);
        return proxy.event(EventKind::ShareUsedUp, Some(&flow.workload), None, "", detail).await;
    };
    if flow.class.is_some() && flow.destination.port() == revocation::PORT {
        revocation::serve(proxy, stream, flow, share).await;
    } else if flow.class.is_some_and(EndpointClass::is_certain) {
        serve_endpoint(proxy, stream, flow, share).await;
    } else {
        splice::serve(proxy, splice::Client::new(stream, Vec::new()), flow, share).await;
    }
}

/// Serves a connection to an address of Snowflake's.
async fn serve_endpoint(proxy: Arc<Proxy>, mut stream: TcpStream, flow: Flow, share: Arc<Share>) {
    let (kind, reason) = match read_hello(&mut Reading(&stream)).await {
        Ok(Hello { server_name: Some(name), bytes }) if proxy.config.is_snowflake(&name) => {
            let stream = Rewound::new(bytes, stream);
            return terminate(proxy, stream, Peer { flow, server_name: name, share }).await;
        }
        Ok(Hello { server_name: Some(name), bytes }) => {
            let dial = || proxy.dialer.dial(flow.destination);
            let reason = match proxy.foreign.owner(flow.destination, Some(&name), dial()).await {
                Ok(Owner::Other) => match dial().await {
                    Ok(server) => {
                        let client = splice::Client::new(stream, bytes);
                        return splice::relay(&proxy, &flow, client, server).await;
                    }
                    Err(_) => "the server there cannot be reached".to_owned(),
                },
                Ok(Owner::Snowflake) => "the server there presents a certificate of Snowflake's".to_owned(),
                Err(error) => error.to_string(),
            };
            (EventKind::ForeignName, format!("server name {name}: {reason}"))
        }
        Ok(_) => (EventKind::NotTls, "a ClientHello without a server name".to_owned()),
        // Nobody asked for anything.
        Err(HelloError::Closed | HelloError::Io(_)) => return,
        Err(HelloError::Incompatible { error, alert }) => {
            // Whether it is heard or not.
            let _ = stream.write_all(&alert).await;
            let (workload, detail) = (Some(&flow.workload), format!("{error}: TLS 1.2 or 1.3 is needed"));
            return proxy.event(EventKind::HandshakeFailed, workload, None, "", detail).await;
        }
        Err(error) => (EventKind::NotTls, error.to_string()),
    };
    splice::abort(&stream);
    let detail = format!("to {}: {reason}", flow.destination);
    proxy.event(kind, Some(&flow.workload), None, "", detail).await;
}

/// Serves a connection to a Snowflake name.
pub async fn terminate(proxy: Arc<Proxy>, stream: Rewound, peer: Peer) {
    let acceptor = TlsAcceptor::from(Arc::clone(&proxy.tls));
    let stream = match tokio::time::timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let (workload, account) = (&peer.flow.workload, &peer.server_name);
            let program = workload.executable.as_ref().and_then(|path| path.file_name()?.to_str());
            let detail = trust::explain(&error, program.unwrap_or_default());
            return proxy.event(EventKind::HandshakeFailed, Some(workload), None, account, detail).await;
        }
        Err(_) => return,
    };
    let peer = Arc::new(peer);
    let shutdown = proxy.shutdown.clone();
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    // Each request has a task of its own: one that has begun is seen to its end, whether its client waits or not.
    let service = service_fn(|request| {
        let (proxy, peer) = (Arc::clone(&proxy), Arc::clone(&peer));
        let gone = CancellationToken::new();
        // Nobody waits for the answer once this is dropped.
        let waits = gone.clone().drop_guard();
        let answer =
            proxy.tasks.clone().spawn(async move { service::handle(&proxy, &peer, request, gone).await });
        async move {
            let answer = answer.await;
            drop(waits);
            answer
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_DEADLINE).max_buf_size(64 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .max_header_list_size(64 * 1024)
        .max_concurrent_streams(32);
    let builder = if is_http2 { builder.http2_only() } else { builder.http1_only() };
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
    };
    let Err(error) = ended else { return };
    match error.downcast_ref::<hyper::Error>() {
        // The server has answered that by itself, if it could.
        Some(error) if error.is_parse() => {
            let (workload, account) = (&peer.flow.workload, &peer.server_name);
            let detail = format!("not HTTP: {error}");
            proxy.event(EventKind::MalformedRequest, Some(workload), None, account, detail).await;
        }
        _ => tracing::debug!(%error, "a client's connection ended"),
    }
}

/// A stream whose first bytes were read already and are read again.
pub struct Rewound {
    before: Vec<u8>,
    position: usize,
    stream: TcpStream,
}

impl Rewound {
    pub fn new(before: Vec<u8>, stream: TcpStream) -> Self {
        Self { before, position: 0, stream }
    }
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = self.before.get(self.position..).unwrap_or_default();
        if rest.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = rest.len().min(buf.remaining());
        buf.put_slice(rest.get(..count).unwrap_or_default());
        self.position += count;
        if self.position == self.before.len() {
            self.before = Vec::new();
            self.position = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
