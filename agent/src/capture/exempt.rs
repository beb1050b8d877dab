//! The agent's own connections to endpoints, which must not be redirected to itself.

use std::{
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, PoisonError},
};

use agent_common::maps;
use aya::maps::{HashMap, MapData};

use super::CaptureError;

/// Exempts sockets from the redirect; clones share the same set.
#[derive(Clone)]
pub struct Exemptor {
    cookies: Arc<Mutex<HashMap<MapData, u64, u8>>>,
}

/// A socket is exempt as long as this lives.
#[must_use = "the exemption ends when this is dropped"]
pub struct Exemption {
    exemptor: Exemptor,
    cookie: u64,
}

impl Exemptor {
    pub(super) fn new(cookies: HashMap<MapData, u64, u8>) -> Self {
        Self { cookies: Arc::new(Mutex::new(cookies)) }
    }

    /// To be called before the socket connects.
    pub fn exempt(&self, socket: BorrowedFd<'_>) -> Result<Exemption, CaptureError> {
        let cookie = rustix::net::sockopt::socket_cookie(socket)
            .map_err(|error| CaptureError::io("read the cookie of a socket")(error.into()))?;
        let mut cookies = self.cookies.lock().unwrap_or_else(PoisonError::into_inner);
        cookies.insert(cookie, 0, 0).map_err(CaptureError::map(maps::EXEMPT))?;
        drop(cookies);
        Ok(Exemption { exemptor: self.clone(), cookie })
    }
}

impl Drop for Exemption {
    fn drop(&mut self) {
        let mut cookies = self.exemptor.cookies.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing to do about a failure, and no harm: no other socket ever gets this cookie.
        let _ = cookies.remove(&self.cookie);
    }
}
