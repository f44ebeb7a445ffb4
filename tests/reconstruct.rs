//! Runs the example `reconstruct` as a user does, on a small random model made here: its output, and its
//! one-line errors.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use burn::config::Config;
use burn::tensor::{Device, FloatDType};
use divot::checkpoint::Part;
use divot::data::{Frame, Video, write_gif, write_mp4, write_png};
use divot::resampler::{PerceiverResamplerConfig, VideoResamplerConfig};
use divot::unet::{NoiseScheduleConfig, UnetConfig, VaeConfig};
use divot::vit::VisionTowerConfig;
use divot::weights::Saver;
use divot::{DetokenizerConfig, TokenizerConfig};

/// A random model of a few megabytes, a clip, and a folder for outputs.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let device = Device::default();
        let tokenizer = TokenizerConfig::new(
            VisionTowerConfig::new(28, 14, 32, 1, 2, 16),
            VideoResamplerConfig::new(32, 32, 48)
                .with_temporal_depth(1)
                .with_pool_size(2)
                .with_spatial_temporal_depth(1)
                .with_resampler_depth(1)
                .with_tokens(8)
                .with_token_dim(16),
        )
        .with_frame_size(32);
        let detokenizer = DetokenizerConfig::new(
            PerceiverResamplerConfig::new(80, 16, 32, 32).with_depth(1),
            UnetConfig::new(32, vec![1], 32)
                .with_num_res_blocks(1)
                .with_attention_resolutions(vec![1])
                .with_head_dim(16),
            VaeConfig::new()
                .with_channels(32)
                .with_channel_mult(vec![1, 1])
                .with_num_res_blocks(1),
            NoiseScheduleConfig::new(),
        )
        .with_latent_size([16, 16]);
        bench.save(
            Part::Tokenizer,
            &tokenizer,
            Saver::new(bench.weights(Part::Tokenizer), FloatDType::F32)
                .add("", tokenizer.init(&device)),
        );
        bench.save(
            Part::Detokenizer,
            &detokenizer,
            Saver::new(bench.weights(Part::Detokenizer), FloatDType::F32)
                .add("", detokenizer.init(&device)),
        );
        write_mp4(bench.path("clip.mp4"), &moving(20, 64, 48), 10.0).unwrap();
        bench
    }

    fn save(&self, part: Part, config: &impl Config, saver: Saver<'_>) {
        let folder = part.folder(&self.model());
        fs::create_dir_all(&folder).unwrap();
        config.save(folder.join("config.json")).unwrap();
        saver.finish().unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn model(&self) -> PathBuf {
        self.path("model")
    }

    fn weights(&self, part: Part) -> PathBuf {
        part.folder(&self.model()).join("model.safetensors")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(example());
        command
            .current_dir(self.dir.path())
            .args(["--model", "model", "--device", "cpu"])
            .args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs the example on invalid input and returns the one-line error.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert_eq!(
            stderr.trim_end().lines().count(),
            1,
            "{arguments:?}: {stderr}"
        );
        assert!(stderr.starts_with("error: "), "{stderr}");
        self.assert_nothing_written();
        stderr
    }

    fn assert_nothing_written(&self) {
        for entry in fs::read_dir(self.dir.path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(
                !name.starts_with("out") && !name.starts_with('.'),
                "{name} is left behind"
            );
        }
    }
}

/// Returns the path of the example. Cargo builds the examples before it runs tests.
fn example() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let target = tests.parent().and_then(Path::parent).unwrap();
    let example = target.join("examples").join("reconstruct");
    assert!(
        example.exists() || example.with_extension("exe").exists(),
        "{} is not built: run `cargo test` without `--test`, or `cargo build --example reconstruct` first",
        example.display()
    );
    example
}

