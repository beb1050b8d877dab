//! ^C and SIGTERM take down what this process built, and only then end it.

use std::{
    io::IsTerminal as _,
    sync::{
        Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
    low_level::emulate_default_handler,
};

use crate::state;

static LIVE: Mutex<Vec<String>> = Mutex::new(Vec::new());
static BUILDING: Mutex<()> = Mutex::new(());
static FOREGROUND: AtomicBool = AtomicBool::new(false);
static INSTALLED: Once = Once::new();

/// From now on a signal takes sandbox `id` down.
pub fn watch_over(id: &str) -> Result<()> {
    let mut installed = Ok(());
    INSTALLED.call_once(|| installed = install());
    installed?;
    live().push(id.to_owned());
    Ok(())
}

/// From now on no signal touches sandbox `id`.
pub fn let_go(id: &str) {
    live().retain(|other| other != id);
}

/// While the value lives, something is being added to a sandbox or removed: signals wait, so that nothing is added behind
/// the back of the removal, and no removal is cut short. Never held while waiting for a process to become ready.
pub fn building() -> MutexGuard<'static, ()> {
    BUILDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A program in the foreground has the terminal: its ^C is the program's.
pub fn leave_interrupts_to_the_foreground(leave: bool) {
    FOREGROUND.store(leave, Ordering::Relaxed);
}

fn install() -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("wait for signals")?;
    thread::spawn(move || {
        for signal in signals.forever() {
            let of_a_terminal = std::io::stdin().is_terminal();
            if signal == SIGINT && of_a_terminal && FOREGROUND.load(Ordering::Relaxed) {
                continue;
            }
            // Both are kept until the process ends.
            let _building = building();
            let live = live();
            for id in live.iter() {
                if let Err(error) = state::remove(id) {
                    eprintln!("{error:#}");
                }
            }
            // It returns only when it failed, and then another signal may do better.
            let _ = emulate_default_handler(signal);
        }
    });
    Ok(())
}

fn live() -> MutexGuard<'static, Vec<String>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}
