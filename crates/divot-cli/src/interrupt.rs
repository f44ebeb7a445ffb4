//! Handling of Ctrl-C. The first one stops the work at the next step, without incomplete files. The second
//! one stops the program at once.

use std::ops::ControlFlow;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

/// Exit code of an interrupted program.
pub const EXIT_CODE: u8 = 130;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static WAITING: AtomicBool = AtomicBool::new(false);

/// Starts to listen for Ctrl-C.
pub fn handle() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        result = ctrlc::set_handler(|| {
            let again = INTERRUPTED.swap(true, Ordering::Relaxed);
            if again || WAITING.load(Ordering::Relaxed) {
                std::process::exit(EXIT_CODE.into());
            }
        });
    });
    Ok(result?)
}

/// Returns whether Ctrl-C was pressed.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Returns an error if Ctrl-C was pressed.
pub fn check() -> Result<()> {
    match interrupted() {
        true => Err(divot::Error::Stopped.into()),
        false => Ok(()),
    }
}

/// Returns the result for callbacks: break if Ctrl-C was pressed.
pub fn flow() -> ControlFlow<()> {
    match interrupted() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

/// Waits for the user. Nothing needs to be finished in the meantime, so the first Ctrl-C ends the program.
pub fn waiting<T>(wait: impl FnOnce() -> T) -> T {
    WAITING.store(true, Ordering::Relaxed);
    let result = wait();
    WAITING.store(false, Ordering::Relaxed);
    result
}
