//! Connections that are passed on as they are, because they are not Snowflake's: from shared addresses, from addresses
//! that are only said to be Snowflake's, and, in mode `all`, from anywhere.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::Proxy;
use super::connection::{Peer, Rewound, terminate};
use super::foreign::{ForeignError, Owner};
use super::reading::Reading;
use super::share::Share;
use super::tunnel::{self, Target};
use crate::audit::EventKind;
use crate::capture::{EndpointClass, Flow};
use crate::tls::{Hit, Peek, Peeker, Scanner};

/// Bytes that are moved at once.
const PIECE: usize = 16 * 1024;
/// How long the client's beginning is waited for when there is nobody to pass it on to.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first byte of TLS.
const HANDSHAKE: u8 = 22;

/// How a client begins.
enum Beginning {
    /// A hello, or something that is no TLS; or the client has ended, and said nothing.
    Known(Peek),
    /// The server spoke first, or there is no server.
    Awaited,
}

/// Serves a connection to an address that is not Snowflake's for certain. What asks for a Snowflake name is terminated;
/// the rest is passed on from the client's own network, and watched.
pub async fn serve(proxy: Arc<Proxy>, mut client: Client, flow: Flow, share: Arc<Share>) {
    let (dialer, target) = (proxy.dialer.clone(), flow.clone());
    let mut dialing = Box::pin(async move { dialer.dial_for(&target).await });
    // Neither waits for the other: there are protocols in which the server speaks first.
    let (server, mut beginning) = tokio::select! {
        biased;
        beginning = client.begin() => (None, beginning.map(Beginning::Known)),
        server = &mut dialing => (Some(server), Ok(Beginning::Awaited)),
    };
    let mut greeted = false;
    let server = match server {
        Some(Ok(mut server)) => {
            beginning = client.begin_greeted(&mut server, &mut greeted).await.map(Beginning::Known);
            Some(Ok(server))
        }
        Some(Err(error)) => {
            // Whoever asks for Snowflake need not get there by its own network.
            let begun = tokio::time::timeout(PATIENCE, client.begin()).await;
            beginning = begun.unwrap_or(Ok(Peek::Other)).map(Beginning::Known);
            Some(Err(error))
        }
        None => None,
    };
    // The client has gone.
    let Ok(Beginning::Known(begun)) = beginning else { return };

    let judged = judge(&proxy, &flow, &begun, greeted).await;
    match judged {
        Judged::Snowflake(name) => {
            drop((server, dialing));
            let stream = Rewound::new(client.said, client.stream);
            terminate(proxy, stream, Peer { flow, server_name: name, share }).await;
        }
        Judged::Refused(kind, detail) => {
            let detail = format!("to {}: {detail}", flow.destination);
            proxy.event(kind, Some(&flow.workload), None, "", detail).await;
            abort(&client.stream);
        }
        Judged::Other => {
            let server = match server {
                Some(server) => server,
                None => dialing.await,
            };
            match server {
                Ok(server) => relay(&proxy, &flow, client, server).await,
                Err(error) => {
                    tracing::debug!(destination = %flow.destination, %error, "nobody to pass a connection on to");
                    abort(&client.stream);
                }
            }
        }
    }
}

enum Judged {
    /// To be terminated, under this name.
    Snowflake(String),
    Other,
    Refused(EventKind, String),
}

async fn judge(proxy: &Proxy, flow: &Flow, begun: &Peek, greeted: bool) -> Judged {
    let names: &[String] = match begun {
        Peek::Hello(names) => names,
        Peek::Malformed => {
            return Judged::Refused(EventKind::NotTls, "a ClientHello that nobody could answer".to_owned());
        }
        Peek::Partial | Peek::Other => &[],
    };
    if let Some(name) = names.iter().find(|name| proxy.config.is_snowflake(name)) {
        if greeted {
            // There is a server at the other end already, to which this would be a tunnel.
            return Judged::Refused(EventKind::TunnelRefused, format!("to {name}, after a greeting"));
        }
        return Judged::Snowflake(name.clone());
    }
    match owner(proxy, flow, begun).await {
        Ok(Owner::Other) => Judged::Other,
        Ok(Owner::Snowflake) => {
            let detail = match (begun, names.first()) {
                (Peek::Hello(_), Some(name)) => {
                    format!("server name {name}: the server there presents a certificate of Snowflake's")
                }
                (Peek::Hello(_), None) => "no server name, and the server there is Snowflake's".to_owned(),
                _ => "not TLS, and the server there is Snowflake's".to_owned(),
            };
            Judged::Refused(kind_of(names), detail)
        }
        Err(error) => {
            let name = names.first().map_or("no server name", String::as_str);
            Judged::Refused(kind_of(names), format!("{name}: {error}"))
        }
    }
}

fn kind_of(names: &[String]) -> EventKind {
    if names.is_empty() { EventKind::NotTls } else { EventKind::ForeignName }
}

/// Whose the server is. What is no TLS, and at an address that nobody says is Snowflake's, is not Snowflake's.
async fn owner(proxy: &Proxy, flow: &Flow, begun: &Peek) -> Result<Owner, ForeignError> {
    let address = flow.destination;
    if flow.class == Some(EndpointClass::Learnt)
        && let Some(name) = proxy.endpoints.name_of(address.ip())
        && proxy.confirms(address, &name).await
    {
        return Ok(Owner::Snowflake);
    }
    let Peek::Hello(names) = begun else { return Ok(Owner::Other) };
    let name = names.first().map(String::as_str);
    // From here, where nobody but the server has a say. There is a server, and it speaks no TLS that anybody knows: so it
    // is not Snowflake's.
    match proxy.foreign.owner(address, name, proxy.dialer.dial(address)).await {
        Err(ForeignError::Unknown) => return Ok(Owner::Other),
        Err(ForeignError::Unreachable) => {}
        told => return told,
    }
    // From where the workload is, and for this connection alone: there it may be anybody.
    proxy.foreign.ask(address, name, proxy.dialer.dial_for(flow)).await
}

