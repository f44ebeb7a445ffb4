//! One run of `ffmpeg` or `ffprobe`: started without standard input, watched while its output is
//! awaited, and ended when it is dropped.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// The pipe's buffer in bytes. Frames are larger and pass it by.
const BUFFER: usize = 1 << 16;

/// A program at work on a file.
pub(crate) struct Run<'a> {
    path: &'a Path,
    codec: &'a str,
    program: &'a Path,
    silence: Duration,
    max_pixels: u64,
    watch: Arc<Watch>,
    watcher: Option<JoinHandle<()>>,
    pipe: BufReader<Watched>,
    /// A file rather than a pipe: nobody reads it while the output is read.
    messages: File,
}

/// What the reading thread and the watching one share.
struct Watch {
    state: Mutex<State>,
    ended: Condvar,
}

struct State {
    child: Child,
    /// Since when a read has been waiting for output.
    waiting: Option<Instant>,
    silent: bool,
    over: bool,
}

impl Watch {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The program's output; notes when a read waits for it.
struct Watched {
    pipe: ChildStdout,
    watch: Arc<Watch>,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.watch.lock().waiting = Some(Instant::now());
        let read = self.pipe.read(buffer);
        self.watch.lock().waiting = None;
        read
    }
}

impl<'a> Run<'a> {
    /// Starts `program`. It is ended if a read waits longer than `silence` for output; a picture of
    /// more than `max_pixels` is what it is told to refuse.
    pub fn start(
        path: &'a Path,
        codec: &'a str,
        program: &'a Path,
        mut command: Command,
        silence: Duration,
        max_pixels: u64,
    ) -> Result<Self> {
        let temporary = |e| Error::write(&std::env::temp_dir(), e);
        let messages = tempfile::tempfile().map_err(temporary)?;
        let stderr = messages.try_clone().map_err(temporary)?;
        let failed = |e: io::Error| {
            let (path, codec) = (path.to_path_buf(), codec.to_owned());
            if e.kind() == io::ErrorKind::NotFound {
                return Error::NeedsFfmpeg { path, codec };
            }
            Error::Ffmpeg {
                path,
                codec,
                program: program.display().to_string(),
                message: e.to_string(),
            }
        };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .map_err(failed)?;
        let pipe = child
            .stdout
            .take()
            .ok_or_else(|| failed(io::Error::other("its output cannot be read")))?;
        let watch = Arc::new(Watch {
            state: Mutex::new(State {
                child,
                waiting: None,
                silent: false,
                over: false,
            }),
            ended: Condvar::new(),
        });
        let watched = Watched {
            pipe,
            watch: watch.clone(),
        };
        let mut run = Self {
            path,
            codec,
            program,
            silence,
            max_pixels,
            watch: watch.clone(),
            watcher: None,
            pipe: BufReader::with_capacity(BUFFER, watched),
            messages,
        };
        let watcher = std::thread::Builder::new().spawn(move || watch_over(&watch, silence));
        run.watcher = Some(watcher.map_err(failed)?);
        Ok(run)
    }

    /// The program's output.
    pub fn output(&mut self) -> &mut impl Read {
        &mut self.pipe
    }

    /// Waits for the program, whose output has been read to its end.
    ///
    /// # Errors
    /// [`Error::Ffmpeg`] if it failed.
    pub fn finish(&mut self) -> Result<()> {
        // The output is closed, so the program is about to end.
        let started = Instant::now();
        loop {
            let status = self.watch.lock().child.try_wait();
            match status {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(None) if started.elapsed() < self.silence => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                _ => return Err(self.failed("it gave no reason")),
            }
        }
    }

    /// The error with what the program printed, or else with `reason`.
    pub fn failed(&self, reason: &str) -> Error {
        let text = self.messages();
        if let Some((width, height)) = refused_size(&text)
            && let Err(error) = Error::check_size(self.path, width, height, self.max_pixels)
        {
            return error;
        }
        let message = if self.watch.lock().silent {
            format!("no output for {} s", self.silence.as_secs_f64())
        } else {
            cause(&text).unwrap_or(reason).to_owned()
        };
        Error::Ffmpeg {
            path: self.path.to_path_buf(),
            codec: self.codec.to_owned(),
            program: self.program.display().to_string(),
            message,
        }
    }

    /// What the program has printed so far.
    pub fn messages(&self) -> String {
        let mut text = Vec::new();
        let mut messages = &self.messages;
        // Without the messages there is still an error to report.
        let _ = messages
            .seek(SeekFrom::Start(0))
            .and_then(|_| messages.take(1 << 20).read_to_end(&mut text));
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        let mut state = self.watch.lock();
        state.over = true;
        // It may have ended already.
        let _ = state.child.kill();
        let _ = state.child.wait();
        drop(state);
        self.watch.ended.notify_all();
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

/// Ends the program when a read has waited for longer than `silence`.
fn watch_over(watch: &Watch, silence: Duration) {
    let mut state = watch.lock();
    while !state.over {
        let waited = state
            .waiting
            .map_or(Duration::ZERO, |since| since.elapsed());
        if waited >= silence {
            state.silent = true;
            let _ = state.child.kill();
            return;
        }
        (state, _) = watch
            .ended
            .wait_timeout(state, silence - waited)
            .unwrap_or_else(PoisonError::into_inner);
    }
}

/// The size in the complaint of a decoder that refused a picture: `Picture size 1x2 is invalid`.
pub(super) fn refused_size(messages: &str) -> Option<(u64, u64)> {
    let (_, rest) = messages.split_once("icture size ")?;
    let (width, height) = rest.split_whitespace().next()?.split_once('x')?;
    Some((width.parse().ok()?, height.parse().ok()?))
}

/// The line that says most: the last, unless it only says that there was an error.
fn cause(messages: &str) -> Option<&str> {
    let mut lines = messages.lines().map(str::trim).filter(|l| !l.is_empty());
    let first = lines.next()?;
    let last = lines.next_back().unwrap_or(first);
    let is_vague = last.starts_with("Error ")
        || last.starts_with("Conversion failed")
        || last.ends_with("Invalid data found when processing input");
    let line = if is_vague { first } else { last };
    // Without the component in front, `[mov @ 0x55d0]`.
    match line.strip_prefix('[').and_then(|l| l.split_once("] ")) {
        Some((_, message)) => Some(message),
        None => Some(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read() {
        let text = "[png @ 0x1] Picture size 32x4980768 exceeds specified max pixel count 9\n";
        assert_eq!(refused_size(text), Some((32, 4_980_768)));
        let text = "[mov @ 0x1] moov atom not found\nx: Invalid data found when processing input\n";
        assert_eq!(cause(text), Some("moov atom not found"));
        assert_eq!(cause("a\nb\n"), Some("b"));
        assert_eq!((cause(""), refused_size("none")), (None, None));
    }
}