fn moving(count: usize, width: usize, height: usize) -> Vec<Frame> {
    (0..count)
        .map(|t| {
            let rgb = (0..width * height)
                .flat_map(|i| {
                    let (x, y) = (i % width, i / width);
                    [
                        (x * 4 + t * 3) as u8,
                        (y * 5) as u8,
                        ((x + y + t) * 2) as u8,
                    ]
                })
                .collect();
            Frame::new(width, height, rgb).unwrap()
        })
        .collect()
}

const QUICK: [&str; 4] = ["--steps", "2", "--guidance", "2"];

fn with<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [&QUICK[..], arguments].concat()
}

#[test]
fn a_clip_comes_back() {
    let bench = Bench::new();
    let output = bench.run(&with(&["--input", "clip.mp4", "--output", "out.mp4"]));
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(stdout.contains("8 tokens of 16"), "{stdout}");
    assert!(
        stdout.contains("PSNR") && stdout.contains("SSIM"),
        "{stdout}"
    );

    let video = Video::open(bench.path("out.mp4")).unwrap();
    assert_eq!((video.info().frames, video.info().fps), (16, 8.0));
    assert_eq!((video.info().width, video.info().height), (32, 32));
    assert_eq!(video.info().codec, "h264");
    let sheet = divot::data::read_image(bench.path("out.png")).unwrap();
    assert_eq!(
        (sheet.width, sheet.height),
        (16 * 128 + 15 * 4, 2 * 128 + 4)
    );

    // The same seed gives the same bytes. Another seed does not.
    let again = |name: &str, seed: &str| {
        let arguments = with(&["--input", "clip.mp4", "--output", name, "--seed", seed]);
        assert!(bench.run(&arguments).status.success());
        fs::read(bench.path(name)).unwrap()
    };
    let first = fs::read(bench.path("out.mp4")).unwrap();
    assert!(again("out2.mp4", "42") == first);
    assert!(again("out3.mp4", "43") != first);
}

#[test]
fn unusual_videos_are_reconstructed() {
    let bench = Bench::new();
    write_png(bench.path("one-frame.png"), &moving(1, 33, 17)[0]).unwrap();
    write_gif(bench.path("odd.gif"), &moving(5, 31, 57), 12.5).unwrap();
    fs::create_dir(bench.path("images")).unwrap();
    for (i, frame) in moving(3, 40, 30).iter().enumerate() {
        write_png(bench.path(&format!("images/{i}.png")), frame).unwrap();
    }
    for input in ["one-frame.png", "odd.gif", "images"] {
        let output = bench.run(&with(&["--input", input, "--output", "out.mp4"]));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{input}: {stderr}");
        let video = Video::open(bench.path("out.mp4")).unwrap();
        assert_eq!(video.info().frames, 16, "{input}");
    }
    // A clip from the middle of the video.
    let arguments = with(&[
        "--input", "clip.mp4", "--start", "0.5", "--output", "out.mp4",
    ]);
    assert!(bench.run(&arguments).status.success());
}

#[test]
fn inputs_that_are_no_videos() {
    let bench = Bench::new();
    fs::write(bench.path("text.mp4"), "not a video at all\n".repeat(100)).unwrap();
    fs::create_dir(bench.path("empty")).unwrap();
    let clip = fs::read(bench.path("clip.mp4")).unwrap();
    fs::write(bench.path("cut.mp4"), &clip[..clip.len() / 3]).unwrap();
    fs::write(bench.path("nothing.mp4"), "").unwrap();
    for (input, says) in [
        ("missing.mp4", "no such file"),
        ("text.mp4", "neither a video nor an image"),
        ("empty", "a folder without images"),
        ("cut.mp4", "cut short"),
        ("nothing.mp4", "an empty file"),
    ] {
        let line = bench.refused(&with(&["--input", input]));
        assert!(line.contains(input) && line.contains(says), "{line}");
    }
    let line = bench.refused(&with(&["--input", "clip.mp4", "--start", "99"]));
    assert!(line.contains("99"), "{line}");
}

