//! Fuzzes everything that reads files: `cargo run --release --bin divot-fuzz -- --seconds 600`.
//!
//! A target is a kind of file. A child process damages good files of that kind and opens them as a user
//! would. This process watches the child. A panic or crash, an input that takes over 10 s, and more than
//! 2 GiB of memory are findings. Each finding's input is kept in `outputs/fuzz/TARGET`.
//!
//! An input depends only on the target, the seed and its number, so that a run can be repeated.

mod mutate;
mod targets;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use mutate::{Random, mutate};
use targets::Target;

/// An input that takes longer is a finding.
const MAX_TIME: Duration = Duration::from_secs(10);
/// More memory than this is a finding, in bytes.
const MAX_MEMORY: u64 = 2 << 30;
/// How often a child's memory is read.
const WATCH: Duration = Duration::from_millis(20);
/// A target is given up after this many findings.
const MAX_FINDINGS: usize = 20;

/// Opens damaged files and reports panics, hangs and too much memory
#[derive(Parser)]
struct Arguments {
    /// Kinds of files [default: all]
    #[arg(value_enum)]
    targets: Vec<Target>,
    /// Duration of each target
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seed of the damage
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Open one file and print the result instead, to look at a finding
    #[arg(long)]
    open: Option<PathBuf>,
    /// Be the child, which works in this folder
    #[arg(long, hide = true)]
    child: Option<PathBuf>,
    /// Number of the child's first input
    #[arg(long, hide = true, default_value_t = 0)]
    first: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(findings) => {
            eprintln!("{findings} findings: their files are in outputs/fuzz");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Number of findings.
fn run(arguments: &Arguments) -> Result<usize> {
    let targets = match &arguments.targets[..] {
        [] => Target::value_variants(),
        targets => targets,
    };
    if let Some(path) = &arguments.open {
        println!("{:?}", targets[0].open(path));
        return Ok(0);
    }
    if let Some(folder) = &arguments.child {
        return child(targets[0], arguments, folder).map(|()| 0);
    }
    println!(
        "{:16} {:>9} {:>9} {:>10} {:>11}  findings",
        "target", "inputs", "accepted", "slowest", "memory"
    );
    let mut findings = 0;
    for &target in targets {
        let seen = watch(target, arguments)?;
        println!(
            "{:16} {:>9} {:>9} {:>8.2} s {:>7} MiB  {}",
            target.name(),
            seen.inputs,
            seen.accepted,
            seen.slowest.as_secs_f64(),
            seen.memory >> 20,
            seen.findings
        );
        findings += seen.findings;
    }
    Ok(findings)
}

/// Opens inputs until the process is ended. Prints a line before each input and one after it.
fn child(target: Target, arguments: &Arguments, folder: &Path) -> Result<()> {
    let seeds = target.seeds()?;
    let mut stdout = std::io::stdout().lock();
    for number in arguments.first.. {
        let mut random = Random::new(arguments.seed, number);
        let (name, good) = random.pick(&seeds);
        let (_, other) = random.pick(&seeds);
        target.prepare(folder)?;
        let path = folder.join(name);
        fs::write(&path, mutate(&mut random, good, other))?;
        writeln!(stdout, "{name}")?;
        stdout.flush()?;
        let accepted = target.open(&path).is_ok();
        writeln!(stdout, "{}", u8::from(accepted))?;
        stdout.flush()?;
    }
    Ok(())
}

/// What was seen of a target.
#[derive(Default)]
struct Seen {
    inputs: u64,
    accepted: u64,
    slowest: Duration,
    memory: u64,
    findings: usize,
}

/// Runs children on a target until the time is over.
fn watch(target: Target, arguments: &Arguments) -> Result<Seen> {
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut seen = Seen::default();
    while Instant::now() < end && seen.findings < MAX_FINDINGS {
        let folder = tempfile::tempdir().context("a temporary folder cannot be created")?;
        let log = folder.path().join("stderr");
        let mut child = Command::new(std::env::current_exe()?)
            .arg(target.name())
            .args(["--seed", &arguments.seed.to_string()])
            .args(["--first", &seen.inputs.to_string()])
            .arg("--child")
            .arg(folder.path())
            // Not the program `ffmpeg`, which is not what is tested.
            .env("PATH", "")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .context("the program cannot start itself")?;
        let lines = lines_of(&mut child)?;
        let (input, problem) = follow(&mut child, &lines, end, &mut seen);
        // The child may have ended by itself.
        let _ = child.kill();
        child.wait()?;
        let Some(problem) = problem else { break };
        let said = fs::read_to_string(&log).unwrap_or_default();
        let input = input.with_context(|| format!("{problem} before an input: {said}"))?;
        let number = seen.inputs;
        seen.inputs += 1;
        seen.findings += 1;
        let kept = Path::new("outputs/fuzz").join(target.name());
        fs::create_dir_all(&kept)?;
        let kept = kept.join(format!("{}-{number}-{input}", arguments.seed));
        fs::copy(folder.path().join(&input), &kept)?;
        let said: Vec<&str> = said
            .lines()
            .filter(|line| !line.is_empty())
            .take(3)
            .collect();
        println!("{}: {problem}: {}", kept.display(), said.join(" "));
    }
    ensure!(seen.inputs > 0, "{}: no input was tried", target.name());
    Ok(seen)
}

/// The child's lines, read by a thread.
fn lines_of(child: &mut Child) -> Result<Receiver<(Instant, String)>> {
    let stdout = child.stdout.take().context("no standard output")?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send((Instant::now(), line)).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Follows a child until the end or a problem. Returns the name of the input in work, and the problem.
fn follow(
    child: &mut Child,
    lines: &Receiver<(Instant, String)>,
    end: Instant,
    seen: &mut Seen,
) -> (Option<String>, Option<&'static str>) {
    let mut current: Option<(Instant, String)> = None;
    loop {
        match lines.recv_timeout(WATCH) {
            Ok((time, line)) => {
                current = match current.take() {
                    None => Some((time, line)),
                    Some((start, _)) => {
                        seen.inputs += 1;
                        seen.accepted += u64::from(line == "1");
                        seen.slowest = seen.slowest.max(time - start);
                        None
                    }
                };
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return (current.map(|(_, name)| name), Some("the process ended"));
            }
        }
        let memory = peak_memory(child.id()).unwrap_or(0);
        seen.memory = seen.memory.max(memory);
        let problem = if memory > MAX_MEMORY {
            Some("over 2 GiB of memory")
        } else if current
            .as_ref()
            .is_some_and(|(start, _)| start.elapsed() > MAX_TIME)
        {
            Some("over 10 s")
        } else {
            None
        };
        if problem.is_some() || (current.is_none() && Instant::now() >= end) {
            return (current.map(|(_, name)| name), problem);
        }
    }
}

/// The most memory that a process ever had, in bytes, where the system tells.
fn peak_memory(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
