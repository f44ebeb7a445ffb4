//! The cache: what was paid for is not asked for again, however a run ended.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use divot::endpoint::{Cache, Endpoint, EndpointError};

use crate::stub::{Deed, Kept, Stub, collect, question, questions};

/// What the child process of a test is told.
const CHILD_ADDRESS: &str = "DIVOT_TEST_ENDPOINT";
const CHILD_CACHE: &str = "DIVOT_TEST_CACHE";

#[test]
fn answers_are_paid_once() {
    let (stub, kept) = (Stub::echo(), Kept::new());
    let (first, summary) = collect(&stub.endpoint(), &mut kept.open(), questions(20));
    assert_eq!(summary.unwrap().answered, 20);
    let (again, summary) = collect(&stub.endpoint(), &mut kept.open(), questions(25));
    let summary = summary.unwrap();
    assert_eq!(
        (summary.cached, summary.answered, summary.requests),
        (20, 5, 5)
    );
    assert_eq!(stub.asked().len(), 25);
    for ((job, before), (_, now)) in first.iter().zip(&again) {
        let (before, now) = (before.as_ref().unwrap(), now.as_ref().unwrap());
        assert_eq!(
            (&before.text, before.usage, before.cached),
            (&now.text, now.usage, false)
        );
        assert!(now.cached, "job {job}");
    }
    assert_eq!(kept.open().len(), 25);
}

/// Everything but the key and the patience counts.
#[test]
fn another_request_is_another_answer() {
    let (stub, kept) = (Stub::echo(), Kept::new());
    let mut cache = kept.open();
    let endpoint = stub.endpoint();
    let mut asks = |endpoint: &Endpoint, request| {
        let (_, summary) = collect(endpoint, &mut cache, [(0, request)]);
        summary.unwrap().requests
    };
    assert_eq!(asks(&endpoint, question("a")), 1);
    assert_eq!(
        asks(&endpoint.clone().with_key(None).unwrap(), question("a")),
        0
    );
    assert_eq!(asks(&endpoint.clone().with_parallel(1), question("a")), 0);
    assert_eq!(asks(&endpoint, question("b")), 1);
    assert_eq!(asks(&endpoint, question("a").seed(1)), 1);
    assert_eq!(asks(&endpoint, question("a").temperature(0.0)), 1);
    assert_eq!(asks(&endpoint, question("a").system("s")), 1);
    let other = Endpoint::new(&stub.address, "another-model").unwrap();
    assert_eq!(asks(&other, question("a")), 1);
    let other = Endpoint::new(&stub.address.replace("/v1", "/v2"), "a-model").unwrap();
    assert_eq!(asks(&other, question("a")), 1);
}

#[test]
fn the_same_request_of_several_jobs_is_sent_once() {
    let (stub, kept) = (Stub::echo(), Kept::new());
    let jobs = (0..30).map(|index| (index, question(format!("q{}", index % 3))));
    let (results, summary) = collect(&stub.endpoint(), &mut kept.open(), jobs);
    for (index, (job, result)) in results.iter().enumerate() {
        assert_eq!(*job, index);
        assert_eq!(result.as_ref().unwrap().text, format!("re: q{}", index % 3));
    }
    let summary = summary.unwrap();
    assert_eq!(
        (summary.answered, summary.cached, summary.requests),
        (3, 27, 3)
    );
    assert_eq!(stub.asked().len(), 3);
}

#[test]
fn failures_are_not_kept() {
    let (stub, kept) = (
        Stub::start(|asked| match asked.before {
            0 => Deed::status(400, "bad day"),
            _ => Deed::says("fine"),
        }),
        Kept::new(),
    );
    let (_, summary) = collect(&stub.endpoint(), &mut kept.open(), questions(3));
    assert_eq!(summary.unwrap().failed, 3);
    let (_, summary) = collect(&stub.endpoint(), &mut kept.open(), questions(3));
    assert_eq!(summary.unwrap().answered, 3);
}

/// A program that is killed while it asks.
#[test]
fn child() {
    let Ok(address) = std::env::var(CHILD_ADDRESS) else {
        return;
    };
    let cache = std::env::var(CHILD_CACHE).unwrap();
    let endpoint = Endpoint::new(&address, "a-model").unwrap().with_parallel(4);
    let _ = collect(&endpoint, &mut Cache::open(cache).unwrap(), questions(40));
}

