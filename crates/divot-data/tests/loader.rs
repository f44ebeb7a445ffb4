//! Order, mixing, broken samples and read-ahead, with sources in memory.

// Groups are ranges.
#![allow(clippy::single_range_in_vec_init)]

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use divot_data::dataset::{
    Batch, Loader, LoaderConfig, Medium, MixedSource, Reason, Sample, Samples, Skip, Text,
};
use divot_data::{Clip, Error, Frame};

/// Bytes of a sample's frames.
const BYTES: usize = 8 * 4 * 3;

/// Samples whose picture is drawn at random and whose key is their number.
struct Memory {
    groups: Vec<Range<usize>>,
    /// Is told the sample and how many were read before.
    broken: fn(usize, usize) -> Option<Reason>,
    reads: Arc<AtomicUsize>,
}

impl Memory {
    fn new(len: usize) -> Self {
        Self::broken(len, |_, _| None)
    }

    fn broken(len: usize, broken: fn(usize, usize) -> Option<Reason>) -> Self {
        Self {
            groups: vec![0..len],
            broken,
            reads: Arc::default(),
        }
    }

    /// In groups of some size.
    fn grouped(self, size: usize) -> Self {
        let len = self.len();
        let starts = (0..len).step_by(size);
        Self {
            groups: starts.map(|i| i..len.min(i + size)).collect(),
            ..self
        }
    }

    fn mixed(self, name: &str, weight: f64, batch: usize) -> MixedSource {
        MixedSource {
            name: name.to_owned(),
            samples: Box::new(self),
            weight,
            batch,
        }
    }
}

impl Samples for Memory {
    fn len(&self) -> usize {
        self.groups.last().map_or(0, |group| group.end)
    }

    fn groups(&self) -> Vec<Range<usize>> {
        self.groups.clone()
    }

    fn read(&self, index: usize, uniform: &mut dyn FnMut() -> f64) -> Result<Sample, Skip> {
        let reads = self.reads.fetch_add(1, Ordering::SeqCst);
        let key = index.to_string();
        match (self.broken)(index, reads) {
            Some(Reason::Panicked) => panic!("no such code"),
            Some(reason) => Err(Skip {
                key,
                reason,
                message: "is made to be broken".to_owned(),
            }),
            None => {
                let colour = [0; 3].map(|_| (uniform() * 256.0) as u8);
                let frame = Frame::filled(8, 4, colour).unwrap();
                Ok(Sample {
                    key,
                    medium: Medium::Image,
                    clips: vec![Clip::with_sparse(vec![frame], vec![0]).unwrap()],
                    text: Text::None,
                    stored: None,
                })
            }
        }
    }
}

/// Each tenth sample, for one of two reasons.
fn tenth(index: usize, _: usize) -> Option<Reason> {
    match index % 20 {
        3 => Some(Reason::Missing),
        13 => Some(Reason::TooShort),
        _ => None,
    }
}

fn config(seed: u64) -> LoaderConfig {
    LoaderConfig {
        seed,
        ..LoaderConfig::default()
    }
}

fn load(source: MixedSource, config: LoaderConfig) -> Loader {
    Loader::new(vec![source], config).unwrap()
}

/// What is in the next batches.
fn take(loader: &mut Loader, count: usize) -> Vec<(u64, usize, u64, Vec<Sample>)> {
    let batches = loader.by_ref().take(count).map(|batch| {
        let Batch {
            step,
            source,
            epoch,
            samples,
        } = batch.unwrap();
        (step, source, epoch, samples)
    });
    batches.collect()
}

fn numbers(samples: &[Sample]) -> impl Iterator<Item = usize> {
    samples.iter().map(|sample| sample.key.parse().unwrap())
}

/// Numbers and reasons in the lines of a log that are whole.
fn logged(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().filter_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        assert_eq!(line["message"], "is made to be broken");
        assert_eq!(line["source"], "a");
        assert_eq!(line["index"].to_string(), line["key"].as_str().unwrap());
        let number = line["index"].as_u64().unwrap();
        Some((number as usize, line["reason"].as_str().unwrap().to_owned()))
    });
    lines.collect()
}

