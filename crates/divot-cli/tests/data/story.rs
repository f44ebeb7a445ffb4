//! `divot data story`, and training on what it makes.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use divot::Tokenizer;
use divot::checkpoint::Checkpoint;
use divot::data::dataset::{Format, Samples, Source, SourceConfig, Text};
use divot::data::shots::Shot;
use divot::data::world::World;
use divot::data::{ClipReader, Frame, Video, write_mp4};
use divot::language::TextTokenizer;
use serde_json::{Value, json};
use toml::Table;

use crate::stub::{Asked, Deed, Stub};
use crate::{Bench, common, failing, program};

/// Frames of a scene: two seconds.
const FRAMES: usize = 24;
const FPS: f64 = 12.0;
/// The light of each place, in which hard cuts are seen.
const LIGHTS: [[f32; 3]; 3] = [[1.0, 0.25, 0.2], [0.35, 0.5, 0.35], [0.3, 0.4, 1.0]];

/// Writes a film of three characters of the synthetic world, who take turns: two scenes of each, with hard cuts.
fn film(path: &Path, seed: u64) {
    let world = World {
        seed,
        ..World::default()
    };
    let mut frames = Vec::new();
    for scene in 0..2 {
        for (character, light) in LIGHTS.iter().enumerate() {
            let story = world.story(character as u64);
            for mut frame in story.scenes[scene].frames(112, FRAMES) {
                for (value, light) in frame.rgb.iter_mut().zip(light.iter().cycle()) {
                    *value = (f32::from(*value) * light) as u8;
                }
                frames.push(frame);
            }
        }
    }
    write_mp4(path, &frames, FPS).unwrap();
}

/// What a language model would say: of eight frames, or of three captions.
fn says(asked: &Asked) -> String {
    if asked.body.get("response_format").is_none() {
        let images = images(asked);
        let sum: u32 = images[0].bytes().map(u32::from).sum();
        return format!("Number {sum} of {} frames moves.", images.len());
    }
    json!({
        "instruction": "Tell a story about Gus.",
        "scenes": ["Gus wakes.", "Gus walks.", "Gus sleeps."],
        "ending": "Good night.",
    })
    .to_string()
}

