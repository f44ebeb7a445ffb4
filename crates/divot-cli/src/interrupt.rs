//! Handling of Ctrl-C, and of the signal by which systems end programs (`SIGTERM`). The first one stops the work at the
//! next step, without incomplete files. The second one stops the program at once.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Once};

use anyhow::Result;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag::{register, register_conditional_shutdown};

/// Exit code of an interrupted program.
pub const EXIT_CODE: u8 = 130;

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
static WAITING: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Starts to listen for the signals.
pub fn handle() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        result = [SIGINT, SIGTERM].into_iter().try_for_each(|signal| {
            // Called in this order, so that the first signal does not end the program by itself.
            for flag in [&WAITING, &INTERRUPTED] {
                register_conditional_shutdown(signal, EXIT_CODE.into(), Arc::clone(flag))?;
            }
            register(signal, Arc::clone(&INTERRUPTED)).map(drop)
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
