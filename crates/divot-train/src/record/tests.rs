//! The record as a whole, on the disk.

use super::*;

const NAMES: [&str; 3] = [names::LOSS, names::RATE, names::GRADIENT_NORM];

fn info(steps: usize) -> RunInfo {
    RunInfo {
        name: "stage1".to_owned(),
        steps,
        settings: vec![("batch".to_owned(), "8".to_owned())],
    }
}

fn log(recorder: &mut Recorder, steps: std::ops::RangeInclusive<usize>) {
    for step in steps {
        let values = NAMES.map(|name| (name, 1.0 / (step + name.len()) as f64));
        let warning = recorder.scalars(step, &values);
        assert!(warning.is_none(), "{warning:?}");
    }
}

fn png(side: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, side, side);
    encoder.set_color(png::ColorType::Grayscale);
    let mut writer = encoder.write_header().unwrap();
    let pixels: Vec<u8> = (0..side * side)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    writer.write_image_data(&pixels).unwrap();
    writer.finish().unwrap();
    bytes
}

fn page(folder: &Path) -> String {
    fs::read_to_string(folder.join(REPORT)).unwrap()
}

/// The lines of `metrics.jsonl` without their times.
fn metrics(folder: &Path) -> Vec<(usize, std::collections::BTreeMap<String, f64>)> {
    let text = fs::read_to_string(folder.join(METRICS)).unwrap();
    text.lines()
        .map(|line| Metrics::parse(line.as_bytes()).unwrap())
        .map(|metrics| (metrics.step, metrics.values))
        .collect()
}

/// The curves of a page: everything that is drawn.
fn drawings(page: &str) -> Vec<&str> {
    page.split("<svg").skip(1).collect::<Vec<_>>()[..]
        .iter()
        .map(|part| part.split("</svg>").next().unwrap())
        .collect()
}

#[test]
fn a_resumed_record_is_that_of_an_uninterrupted_run() {
    let [whole, parts] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let evaluate = |recorder: &mut Recorder, step: usize| {
        assert!(recorder.sheet(step, "clips", &png(8)).is_none());
        assert!(
            recorder
                .text(step, "what?", &format!("answer {step}"))
                .is_none()
        );
        let values = [(names::VALIDATION_LOSS, step as f64)];
        assert!(recorder.scalars(step, &values).is_none());
    };
    let mut recorder = Recorder::open(whole.path(), info(60), 0).unwrap();
    for step in [20, 40, 60] {
        log(&mut recorder, step - 19..=step);
        evaluate(&mut recorder, step);
    }
    assert!(recorder.finish(&Ending::Finished).is_none());

    // Killed at step 50, 10 steps after the checkpoint, in the middle of a line.
    let mut recorder = Recorder::open(parts.path(), info(60), 0).unwrap();
    for step in [20, 40] {
        log(&mut recorder, step - 19..=step);
        evaluate(&mut recorder, step);
    }
    log(&mut recorder, 41..=50);
    evaluate(&mut recorder, 50);
    drop(recorder);
    let path = parts.path().join(METRICS);
    let torn = fs::read(&path).unwrap();
    fs::write(&path, &torn[..torn.len() - 9]).unwrap();
    // Left by a process that was killed while it wrote the page.
    fs::write(parts.path().join("report.html.partial"), "<html>").unwrap();

    let mut recorder = Recorder::open(parts.path(), info(60), 40).unwrap();
    assert_eq!(metrics(parts.path()).len(), 42);
    assert_eq!(recorder.status().step, 40);
    assert!(recorder.status().seconds > 0.0);
    assert!(page(parts.path()).contains("answer 40"));
    log(&mut recorder, 41..=60);
    evaluate(&mut recorder, 60);
    assert!(recorder.finish(&Ending::Finished).is_none());

    assert_eq!(metrics(parts.path()), metrics(whole.path()));
    let text = |folder: &Path| fs::read_to_string(folder.join(TEXTS)).unwrap();
    assert_eq!(text(parts.path()), text(whole.path()));
    let files = |folder: &Path| {
        let entries = fs::read_dir(folder.join("samples")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(files(parts.path()), files(whole.path()));
    assert_eq!(files(parts.path()).len(), 3);
    let pages = [parts.path(), whole.path()].map(page);
    assert_eq!(drawings(&pages[0]), drawings(&pages[1]));
    assert_eq!(drawings(&pages[0]).len(), 3);
    assert!(!parts.path().join("report.html.partial").exists());
}

#[test]
fn a_run_that_starts_again_forgets_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::open(folder.path(), info(10), 0).unwrap();
    log(&mut recorder, 0..=5);
    assert!(recorder.sheet(5, "clips", &png(8)).is_none());
    fs::write(folder.path().join("samples/mine.png"), "mine").unwrap();
    drop(recorder);
    let recorder = Recorder::open(folder.path(), info(10), 0).unwrap();
    assert_eq!(recorder.status().seconds, 0.0);
    assert!(metrics(folder.path()).is_empty());
    let left = fs::read_dir(folder.path().join("samples")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["mine.png"]);
}

#[test]
fn a_long_run_has_a_page_of_bounded_size() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = info(100_000);
    run.settings = (0..1000)
        .map(|i| (format!("key {i}"), "v".repeat(100_000)))
        .collect();
    let mut recorder = Recorder::open(folder.path(), run, 0).unwrap();
    let names: Vec<String> = (0..50).map(|i| format!("train/number_{i}")).collect();
    for step in 1..=100_000 {
        // Fifty numbers at first, and then four a step.
        let count = if step <= 100 { names.len() } else { 4 };
        let value = |i: usize| f64::from((step * 31 + i) as u32 % 1009);
        let mut values: Vec<(&str, f64)> = (0..count).map(|i| (&*names[i], value(i))).collect();
        values.push((names::LOSS, if step % 3 == 0 { f64::NAN } else { value(7) }));
        // The files' speed is not the subject.
        for (name, value) in values {
            let series = recorder.history.entry(name.to_owned()).or_default();
            series.push(step, value);
        }
    }
    for step in 0..200 {
        assert!(recorder.sheet(step, "clips", &png(1024)).is_none());
        let text = "t".repeat(100_000);
        assert!(
            recorder
                .text(7, &format!("question {step}"), &text)
                .is_none()
        );
    }
    assert!(recorder.finish(&Ending::Finished).is_none());
    let page = page(folder.path());
    for drawing in drawings(&page) {
        assert!(drawing.len() < 80_000, "{}", drawing.len());
    }
    let images = page.matches("src=\"data:image/png;base64,").count();
    assert_eq!(images, report::MAX_SHEETS);
    let of_images = images * png(1024).len() * 4 / 3;
    assert!(
        page.len() - of_images < 2 << 20,
        "{}",
        page.len() - of_images
    );
    assert!(page.contains("and 900 more") && page.contains("more in metrics.jsonl"));
}

