//! What the agent is told by signals.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What an operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// SIGHUP: read the policy again.
    Reload,
    /// SIGUSR2: have the program that is on the disk now take over.
    Replace,
    /// SIGTERM, SIGINT
    Stop,
}

pub struct Signals {
    hangup: Signal,
    interrupt: Signal,
    replace: Signal,
    terminate: Signal,
}

impl Signals {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            replace: signal(SignalKind::user_defined2())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    pub async fn next(&mut self) -> Option<Told> {
        tokio::select! {
            told = self.hangup.recv() => told.map(|()| Told::Reload),
            told = self.replace.recv() => told.map(|()| Told::Replace),
            told = self.interrupt.recv() => told.map(|()| Told::Stop),
            told = self.terminate.recv() => told.map(|()| Told::Stop),
        }
    }
}