#[test]
fn each_sample_is_seen_once_an_epoch_by_one_rank() {
    for len in [1, 2, 7, 60, 1000] {
        for ranks in [1, 2, 3] {
            let mut loaders: Vec<Loader> = (0..ranks)
                .map(|rank| {
                    let config = LoaderConfig {
                        rank,
                        ranks,
                        ..config(4)
                    };
                    load(Memory::new(len).grouped(9).mixed("a", 1.0, 4), config)
                })
                .collect();
            let mut seen = Vec::new();
            while seen.len() < 3 * len {
                for loader in &mut loaders {
                    let batch = loader.next().unwrap().unwrap();
                    assert_eq!(batch.samples.len(), 4);
                    seen.extend(numbers(&batch.samples));
                    assert_eq!(batch.epoch, (seen.len() as u64 - 1) / len as u64);
                }
            }
            for epoch in seen.chunks_exact(len) {
                let mut epoch = epoch.to_vec();
                epoch.sort_unstable();
                assert!(epoch.into_iter().eq(0..len), "{len} samples, {ranks} ranks");
            }
        }
    }
}

#[test]
fn ranks_share_what_one_rank_sees() {
    let sources = |batch: usize| {
        vec![
            Memory::broken(100, tenth).mixed("a", 2.0, 2 * batch),
            Memory::new(70).grouped(5).mixed("b", 1.0, batch),
        ]
    };
    let alone = take(&mut Loader::new(sources(6), config(3)).unwrap(), 20);
    let shared: Vec<_> = (0..3)
        .map(|rank| {
            let config = LoaderConfig {
                rank,
                ranks: 3,
                ..config(3)
            };
            take(&mut Loader::new(sources(2), config).unwrap(), 20)
        })
        .collect();
    for (step, (_, source, _, samples)) in alone.into_iter().enumerate() {
        let parts = shared.iter().map(|batches| &batches[step]);
        assert!(parts.clone().all(|(_, other, ..)| *other == source));
        assert!(parts.flat_map(|(.., part)| part).eq(&samples));
    }
}

#[test]
fn any_step_is_reached_with_any_number_of_threads() {
    let sources = || {
        vec![
            Memory::broken(90, tenth).grouped(20).mixed("a", 1.3, 3),
            Memory::new(40).mixed("b", 1.0, 5),
            Memory::broken(1000, tenth).mixed("c", 0.3, 2),
        ]
    };
    let whole = take(&mut Loader::new(sources(), config(8)).unwrap(), 60);
    let steps: Vec<u64> = whole.iter().map(|(step, ..)| *step).collect();
    assert!(steps.into_iter().eq(0..60));
    for (first_step, workers) in [(0, 1), (0, 4), (1, 4), (2, 1), (17, 3), (59, 4)] {
        let config = LoaderConfig {
            workers,
            first_step,
            ..config(8)
        };
        let mut resumed = Loader::new(sources(), config).unwrap();
        let rest = &whole[first_step as usize..];
        assert_eq!(take(&mut resumed, rest.len()), rest, "from {first_step}");
    }
    let other = take(&mut Loader::new(sources(), config(9)).unwrap(), 60);
    assert_ne!(whole, other);
}

#[test]
fn random_numbers_differ_between_samples_and_epochs() {
    let batches = take(
        &mut load(Memory::new(30).mixed("a", 1.0, 30), config(1)),
        10,
    );
    let samples = batches.iter().flat_map(|(.., samples)| samples);
    let colours: BTreeSet<[u8; 3]> = samples
        .map(|sample| sample.clips[0].frames()[0].pixel(0, 0))
        .collect();
    assert!(colours.len() > 295, "{}", colours.len());
}