#[test]
fn whatever_is_said_is_escaped() {
    let folder = tempfile::tempdir().unwrap();
    let evil = "</script><img src=x onerror=\"alert('1')\">&amp;\0";
    let mut run = info(10);
    run.name = evil.to_owned();
    run.settings = vec![(evil.to_owned(), evil.to_owned())];
    let mut recorder = Recorder::open(folder.path(), run, 0).unwrap();
    for group in ["train/", "validation/", "skipped/"] {
        let values = [(format!("{group}{evil}"), 3.0)];
        assert!(recorder.scalars(1, &values).is_none());
    }
    assert!(
        recorder
            .sheet(1, &format!("../../{evil}"), &png(8))
            .is_none()
    );
    assert!(recorder.text(1, evil, evil).is_none());
    let ending = Ending::Failed(evil.to_owned());
    assert!(recorder.finish(&ending).is_none());
    let page = page(folder.path());
    assert!(!page.contains("<img src=x"));
    let tags = page.split('<').filter_map(|part| part.split_once('>'));
    for (tag, _) in tags {
        assert!(!tag.contains("onerror=\""), "{tag}");
    }
    assert_eq!(page.matches("</script>").count(), 1);
    assert_eq!(page.matches("<img ").count(), 1);
    // Name, title, settings, texts, reason, failure.
    assert!(page.matches("&lt;img src=x").count() >= 8);
    assert_eq!(
        fs::read_dir(folder.path().join("samples")).unwrap().count(),
        1
    );
}

#[test]
fn numbers_that_are_not_finite_are_recorded_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::open(folder.path(), info(10), 0).unwrap();
    for (step, loss) in [(1, 2.0), (2, f64::NAN), (3, f64::INFINITY)] {
        assert!(recorder.scalars(step, &[(names::LOSS, loss)]).is_none());
    }
    assert!(line(recorder.status()).contains("loss ∞"));
    assert!(recorder.finish(&Ending::Stopped).is_none());
    let lines = fs::read_to_string(folder.path().join(METRICS)).unwrap();
    assert!(lines.contains("\"train/loss\":\"NaN\"") && lines.contains("\"Infinity\""));
    assert!(page(folder.path()).contains("not finite 2×"));
}

#[test]
fn a_page_that_cannot_be_written_is_one_warning() {
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::open(folder.path(), info(10), 0).unwrap();
    let path = folder.path().join(REPORT);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let mut warnings = Vec::new();
    for step in 1..=6 {
        recorder.report_due = Instant::now();
        if step == 4 {
            fs::remove_dir(&path).unwrap();
        }
        if step == 6 {
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
        }
        warnings.push(recorder.scalars(step, &[(names::LOSS, 1.0)]).is_some());
    }
    assert_eq!(warnings, [true, false, false, false, false, true]);
    assert_eq!(metrics(folder.path()).len(), 6);
}

#[test]
fn what_is_no_image_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::open(folder.path(), info(10), 0).unwrap();
    let warning = recorder.sheet(3, "clips", b"GIF89a").unwrap();
    assert_eq!(
        warning.to_string(),
        "the sheet `clips` of step 3 is not a PNG image; encode it as one"
    );
    assert_eq!(
        fs::read_dir(folder.path().join("samples")).unwrap().count(),
        0
    );
}

#[test]
fn a_foreign_file_ends_the_opening() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(METRICS), "loss\n0.5\n").unwrap();
    let error = Recorder::open(folder.path(), info(10), 5).unwrap_err();
    assert!(
        error.to_string().contains("metrics.jsonl:1: not a line"),
        "{error}"
    );
    assert_eq!(
        fs::read_to_string(folder.path().join(METRICS)).unwrap(),
        "loss\n0.5\n"
    );
}
