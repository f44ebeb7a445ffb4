//! Runs the program as a user does, on the fixture's small random model: its output, and its one-line
//! errors.

mod program;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use divot::data::{Frame, Video, read_image, write_mp4, write_png};
use program::{divot, model, text};
use serde_json::Value;

/// A folder with a video and a picture.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let frames: Vec<Frame> = (0..40).map(picture).collect();
        write_mp4(dir.path().join("clip.mp4"), &frames, 10.0).unwrap();
        write_png(dir.path().join("photo.png"), &frames[7]).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the program in that folder, with the option `--model` unless the command has none.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = divot();
        command.current_dir(self.dir.path()).args(arguments);
        let takes_model =
            !["convert", "export", "download", "completions", "info"].contains(&arguments[0]);
        if takes_model && !arguments.contains(&"--model") {
            command.arg("--model").arg(model());
        }
        if takes_model && !arguments.contains(&"--device") {
            command.args(["--device", "cpu"]);
        }
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs the program successfully and returns its output.
    fn works(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = text(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        text(&output.stdout)
    }

    /// Runs the program with `--json` and returns the object, which must be the whole output.
    fn json(&self, arguments: &[&str]) -> Value {
        let printed = self.works(&[arguments, &["--json"]].concat());
        let object: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(object["command"], arguments[0]);
        assert!(object["seconds"]["total"].as_f64().unwrap() > 0.0);
        assert!(object["peak_memory_bytes"].is_u64() || !cfg!(target_os = "linux"));
        object
    }

    /// Runs the program on invalid input and returns the one-line error.
    fn refused(&self, arguments: &[&str]) -> String {
        let before = self.names();
        let output = self.run(arguments);
        let line = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {line}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
        assert_eq!(line.lines().count(), 1, "{arguments:?}: {line}");
        assert!(line.starts_with("error: "), "{line}");
        assert_eq!(self.names(), before, "{arguments:?} left something");
        line
    }

    fn names(&self) -> Vec<std::ffi::OsString> {
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    }

    /// Makes a model from some parts of the model. Each pair is the source part and the new part.
    fn model_of(&self, name: &str, parts: &[(&str, &str)]) {
        for (from, to) in parts {
            let folder = self.path(name).join(to);
            fs::create_dir_all(&folder).unwrap();
            for file in fs::read_dir(model().join(from)).unwrap() {
                let file = file.unwrap();
                fs::copy(file.path(), folder.join(file.file_name())).unwrap();
            }
        }
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }
}

fn picture(t: usize) -> Frame {
    let (width, height) = (64, 48);
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
}

/// The parts that generation needs.
const GENERATION: [(&str, &str); 3] = [
    ("tokenizer", "tokenizer"),
    ("detokenizer", "detokenizer"),
    ("llm-generation", "llm-generation"),
];

/// Adds options for few steps.
fn quick<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [arguments, &["--steps", "2", "--guidance", "2"]].concat()
}

/// Adds options for few tokens.
fn short<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [arguments, &["--max-new-tokens", "6"]].concat()
}

/// Returns arguments that ask for few tokens about the video.
fn ask<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    short(&[&["describe", "--input", "clip.mp4"], arguments].concat())
}

#[test]
fn reconstruct_writes_a_clip_and_a_sheet() {
    let bench = Bench::new();
    let run = |name: &str, seed: &str| {
        let arguments = ["reconstruct", "--input", "clip.mp4", "--output", name];
        bench.json(&quick(&[&arguments[..], &["--seed", seed]].concat()))
    };
    let object = run("out.mp4", "5");
    assert_eq!(object["output"], "out.mp4");
    assert_eq!(object["sheet"], "out.png");
    assert_eq!(object["frames"], 16);
    assert_eq!(object["tokens"], serde_json::json!([64, 12]));
    assert_eq!(object["device"], "cpu");
    assert_eq!(object["seed"], 5);
    assert!(object["psnr"].as_f64().unwrap() > 0.0);
    for what in ["loading", "tokenizer", "de-tokenizer"] {
        assert!(object["seconds"][what].is_f64(), "{object}");
    }
    let video = Video::open(bench.path("out.mp4")).unwrap();
    assert_eq!((video.info().frames, video.info().fps), (16, 8.0));
    let sheet = read_image(bench.path("out.png")).unwrap();
    assert_eq!(sheet.width, 16 * 128 + 15 * 4);

    run("again.mp4", "5");
    run("other.mp4", "6");
    assert!(bench.bytes("out.mp4") == bench.bytes("again.mp4"));
    assert!(bench.bytes("out.png") == bench.bytes("again.png"));
    assert!(bench.bytes("out.mp4") != bench.bytes("other.mp4"));

    for name in ["dpm-solver++", "unipc"] {
        let arguments = ["reconstruct", "--input", "clip.mp4", "--sampler", name];
        let object = bench.json(&[&arguments[..], &["--guidance", "1"]].concat());
        assert_eq!(object["steps"], 20);
        let arguments = [&arguments[..], &["--spacing", "trailing", "--steps", "3"]].concat();
        assert_eq!(bench.json(&arguments)["steps"], 3);
        assert!(bench.bytes("out.mp4") != bench.bytes("again.mp4"));
    }

    let printed = bench.works(&quick(&["reconstruct", "--input", "clip.mp4"]));
    assert!(
        printed.contains("64 tokens of 12") && printed.contains("PSNR"),
        "{printed}"
    );
}

