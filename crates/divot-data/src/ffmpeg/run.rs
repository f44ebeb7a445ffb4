//! A process of `ffmpeg` or `ffprobe`. It has no standard input, is stopped if its output stalls, and is
//! stopped when dropped.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// Size of the pipe's buffer in bytes. Frames are larger and bypass it.
const BUFFER: usize = 1 << 16;

/// A program that runs on a file.
pub(crate) struct Run<'a> {
    path: &'a Path,
    codec: &'a str,
    program: &'a Path,
    silence: Duration,
    max_pixels: u64,
    watch: Arc<Watch>,
    watcher: Option<JoinHandle<()>>,
    pipe: BufReader<Watched>,
    /// The error output. It is a file, because a pipe would not be read while the output is read.
    messages: File,
}

/// The state shared by the reading thread and the watching thread.
struct Watch {
    state: Mutex<State>,
    ended: Condvar,
}

struct State {
    child: Child,
    /// When the current read started to wait for output.
    waiting: Option<Instant>,
    silent: bool,
    over: bool,
}

impl Watch {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The output of the program. Records when a read waits for it.
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
    /// Starts `program`. It is stopped if a read waits longer than `silence` for output. The command must
    /// tell it to refuse pictures of more than `max_pixels`.
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

    /// Returns the program's output.
    pub fn output(&mut self) -> &mut impl Read {
        &mut self.pipe
    }

    /// Waits for the program to exit, after its output was read to the end.
    ///
    /// # Errors
    /// [`Error::Ffmpeg`] if it failed.
    pub fn finish(&mut self) -> Result<()> {
        // The output is closed, so the program exits soon.
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

    /// Returns the error with the program's message, or with `reason` if it printed none.
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

    /// Returns the messages that the program has printed so far.
    pub fn messages(&self) -> String {
        let mut text = Vec::new();
        let mut messages = &self.messages;
        // If the messages cannot be read, there is still an error to report.
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
        // The program may have exited already.
        let _ = state.child.kill();
        let _ = state.child.wait();
        drop(state);
        self.watch.ended.notify_all();
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

/// Stops the program when a read has waited for longer than `silence`.
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

/// Parses the size in a decoder's message about a refused picture: `Picture size 1x2 is invalid`.
pub(super) fn refused_size(messages: &str) -> Option<(u64, u64)> {
    let (_, rest) = messages.split_once("icture size ")?;
    let (width, height) = rest.split_whitespace().next()?.split_once('x')?;
    Some((width.parse().ok()?, height.parse().ok()?))
}

/// Returns the most informative line: the last one, or the first if the last only reports an error.
fn cause(messages: &str) -> Option<&str> {
    let mut lines = messages.lines().map(str::trim).filter(|l| !l.is_empty());
    let first = lines.next()?;
    let last = lines.next_back().unwrap_or(first);
    let is_vague = last.starts_with("Error ")
        || last.starts_with("Conversion failed")
        || last.ends_with("Invalid data found when processing input");
    let line = if is_vague { first } else { last };
    // Drop the component at the start, `[mov @ 0x55d0]`.
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