#[test]
fn sources_are_mixed_in_proportion_to_their_weights() {
    let sources = vec![
        Memory::new(10).mixed("a", 3.0, 1),
        Memory::new(10).mixed("b", 1.0, 2),
    ];
    let batches = take(&mut Loader::new(sources, config(2)).unwrap(), 4000);
    for (_, source, _, samples) in &batches {
        assert_eq!(samples.len(), source + 1);
    }
    let second = batches.iter().filter(|(_, source, ..)| *source == 1);
    let second = second.count();
    // Four deviations around a quarter.
    assert!((890..1110).contains(&second), "{second}");
}

#[test]
fn broken_samples_are_counted_once_and_named() {
    const LEN: usize = 400;
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, pieces: &[usize], tear: bool| {
        let log = folder.path().join(name);
        let (mut batches, mut counts) = (Vec::new(), Vec::new());
        for &count in pieces {
            let config = LoaderConfig {
                first_step: batches.len() as u64,
                log: Some(log.clone()),
                workers: 3,
                ..config(6)
            };
            let source = Memory::broken(LEN, tenth).grouped(30).mixed("a", 1.0, 10);
            let mut loader = load(source, config);
            batches.extend(take(&mut loader, count));
            counts = loader.skipped();
            assert!(loader.take_log_error().is_none());
            drop(loader);
            if tear && batches.len() * 10 < LEN {
                let text = fs::read(&log).unwrap();
                fs::write(&log, &text[..text.len() - 9]).unwrap();
            }
        }
        let mut named = logged(&log);
        named.sort_unstable();
        (batches, counts, named)
    };
    let (batches, counts, named) = run("whole.jsonl", &[80], false);
    for (.., samples) in &batches {
        assert!(numbers(samples).all(|number| tenth(number, 0).is_none()));
    }
    let count = |reason| ("a".to_owned(), reason, LEN as u64 / 20);
    assert_eq!(counts, [count(Reason::Missing), count(Reason::TooShort)]);
    assert_eq!(named.len(), LEN / 10);
    let all: BTreeSet<usize> = named.iter().map(|(number, _)| *number).collect();
    assert!(all.into_iter().eq((3..LEN).step_by(10)));
    for (number, reason) in &named {
        let expected = match tenth(*number, 0) {
            Some(Reason::Missing) => "missing",
            _ => "too_short",
        };
        assert_eq!(reason, expected);
    }

    // Interrupted, and with a line that was cut off, it is the same.
    let pieces = [3, 1, 20, 56];
    assert_eq!(
        run("pieces.jsonl", &pieces, false),
        (batches.clone(), counts.clone(), named.clone())
    );
    assert_eq!(run("torn.jsonl", &pieces, true), (batches, counts, named));
}

#[test]
fn samples_of_one_key_are_counted_apart() {
    struct Same;
    impl Samples for Same {
        fn len(&self) -> usize {
            50
        }
        fn groups(&self) -> Vec<Range<usize>> {
            vec![0..50]
        }
        fn read(&self, index: usize, uniform: &mut dyn FnMut() -> f64) -> Result<Sample, Skip> {
            let broken = |index, _| (index < 5).then_some(Reason::Undecodable);
            let sample = Memory::broken(50, broken).read(index, uniform);
            sample.map_err(|skip| Skip {
                key: "same".to_owned(),
                ..skip
            })
        }
    }
    let source = MixedSource {
        name: "a".to_owned(),
        samples: Box::new(Same),
        weight: 1.0,
        batch: 10,
    };
    let mut loader = load(source, config(0));
    take(&mut loader, 10);
    let expected = ("a".to_owned(), Reason::Undecodable, 5);
    assert_eq!(loader.skipped(), [expected]);
}