#[test]
fn tokens_go_through_a_file() {
    let bench = Bench::new();
    let object = bench.json(&[
        "tokenize",
        "--input",
        "clip.mp4",
        "--output",
        "all.safetensors",
    ]);
    assert_eq!(object["clips"], 2);
    assert_eq!(object["tokens"], serde_json::json!([64, 12]));
    for (start, name) in [("0", "first"), ("2", "second")] {
        let output = format!("{name}.safetensors");
        let arguments = [
            "tokenize", "--input", "clip.mp4", "--output", &output, "--start", start,
        ];
        assert!(bench.works(&arguments).contains("1 clip of 64 tokens"));
        let video = format!("{name}.mp4");
        bench.works(&quick(&[
            "detokenize",
            "--input",
            &output,
            "--output",
            &video,
        ]));
        // The same clip through tokens in memory.
        let direct = format!("{name}-direct.mp4");
        let arguments = [
            "reconstruct",
            "--input",
            "clip.mp4",
            "--output",
            &direct,
            "--start",
            start,
        ];
        bench.works(&quick(&arguments));
        assert!(bench.bytes(&video) == bench.bytes(&direct), "{name}");
    }
    assert!(bench.bytes("first.mp4") != bench.bytes("second.mp4"));

    // Clips come one after another.
    let arguments = [
        "detokenize",
        "--input",
        "all.safetensors",
        "--output",
        "all.mp4",
    ];
    assert_eq!(bench.json(&quick(&arguments))["frames"], 32);
    assert_eq!(
        Video::open(bench.path("all.mp4")).unwrap().info().frames,
        32
    );
    // Without guidance, the video differs and no tokenizer is needed.
    bench.model_of("slim", &[("detokenizer", "detokenizer")]);
    let arguments = [
        "detokenize",
        "--input",
        "all.safetensors",
        "--model",
        "slim",
    ];
    bench.works(&[&arguments[..], &["--steps", "2", "--guidance", "1"]].concat());
    assert!(bench.bytes("out.mp4") != bench.bytes("all.mp4"));
    // The file contains the unconditional tokens.
    bench.works(&quick(&arguments));
    assert!(bench.bytes("out.mp4") == bench.bytes("all.mp4"));

    let object = bench.json(&["info", "all.safetensors"]);
    let shapes: Vec<_> = object["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| &t["shape"])
        .collect();
    assert!(
        shapes.contains(&&serde_json::json!([2, 64, 12])),
        "{object}"
    );
    let count = ["tokenize", "--input", "clip.mp4", "--clips", "1"];
    assert_eq!(bench.json(&count)["clips"], 1);
}

#[test]
fn stored_unconditional_tokens_stand_for_the_tokenizer() {
    let bench = Bench::new();
    let stored = "tokenizer/unconditional.safetensors";
    bench.works(&["tokenize", "--input", "clip.mp4", "--clips", "1"]);
    // A file with the tokens only, as other programs may write it.
    let device = divot::device::select("cpu").unwrap();
    let mut tokens =
        divot::tokens::VideoTokens::open(&bench.path("tokens.safetensors"), &device).unwrap();
    tokens.unconditional = None;
    tokens.save(&bench.path("alone.safetensors")).unwrap();
    let detokenize = |model: &str, output: &str| {
        let arguments = ["detokenize", "--input", "alone.safetensors", "--model"];
        bench.run(&quick(
            &[&arguments[..], &[model, "--output", output]].concat(),
        ))
    };
    let whole = model().to_str().unwrap();
    assert!(detokenize(whole, "whole.mp4").status.success());

    // With stored unconditional tokens, nothing else of the tokenizer is needed.
    let parts = [
        ("detokenizer", "detokenizer"),
        ("llm-generation", "llm-generation"),
    ];
    bench.model_of("slim", &parts);
    fs::create_dir(bench.path("slim/tokenizer")).unwrap();
    fs::copy(model().join(stored), bench.path("slim").join(stored)).unwrap();
    let output = detokenize("slim", "slim.mp4");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(bench.bytes("slim.mp4") == bench.bytes("whole.mp4"));
    let generate = |model: &str, output: &str| {
        bench.works(&quick(&short(&[
            "generate", "a dog", "--model", model, "--output", output,
        ])))
    };
    generate("slim", "slim-dog.mp4");
    generate(whole, "whole-dog.mp4");
    assert!(bench.bytes("slim-dog.mp4") == bench.bytes("whole-dog.mp4"));

    // Tokens that do not fit are computed, with a line about it. Without a tokenizer, they are an error.
    let tokenizer = [("tokenizer", "tokenizer"), parts[0]];
    for damage in ["damaged", "stale", "absent"] {
        bench.model_of(damage, &tokenizer);
        let file = bench.path(damage).join(stored);
        match damage {
            "damaged" => fs::write(&file, b"{}").unwrap(),
            "stale" => {
                let mut config: Value =
                    serde_json::from_slice(&bench.bytes("stale/tokenizer/config.json")).unwrap();
                config["note"] = "written by another program".into();
                let config = serde_json::to_vec(&config).unwrap();
                fs::write(bench.path("stale/tokenizer/config.json"), config).unwrap();
            }
            _ => fs::remove_file(&file).unwrap(),
        }
        let output = detokenize(damage, "again.mp4");
        let said = text(&output.stderr);
        assert!(output.status.success(), "{damage}: {said}");
        assert!(
            bench.bytes("again.mp4") == bench.bytes("whole.mp4"),
            "{damage}"
        );
        let lines = usize::from(damage != "absent");
        assert_eq!(said.lines().count(), lines, "{said}");
        assert_eq!(
            said.contains("unconditional.safetensors"),
            lines == 1,
            "{said}"
        );
        fs::remove_file(bench.path("again.mp4")).unwrap();
        fs::remove_file(bench.path("again.png")).unwrap();
    }
    fs::write(bench.path("slim").join(stored), b"{}").unwrap();
    for command in [
        &["detokenize", "--input", "alone.safetensors"][..],
        &["generate", "a dog"],
    ] {
        let line = bench.refused(&[command, &["--model", "slim"]].concat());
        assert!(line.contains("unconditional.safetensors"), "{line}");
    }
}

#[test]
fn describe_answers() {
    let bench = Bench::new();
    let first = bench.works(&ask(&[]));
    assert!(first.ends_with('\n') && first.trim().len() > 1, "{first:?}");
    assert_eq!(bench.works(&ask(&[])), first);
    assert_ne!(bench.works(&ask(&["--seed", "43"])), first);

    let object = bench.json(&ask(&[]));
    assert_eq!(object["clips"], 2);
    assert_eq!(object["image"], false);
    assert_eq!(object["llm"], "llm-generation");
    let answer = &object["answers"][0];
    assert_eq!(answer["question"], "What does this video describe?");
    // The streamed text is the answer, except spaces at its ends and control characters.
    let printed = |text: &str| {
        let text = text.replace(
            |c: char| c.is_control() && c != '\n' && c != '\t',
            "\u{fffd}",
        );
        text.trim().to_owned()
    };
    assert_eq!(printed(&first), printed(answer["answer"].as_str().unwrap()));
    // Six tokens are not complete. A sentence would be.
    assert_eq!(
        (&answer["tokens"], &answer["complete"]),
        (&6.into(), &false.into())
    );
    for what in ["loading", "tokenizer", "language model"] {
        assert!(object["seconds"][what].is_f64(), "{object}");
    }
    // Every clip is 64 tokens between two marks.
    let one = bench.json(&ask(&["--clips", "1"]));
    let tokens = |object: &Value| object["answers"][0]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(one["clips"], 1);
    assert_eq!(tokens(&object) - tokens(&one), 66);
}

#[test]
fn images_are_shown_as_images() {
    let bench = Bench::new();
    let photo = bench.json(&short(&["describe", "--input", "photo.png"]));
    assert_eq!(
        (&photo["image"], &photo["clips"]),
        (&true.into(), &1.into())
    );
    let frame = bench.json(&ask(&["--image"]));
    assert_eq!(
        (&frame["image"], &frame["clips"]),
        (&true.into(), &1.into())
    );
    assert_eq!(
        photo["answers"][0]["prompt_tokens"],
        frame["answers"][0]["prompt_tokens"]
    );
    // The frame of the video gives another answer than the picture.
    let answer = |input: &str| {
        let arguments = [
            "describe",
            "--input",
            input,
            "--image",
            "--max-new-tokens",
            "40",
        ];
        bench.works(&[&arguments[..], &["--temperature", "5", "--top-p", "1"]].concat())
    };
    assert_ne!(answer("photo.png"), answer("clip.mp4"));
}

#[test]
fn greedy_and_beams_draw_nothing() {
    let bench = Bench::new();
    for options in [
        &["--greedy"][..],
        &["--temperature", "0"],
        &["--beams", "3"],
        &["--greedy", "--dtype", "q8"],
        &["--greedy", "--dtype", "q4"],
        &["--greedy", "--dtype", "f16"],
    ] {
        let one = bench.works(&ask(&[options, &["--seed", "1"]].concat()));
        let two = bench.works(&ask(&[options, &["--seed", "2"]].concat()));
        assert_eq!(one, two, "{options:?}");
        assert!(!one.trim().is_empty(), "{options:?}");
    }
    let line = bench.refused(&ask(&["--greedy", "--temperature", "1"]));
    assert!(
        line.contains("--greedy") && line.contains("--temperature"),
        "{line}"
    );
}

/// Writes to the program's standard input and returns its output.
fn fed(mut command: Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The program may exit without reading it.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[test]
fn a_chat_takes_turns() {
    let bench = Bench::new();
    let chat = ask(&["--chat", "--json"]);
    let output = fed(bench.command(&chat), b"And then?\n\nWhy <vid>?");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    let answers = object["answers"].as_array().unwrap();
    let questions: Vec<_> = answers
        .iter()
        .map(|answer| answer["question"].as_str().unwrap())
        .collect();
    assert_eq!(
        questions,
        ["What does this video describe?", "And then?", "Why <vid>?"]
    );
    // Clips that were read are not read again.
    assert!(answers[0]["prompt_tokens"].as_u64() > Some(132));
    assert!(answers[1]["prompt_tokens"].as_u64() < Some(40));
    // The first turn is the same as without a chat.
    assert_eq!(
        answers[0]["answer"],
        bench.json(&ask(&[]))["answers"][0]["answer"]
    );

    // Without questions, nothing is asked.
    let output = fed(bench.command(&ask(&["--chat", "--greedy"])), b"");
    assert_eq!(text(&output.stdout), bench.works(&ask(&["--greedy"])));

    let output = fed(bench.command(&ask(&["--chat"])), b"\xff\xfe\n");
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    let error: Vec<_> = stderr
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert!(error.len() == 1 && error[0].contains("UTF-8"), "{stderr}");
}

#[test]
fn special_tokens_in_questions_are_text() {
    let bench = Bench::new();
    let tokens = |question: &str| {
        let object = bench.json(&ask(&["--question", question]));
        object["answers"][0]["prompt_tokens"].as_u64().unwrap()
    };
    // Each of these would be one or two tokens if it were special.
    let plain = tokens("a");
    for question in ["<vid>", "<frame>", "<frame_00000>", "</s>", "<img>"] {
        assert!(tokens(question) >= plain + 2, "{question}");
    }
}

#[test]
fn generate_writes_a_clip() {
    let bench = Bench::new();
    let run = |output: &str, seed: &str| {
        let arguments = [
            "generate",
            "a dog on the beach",
            "--output",
            output,
            "--seed",
            seed,
        ];
        bench.json(&quick(&short(&arguments)))
    };
    let object = run("dog.mp4", "3");
    assert_eq!(object["caption"], "a dog on the beach");
    assert_eq!(
        (&object["output"], &object["sheet"]),
        (&"dog.mp4".into(), &"dog.png".into())
    );
    assert!(object["text"].is_string());
    assert_eq!(object["llm"], "llm-generation");
    assert_eq!(
        Video::open(bench.path("dog.mp4")).unwrap().info().frames,
        16
    );
    assert_eq!(
        read_image(bench.path("dog.png")).unwrap().width,
        8 * 128 + 7 * 4
    );
    run("again.mp4", "3");
    run("other.mp4", "4");
    assert!(bench.bytes("dog.mp4") == bench.bytes("again.mp4"));
    assert!(bench.bytes("dog.mp4") != bench.bytes("other.mp4"));

    // Another variance gives other features from the same seed.
    let arguments = [
        "generate",
        "a dog on the beach",
        "--output",
        "wild.mp4",
        "--seed",
        "3",
    ];
    bench.works(&quick(&short(
        &[&arguments[..], &["--var-scale", "30"]].concat(),
    )));
    assert!(bench.bytes("dog.mp4") != bench.bytes("wild.mp4"));
}

#[test]
fn an_adapted_detokenizer_is_preferred() {
    let bench = Bench::new();
    let parts = [
        ("tokenizer", "tokenizer"),
        ("llm-generation", "llm-generation"),
        ("detokenizer", "detokenizer-adapted"),
    ];
    bench.model_of("adapted", &parts);
    bench.works(&quick(&short(&["generate", "a dog", "--model", "adapted"])));
    let line = bench.refused(&quick(&[
        "reconstruct",
        "--input",
        "clip.mp4",
        "--model",
        "adapted",
    ]));
    assert!(line.contains("detokenizer"), "{line}");
}

#[test]
fn story_fills_a_folder() {
    let bench = Bench::new();
    let run = |scenes: &str, seed: &str| {
        let arguments = ["story", "A boy *finds*\na <kite>", "--output", "kite"];
        let options = ["--scenes", scenes, "--seed", seed];
        bench.json(&quick(&short(&[&arguments[..], &options].concat())))
    };
    // A random model may end early. With this seed it does not.
    let object = run("2", "42");
    let scenes = object["scenes"].as_array().unwrap();
    assert_eq!(scenes.len(), 2, "{object}");
    let written: Value = serde_json::from_slice(&bench.bytes("kite/story.json")).unwrap();
    assert_eq!(&written["scenes"], &object["scenes"]);
    assert_eq!(written["instruction"], "A boy *finds*\na <kite>");
    let page = text(&bench.bytes("kite/story.md"));
    assert!(
        page.starts_with("# A boy \\*finds\\* a \\<kite\\>\n"),
        "{page}"
    );
    for scene in scenes {
        let (clip, sheet) = (
            scene["clip"].as_str().unwrap(),
            scene["sheet"].as_str().unwrap(),
        );
        assert!(page.contains(&format!("]({sheet})]({clip})")), "{page}");
        let video = Video::open(bench.path("kite").join(clip)).unwrap();
        assert_eq!(video.info().frames, 16);
        read_image(bench.path("kite").join(sheet)).unwrap();
    }
    let first = bench.bytes("kite/scene-01.mp4");
    assert!(first != bench.bytes("kite/scene-02.mp4"));

    // A shorter story replaces the longer one, and starts with the same text and clip.
    run("1", "42");
    assert!(bench.bytes("kite/scene-01.mp4") == first);
    let mut names: Vec<_> = fs::read_dir(bench.path("kite"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["scene-01.mp4", "scene-01.png", "story.json", "story.md"]
    );
    run("1", "7");
    assert!(bench.bytes("kite/scene-01.mp4") != first);

    // Other files in the folder stay.
    fs::write(bench.path("kite/notes.txt"), "mine").unwrap();
    let line = bench.refused(&quick(&["story", "again", "--output", "kite"]));
    assert!(
        line.contains("kite") && line.contains("notes.txt"),
        "{line}"
    );
    let line = bench.refused(&quick(&["story", "again", "--output", "clip.mp4"]));
    assert!(
        line.contains("clip.mp4") && line.contains("is not a folder"),
        "{line}"
    );
}

#[test]
fn info_says_what_there_is() {
    let bench = Bench::new();
    let model = model().to_str().unwrap();
    for arguments in [&["info", "--model", model][..], &["info", model]] {
        let object = bench.json(arguments);
        let parts = object["parts"].as_array().unwrap();
        let names: Vec<_> = parts
            .iter()
            .map(|part| part["part"].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            ["tokenizer", "detokenizer", "clip", "llm-generation"]
        );
        for part in parts {
            assert!(part["parameters"].as_u64() > Some(0));
            // Two bytes per parameter, and a header.
            assert!(part["bytes"].as_u64() > part["parameters"].as_u64().map(|n| 2 * n));
            assert_eq!(part["dtypes"], serde_json::json!(["f16"]));
            assert!(part["config"].is_object());
        }
    }
    let printed = bench.works(&["info", model]);
    assert!(
        printed.contains("latents 8x6") && printed.contains("window 32768"),
        "{printed}"
    );

    let object = bench.json(&["info", "clip.mp4"]);
    assert_eq!(
        (&object["frames"], &object["clips"]),
        (&40.into(), &2.into())
    );
    assert_eq!(
        (&object["width"], &object["height"]),
        (&64.into(), &48.into())
    );
    assert_eq!(
        (&object["fps"], &object["codec"]),
        (&10.0.into(), &"h264".into())
    );
}

#[test]
fn a_model_is_exported_under_the_released_names_and_converted_again() {
    let bench = Bench::new();
    let model = model().to_str().unwrap();
    let exported = bench.json(&["export", model, "--to", "released", "--released"]);
    let files = exported["files"].as_array().unwrap();
    assert_eq!(files.len(), 5, "{exported}");
    assert_eq!(
        files[4],
        "released/Divot_tokenizer_detokenizer/Divot_tokenizer.bin"
    );
    assert_eq!(exported["notes"].as_array().unwrap().len(), 0, "{exported}");
    let sizes = "released/config.json";
    bench.json(&[
        "convert", "--from", "released", "--config", sizes, "--to", "again",
    ]);
    for part in ["tokenizer", "detokenizer", "clip", "llm-generation"] {
        let file = format!("{part}/model.safetensors");
        let again = bench.bytes(&format!("again/{file}"));
        assert!(
            again == fs::read(Path::new(model).join(file)).unwrap(),
            "{part}"
        );
    }
    let refused = bench.refused(&["export", model, "--to", "again", "--released"]);
    assert!(
        refused.contains("again") && refused.contains("lost"),
        "{refused}"
    );
    let refused = bench.refused(&["export", "nowhere", "--to", "new", "--released"]);
    assert!(refused.contains("nowhere"), "{refused}");
}

#[test]
fn a_model_in_8_bits_works_like_any_other() {
    let bench = Bench::new();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixture");
    let [from, sizes] = ["pretrained", "config.json"].map(|name| fixture.join(name));
    let [from, sizes] = [&from, &sizes].map(|path| path.to_str().unwrap());
    bench.json(&[
        "convert", "--from", from, "--config", sizes, "--to", "small", "--dtype", "q8",
    ]);
    let info = bench.json(&["info", "small"]);
    for part in info["parts"].as_array().unwrap() {
        assert_eq!(part["dtypes"], serde_json::json!(["f16", "q8"]), "{part}");
        let [bytes, parameters] = ["bytes", "parameters"].map(|key| part[key].as_u64().unwrap());
        assert!(bytes < 2 * parameters, "{part}");
    }
    let file = "small/llm-generation/model.safetensors";
    let tensors = bench.json(&["info", file]);
    assert!(!tensors.to_string().contains(".scale"), "{tensors}");

    // The language model in 4 bits.
    let pretrained = |name: &str| format!("{from}/{name}");
    bench.json(&[
        "convert",
        "--part",
        "llm",
        "--from",
        &pretrained("Divot_sft_gen/llm"),
        "--from",
        &pretrained("Divot_sft_gen/agent/pytorch_model.bin"),
        "--from",
        &pretrained("cvlm_mistral_instruct_tokenizer"),
        "--config",
        sizes,
        "--to",
        "four",
        "--dtype",
        "q4",
    ]);
    let four = bench.json(&["info", "four"]);
    assert_eq!(
        four["parts"][0]["dtypes"],
        serde_json::json!(["f16", "q4", "q8"]),
        "{four}"
    );

    // Under the released names it is f16, and converts to nearly the same.
    bench.json(&["export", "small", "--to", "released", "--released"]);
    let sizes = "released/config.json";
    bench.json(&[
        "convert", "--from", "released", "--config", sizes, "--to", "again",
    ]);
    for dtype in ["f32", "q8", "q4"] {
        for model in ["small", "again"] {
            let object = bench.json(&[
                "describe",
                "--model",
                model,
                "--input",
                "clip.mp4",
                "--greedy",
                "--max-new-tokens",
                "3",
                "--dtype",
                dtype,
            ]);
            assert!(object["answers"][0]["prompt_tokens"].is_u64(), "{object}");
        }
    }
    let refused = bench.refused(&[
        "export",
        "small",
        "--to",
        "x",
        "--released",
        "--dtype",
        "q8",
    ]);
    assert!(
        refused.contains("--dtype") && refused.contains("--released"),
        "{refused}"
    );
}

#[test]
fn convert_merges_lora() {
    let bench = Bench::new();
    let pretrained = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixture/pretrained");
    let run = |to: &str, options: &[&str]| {
        let from = |name: &str| pretrained.join(name).to_str().unwrap().to_owned();
        let (lora, llm, tokenizer) = (
            from("Divot_lora"),
            from("Divot_sft_gen/llm"),
            from("cvlm_mistral_instruct_tokenizer"),
        );
        let arguments = ["convert", "--part", "llm", "--from", &lora, "--from", &llm];
        let rest = ["--from", &tokenizer, "--to", to];
        bench.json(&[&arguments[..], &rest, options].concat())
    };
    let kept = run("kept", &["--lora-alpha", "6"]);
    let merged = run(
        "merged",
        &["--lora-alpha", "6", "--merge-lora", "--dtype", "f32"],
    );
    let parameters = |object: &Value| object["parts"][0]["parameters"].as_u64().unwrap();
    assert!(parameters(&kept) > parameters(&merged));
    let config: Value = serde_json::from_slice(&bench.bytes("kept/llm/config.json")).unwrap();
    assert_eq!(config["lora"]["alpha"], 6.0);
    let config: Value = serde_json::from_slice(&bench.bytes("merged/llm/config.json")).unwrap();
    assert!(config["lora"].is_null());
    // What is not beside LoRA is packed in 8 bits, and loads as floats.
    run("packed", &["--lora-alpha", "6", "--dtype", "q8"]);
    let tokenizer = program::model().join("tokenizer");
    fs::create_dir(bench.path("packed/tokenizer")).unwrap();
    for file in fs::read_dir(tokenizer).unwrap() {
        let file = file.unwrap();
        let copy = bench.path("packed/tokenizer").join(file.file_name());
        fs::copy(file.path(), copy).unwrap();
    }
    let describe = ["describe", "--model", "packed", "--input", "clip.mp4"];
    bench.works(&[&describe[..], &["--max-new-tokens", "3"]].concat());
    // Another alpha gives other weights.
    run(
        "weaker",
        &["--lora-alpha", "1", "--merge-lora", "--dtype", "f32"],
    );
    assert!(
        bench.bytes("merged/llm/model.safetensors") != bench.bytes("weaker/llm/model.safetensors")
    );

    let arguments = ["convert", "--from", "nothing", "--to", "here"];
    assert!(bench.refused(&arguments).contains("nothing"));
    let line = bench.refused(&[&arguments[..], &["--lora-alpha", "-1"]].concat());
    assert!(line.contains("lora_alpha is -1"), "{line}");
}

#[test]
fn help_has_examples() {
    let summary = text(&divot().arg("--help").output().unwrap().stdout);
    for command in [
        "reconstruct",
        "describe",
        "generate",
        "story",
        "tokenize",
        "detokenize",
        "download",
        "convert",
        "info",
        "completions",
    ] {
        assert!(
            summary.contains(&format!("\n  {command}")),
            "{command}: {summary}"
        );
        let output = divot().args([command, "--help"]).output().unwrap();
        assert!(output.status.success());
        let help = text(&output.stdout);
        assert!(help.contains("Example"), "{help}");
        assert!(help.contains(&format!("\n  divot {command}")), "{help}");
        assert!(help.contains("--json"), "{help}");
        // Every visible option has a description.
        for line in help
            .lines()
            .filter(|line| line.trim_start().starts_with("--"))
        {
            let words = line.split_whitespace().count();
            assert!(
                words > 3 || help.contains(&format!("{line}\n          ")),
                "{line}"
            );
        }
    }
    let output = divot().output().unwrap();
    assert!(text(&output.stderr).contains("Commands:"));
    assert!(!output.status.success());
}

#[test]
fn completions_for_shells() {
    let bench = Bench::new();
    for (shell, holds) in [
        ("bash", "complete -F _divot"),
        ("zsh", "#compdef divot"),
        ("fish", "complete -c divot"),
    ] {
        let script = bench.works(&["completions", shell]);
        assert!(script.contains(holds), "{script}");
        for word in ["detokenize", "--var-scale", "llm-comprehension"] {
            assert!(
                script.contains(word.trim_start_matches('-')),
                "{shell}: {word}"
            );
        }
    }
    let line = bench.refused(&["completions", "dash"]);
    assert!(line.contains("'dash'") && line.contains("bash"), "{line}");
}

#[test]
fn what_is_missing_is_named() {
    let bench = Bench::new();
    fs::create_dir(bench.path("empty")).unwrap();
    for (arguments, says) in [
        (
            &["reconstruct", "--input", "no.mp4"][..],
            &["no.mp4", "no such file"][..],
        ),
        (
            &["describe", "--input", "no.mp4"],
            &["no.mp4", "no such file"],
        ),
        (
            &["tokenize", "--input", "no.mp4"],
            &["no.mp4", "no such file"],
        ),
        (
            &["detokenize", "--input", "no.safetensors"],
            &["no.safetensors"],
        ),
        (&["info", "no.mp4"], &["no.mp4", "no such file"]),
        (&["info", "no.safetensors"], &["no.safetensors"]),
        (&["info", "--model", "empty"], &["empty", "divot download"]),
        (
            &["reconstruct", "--input", "clip.mp4", "--model", "no"],
            &["no: ", "divot download"],
        ),
        (
            &["describe", "--input", "clip.mp4", "--model", "no"],
            &["no: ", "divot download"],
        ),
        (
            &["generate", "a dog", "--model", "no"],
            &["no: ", "divot download"],
        ),
        (
            &["story", "a dog", "--model", "no"],
            &["no: ", "divot download"],
        ),
        (
            &["tokenize", "--input", "clip.mp4", "--model", "empty"],
            &["empty", "config.json"],
        ),
        (
            &["generate", "a dog", "--model", "empty"],
            &["empty", "no language model"],
        ),
        (
            &["describe", "--input", "clip.mp4", "--model", "empty"],
            &["empty", "no language model"],
        ),
        (&["reconstruct"], &["--input"]),
        (&["generate"], &["CAPTION"]),
        (&["imagine"], &["imagine"]),
    ] {
        let line = bench.refused(arguments);
        for says in says {
            assert!(line.contains(says), "{arguments:?}: {line}");
        }
    }
}

#[test]
fn a_model_without_a_language_model() {
    let bench = Bench::new();
    let parts = ["tokenizer", "detokenizer"].map(|part| (part, part));
    bench.model_of("half", &parts);
    for arguments in [
        &["describe", "--input", "clip.mp4"][..],
        &["generate", "a dog"],
        &["story", "a dog"],
    ] {
        let line = bench.refused(&[arguments, &["--model", "half"]].concat());
        assert!(
            line.contains("half") && line.contains("no language model"),
            "{line}"
        );
        assert!(line.contains("divot download"), "{line}");
    }
}

#[test]
fn a_model_may_say_how_it_is_best_sampled() {
    let bench = Bench::new();
    bench.model_of("own", &GENERATION);
    let path = bench.path("own/detokenizer/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["sampling"]["steps"] = 4.into();
    config["guidance"]["scale"] = 1.0.into();
    fs::write(&path, config.to_string()).unwrap();
    let steps = |options: &[&str]| {
        let arguments = ["reconstruct", "--input", "clip.mp4", "--model", "own"];
        bench.json(&[&arguments, options].concat())["steps"].clone()
    };
    assert_eq!(steps(&[]), 4);
    let own = bench.bytes("out.mp4");
    assert_eq!(steps(&["--steps", "2"]), 2);
    assert_eq!(steps(&["--guidance", "1"]), 4);
    assert_eq!(bench.bytes("out.mp4"), own);
    assert_eq!(steps(&["--guidance", "2"]), 4);
    assert_ne!(bench.bytes("out.mp4"), own);
    // Another sampler has its own number.
    assert_eq!(steps(&["--sampler", "unipc"]), 20);
}

#[test]
fn without_a_model_the_program_has_its_own() {
    let bench = Bench::new();
    let temporary = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = divot()
            .current_dir(bench.dir.path())
            .env("TMPDIR", temporary.path())
            .args(arguments)
            .output()
            .unwrap();
        let stderr = text(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        (text(&output.stdout), stderr)
    };
    let (parts, said) = run(&["info"]);
    assert!(parts.contains("detokenizer"), "{parts}");
    assert!(said.contains("divot-tiny"), "{said}");
    let made = |arguments: &[&str]| {
        let (object, _) = run(&[arguments, &["--device", "cpu", "--json"]].concat());
        let object: Value = serde_json::from_str(&object).unwrap();
        assert_eq!(object["model"], "divot-tiny");
        object
    };
    let tokens = made(&["tokenize", "--input", "clip.mp4"]);
    assert_eq!(tokens["input"], "clip.mp4");
    made(&["detokenize", "--input", "tokens.safetensors"]);
    // It has clips of its own. What it makes of the first resembles it: another clip has about 14 dB.
    let rebuilt = made(&["reconstruct", "--output", "rebuilt.mp4"]);
    assert!(rebuilt["psnr"].as_f64().unwrap() > 20.0, "{rebuilt}");
    let described = made(&["describe"]);
    let answer = described["answers"][0]["answer"].as_str().unwrap();
    assert!(answer.contains("pink"), "{answer}");
    made(&[
        "generate",
        "A large red circle moves to the right.",
        "--output",
        "circle.mp4",
    ]);
    let story = made(&["story", "Tell a story about Kiki, a cyan circle."]);
    let scenes = story["scenes"].as_array().unwrap();
    assert_eq!(scenes.len(), 3, "{story}");
    assert!(
        scenes[0]["text"].as_str().unwrap().contains("Kiki"),
        "{story}"
    );
    // Nothing of it is left behind.
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
}

#[test]
fn options_that_make_no_sense() {
    let bench = Bench::new();
    let input = ["--input", "clip.mp4"];
    for (command, arguments, says) in [
        ("reconstruct", &["--steps", "0"][..], "use 1 to 1000"),
        ("reconstruct", &["--guidance", "nan"], "finite"),
        ("reconstruct", &["--eta", "-1"], "0 to 1"),
        ("reconstruct", &["--sampler", "euler"], "dpm-solver++"),
        (
            "reconstruct",
            &["--sampler", "unipc", "--eta", "0"],
            "--sampler ddim",
        ),
        (
            "reconstruct",
            &["--sampler", "dpm-solver++", "--steps", "0"],
            "use 1 to 1000",
        ),
        ("reconstruct", &["--start", "99"], "99"),
        ("reconstruct", &["--start", "-1"], "-1"),
        ("reconstruct", &["--dtype", "q8"], "'q8'"),
        ("tokenize", &["--dtype", "q4"], "'q4'"),
        ("tokenize", &["--clips", "0"], "at least 1"),
        ("tokenize", &["--start", "99"], "99"),
        ("tokenize", &["--start", "0", "--clips", "1"], "--clips"),
        ("describe", &["--clips", "0"], "at least 1"),
        ("describe", &["--question", " "], "question is empty"),
        ("describe", &["--temperature", "-1"], "temperature"),
        ("describe", &["--top-p", "2"], "top_p"),
        ("describe", &["--beams", "0"], "beams"),
        ("describe", &["--max-new-tokens", "0"], "max_new_tokens"),
        ("describe", &["--device", "abacus"], "abacus"),
    ] {
        let line = bench.refused(&[&[command], &input[..], arguments].concat());
        assert!(line.contains(says), "{arguments:?}: {line}");
    }
    for (arguments, says) in [
        (&["generate", ""][..], "caption is empty"),
        (&["generate", "a dog", "--var-scale", "-1"], "var_scale"),
        (&["generate", "a dog", "--var-scale", "nan"], "var_scale"),
        (&["generate", "a dog", "--steps", "1001"], "use 1 to 1000"),
        (&["story", " "], "instruction is empty"),
        (&["story", "a dog", "--scenes", "0"], "--scenes 1"),
        (&["detokenize", "--input", "clip.mp4"], "clip.mp4"),
    ] {
        let line = bench.refused(arguments);
        assert!(line.contains(says), "{arguments:?}: {line}");
    }
}

#[test]
fn prompts_longer_than_the_window() {
    let bench = Bench::new();
    bench.model_of("narrow", &GENERATION);
    let path = bench.path("narrow/llm-generation/config.json");
    let config = fs::read_to_string(&path).unwrap();
    assert!(config.contains("32768"), "{config}");
    fs::write(&path, config.replace("32768", "100")).unwrap();
    let long = "word ".repeat(60);
    for arguments in [
        &["describe", "--input", "clip.mp4"][..],
        &["generate", &long],
        &["story", &long],
    ] {
        let line = bench.refused(&[arguments, &["--model", "narrow"]].concat());
        assert!(line.contains("window is 100"), "{line}");
    }
    // A single clip fits.
    let arguments = [
        "describe", "--input", "clip.mp4", "--clips", "1", "--model", "narrow",
    ];
    bench.works(&[&arguments[..], &["--question", "What?"]].concat());
}

#[test]
fn outputs_that_cannot_be_written() {
    let bench = Bench::new();
    let model = model().to_str().unwrap();
    bench.works(&["tokenize", "--input", "clip.mp4"]);
    fs::create_dir(bench.path("folder.mp4")).unwrap();
    let weights = format!("{model}/tokenizer/model.safetensors");
    let size = fs::metadata(&weights).unwrap().len();
    fs::write(bench.path("mine.safetensors"), "not tokens").unwrap();
    for (arguments, says) in [
        (
            &["reconstruct", "--input", "clip.mp4", "--output", "clip.mp4"][..],
            "overwritten",
        ),
        (
            &[
                "reconstruct",
                "--input",
                "photo.png",
                "--output",
                "photo.mp4",
            ],
            "overwritten",
        ),
        (
            &[
                "reconstruct",
                "--input",
                "clip.mp4",
                "--output",
                "no/out.mp4",
            ],
            "no/out.mp4",
        ),
        (
            &[
                "reconstruct",
                "--input",
                "clip.mp4",
                "--output",
                "folder.mp4",
            ],
            "folder.mp4",
        ),
        (
            &["reconstruct", "--input", "clip.mp4", "--output", "out.gif"],
            "ends in .mp4",
        ),
        (
            &["tokenize", "--input", "clip.mp4", "--output", "clip.mp4"],
            "ends in .safetensors",
        ),
        (
            &["tokenize", "--input", "clip.mp4", "--output", &weights],
            "overwritten",
        ),
        (
            &[
                "tokenize",
                "--input",
                "clip.mp4",
                "--output",
                "mine.safetensors",
            ],
            "mine.safetensors",
        ),
        (
            &[
                "tokenize",
                "--input",
                "clip.mp4",
                "--output",
                "no/t.safetensors",
            ],
            "no/t.safetensors",
        ),
        (
            &[
                "detokenize",
                "--input",
                "tokens.safetensors",
                "--output",
                "no/o.mp4",
            ],
            "no/o.mp4",
        ),
        (
            &["generate", "a dog", "--output", "no/out.mp4"],
            "no/out.mp4",
        ),
        (&["generate", "a dog", "--output", "out"], "ends in .mp4"),
        (
            &["story", "a dog", "--output", "clip.mp4/story"],
            "clip.mp4/story",
        ),
        (
            &["convert", "--from", model, "--to", "x"],
            "no released checkpoint",
        ),
        (&["download", "--offline", "--to", "clip.mp4"], "clip.mp4"),
    ] {
        let line = bench.refused(arguments);
        assert!(line.contains(says), "{arguments:?}: {line}");
    }
    assert_eq!(fs::metadata(&weights).unwrap().len(), size);
}

#[test]
fn tokens_of_another_model() {
    let bench = Bench::new();
    use divot::tokens::VideoTokens;
    let device = divot::device::select("cpu").unwrap();
    let wide = VideoTokens {
        tokens: burn::tensor::Tensor::zeros([1, 64, 13], &device),
        unconditional: None,
    };
    wide.save(&bench.path("wide.safetensors")).unwrap();
    let line = bench.refused(&["detokenize", "--input", "wide.safetensors"]);
    assert!(
        line.contains("wide.safetensors") && line.contains("13"),
        "{line}"
    );
    // A file of weights contains no tokens.
    let weights = model().join("clip/model.safetensors");
    let line = bench.refused(&["detokenize", "--input", weights.to_str().unwrap()]);
    assert!(line.contains("divot tokenize"), "{line}");
}

#[test]
fn a_picture_beside_the_clip_is_kept() {
    let bench = Bench::new();
    let bytes = b"my cat";
    fs::write(bench.path("cat.png"), bytes).unwrap();
    let run = quick(&["reconstruct", "--input", "clip.mp4", "--output", "cat.mp4"]);
    let line = bench.refused(&run);
    assert!(
        line.contains("cat.png") && line.contains("--force"),
        "{line}"
    );
    assert_eq!(fs::read(bench.path("cat.png")).unwrap(), bytes);
    bench.works(&[&run[..], &["--force"]].concat());
    assert!(read_image(bench.path("cat.png")).is_ok());
    // The contact sheet of an earlier run is replaced without asking.
    bench.works(&run);
}

#[test]
fn words_that_are_easily_mistaken() {
    let bench = Bench::new();
    for (arguments, says) in [
        (
            &["generate", "a dog", "--seed", "-1"][..],
            "a seed is a whole number from 0",
        ),
        (
            &["tokenize", "--input", "https://example.org/clip.mp4"],
            "download",
        ),
        (&["tokenize", "--input", "-"], "file"),
    ] {
        let line = bench.refused(arguments);
        assert!(line.contains(says), "{arguments:?}: {line}");
    }
    let one = bench.works(&["info", "photo.png"]);
    assert!(
        one.contains("1 frame at") && one.contains("1 clip "),
        "{one}"
    );
}

#[test]
fn parts_of_different_models() {
    let bench = Bench::new();
    for (part, from, to, command, says) in [
        (
            "tokenizer",
            "\"tokens\": 64",
            "\"tokens\": 32",
            "describe",
            "[32, 12]",
        ),
        (
            "detokenizer",
            "\"input_dim\": 12",
            "\"input_dim\": 13",
            "generate",
            "de-tokenizer of 13",
        ),
    ] {
        bench.model_of("mixed", &GENERATION);
        let path = bench.path("mixed").join(part).join("config.json");
        let config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let config = serde_json::to_string_pretty(&config).unwrap();
        assert!(config.contains(from), "{config}");
        fs::write(&path, config.replacen(from, to, 1)).unwrap();
        let rest = match command {
            "describe" => ["--input", "clip.mp4"],
            _ => ["a dog", "--greedy"],
        };
        let line = bench.refused(&[&[command], &rest[..], &["--model", "mixed"]].concat());
        assert!(line.contains("mixed") && line.contains(says), "{line}");
    }
}

#[test]
fn downloads_need_a_cache_when_offline() {
    let bench = Bench::new();
    let before = bench.names();
    let output = bench
        .command(&["download", "--offline"])
        .env("HF_HUB_CACHE", bench.path("cache"))
        .output()
        .unwrap();
    let line = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains("cache"), "{line}");
    assert_eq!(bench.names(), before);
    let line = bench.refused(&["download", "llm-poetry"]);
    assert!(
        line.contains("llm-poetry") && line.contains("llm-generation"),
        "{line}"
    );
}

#[cfg(unix)]
#[test]
fn names_that_are_not_utf8() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let bench = Bench::new();
    let input = OsStr::from_bytes(b"cl\xffip.mp4");
    let output = OsStr::from_bytes(b"o\xfet.mp4");
    fs::copy(bench.path("clip.mp4"), bench.dir.path().join(input)).unwrap();
    let run = bench
        .command(&quick(&["reconstruct", "--json"]))
        .arg("--input")
        .arg(input)
        .arg("--output")
        .arg(output)
        .output()
        .unwrap();
    assert!(run.status.success(), "{:?}", run.stderr);
    serde_json::from_slice::<Value>(&run.stdout).unwrap();
    assert!(bench.dir.path().join(output).exists());

    let run = bench
        .command(&["generate"])
        .arg(OsStr::from_bytes(b"a d\xffg"))
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(1));
    let line = text(&run.stderr);
    assert!(
        line.lines().count() == 1 && line.contains("UTF-8"),
        "{line}"
    );
}

#[cfg(unix)]
#[test]
fn pipes_that_close() {
    let bench = Bench::new();
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        command.current_dir(bench.dir.path()).args(["-c", script]);
        command
            .env("DIVOT", env!("CARGO_BIN_EXE_divot"))
            .env("MODEL", model());
        command.output().unwrap()
    };
    // The reader closes the pipe before anything is printed.
    for arguments in [
        "completions bash",
        "--help",
        "describe --help",
        "info clip.mp4",
        "info clip.mp4 --json",
        "describe --input clip.mp4 --model \"$MODEL\" --max-new-tokens 20",
        "generate dog --model \"$MODEL\" --max-new-tokens 6 --steps 2 --output piped.mp4",
    ] {
        let script = format!("{{ sleep 0.3; \"$DIVOT\" {arguments}; echo code $? >&2; }} | true");
        let stderr = text(&shell(&script).stderr);
        assert!(stderr.ends_with("code 0\n"), "{arguments}: {stderr}");
        assert!(
            !stderr.contains("panic") && !stderr.contains("error"),
            "{arguments}: {stderr}"
        );
    }
    // The files are written nevertheless.
    assert!(bench.path("piped.mp4").exists());

    // Closed standard input ends the questions.
    let script =
        "\"$DIVOT\" describe --chat --input clip.mp4 --model \"$MODEL\" --max-new-tokens 6 <&-";
    let output = shell(script);
    assert!(output.status.success(), "{}", text(&output.stderr));

    if Path::new("/dev/full").exists() {
        let output = shell("\"$DIVOT\" info clip.mp4 > /dev/full");
        let line = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(
            line.lines().count() == 1 && line.contains("standard output"),
            "{line}"
        );
    }
}

