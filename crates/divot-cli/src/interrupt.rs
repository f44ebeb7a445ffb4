//! Ctrl-C: the first stops at the next step, with nothing half-written. A second one stops at once.

use std::ops::ControlFlow;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

/// Exit code of a program that was interrupted.
pub const EXIT_CODE: u8 = 130;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static WAITING: AtomicBool = AtomicBool::new(false);

/// Listens for Ctrl-C from now on.
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

/// Whether Ctrl-C was pressed.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Fails if Ctrl-C was pressed.
pub fn check() -> Result<()> {
    match interrupted() {
        true => Err(divot::Error::Stopped.into()),
        false => Ok(()),
    }
}

/// What callbacks return: break if Ctrl-C was pressed.
pub fn flow() -> ControlFlow<()> {
    match interrupted() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

/// Waits for the user. There is nothing to finish meanwhile, so the first Ctrl-C ends the program.
pub fn waiting<T>(wait: impl FnOnce() -> T) -> T {
    WAITING.store(true, Ordering::Relaxed);
    let result = wait();
    WAITING.store(false, Ordering::Relaxed);
    result
}