/// A client, and what it has said that nobody was told yet.
pub struct Client {
    stream: TcpStream,
    said: Vec<u8>,
    /// Has looked at so much of it.
    peeker: Peeker,
    looked: usize,
}

impl Client {
    pub fn new(stream: TcpStream, said: Vec<u8>) -> Self {
        Self { stream, said, peeker: Peeker::default(), looked: 0 }
    }

    /// Reads until it is known how the client begins. Can be dropped and called again.
    async fn begin(&mut self) -> io::Result<Peek> {
        let mut piece = vec![0; PIECE];
        loop {
            let begun = self.peeker.feed(self.said.get(self.looked..).unwrap_or_default());
            self.looked = self.said.len();
            if begun != Peek::Partial {
                return Ok(begun);
            }
            let count = Reading(&self.stream).read(&mut piece).await?;
            if count == 0 {
                // It has nothing more to say, but may listen on. Of TLS it has not said enough for that.
                let is_tls = self.said.first() == Some(&HANDSHAKE);
                return Ok(if is_tls { Peek::Malformed } else { Peek::Other });
            }
            self.said.extend_from_slice(piece.get(..count).unwrap_or_default());
        }
    }

    /// The same, while what the server says is passed on.
    async fn begin_greeted(&mut self, server: &mut TcpStream, greeted: &mut bool) -> io::Result<Peek> {
        let mut piece = vec![0; PIECE];
        loop {
            let count = tokio::select! {
                biased;
                begun = self.begin() => return begun,
                count = async { Reading(server).read(&mut piece).await } => count?,
            };
            if count == 0 {
                return Ok(Peek::Other);
            }
            *greeted = true;
            self.stream.write_all(piece.get(..count).unwrap_or_default()).await?;
        }
    }
}

/// Passes bytes on both ways until both ends are done. If one fails, if the agent stops, or if a tunnel to Snowflake
/// begins, neither may take that for an orderly end.
pub async fn relay(proxy: &Proxy, flow: &Flow, client: Client, mut server: TcpStream) {
    let Client { mut stream, said, .. } = client;
    let ended = {
        let (client_read, client_write) = stream.split();
        let (server_read, server_write) = server.split();
        tokio::select! {
            ended = async {
                tokio::try_join!(
                    watched(proxy, said, client_read, server_write),
                    copied(server_read, client_write),
                )
            } => ended.map(drop),
            () = proxy.shutdown.cancelled() => Err(Stopped::Agent),
        }
    };
    let Err(stopped) = ended else { return };
    abort(&stream);
    abort(&server);
    if let Stopped::Tunnel(name) = stopped {
        let detail = format!("to {}: a tunnel to {name}", flow.destination);
        proxy.event(EventKind::TunnelRefused, Some(&flow.workload), None, "", detail).await;
    }
}

enum Stopped {
    Tunnel(String),
    Io,
    Agent,
}

impl From<io::Error> for Stopped {
    fn from(_: io::Error) -> Self {
        Self::Io
    }
}

/// From the client to the server, with an eye on what it is.
async fn watched(
    proxy: &Proxy,
    said: Vec<u8>,
    from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
) -> Result<(), Stopped> {
    let mut watch = Watch::default();
    let mut piece = said;
    loop {
        if let Some(name) = watch.tunnel_in(&piece, proxy) {
            return Err(Stopped::Tunnel(name));
        }
        to.write_all(&piece).await?;
        piece.resize(PIECE, 0);
        let count = Reading(from.as_ref()).read(&mut piece).await?;
        if count == 0 {
            to.shutdown().await?;
            return Ok(());
        }
        piece.truncate(count);
    }
}

/// From the server to the client.
async fn copied(from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> Result<(), Stopped> {
    let mut piece = vec![0; PIECE];
    loop {
        let count = Reading(from.as_ref()).read(&mut piece).await?;
        if count == 0 {
            to.shutdown().await?;
            return Ok(());
        }
        to.write_all(piece.get(..count).unwrap_or_default()).await?;
    }
}

/// Has the connection end with a reset when it is dropped: what was cut off must not look like an orderly end.
pub fn abort(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Looks for a tunnel to Snowflake in what a client says.
#[derive(Default)]
struct Watch {
    /// The beginning, as long as it may be a request to a proxy.
    beginning: Vec<u8>,
    scanner: Scanner,
}

impl Watch {
    /// What the tunnel leads to that this piece would complete.
    fn tunnel_in(&mut self, piece: &[u8], proxy: &Proxy) -> Option<String> {
        if self.beginning.len() < tunnel::LONGEST {
            self.beginning.extend_from_slice(piece);
            let target = tunnel::target(&self.beginning);
            if target.is_some() {
                // What comes after it is something else.
                self.beginning.resize(tunnel::LONGEST, 0);
            }
            match target {
                Some(Target::Name(name)) if proxy.config.is_snowflake(&name) => return Some(name),
                Some(Target::Address(address))
                    if proxy.endpoints.class_of(address).is_some_and(EndpointClass::is_certain) =>
                {
                    return Some(address.to_string());
                }
                _ => {}
            }
        }
        self.scanner.feed(piece).into_iter().find_map(|hit| match hit {
            Hit::Hello(names) => names.into_iter().find(|name| proxy.config.is_snowflake(name)),
            Hit::TooMany => Some("many names at once".to_owned()),
        })
    }
}
