//! Plays a session on a terminal: at its speed, or as fast as somebody wants it.

use std::io::Write;
use std::time::{Duration, Instant};

use super::super::Failure;
use super::layout::{INDENT, lines, seconds};
use super::terminal::{Key, Terminal};
use crate::replay::{Moment, Teller};

/// How often the line below is drawn anew.
const TICK: Duration = Duration::from_millis(100);
const FASTEST: f64 = 1000.0;
const SLOWEST: f64 = 0.01;
/// A longer search is none.
const LONGEST: usize = 200;

struct Player<'a, W> {
    terminal: Terminal,
    out: &'a mut W,
    speed: f64,
    is_paused: bool,
    /// What is said in the line below, until a key is pressed.
    notice: String,
}

/// What is to be done next.
enum Next {
    Show,
    Search(String),
    Quit,
}

/// Plays all moments, until somebody has seen enough.
pub fn play(
    teller: &mut Teller,
    moments: &[Moment],
    speed: f64,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let terminal = Terminal::open()?;
    let mut player = Player { terminal, out, speed, is_paused: false, notice: String::new() };
    let (mut position, mut last) = (0, 0);
    while let Some(moment) = moments.get(position) {
        let place = format!("{}/{}", position + 1, moments.len());
        match player.wait(moment.at - last, &place)? {
            Next::Quit => break,
            Next::Show => {
                player.show(&lines(&teller.step(*moment)))?;
                last = moment.at;
                position += 1;
            }
            Next::Search(text) => match find(teller, moments, position, &text) {
                None => player.notice = format!("nothing like {text} comes"),
                Some((found, step)) => {
                    let passed = format!("{INDENT}… {} steps passed over", found - position);
                    player.show(&[passed])?;
                    player.show(&step)?;
                    player.is_paused = true;
                    last = moments.get(found).map_or(last, |moment| moment.at);
                    position = found + 1;
                }
            },
        }
    }
    player.clear()?;
    Ok(())
}

/// The first step from `position` on that has the text in it, whichever its case.
fn find(
    teller: &mut Teller,
    moments: &[Moment],
    position: usize,
    text: &str,
) -> Option<(usize, Vec<String>)> {
    let wanted = text.to_lowercase();
    moments.iter().enumerate().skip(position).find_map(|(index, moment)| {
        let step = lines(&teller.step(*moment));
        step.iter().any(|line| line.to_lowercase().contains(&wanted)).then_some((index, step))
    })
}

impl<W: Write> Player<'_, W> {
    /// Waits for the next moment, which is `micros` later, or for somebody who wants something else.
    fn wait(&mut self, micros: i64, place: &str) -> Result<Next, Failure> {
        let mut left = Duration::from_micros(micros.try_into().unwrap_or_default());
        loop {
            if left.is_zero() && !self.is_paused {
                // What was pressed meanwhile counts.
                match self.terminal.key(Some(Duration::ZERO))? {
                    None => return Ok(Next::Show),
                    Some(key) => {
                        if let Some(next) = self.pressed(key)? {
                            return Ok(next);
                        }
                        continue;
                    }
                }
            }
            self.draw(left, place)?;
            let before = Instant::now();
            let time = TICK.min(left.div_f64(self.speed)).max(Duration::from_millis(1));
            let key = self.terminal.key((!self.is_paused).then_some(time))?;
            if !self.is_paused {
                left = left.saturating_sub(before.elapsed().mul_f64(self.speed));
            }
            if let Some(key) = key
                && let Some(next) = self.pressed(key)?
            {
                return Ok(next);
            }
        }
    }

    fn pressed(&mut self, key: Key) -> Result<Option<Next>, Failure> {
        self.notice.clear();
        match key {
            Key::Character('q') | Key::End => return Ok(Some(Next::Quit)),
            Key::Character('n') | Key::Right | Key::Enter => return Ok(Some(Next::Show)),
            Key::Character('/') => return Ok(self.ask()?.map(Next::Search)),
            Key::Character(' ') => self.is_paused = !self.is_paused,
            Key::Character('+' | '=') => self.speed = (self.speed * 2.0).min(FASTEST),
            Key::Character('-') => self.speed = (self.speed / 2.0).max(SLOWEST),
            Key::Character(_) | Key::Escape | Key::Backspace => {}
        }
        Ok(None)
    }

    /// Asks what to search for.
    fn ask(&mut self) -> Result<Option<String>, Failure> {
        let mut text = String::new();
        loop {
            write!(self.out, "\r\x1b[K/{text}")?;
            self.out.flush()?;
            match self.terminal.key(None)? {
                Some(Key::Enter) => return Ok((!text.is_empty()).then_some(text)),
                Some(Key::Escape | Key::End) => return Ok(None),
                Some(Key::Backspace) => drop(text.pop()),
                Some(Key::Character(character)) if text.len() < LONGEST && !character.is_control() => {
                    text.push(character);
                }
                _ => {}
            }
        }
    }

    fn draw(&mut self, left: Duration, place: &str) -> Result<(), Failure> {
        let state = if self.is_paused { "paused" } else { "playing" };
        let next = match i64::try_from(left.div_f64(self.speed).as_micros()) {
            Ok(0) | Err(_) => String::new(),
            Ok(micros) => format!(", next in {}", seconds(micros)),
        };
        let keys = if self.notice.is_empty() { "space n + - / q" } else { &self.notice };
        write!(self.out, "\r\x1b[K{state} {place} ×{}{next}  [{keys}]", self.speed)?;
        self.out.flush()?;
        Ok(())
    }

    fn show(&mut self, lines: &[String]) -> Result<(), Failure> {
        self.clear()?;
        for line in lines {
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()?;
        Ok(())
    }

    fn clear(&mut self) -> Result<(), Failure> {
        write!(self.out, "\r\x1b[K")?;
        self.out.flush()?;
        Ok(())
    }
}
