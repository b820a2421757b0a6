//! Ctrl-C during a copy: it ends after the pieces that are under way, and leaves no half of a file behind. During a trace:
//! what was seen is shown.
//!
//! * The first SIGINT or SIGTERM sets a flag, at which copies look; the second ends the program at once.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SigSet, Signal};

use crate::output::{self, Failed};

/// Exit code of a program that the second Ctrl-C ended, as the shell reports it.
const SIGINT: i32 = 128 + 2;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Watches for signals from now on. To be called before other threads are started, which must block them too.
///
/// # Errors
/// The signals cannot be blocked.
pub fn watch() -> Result<(), Failed> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().map_err(std::io::Error::from)?;
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            // Relaxed: nothing else is told by it.
            INTERRUPTED.store(true, Ordering::Relaxed);
            output::message("ending; once more to stop at once");
            let _ = signals.wait();
        }
        std::process::exit(SIGINT);
    });
    Ok(())
}

/// Whether the user wants it to end.
pub fn is_wanted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Fails if the user wants it to end.
///
/// # Errors
/// Exit code 1.
pub fn check() -> Result<(), Failed> {
    if is_wanted() {
        return Err(Failed::new("interrupted; the files that were complete were kept"));
    }
    Ok(())
}