#[test]
fn the_log_is_made_when_needed_and_its_failure_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let with_log = |path: &str, broken| {
        let config = LoaderConfig {
            log: Some(folder.path().join(path)),
            ..config(0)
        };
        let mut loader = load(Memory::broken(100, broken).mixed("a", 1.0, 10), config);
        take(&mut loader, 20);
        loader
    };
    with_log("whole.jsonl", |_, _| None);
    assert!(!folder.path().join("whole.jsonl").exists());

    let loader = with_log("no such folder/log.jsonl", tenth);
    let error = loader.take_log_error();
    assert!(matches!(error, Some(Error::Write { .. })), "{error:?}");
    assert!(loader.take_log_error().is_none());
    let counts: u64 = loader.skipped().iter().map(|(.., count)| count).sum();
    assert_eq!(counts, 10);

    fs::create_dir(folder.path().join("folder.jsonl")).unwrap();
    let loader = with_log("folder.jsonl", tenth);
    let error = loader.take_log_error();
    assert!(matches!(error, Some(Error::Read { .. })), "{error:?}");
}

#[test]
fn a_source_of_broken_samples_is_an_error() {
    let sources = vec![
        Memory::new(30).mixed("good", 1.0, 4),
        Memory::broken(30, |index, _| match index {
            0..10 => Some(Reason::Missing),
            _ => Some(Reason::TooSmall),
        })
        .mixed("bad", 1.0, 4),
    ];
    let mut loader = Loader::new(sources, config(5)).unwrap();
    let mut good = 0;
    let error = loop {
        match loader.next().unwrap() {
            Ok(batch) => {
                assert_eq!(batch.source, 0);
                good += 1;
            }
            Err(error) => break error.to_string(),
        }
    };
    assert!(good > 0, "the other source's batches come first");
    for part in [
        "bad: 200 samples in a row cannot be used",
        "10 missing",
        "20 too small",
        ": is made to be broken; mend the source",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(error.lines().count(), 1);
    assert!(loader.next().is_none());
}

#[test]
fn broken_archives_end_no_run() {
    // Of 100 archives 98 hold nothing that can be used: over 200 samples in a row are broken at times.
    let few = |index: usize, _: usize| (index / 40 >= 2).then_some(Reason::Undecodable);
    let source = Memory::broken(4000, few).grouped(40).mixed("a", 1.0, 8);
    let config = LoaderConfig {
        workers: 1,
        ..config(2)
    };
    let batches = take(&mut load(source, config), 50);
    for (.., samples) in &batches {
        assert!(numbers(samples).all(|number| number < 80));
    }
}

#[test]
fn a_source_that_vanishes_is_an_error() {
    let vanished = |_: usize, reads: usize| (reads > 100).then_some(Reason::Missing);
    let loader = load(Memory::broken(5000, vanished).mixed("a", 1.0, 5), config(0));
    let mut batches = 0;
    let mut errors = Vec::new();
    for batch in loader {
        match batch {
            Ok(_) => batches += 1,
            Err(error) => errors.push(error.to_string()),
        }
    }
    assert!((10..=20).contains(&batches), "{batches}");
    assert_eq!(errors.len(), 1);
    let error = &errors[0];
    assert!(error.starts_with("a: 10000 samples in a row"), "{error}");
}

#[test]
fn a_panic_in_a_reader_is_a_broken_sample() {
    let panics = |index: usize, _: usize| index.is_multiple_of(5).then_some(Reason::Panicked);
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("skipped.jsonl");
    let config = LoaderConfig {
        log: Some(log.clone()),
        ..config(0)
    };
    let mut loader = load(Memory::broken(50, panics).mixed("a", 1.0, 10), config);
    for (.., samples) in take(&mut loader, 10) {
        assert!(numbers(&samples).all(|number| number % 5 != 0));
    }
    let expected = ("a".to_owned(), Reason::Panicked, 10);
    assert_eq!(loader.skipped(), [expected]);
    let text = fs::read_to_string(&log).unwrap();
    assert_eq!(text.lines().count(), 10);
    let named = text.lines().all(|line| line.contains("no such code"));
    assert!(named, "{text}");
}

#[test]
fn what_is_read_ahead_is_bounded() {
    const BATCH: usize = 4;
    const WORKERS: usize = 3;
    const ALL: usize = usize::MAX / BYTES;
    // Batches and samples that may be read ahead, and samples that may then be in memory. With no room at
    // all, the next batch is read in any case.
    for (batches, samples, most) in [
        (3, ALL, 3 * BATCH),
        (1000, 10, 10 + BATCH + WORKERS),
        (0, ALL, BATCH),
        (1000, 0, BATCH + WORKERS),
    ] {
        let config = LoaderConfig {
            max_ahead: batches,
            max_bytes: samples * BYTES,
            workers: WORKERS,
            ..config(1)
        };
        let source = Memory::new(3000);
        let reads = source.reads.clone();
        let mut loader = load(source.mixed("a", 1.0, BATCH), config);
        let mut taken = 0;
        for step in 0..2500 {
            if (1000..1020).contains(&step) {
                // What may be read ahead is, and the threads have time for more.
                let wanted = samples.min(batches * BATCH);
                let read_ahead = || reads.load(Ordering::SeqCst) - taken >= wanted;
                assert!(comes_true(read_ahead), "step {step}");
                thread::sleep(Duration::from_millis(2));
            }
            let alive = reads.load(Ordering::SeqCst) - taken;
            assert!(alive <= most, "{alive} at step {step}, not {most}");
            taken += loader.next().unwrap().unwrap().samples.len();
        }
        assert_eq!(taken, 10_000);
    }
}

/// Whether it does before patience ends.
fn comes_true(it: impl Fn() -> bool) -> bool {
    (0..60_000).any(|_| {
        thread::sleep(Duration::from_millis(1));
        it()
    })
}

/// Fails where `work` does not end.
fn ends(work: impl FnOnce() + Send + 'static) {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        work();
        let _ = sender.send(());
    });
    let ended = receiver.recv_timeout(Duration::from_secs(120));
    ended.expect("it hangs or fails");
}