#[test]
fn options_out_of_range() {
    let bench = Bench::new();
    for (arguments, says) in [
        (&["--steps", "0"][..], "use 1 to 1000"),
        (&["--steps", "2000"], "use 1 to 1000"),
        (&["--eta", "2"], "0 to 1"),
        (&["--eta", "nan"], "0 to 1"),
        (&["--sampler", "unipc", "--eta", "1"], "--sampler ddim"),
        (&["--guidance", "nan"], "finite"),
        (&["--guidance", "inf"], "finite"),
        (&["--start", "nan"], "start"),
        (&["--device", "abacus"], "abacus"),
        (&["--output", "out.png"], "ends in .mp4"),
        (&["--output", "clip.mp4"], "would be overwritten"),
        (&["--start", "-1"], "start"),
    ] {
        let mut command = Command::new(example());
        let output = command
            .current_dir(bench.dir.path())
            .args(["--model", "model", "--input", "clip.mp4"])
            .args(arguments)
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
        bench.assert_nothing_written();
    }
}

#[test]
fn without_the_model_it_says_how_to_get_one() {
    let mut command = Command::new(example());
    let output = command.args(["--model", "no"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("convert-weights"), "{stderr}");
}

/// Returns the range of a tensor's bytes in a safetensors file.
fn tensor_bytes(file: &[u8], name: &str) -> std::ops::Range<usize> {
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&file[8..8 + header]).unwrap();
    let offset = |i: usize| json[name]["data_offsets"][i].as_u64().unwrap() as usize;
    8 + header + offset(0)..8 + header + offset(1)
}