fn images(asked: &Asked) -> Vec<String> {
    let content = asked.body["messages"].as_array().unwrap().last().unwrap()["content"].clone();
    let parts = content.as_array().cloned().unwrap_or_default();
    let urls = parts
        .iter()
        .filter_map(|part| part["image_url"]["url"].as_str());
    urls.map(str::to_owned).collect()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn made(bench: &Bench, folder: &str) -> Vec<(String, Vec<u8>)> {
    let files = bench.files(folder).into_iter();
    files
        .map(|name| {
            let bytes = fs::read(bench.path(folder).join(&name)).unwrap();
            (name, bytes)
        })
        .collect()
}

#[test]
fn a_film_becomes_stories_that_are_trained_on() {
    let bench = Bench::new();
    film(&bench.path("film.mp4"), 0);
    let stub = failing(says);
    let arguments = format!(
        "data story film.mp4 --output made --language-model writer --endpoint {} --about Gus,-a-shape",
        stub.address
    );
    let found = bench.json(&arguments);
    assert_eq!((&found["clips"], &found["stories"]), (&json!(6), &json!(2)));
    assert_eq!(
        found["films"],
        json!([{ "video": "film.mp4", "shots": 6, "clips": 6 }])
    );
    assert_eq!(
        (&found["missing_captions"], &found["missing_storylines"]),
        (&json!(0), &json!(0))
    );
    assert_eq!(found["requests"], stub.asked().len());
    // Eight answers, and one failure in five.
    assert!(stub.asked().len() >= 9);

    let clips: Vec<String> = (1..=6)
        .map(|clip| format!("clips/film/000{clip}.mp4"))
        .collect();
    let names = [
        &["answers.jsonl", "captions.jsonl"].map(str::to_owned)[..],
        &clips,
    ]
    .concat();
    let rest = ["clips/film/film.json", "stories.jsonl"].map(str::to_owned);
    assert_eq!(bench.files("made"), [&names[..], &rest].concat());
    for clip in &clips {
        let video = Video::open(bench.path("made").join(clip)).unwrap();
        let info = video.info();
        assert_eq!(
            (info.frames, info.fps, info.width, info.height),
            (FRAMES, FPS, 112, 112)
        );
    }
    let captions = lines(&bench.text("made/captions.jsonl"));
    let mut texts: Vec<&str> = Vec::new();
    for (line, clip) in captions.iter().zip(&clips) {
        assert_eq!(line["video"], clip.as_str());
        texts.push(line["caption"].as_str().unwrap());
        assert!(
            texts[texts.len() - 1].ends_with(" of 8 frames moves."),
            "{line}"
        );
    }
    let stories = lines(&bench.text("made/stories.jsonl"));
    assert_eq!((captions.len(), stories.len()), (6, 2));
    for (story, clips) in stories.iter().zip(clips.chunks(3)) {
        let texts = ["Gus wakes.", "Gus walks.", "Gus sleeps."];
        let scenes = clips.iter().zip(texts);
        let scenes: Vec<Value> = scenes
            .map(|(video, text)| json!({ "video": video, "text": text }))
            .collect();
        let expected = json!({ "instruction": "Tell a story about Gus.", "scenes": scenes, "ending": "Good night." });
        assert_eq!(story, &expected);
    }

    // Each request shows eight frames of another clip, and says what the film is about.
    let asked = stub.asked();
    let (shown, told): (Vec<_>, Vec<_>) = asked.iter().partition(|asked| !images(asked).is_empty());
    for asked in &shown {
        assert_eq!(images(asked).len(), 8);
        assert!(
            images(asked)
                .iter()
                .all(|url| url.starts_with("data:image/jpeg;base64,"))
        );
    }
    let mut first: Vec<String> = shown.iter().map(|asked| images(asked).remove(0)).collect();
    first.sort();
    first.dedup();
    assert_eq!(first.len(), 6);
    assert!(
        asked
            .iter()
            .all(|asked| asked.text().starts_with("The video: Gus,-a-shape\n"))
    );
    for captions in texts.chunks(3) {
        let listed = format!(
            "1. {}\n2. {}\n3. {}\n",
            captions[0], captions[1], captions[2]
        );
        assert!(
            told.iter().any(|asked| asked.text().contains(&listed)),
            "{listed}"
        );
    }

    // The same command asks nothing, and makes the same.
    let before = made(&bench, "made");
    let (printed, _) = bench.works(&arguments);
    assert_eq!(
        printed,
        "film.mp4: 6 shots, 6 clips\n1 film, 6 clips, 2 stories → made/stories.jsonl\n"
    );
    assert!(made(&bench, "made") == before);
    assert_eq!(stub.asked().len(), asked.len());

    train(&bench);
}

/// Twenty steps of the recipe of the examples, at toy size.
fn train(bench: &Bench) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let config = SourceConfig::new(Format::Story, bench.path("made/stories.jsonl"));
    let source = Source::open(&config, &ClipReader::of_size(32)).unwrap();
    let sample = source.read(1, &mut || 0.5).unwrap();
    assert_eq!(sample.clips.len(), 3);
    assert!(matches!(sample.text, Text::Story { scenes, .. } if scenes.len() == 3));

    let tokenizer = root.join("tests/fixture/pretrained/cvlm_mistral_instruct_tokenizer");
    let tokenizer = TextTokenizer::open(&tokenizer).unwrap();
    tokenizer.save(&bench.path("tokenizer.json")).unwrap();
    let recipe = root.join("examples/recipes/story.toml");
    let table: Table = toml::from_str(&fs::read_to_string(&recipe).unwrap()).unwrap();
    let mut command = bench.command("train --device cpu");
    command.arg(&recipe);
    let more = [
        "data.0.source.path=made/stories.jsonl",
        "model.text_tokenizer=tokenizer.json",
        "model.start={tokenizer=\"random\"}",
        // So that twenty steps are enough to learn something.
        "rate.peak=3e-3",
        "rate.warmup=0",
        "rate.decay=constant",
    ];
    for change in common::toy(&table).iter().map(String::as_str).chain(more) {
        command.args(["--set", change]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", program::text(&output.stderr));
    let metrics = lines(&bench.text("outputs/story/metrics.jsonl"));
    let losses: Vec<f64> = metrics
        .iter()
        .filter_map(|line| line["train/loss"].as_f64())
        .collect();
    assert_eq!(losses.len(), common::STEPS);
    assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
    assert!(losses[common::STEPS - 1] < losses[0], "{losses:?}");
    // No sample was of no use.
    assert!(!bench.path("outputs/story/skipped.jsonl").exists());
}

#[test]
fn several_films_and_some_that_cannot_be_read() {
    let bench = Bench::new();
    film(&bench.path("one.mp4"), 1);
    film(&bench.path("two.mp4"), 2);
    fs::write(bench.path("text.mp4"), "no video").unwrap();
    let film = fs::read(bench.path("one.mp4")).unwrap();
    fs::write(bench.path("short.mp4"), &film[..film.len() / 2]).unwrap();
    let stub = Stub::start(|asked| Deed::says(&says(asked)));
    let to = format!("--language-model writer --endpoint {}", stub.address);
    let output = bench
        .command(&format!(
            "data story one.mp4 text.mp4 no.mp4 short.mp4 two.mp4 --output made {to} --stride 1"
        ))
        .output()
        .unwrap();
    let (printed, problems) = crate::printed(&output);
    assert!(output.status.success(), "{problems}");
    assert_eq!(
        printed,
        "one.mp4: 6 shots, 6 clips\ntwo.mp4: 6 shots, 6 clips\n2 films, 12 clips, 8 stories → made/stories.jsonl\n"
    );
    for name in ["text.mp4", "no.mp4", "short.mp4"] {
        let lines: Vec<_> = problems
            .lines()
            .filter(|line| line.contains(name))
            .collect();
        assert!(
            matches!(lines[..], [line] if line.starts_with(&format!("left out: {name}: "))),
            "{problems}"
        );
    }
    assert!(
        problems.contains("neighbouring shots are not joined"),
        "{problems}"
    );
    let stories = lines(&bench.text("made/stories.jsonl"));
    let videos = |story: &Value| story["scenes"][0]["video"].as_str().unwrap().to_owned();
    assert_eq!(videos(&stories[3]), "clips/one/0004.mp4");
    assert_eq!(videos(&stories[4]), "clips/two/0001.mp4");

    let line = bench.refused(&format!("data story text.mp4 no.mp4 --output none {to}"));
    assert_eq!(line, "error: none of 2 videos can be read");
}

#[test]
fn a_story_without_all_its_captions_is_left_out() {
    let bench = Bench::new();
    film(&bench.path("film.mp4"), 8);
    let is_patient = Arc::new(AtomicBool::new(false));
    let patient = is_patient.clone();
    // The second caption is refused at first.
    let calls = AtomicUsize::new(0);
    let stub = Stub::start(move |asked| {
        match calls.fetch_add(1, Ordering::Relaxed) == 1 && !patient.load(Ordering::Relaxed) {
            true => Deed::status(400, "too hard"),
            false => Deed::says(&says(asked)),
        }
    });
    let arguments = format!(
        "data story film.mp4 --output made --language-model writer --endpoint {} --parallel 1",
        stub.address
    );
    let (printed, problems) = bench.works(&arguments);
    assert!(printed.ends_with("1 film, 6 clips, 1 story → made/stories.jsonl\n"));
    let line = "1 caption missing, the first for no answer (HTTP 400: too hard; tries: 1); the same command asks again\n";
    assert!(problems.contains(line), "{problems}");
    assert_eq!(bench.text("made/captions.jsonl").lines().count(), 5);
    let stories = bench.text("made/stories.jsonl");
    assert!(stories.contains("0004.mp4") && !stories.contains("0001.mp4"));

    is_patient.store(true, Ordering::Relaxed);
    let found = bench.json(&arguments);
    assert_eq!(
        (&found["stories"], &found["requests"]),
        (&json!(2), &json!(2))
    );
}

#[cfg(unix)]
#[test]
fn a_run_that_was_interrupted_goes_on() {
    let bench = Bench::new();
    film(&bench.path("film.mp4"), 3);
    // From the fourth caption on, the endpoint is silent.
    let is_open = Arc::new(AtomicBool::new(false));
    let gate = is_open.clone();
    let calls = AtomicUsize::new(0);
    let stub = Stub::start(move |asked| {
        match calls.fetch_add(1, Ordering::Relaxed) >= 3 && !gate.load(Ordering::Relaxed) {
            true => Deed::Hang,
            false => Deed::says(&says(asked)),
        }
    });
    let arguments = format!(
        "data story film.mp4 --output made --language-model writer --endpoint {} --parallel 2",
        stub.address
    );
    let start = || {
        bench
            .command(&arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut child = start();
    crate::wait(|| stub.hanging() == 2);
    child.kill().unwrap();
    child.wait().unwrap();
    let child = start();
    crate::wait(|| stub.hanging() == 4);
    let (code, stderr) = crate::interrupt(child);
    assert_eq!(code, Some(130), "{stderr}");
    assert!(
        stderr.ends_with("error: made: stopped; the same command goes on\n"),
        "{stderr}"
    );
    let files = bench.files("made");
    assert!(
        !files
            .iter()
            .any(|name| name == "stories.jsonl" || name == "captions.jsonl")
    );

    // A clip that was not written yet, and what a kill leaves of one.
    let clip = bench.path("made/clips/film/0004.mp4");
    let bytes = fs::read(&clip).unwrap();
    fs::rename(&clip, bench.path("made/clips/film/.divot-x.tmp")).unwrap();
    is_open.store(true, Ordering::Relaxed);
    stub.release();
    let found = bench.json(&arguments);
    assert_eq!(found["stories"], 2);
    assert_eq!(fs::read(&clip).unwrap(), bytes);
    assert!(!bench.path("made/clips/film/.divot-x.tmp").exists());
    // Three captions were kept; three and two storylines were asked for.
    assert_eq!((&found["requests"], stub.answered().len()), (&json!(5), 8));

    let moved = arguments.replace("film.mp4", "elsewhere/film.mp4");
    let line = bench.refused(&moved);
    assert!(
        line.contains("was cut from another file of that name"),
        "{line}"
    );
    let line = bench.refused(&format!("{arguments} --threshold 30"));
    assert!(
        line.contains("made/clips/film: was cut with `threshold` 27.0, and not 30.0"),
        "{line}"
    );
    film(&bench.path("film.mp4"), 4);
    let line = bench.refused(&arguments);
    assert!(
        line.contains("was cut from another file of that name"),
        "{line}"
    );
}

#[test]
fn our_own_model_stitches_and_describes() {
    let bench = Bench::new();
    film(&bench.path("film.mp4"), 5);
    let model = program::model().display().to_string();
    // Any two shots are alike enough, so that pairs are joined up to the longest clip.
    let arguments = format!(
        "data story film.mp4 --output made --model {model} --device cpu --max-new-tokens 6 --similarity -1 --max-clip 4"
    );
    let (printed, stderr) = bench.works(&arguments);
    assert_eq!(
        printed,
        "film.mp4: 6 shots, 3 clips\n1 film, 3 clips, 1 story → made/stories.jsonl\n"
    );
    assert!(
        stderr.contains("it knows no names and tells no story"),
        "{stderr}"
    );
    let captions = lines(&bench.text("made/captions.jsonl"));
    let story = &lines(&bench.text("made/stories.jsonl"))[0];
    for (scene, caption) in captions.iter().enumerate() {
        let video =
            Video::open(bench.path("made").join(caption["video"].as_str().unwrap())).unwrap();
        assert_eq!(video.info().frames, 2 * FRAMES);
        assert_eq!(story["scenes"][scene]["video"], caption["video"]);
        assert_eq!(story["scenes"][scene]["text"], caption["caption"]);
    }
    let first = captions[0]["caption"].as_str().unwrap();
    let instruction = format!("Tell a story that begins like this: {first}");
    assert_eq!(story["instruction"], instruction.as_str());

    // Nothing is loaded again, except where a caption is missing.
    let before = made(&bench, "made");
    assert!(bench.json(&arguments)["seconds"].get("loading").is_none());
    fs::remove_file(bench.path("made/clips/film/0002.json")).unwrap();
    assert!(bench.json(&arguments)["seconds"].get("loading").is_some());
    assert!(made(&bench, "made") == before);
}

#[test]
fn another_model_in_the_same_folder_describes_anew() {
    let bench = Bench::new();
    film(&bench.path("film.mp4"), 3);
    for part in fs::read_dir(program::model()).unwrap() {
        let part = part.unwrap();
        let copy = bench.path("model").join(part.file_name());
        fs::create_dir_all(&copy).unwrap();
        for file in fs::read_dir(part.path()).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), copy.join(file.file_name())).unwrap();
        }
    }
    let arguments = "data story film.mp4 --output made --model model --device cpu --max-new-tokens 6 --similarity 1";
    bench.works(arguments);
    assert!(bench.json(arguments)["seconds"].get("loading").is_none());
    let weights = bench.path("model/tokenizer/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    // Numbers begin at a multiple of eight, behind the header.
    let middle = bytes.len() / 16 * 8;
    for number in bytes[middle..].as_chunks_mut::<4>().0 {
        *number = 0.25f32.to_le_bytes();
    }
    fs::write(weights, bytes).unwrap();
    assert!(bench.json(arguments)["seconds"].get("loading").is_some());
}

#[test]
fn clip_says_which_neighbours_are_alike() {
    let bench = Bench::new();
    let picture = |shift: usize| {
        let mut frame = Frame::filled(112, 112, [0; 3]).unwrap();
        for (index, value) in frame.rgb.iter_mut().enumerate() {
            *value =
                ((index / 3 % 112 / 14 + shift * (index / 336 / 14)) % 2 * 200 + 20 * shift) as u8;
        }
        frame
    };
    let frames: Vec<Frame> = [0, 0, 1]
        .into_iter()
        .flat_map(|shift| vec![picture(shift); 20])
        .collect();
    write_mp4(bench.path("film.mp4"), &frames, FPS).unwrap();
    let device = Default::default();
    let mut checkpoint = Checkpoint::new(program::model(), &device);
    let (tokenizer, _) = Tokenizer::load(&mut checkpoint).unwrap();
    let video = Video::open(bench.path("film.mp4")).unwrap();
    let shots = [0..20, 20..40, 40..60].map(|frames| Shot {
        seconds: frames.start as f64 / FPS..frames.end as f64 / FPS,
        frames,
    });
    let flow = |_| std::ops::ControlFlow::Continue(());
    let found = tokenizer.similarities(&video, &shots, flow).unwrap();

    // A twentieth of a shot from its end, and from the beginning of the next.
    let shown = video.frames(&[18, 20, 38, 40]).unwrap();
    let features: Vec<Vec<f32>> = shown
        .iter()
        .map(|frame| tokenizer.image_feature(frame).unwrap())
        .collect();
    for (pair, similarity) in features.chunks(2).zip(&found) {
        let product: f64 = pair[0]
            .iter()
            .zip(&pair[1])
            .map(|(a, b)| f64::from(a * b))
            .sum();
        let length: f64 = pair[0].iter().map(|a| f64::from(a * a)).sum();
        assert!(
            (product - similarity).abs() < 1e-5,
            "{product} {similarity}"
        );
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
    assert!(found[0] > 0.999 && found[1] < found[0] - 1e-3, "{found:?}");
}

#[test]
fn nothing_is_written_over_what_was_there_if_everything_fails() {
    let bench = Bench::new();
    film(&bench.path("film.mp4"), 9);
    fs::create_dir(bench.path("made")).unwrap();
    fs::write(bench.path("made/captions.jsonl"), "good").unwrap();
    let stub = Stub::start(|_| Deed::status(400, "no images"));
    let to = format!("--language-model writer --endpoint {}", stub.address);
    let line = bench.refused(&format!("data story film.mp4 --output made {to}"));
    assert_eq!(
        line,
        "error: no caption was written, the first for no answer (HTTP 400: no images; tries: 1)"
    );
    assert_eq!(bench.text("made/captions.jsonl"), "good");
    fs::write(
        bench.path("list.jsonl"),
        r#"{"video": "film.mp4", "caption": "A dog runs."}"#,
    )
    .unwrap();
    let line = bench.refused(&format!("data filter list.jsonl --output kept.jsonl {to}"));
    assert_eq!(
        line,
        "error: no caption was judged, the first for no answer (HTTP 400: no images; tries: 1)"
    );
    assert!(!bench.path("kept.jsonl").exists());
}

#[test]
fn costs_are_said_before() {
    let bench = Bench::new();
    film(&bench.path("film.mp4"), 6);
    let stub = failing(says);
    let (printed, stderr) = bench.works(&format!(
        "data story film.mp4 --output made --language-model writer --endpoint {} --input-price 2.5 --output-price 10 --dry-run",
        stub.address
    ));
    assert_eq!(printed, "film.mp4: 6 shots, 6 clips\n");
    let line = stderr.lines().last().unwrap();
    // A frame has 255 tokens, so that six captions have over 12240.
    assert!(
        line.starts_with("6 captions and 2 storylines by writer: about 1"),
        "{line}"
    );
    assert!(
        line.contains(" K tokens to read and at most 2.2 K to write, for 0.0"),
        "{line}"
    );
    assert!(stub.asked().is_empty() && !bench.path("made/stories.jsonl").exists());
    assert!(!bench.path("made/answers.jsonl").exists());

    // Without prices, tokens are said; and nothing that was paid for counts again.
    let arguments = format!(
        "data story film.mp4 --output made --language-model writer --endpoint {}",
        stub.address
    );
    let estimate = |arguments: &str| {
        let (_, stderr) = bench.works(arguments);
        let is_estimate = |line: &&str| line.contains("2 storylines by writer");
        stderr.lines().find(is_estimate).unwrap().to_owned()
    };
    assert!(estimate(&arguments).ends_with("at most 2.2 K to write"));
    assert_eq!(
        estimate(&arguments),
        "6 captions and 2 storylines by writer (8 of them without a request): about 0 tokens to read and at most 0 to write"
    );
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_cut() {
    let bench = Bench::new();
    film(&bench.path("film.mp4"), 7);
    fs::create_dir(bench.path("b")).unwrap();
    fs::copy(bench.path("film.mp4"), bench.path("b/film.mp4")).unwrap();
    let still = vec![Frame::filled(112, 112, [90; 3]).unwrap(); 30];
    write_mp4(bench.path("still.mp4"), &still, FPS).unwrap();
    let to = "--output made --language-model m --endpoint http://127.0.0.1:9";
    for (arguments, says) in [
        ("film.mp4 --output made", "nothing writes captions"),
        (
            "film.mp4 --output film.mp4 --language-model m",
            "film.mp4: is not a folder",
        ),
        ("film.mp4 --output made --model no", "no: there is no model"),
        (&format!("film.mp4 b/film.mp4 {to}"), "have one name"),
        (&format!("film.mp4 {to} --threshold 0"), "0 is no threshold"),
        (
            &format!("film.mp4 {to} --min-score 9"),
            "--min-score is for --detector adaptive",
        ),
        (
            &format!("film.mp4 {to} --detector adaptive --min-score -1"),
            "-1 is no lowest score",
        ),
        (
            &format!("film.mp4 {to} --min-shot -1"),
            "cannot last at least -1 s",
        ),
        (
            &format!("film.mp4 {to} --min-clip 5 --max-clip 4"),
            "no clip lasts from 5 to 4 s",
        ),
        (&format!("film.mp4 {to} --similarity 2"), "2 is no cosine"),
        (
            &format!("film.mp4 {to} --transnet no.pth"),
            "no.pth: cannot find it",
        ),
        (
            &format!("film.mp4 {to} --transnet film.mp4 --threshold 1"),
            "1 is no threshold of TransNetV2",
        ),
        (
            &format!("film.mp4 {to} --transnet film.mp4 --min-shot 1"),
            "cannot be used with",
        ),
        (&format!("film.mp4 {to} --dry-run --stride 0"), "--stride"),
    ] {
        let line = bench.refused(&format!("data story {arguments}"));
        assert!(line.contains(says), "{arguments}: {line}");
        assert!(!bench.path("made").exists(), "{arguments}");
    }
    let line = bench.refused(&format!("data story still.mp4 {to}"));
    assert!(line.contains("no film has three clips in a row"), "{line}");
}

#[test]
fn help_has_examples() {
    let bench = Bench::new();
    for (command, example) in [
        ("data", "divot data story"),
        ("data story", "divot data story"),
        ("data filter", "divot data filter"),
    ] {
        let (help, _) = bench.works(&format!("{command} --help"));
        assert!(
            help.contains("Examples:\n") && help.contains(&format!("\n  {example} ")),
            "{help}"
        );
    }
}
