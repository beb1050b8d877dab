//! Asks a running agent.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{AdminError, Answer, Request};
use crate::wire;

pub struct Client {
    pub(super) stream: UnixStream,
}

impl Client {
    /// Fails with [`AdminError::NotRunning`] if there is no agent.
    pub fn connect(path: &Path) -> Result<Self, AdminError> {
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Self { stream }),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                Err(AdminError::NotRunning(path.to_owned()))
            }
            Err(source) => Err(AdminError::Socket { path: path.to_owned(), source }),
        }
    }

    /// Asks, and waits for the answer for as long as it takes.
    pub fn ask(mut self, request: &Request) -> Result<Answer, AdminError> {
        wire::send(&mut self.stream, request).map_err(|_| AdminError::NoAnswer)?;
        match wire::receive(&mut self.stream) {
            Ok(Some(Answer::Failed(reason))) => Err(AdminError::Failed(reason)),
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(AdminError::NoAnswer),
            Err(_) => Err(AdminError::Unexpected),
        }
    }
}