#[cfg(unix)]
#[test]
fn signals_leave_nothing_behind() {
    use std::time::{Duration, Instant};

    let bench = Bench::new();
    let before = bench.names();
    let commands = [
        &["reconstruct", "--input", "clip.mp4", "--steps", "500"][..],
        &[
            "describe",
            "--input",
            "clip.mp4",
            "--max-new-tokens",
            "30000",
            "--json",
        ],
        &[
            "story",
            "a dog",
            "--scenes",
            "1",
            "--steps",
            "500",
            "--max-new-tokens",
            "6",
        ],
    ];
    // Ctrl-C, and what systems end programs with.
    let signals = ["-INT", "-TERM"].into_iter().cycle();
    for (arguments, signal) in commands.into_iter().zip(signals) {
        let mut child = bench
            .command(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Longer than the start takes, and shorter than the whole run.
        std::thread::sleep(Duration::from_millis(1500));
        assert!(
            child.try_wait().unwrap().is_none(),
            "{arguments:?} is done already"
        );
        let kill = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
        let deadline = Instant::now() + Duration::from_secs(60);
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "{arguments:?} does not stop");
            std::thread::sleep(Duration::from_millis(50));
        };
        let stderr = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
        assert_eq!(status.code(), Some(130), "{arguments:?}: {stderr}");
        assert_eq!(stderr, "stopped; nothing was written\n", "{arguments:?}");
        assert_eq!(bench.names(), before, "{arguments:?}");
    }
}