#[test]
fn dropping_early_ends_the_threads() {
    ends(|| {
        for taken in [0, 1, 5] {
            for workers in [1, 4] {
                let config = LoaderConfig {
                    workers,
                    ..config(0)
                };
                let source = Memory::new(100);
                let reads = source.reads.clone();
                let mut loader = load(source.mixed("a", 1.0, 4), config);
                take(&mut loader, taken);
                drop(loader);
                // No thread has the source any more.
                assert_eq!(Arc::strong_count(&reads), 1);
            }
        }
    });
}

#[test]
fn dropping_ends_the_search_for_a_sample() {
    ends(|| {
        let slow = |_: usize, reads: usize| {
            (reads > 0).then(|| {
                thread::sleep(Duration::from_millis(1));
                Reason::Missing
            })
        };
        let source = Memory::broken(100, slow);
        let reads = source.reads.clone();
        let loader = load(source.mixed("a", 1.0, 4), config(0));
        assert!(comes_true(|| reads.load(Ordering::SeqCst) > 20));
        drop(loader);
        // All attempts would be 10,000 for each thread.
        assert!(reads.load(Ordering::SeqCst) < 5000);
    });
}

#[test]
fn settings_that_make_no_sense_are_errors() {
    let source = |weight, batch| vec![Memory::new(3).mixed("a", weight, batch)];
    let rank = LoaderConfig {
        rank: 2,
        ranks: 2,
        ..config(0)
    };
    let workers = LoaderConfig {
        workers: 0,
        ..config(0)
    };
    let large = ["a", "b"].map(|name| Memory::new(3).mixed(name, f64::MAX, 1));
    for (sources, config, part) in [
        (vec![], config(0), "no source"),
        (source(0.0, 1), config(0), "a: a weight of 0"),
        (source(f64::NAN, 1), config(0), "a: a weight of NaN"),
        (large.into(), config(0), "too large"),
        (source(1.0, 0), config(0), "a: a batch of 0"),
        (source(1.0, usize::MAX), config(0), "a: a batch of"),
        (source(1.0, 1), rank, "no rank 2 of 2"),
        (source(1.0, 1), workers, "0 threads"),
        (
            vec![Memory::new(0).mixed("a", 1.0, 1)],
            config(0),
            "a: holds no samples",
        ),
    ] {
        let error = Loader::new(sources, config).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
}
