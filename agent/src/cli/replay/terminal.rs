//! A terminal that hands over each key as it is pressed, and is as before when nobody needs that any more.

use std::collections::VecDeque;
use std::io;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::stdio::stdin;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};

/// What was pressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Character(char),
    Enter,
    Escape,
    Backspace,
    Right,
    /// Ctrl-C, or there is no terminal any more.
    End,
}

pub struct Terminal {
    before: Termios,
    pressed: VecDeque<u8>,
}

impl Terminal {
    pub fn open() -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        restore_at_signals(before.clone())?;
        let mut keys = before.clone();
        keys.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
        tcsetattr(stdin(), OptionalActions::Now, &keys)?;
        Ok(Self { before, pressed: VecDeque::new() })
    }

    /// The next key; `None` if there is none in time. Without a time it waits for one.
    pub fn key(&mut self, time: Option<Duration>) -> io::Result<Option<Key>> {
        if self.pressed.is_empty() {
            let time = time.map(|time| Timespec {
                tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: time.subsec_nanos().into(),
            });
            match poll(&mut [PollFd::new(&stdin(), PollFlags::IN)], time.as_ref()) {
                Ok(0) | Err(Errno::INTR) => return Ok(None),
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            let mut bytes = [0; 256];
            let count = rustix::io::read(stdin(), &mut bytes)?;
            if count == 0 {
                return Ok(Some(Key::End));
            }
            self.pressed.extend(bytes.iter().take(count));
        }
        Ok(decode(&mut self.pressed))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // There may be no terminal any more.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}

/// The key that the first bytes stand for; `None` for one that has no use here.
fn decode(pressed: &mut VecDeque<u8>) -> Option<Key> {
    let first = pressed.pop_front()?;
    match first {
        3 | 4 => Some(Key::End),
        b'\r' | b'\n' => Some(Key::Enter),
        8 | 127 => Some(Key::Backspace),
        0x1b if pressed.front() == Some(&b'[') => {
            pressed.pop_front();
            // Parameters, then the letter that says which key it is.
            while let Some(byte) = pressed.pop_front() {
                if byte.is_ascii_alphabetic() || byte == b'~' {
                    return (byte == b'C').then_some(Key::Right);
                }
            }
            None
        }
        0x1b => Some(Key::Escape),
        byte if byte < b' ' => None,
        byte => {
            let length = match byte {
                0xc0..=0xdf => 2,
                0xe0..=0xef => 3,
                0xf0..=0xf7 => 4,
                _ => 1,
            };
            let mut bytes = vec![byte];
            while bytes.len() < length
                && let Some(next) = pressed.pop_front()
            {
                bytes.push(next);
            }
            std::str::from_utf8(&bytes).ok()?.chars().next().map(Key::Character)
        }
    }
}

/// Who ends this program by a signal gets the terminal back, too.
fn restore_at_signals(before: Termios) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let kinds = (SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt());
    // Before the terminal is changed: a signal may come at once.
    let (mut terminate, mut hangup, mut interrupt) = {
        let _runtime = runtime.enter();
        (signal(kinds.0)?, signal(kinds.1)?, signal(kinds.2)?)
    };
    let waiting = move || {
        let number = runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => kinds.0.as_raw_value(),
                _ = hangup.recv() => kinds.1.as_raw_value(),
                _ = interrupt.recv() => kinds.2.as_raw_value(),
            }
        });
        let _ = tcsetattr(stdin(), OptionalActions::Now, &before);
        std::process::exit(128 + number);
    };
    thread::Builder::new().name("signals".to_owned()).spawn(waiting).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart() {
        let mut pressed: VecDeque<u8> =
            "n\u{1b}[C\u{1b}[1;5Cé\x7f\r\u{1b}[3~ \x01\x03\u{1b}".bytes().collect();
        let mut keys = Vec::new();
        while !pressed.is_empty() {
            keys.extend(decode(&mut pressed));
        }
        assert_eq!(
            keys,
            [
                Key::Character('n'),
                Key::Right,
                Key::Right,
                Key::Character('é'),
                Key::Backspace,
                Key::Enter,
                Key::Character(' '),
                Key::End,
                Key::Escape,
            ]
        );
    }

    #[test]
    fn whatever_is_pressed_comes_to_an_end() {
        let mut pressed: VecDeque<u8> = (0..=255).chain([0xf0, 0x1b, b'[']).collect();
        while !pressed.is_empty() {
            let _ = decode(&mut pressed);
        }
    }
}
