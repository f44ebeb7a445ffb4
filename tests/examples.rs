//! Runs the examples with a language model as a user does, on the fixture's small random model.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use burn::tensor::FloatDType;
use divot::convert::{Job, ReleasedConfig, convert};
use divot::data::{Frame, Video, write_mp4};

/// A folder with a model and a clip.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixture");
        let sizes = ReleasedConfig::read(&fixture.join("config.json")).unwrap();
        for job in Job::find(&fixture.join("pretrained")).unwrap().jobs {
            let to = dir.path().join("model");
            let go = |_: divot::Progress<'_>| ControlFlow::Continue(());
            convert(&job, &sizes, &to, FloatDType::F16, go).unwrap();
        }
        let frames: Vec<_> = (0..20)
            .map(|t| Frame::filled(32, 32, [t * 9, 200, 90]).unwrap())
            .collect();
        write_mp4(dir.path().join("clip.mp4"), &frames, 10.0).unwrap();
        Self { dir }
    }

    fn run(&self, example: &str, arguments: &[&str]) -> Output {
        Command::new(built(example))
            .current_dir(self.dir.path())
            .args(arguments)
            .output()
            .unwrap()
    }

    fn works(&self, example: &str, arguments: &[&str]) -> String {
        let with_model = ["--model", "model", "--device", "cpu"];
        let output = self.run(example, &[&with_model, arguments].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{example}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Returns the path of an example. Cargo builds the examples before it runs tests.
fn built(example: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let target = tests.parent().and_then(Path::parent).unwrap();
    let path = target.join("examples").join(example);
    assert!(
        path.exists() || path.with_extension("exe").exists(),
        "{} is not built: run `cargo test` without `--test`, or `cargo build --examples` first",
        path.display()
    );
    path
}

#[test]
fn describe_answers() {
    let bench = Bench::new();
    let answer = bench.works("describe", &["--input", "clip.mp4"]);
    assert!(
        answer.trim().len() > 1 && answer.ends_with('\n'),
        "{answer}"
    );
    assert_eq!(bench.works("describe", &["--input", "clip.mp4"]), answer);
    let other = bench.works("describe", &["--input", "clip.mp4", "--seed", "7"]);
    assert_ne!(other, answer);
    let packed = bench.works("describe", &["--input", "clip.mp4", "--dtype", "q4"]);
    assert!(!packed.trim().is_empty());
}

#[test]
fn generate_writes_a_clip() {
    let bench = Bench::new();
    bench.works("generate", &["a dog", "--dtype", "q8"]);
    let video = Video::open(bench.dir.path().join("out.mp4")).unwrap();
    assert_eq!(video.info().frames, 16);
    assert!(bench.dir.path().join("out.png").exists());
}

#[test]
fn story_writes_scenes() {
    let bench = Bench::new();
    let arguments = ["a dog", "--scenes", "1", "--output", "dog"];
    bench.works("story", &arguments);
    let folder = bench.dir.path().join("dog");
    let page = fs::read_to_string(folder.join("story.md")).unwrap();
    assert!(page.contains("(scene-01.mp4)"), "{page}");
    let video = Video::open(folder.join("scene-01.mp4")).unwrap();
    assert_eq!(video.info().frames, 16);
}

/// Without any argument, in a folder with nothing in it.
#[test]
fn the_model_in_the_program_is_used() {
    let folder = tempfile::tempdir().unwrap();
    for (example, made) in [
        ("reconstruct", &["out.mp4", "out.png"][..]),
        ("describe", &[]),
        ("generate", &["out.mp4", "out.png"]),
        ("story", &["story/story.md", "story/scene-01.mp4"]),
    ] {
        let output = Command::new(built(example))
            .current_dir(folder.path())
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{example}: {stderr}");
        assert!(stderr.contains("divot-tiny"), "{example}: {stderr}");
        assert!(output.stdout.len() > 1, "{example}");
        for file in made {
            let path = folder.path().join(file);
            assert!(path.exists(), "{example}: {}", path.display());
            fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn what_is_wrong_takes_one_line() {
    let bench = Bench::new();
    fs::create_dir(bench.dir.path().join("empty")).unwrap();
    let model = ["--model", "model"];
    for (example, arguments, says) in [
        ("describe", &["--model", "no"][..], "convert-weights"),
        ("generate", &["--model", "no"], "convert-weights"),
        ("story", &["--model", "no"], "convert-weights"),
        ("describe", &model, "--input"),
        (
            "describe",
            &["--model", "empty", "--input", "clip.mp4"],
            "no language model",
        ),
        (
            "generate",
            &["--model", "empty", "a dog"],
            "no language model",
        ),
        ("story", &["--model", "empty", "a dog"], "no language model"),
        (
            "describe",
            &["--model", "model", "--input", "no.mp4"],
            "no.mp4",
        ),
    ] {
        let output = bench.run(example, arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            output.status.code(),
            Some(1),
            "{example} {arguments:?}: {stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(
            stderr.starts_with("error: ") && stderr.contains(says),
            "{stderr}"
        );
    }
}