#[test]
fn damaged_checkpoints() {
    let bench = Bench::new();
    let weights = bench.weights(Part::Detokenizer);
    let whole = fs::read(&weights).unwrap();
    let refused = |file: &[u8]| {
        fs::write(&weights, file).unwrap();
        bench.refused(&with(&["--input", "clip.mp4"]))
    };
    let replaced = |from: &str, to: &str| {
        let at = whole
            .windows(from.len())
            .position(|window| window == from.as_bytes())
            .unwrap();
        let mut file = whole.clone();
        file[at..at + from.len()].copy_from_slice(to.as_bytes());
        file
    };

    let line = refused(&whole[..whole.len() / 2]);
    assert!(line.contains("model.safetensors"), "{line}");
    let line = refused(b"");
    assert!(line.contains("model.safetensors"), "{line}");

    let line = refused(&replaced("\"unet.conv_in.bias\"", "\"unet.conv_in.bios\""));
    assert!(
        line.contains("`unet.conv_in.bias`") && line.contains("missing"),
        "{line}"
    );

    // The same number of values in another shape.
    let line = refused(&replaced(
        "\"shape\":[32, 4, 3, 3]",
        "\"shape\":[4, 32, 3, 3]",
    ));
    assert!(
        line.contains("unet.conv_in.weight")
            && line.contains("[32, 4, 3, 3]")
            && line.contains("[4, 32, 3, 3]"),
        "{line}"
    );

    let mut with_nan = whole.clone();
    let at = tensor_bytes(&whole, "vae.decoder.conv_out.bias").start;
    with_nan[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let line = refused(&with_nan);
    assert!(
        line.contains("vae.decoder.conv_out.bias") && line.contains("NaN"),
        "{line}"
    );

    fs::remove_file(&weights).unwrap();
    let line = bench.refused(&with(&["--input", "clip.mp4"]));
    assert!(line.contains("model.safetensors"), "{line}");
    fs::write(
        Part::Tokenizer.folder(&bench.model()).join("config.json"),
        "{}",
    )
    .unwrap();
    let line = bench.refused(&with(&["--input", "clip.mp4"]));
    assert!(line.contains("config.json"), "{line}");
}

#[test]
fn configurations_that_describe_no_network() {
    let bench = Bench::new();
    for (part, from, to, says) in [
        (
            Part::Tokenizer,
            "\"temporal_heads\": 12",
            "\"temporal_heads\": 7",
            "temporal_heads (7)",
        ),
        (
            Part::Tokenizer,
            "\"patch_size\": 14",
            "\"patch_size\": 0",
            "patch_size",
        ),
        (
            Part::Tokenizer,
            "\"layers\": 1",
            "\"layers\": 999999999",
            "layers",
        ),
        (Part::Tokenizer, "\"frames\": 5", "\"frames\": 4", "frames"),
        (
            Part::Detokenizer,
            "\"head_dim\": 16",
            "\"head_dim\": 0",
            "head_dim",
        ),
        (
            Part::Detokenizer,
            "\"model_channels\": 32",
            "\"model_channels\": 33",
            "groups (32)",
        ),
        (
            Part::Detokenizer,
            "\"scale_factor\": 0.18215",
            "\"scale_factor\": 0",
            "scale_factor",
        ),
        (
            Part::Detokenizer,
            "\"context_dim\": 32",
            "\"context_dim\": 48",
            "context_dim",
        ),
        (Part::Detokenizer, "{", "[", "is not the configuration"),
    ] {
        let path = part.folder(&bench.model()).join("config.json");
        let whole = fs::read_to_string(&path).unwrap();
        // Formatted here, so that the replacement does not depend on the layout of the file.
        let json: serde_json::Value = serde_json::from_str(&whole).unwrap();
        let spelled = serde_json::to_string_pretty(&json).unwrap();
        assert!(spelled.contains(from), "{from}: {spelled}");
        fs::write(&path, spelled.replacen(from, to, 1)).unwrap();
        let line = bench.refused(&with(&["--input", "clip.mp4"]));
        assert!(
            line.contains("config.json") && line.contains(says),
            "{line}"
        );
        fs::write(&path, whole).unwrap();
    }
}

#[test]
fn outputs_that_cannot_be_written() {
    let bench = Bench::new();
    fs::create_dir(bench.path("folder.mp4")).unwrap();
    for output in ["no/such/folder/out.mp4", "folder.mp4"] {
        let line = bench.refused(&with(&["--input", "clip.mp4", "--output", output]));
        assert!(line.contains(output), "{line}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_nothing_behind() {
    let bench = Bench::new();
    fs::create_dir(bench.path("small")).unwrap();
    // A disk of one page, in a separate mount namespace.
    let script = "mount -t tmpfs -o size=4k none small && \"$0\" \"$@\"; code=$?; ls -A small >&2; exit $code";
    let mut command = Command::new("unshare");
    command
        .current_dir(bench.dir.path())
        .args(["--map-root-user", "--mount", "sh", "-c", script])
        .arg(example())
        .args(["--model", "model", "--input", "clip.mp4", "--steps", "1"])
        .args(["--device", "cpu", "--output", "small/out.mp4"]);
    let output = command.output();
    let Ok(output) = output else {
        eprintln!("skipped: there is no `unshare` program");
        return;
    };
    let stderr = String::from_utf8(output.stderr).unwrap();
    if stderr.contains("unshare:") || stderr.contains("mount:") {
        eprintln!("skipped: no disk of our own can be mounted here");
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("small/out"), "{stderr}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_nothing_behind() {
    let bench = Bench::new();
    let mut child = bench
        .command(&["--input", "clip.mp4", "--steps", "1000"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Much longer than the start takes, and much shorter than a thousand steps.
    std::thread::sleep(Duration::from_millis(1500));
    assert!(child.try_wait().unwrap().is_none(), "it is done already");
    let interrupted = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(interrupted.unwrap().success());
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "it does not stop");
        std::thread::sleep(Duration::from_millis(50));
    };
    let stderr = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert_eq!(status.code(), Some(130), "{stderr}");
    assert!(
        stderr.ends_with("stopped; nothing was written\n"),
        "{stderr}"
    );
    bench.assert_nothing_written();
}
