//! Training data from films and captions, with an imitation of an endpoint that fails a fifth of its calls.

#[path = "../../../divot-train/tests/train/common.rs"]
mod common;
mod filter;
#[path = "../program/mod.rs"]
mod program;
mod story;
#[path = "../../../divot/tests/endpoint/stub.rs"]
#[allow(dead_code, unreachable_pub)]
mod stub;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use stub::{Asked, Deed, Stub};

/// A folder in which the program runs.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// The program with the arguments, which are separated by spaces.
    fn command(&self, arguments: &str) -> Command {
        let mut command = program::divot();
        command.current_dir(self.dir.path());
        command.args(arguments.split_whitespace());
        command
    }

    /// Runs the program successfully, and returns what it printed: standard output and standard error.
    fn works(&self, arguments: &str) -> (String, String) {
        let output = self.command(arguments).output().unwrap();
        let (stdout, stderr) = printed(&output);
        assert!(output.status.success(), "{arguments}: {stderr}");
        (stdout, stderr)
    }

    /// Runs the program with `--json`, and returns the object.
    fn json(&self, arguments: &str) -> Value {
        let (stdout, _) = self.works(&format!("{arguments} --json"));
        serde_json::from_str(&stdout).unwrap()
    }

    /// Runs the program on bad input, and returns its last line.
    fn refused(&self, arguments: &str) -> String {
        let output = self.command(arguments).output().unwrap();
        let (_, stderr) = printed(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments}: {stderr}");
        let line = stderr.lines().last().unwrap().to_owned();
        assert!(line.starts_with("error: "), "{arguments}: {stderr}");
        line
    }

    /// The paths of all files below a folder, hidden ones too.
    fn files(&self, folder: &str) -> Vec<String> {
        fn visit(folder: &Path, root: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => visit(&path, root, found),
                    false => {
                        let name = path.strip_prefix(root).unwrap();
                        found.push(name.to_str().unwrap().replace('\\', "/"));
                    }
                }
            }
        }
        let root = self.path(folder);
        let mut found = Vec::new();
        visit(&root, &root, &mut found);
        found.sort();
        found
    }
}

fn printed(output: &Output) -> (String, String) {
    (program::text(&output.stdout), program::text(&output.stderr))
}

/// An endpoint that answers as `says`, and fails every fifth call in one way or another.
fn failing(says: impl Fn(&Asked) -> String + Send + Sync + 'static) -> Stub {
    let calls = AtomicUsize::new(0);
    Stub::start(
        move |asked| match calls.fetch_add(1, Ordering::Relaxed) % 15 {
            4 => Deed::status(500, "the roof burns"),
            9 => Deed::Cut,
            14 => Deed::Reply(429, "Retry-After: 0\r\n", "slowly".to_owned()),
            _ => Deed::says(&says(asked)),
        },
    )
}

/// Waits until something is so.
fn wait(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_so() {
        assert!(Instant::now() < deadline, "it takes too long");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Presses Ctrl-C, and returns the exit code and standard error.
#[cfg(unix)]
fn interrupt(mut child: Child) -> (Option<i32>, String) {
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
    wait(|| child.try_wait().unwrap().is_some());
    let output = child.wait_with_output().unwrap();
    (output.status.code(), program::text(&output.stderr))
}
