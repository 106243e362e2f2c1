//! The bar: how far windows are read back, for whoever looks on at a terminal. Elsewhere the log says it.

use std::io::{IsTerminal as _, Write};
use std::sync::mpsc;
use std::time::Duration;

use crate::pulse::Progress;
use crate::worker::Worker;

/// Quick enough for an eye.
const EVERY: Duration = Duration::from_millis(200);

/// Signs of the bar itself.
const WIDTH: i64 = 30;

/// To the start of the line, which is emptied.
const CLEAR: &[u8] = b"\r\x1b[2K";

/// A thread that draws, and ends when this is dropped.
pub(super) struct Bar {
    _thread: Worker,
}

impl Bar {
    /// Draws on stderr where that is a terminal; otherwise there is none.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub(super) fn start(progress: Progress) -> std::io::Result<Option<Self>> {
        if !std::io::stderr().is_terminal() {
            return Ok(None);
        }
        let thread = Worker::start("hapax-bar", move |stopped| {
            let mut is_shown = false;
            while stopped.recv_timeout(EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                draw(&mut std::io::stderr().lock(), &mut is_shown, progress.total());
            }
            draw(&mut std::io::stderr().lock(), &mut is_shown, (0, 0));
        })?;
        Ok(Some(Self { _thread: thread }))
    }
}

/// Draws what is read of so much; nothing, where nothing is to be read. A terminal that is gone is no reason for anything.
fn draw(out: &mut impl Write, is_shown: &mut bool, (read, of): (i64, i64)) {
    let is_wanted = of > 0;
    if is_wanted || *is_shown {
        let _ = out.write_all(CLEAR);
    }
    if is_wanted {
        let _ = out.write_all(line(read, of).as_bytes());
    }
    if is_wanted || *is_shown {
        let _ = out.flush();
    }
    *is_shown = is_wanted;
}

fn line(read: i64, of: i64) -> String {
    let full = (read * WIDTH / of.max(1)).clamp(0, WIDTH);
    let signs: String = (0..WIDTH)
        .map(|place| if place < full { '#' } else { '.' })
        .collect();
    let percent = (read * 100 / of.max(1)).clamp(0, 100);
    format!("hapax: restoring [{signs}] {percent:>3} % of {of}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shows_how_far_it_is_and_goes_when_all_is_read() {
        let mut out = Vec::new();
        let mut is_shown = false;
        let mut drawn = |total| {
            out.clear();
            draw(&mut out, &mut is_shown, total);
            String::from_utf8(out.clone()).unwrap()
        };
        assert_eq!(drawn((0, 0)), "", "nothing is read");
        let half = drawn((50, 100));
        assert_eq!(
            half,
            "\r\u{1b}[2Khapax: restoring [###############...............]  50 % of 100"
        );
        assert!(drawn((100, 100)).ends_with("[##############################] 100 % of 100"));
        assert_eq!(drawn((0, 0)), "\r\u{1b}[2K", "the line is left empty");
        assert_eq!(drawn((0, 0)), "");
    }
}