#[test]
fn a_killed_run_goes_on() {
    // The child hangs at four questions. Its successor gets answers to them.
    let stub = Stub::start(|asked| match (asked.text(), asked.before) {
        ("q11" | "q17" | "q18" | "q23", 0) => Deed::Hang,
        (text, _) => Deed::says(text),
    });
    let kept = Kept::new();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "keeping::child"])
        .env(CHILD_ADDRESS, &stub.address)
        .env(CHILD_CACHE, &kept.path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let is_stuck = || {
        let lines = fs::read_to_string(&kept.path).map_or(0, |it| it.lines().count());
        stub.hanging() == 4 && lines == 1 + stub.answered().len()
    };
    let mut polls = 0;
    while !is_stuck() {
        polls += 1;
        if child.try_wait().unwrap().is_some() || polls > 6000 {
            child.kill().unwrap();
            panic!("the child ended, or hangs elsewhere");
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert!(matches!(
        Cache::open(&kept.path),
        Err(EndpointError::Busy { .. })
    ));
    let before = stub.answered().len();
    child.kill().unwrap();
    child.wait().unwrap();
    // As if it had been killed while it wrote.
    let mut file = OpenOptions::new().append(true).open(&kept.path).unwrap();
    file.write_all(b"{\"key\":\"0123").unwrap();
    drop(file);

    let endpoint = Endpoint::new(&stub.address, "a-model").unwrap();
    let (results, summary) = collect(&endpoint, &mut kept.open(), questions(40));
    let summary = summary.unwrap();
    assert_eq!((summary.cached, summary.answered), (before, 40 - before));
    assert!(before >= 19, "{before}");
    for (index, (job, result)) in results.iter().enumerate() {
        assert_eq!(*job, index);
        assert_eq!(result.as_ref().unwrap().text, format!("q{index}"));
    }
    let mut answered = stub.answered();
    answered.sort();
    answered.dedup();
    assert_eq!((answered.len(), stub.answered().len()), (40, 40));
    stub.release();
}

#[test]
fn a_torn_line_is_dropped() {
    let (stub, kept) = (Stub::echo(), Kept::new());
    collect(
        &stub.endpoint().with_parallel(1),
        &mut kept.open(),
        questions(3),
    )
    .1
    .unwrap();
    let whole = kept.contents();
    let ends: Vec<usize> = whole.match_indices('\n').map(|(at, _)| at + 1).collect();
    assert_eq!(ends.len(), 4);
    for length in 0..whole.len() {
        fs::write(&kept.path, &whole[..length]).unwrap();
        let lines = ends.iter().filter(|&&end| end <= length).count();
        assert_eq!(kept.open().len(), lines.saturating_sub(1), "{length} bytes");
        assert_eq!(
            kept.contents(),
            whole[..ends[lines.max(1) - 1]],
            "{length} bytes"
        );
    }
    // The answers that are left are used, and the others come after them.
    fs::write(&kept.path, &whole[..whole.len() - 5]).unwrap();
    let (results, summary) = collect(&stub.endpoint(), &mut kept.open(), questions(3));
    assert_eq!(summary.unwrap().requests, 1);
    assert_eq!(results[2].1.as_ref().unwrap().text, "re: q2");
    assert_eq!(kept.contents(), whole);
}

#[test]
fn only_a_cache_is_written_to() {
    let kept = Kept::new();
    drop(kept.open());
    let header = kept.contents();
    for text in [
        "a caption\n",
        "no line",
        "{\"divot\":\"answers\",\"version\":2}\n",
    ] {
        fs::write(&kept.path, text).unwrap();
        let error = Cache::open(&kept.path).err().unwrap();
        assert!(matches!(error, EndpointError::NoCache { .. }), "{error}");
        assert_eq!(kept.contents(), text);
    }
    for line in [
        "{}",
        "",
        "{\"key\":\"00\",\"text\":\"a\"}",
        "{\"key\":\"ä\",\"text\":\"a\"}",
    ] {
        let text = format!("{header}{line}\n{{\"torn");
        fs::write(&kept.path, &text).unwrap();
        let error = Cache::open(&kept.path).err().unwrap();
        assert!(
            matches!(error, EndpointError::Damaged { line: 2, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("answers.jsonl: line 2"));
        assert_eq!(kept.contents(), text);
    }
    let folder = kept.path.parent().unwrap();
    let error = Cache::open(folder).err().unwrap();
    assert!(matches!(error, EndpointError::Io { .. }), "{error}");
}

#[test]
fn one_program_at_a_time() {
    let kept = Kept::new();
    let open = kept.open();
    let error = Cache::open(&kept.path).err().unwrap().to_string();
    assert!(
        error.contains("another program") && error.contains("answers.jsonl"),
        "{error}"
    );
    drop(open);
    assert!(kept.open().is_empty());
}
