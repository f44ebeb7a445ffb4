//! Each format, down to the frames and the text.

use std::fs;

use divot_data::ClipReader;
use divot_data::dataset::{
    Columns, Format, Loader, LoaderConfig, Medium, MixedSource, Reason, Samples, Source,
    SourceConfig, Text, Turn,
};
use divot_data::sampling::{spread_indices, train_indices};
use tempfile::TempDir;

use crate::make::*;

fn caption(text: &str) -> Text {
    Text::Caption(text.into())
}

fn turns(turns: &[(&str, &str)]) -> Text {
    let turn = |(question, answer): &(&str, &str)| Turn {
        question: (*question).into(),
        answer: (*answer).into(),
    };
    Text::Turns(turns.iter().map(turn).collect())
}

#[test]
fn captions() {
    let folder = TempDir::new().unwrap();
    let root = folder.path();
    video(root.join("videos/a/long.mp4"), 48, 8.0);
    picture(root.join("videos/cat.png"), 7);
    let lines = "\u{feff}{\"video\": \"a/long.mp4\", \"caption\": \"a film\", \"id\": 3}\n\n\
                 {\"image\": \"cat.png\", \"caption\": [\"a cat\", \" \", \"asleep\"]}\r\n";
    text(root.join("lists/deep/b.jsonl"), lines);
    text(
        root.join("lists/a.jsonl"),
        r#"{"video": "cat.png", "caption": " kept as it is "}"#,
    );
    text(root.join("lists/notes.txt"), "nothing");
    let config = SourceConfig {
        media: Some(root.join("videos")),
        ..config(Format::Captions, root.join("lists"))
    };
    let samples = all(&config, 0.7);
    assert_eq!(samples.len(), 3);

    assert_eq!(samples[0].medium, Medium::Image);
    assert_eq!(samples[0].text, caption(" kept as it is "));
    let name = root.join("lists/deep/b.jsonl").display().to_string();
    assert_eq!(samples[1].key, format!("{name}:1"));
    assert_eq!(samples[1].medium, Medium::Video);
    assert_eq!(samples[1].text, caption("a film"));
    // One clip from anywhere: 0.7 of the 32 frames at which it may start.
    let [clip] = &samples[1].clips[..] else {
        panic!("one clip")
    };
    assert_eq!(shown(clip), (22..38).collect::<Vec<_>>());
    assert_eq!(clip.size(), [16, 16]);

    assert_eq!(samples[2].key, format!("{name}:3"));
    assert_eq!(samples[2].medium, Medium::Image);
    assert_eq!(samples[2].text, caption("asleep"));
    assert_eq!(shown(&samples[2].clips[0]), [7; 16]);
    assert_eq!(all(&config, 0.2)[2].text, caption("a cat"));

    let several = SourceConfig {
        max_clips: Some(20),
        text: false,
        ..config
    };
    let samples = all(&several, 0.5);
    let expected = train_indices(48, 8.0, 20, || 0.5).unwrap();
    assert_eq!(samples[1].clips.len(), expected.len());
    for (clip, expected) in samples[1].clips.iter().zip(expected) {
        assert_eq!(shown(clip), expected);
    }
    assert_eq!(samples[1].text, Text::None);
}

#[test]
fn texts_without_clips() {
    let folder = TempDir::new().unwrap();
    let lines = "{\"text\": \"A dog runs.\"}\n{\"text\": \" \"}\n{\"caption\": \"a cat\"}\n";
    let path = text(folder.path().join("texts.jsonl"), lines);
    let source = Source::open(&config(Format::Texts, &path), &ClipReader::of_size(16)).unwrap();
    let sample = source.read(0, &mut || 0.0).unwrap();
    assert_eq!(sample.text, Text::Plain("A dog runs.".into()));
    assert_eq!(sample.clip_count(), 0);
    let skips = [1, 2].map(|index| source.read(index, &mut || 0.0).unwrap_err().reason);
    assert_eq!(skips, [Reason::NoText, Reason::Malformed]);
}

#[test]
fn columns_of_csv_files() {
    let folder = TempDir::new().unwrap();
    let root = folder.path();
    video(root.join("000001_000050/7.mp4"), 16, 8.0);
    video(root.join("8.mp4"), 16, 8.0);
    picture(root.join("p.png"), 3);
    let webvid = "videoid,contentUrl,duration,page_dir,name\r\n\
                  7,u,PT0H,000001_000050,\"A dog, and\na \"\"cat\"\".\"\r\n\
                  8,u,PT0H,000001_000050,Flat.\r\n";
    let path = text(root.join("webvid.csv"), webvid);
    let samples = all(&config(Format::Csv, &path), 0.0);
    let texts: Vec<_> = samples.iter().map(|sample| sample.text.clone()).collect();
    assert_eq!(texts, [caption("A dog, and\na \"cat\"."), caption("Flat.")]);
    assert_eq!(samples[0].key, format!("{}:2", path.display()));
    // The first record has two lines.
    assert_eq!(samples[1].key, format!("{}:4", path.display()));
    assert_eq!(shown(&samples[0].clips[0]), (0..16).collect::<Vec<_>>());

    let path = text(root.join("msrvtt.csv"), "video_id,caption\n8,a film\n");
    assert_eq!(
        all(&config(Format::Csv, path), 0.0)[0].text,
        caption("a film")
    );
    let path = text(root.join("image.csv"), "caption,image\na picture,p.png");
    let samples = all(&config(Format::Csv, path), 0.0);
    assert_eq!(samples[0].medium, Medium::Image);
    let path = text(root.join("own.csv"), "was,sagt\n8.mp4,Ein Film\n");
    let own = SourceConfig {
        columns: Some(Columns {
            video: "was".into(),
            caption: "sagt".into(),
        }),
        ..config(Format::Csv, &path)
    };
    assert_eq!(all(&own, 0.0)[0].text, caption("Ein Film"));
    let error = open(&config(Format::Csv, &path)).unwrap_err().to_string();
    assert!(
        error.contains("own.csv") && error.contains("was,sagt"),
        "{error}"
    );

    let sentences = r#"{"info": {}, "videos": [], "sentences": [
        {"caption": "one", "video_id": "8", "sen_id": 0},
        {"caption": "two", "video_id": "8", "sen_id": 1}]}"#;
    let path = text(root.join("msrvtt.json"), sentences);
    let samples = all(&config(Format::Csv, path), 0.0);
    assert_eq!((samples.len(), &samples[1].text), (2, &caption("two")));
}

#[test]
fn parts_of_videos_in_csv_files() {
    let folder = TempDir::new().unwrap();
    let root = folder.path();
    video(root.join("x1.mp4"), 56, 8.0);
    let panda = "videoID,url,timestamp,caption,matching_score\n\
                 x1,u,\"[['0:00:00.500', '0:00:02.500'], ['0:00:03.000', '0:00:07.000']]\",\
                 \"['It\\'s a start.', \"\"It's the end.\"\"]\",\"[0.4, 0.5]\"\n\
                 x1,u,\"[['0:00:06', '0:00:07']]\",['Short.'],[0.1]\n\
                 x1,u,\"[['0:00:09', '0:00:12']]\",['After the end.'],[0.1]\n";
    let path = text(root.join("panda.csv"), panda);
    let source = open(&config(Format::Csv, &path)).unwrap();
    assert_eq!(source.groups().first(), Some(&(0..4)));
    let read = read(&source, 0.5);
    let sample = |index: usize| read[index].as_ref().unwrap();
    assert_eq!(sample(0).text, caption("It's a start."));
    assert_eq!(shown(&sample(0).clips[0]), (4..20).collect::<Vec<_>>());
    assert_eq!(sample(1).text, caption("It's the end."));
    assert_eq!(sample(1).key, format!("{}:2[1]", path.display()));
    // Frames 24 to 55, of which a clip takes half.
    assert_eq!(shown(&sample(1).clips[0]), (32..48).collect::<Vec<_>>());
    // Half a frame is drawn, and the rest of the second is spread.
    let expected = train_indices(8, 8.0, 1, || 0.5).unwrap()[0].map(|index| index + 48);
    assert_eq!(shown(&sample(2).clips[0]), expected);
    assert_eq!(read[3].as_ref().unwrap_err().reason, Reason::TooShort);
}

#[test]
fn archives() {
    let folder = TempDir::new().unwrap();
    let root = folder.path();
    video(root.join("v.mp4"), 24, 8.0);
    gif(root.join("g.gif"), 20, 10.0);
    let film = fs::read(root.join("v.mp4")).unwrap();
    let moving = fs::read(root.join("g.gif")).unwrap();
    let long = format!("{}/1.jpg", "folder/".repeat(30));
    let files: [(&str, &[u8]); 10] = [
        ("0.jpg", &jpeg(200, 5)),
        ("0.txt", b"a picture\n"),
        ("1.json", br#"{"caption": ["first", "second"], "width": 1}"#),
        ("1.mp4", &film),
        (&long, &jpeg(208, 9)),
        (&long.replace("jpg", "txt"), b"far down"),
        ("2.gif", &moving),
        ("2.txt", b"moves"),
        ("sub/2.JPEG", &jpeg(200, 6)),
        ("sub/2.cls", b"3"),
    ];
    let archive = tar(&files);
    text(root.join("shards/00.tar"), &archive);
    text(root.join("shards/deep/01.tar.gz"), gzip(&archive));
    text(root.join("shards/deep/02.tgz"), gzip(&archive));
    text(root.join("shards/03.tar"), tar(&[("notes.md", b"none")]));

    let source = open(&config(Format::Webdataset, root.join("shards"))).unwrap();
    assert_eq!(source.groups(), [0..5, 5..10, 10..15]);
    assert!(source.passed_over().is_empty());
    let read = read(&source, 0.5);
    for samples in read.chunks(5) {
        let sample = |index: usize| samples[index].as_ref().unwrap();
        assert_eq!(sample(0).text, caption("a picture"));
        assert_eq!(sample(0).medium, Medium::Image);
        assert_eq!(shown(&sample(0).clips[0]), [5; 16]);
        assert_eq!(sample(1).text, caption("second"));
        assert_eq!(sample(1).medium, Medium::Video);
        assert_eq!(shown(&sample(1).clips[0]), (4..20).collect::<Vec<_>>());
        assert_eq!(sample(2).text, caption("far down"));
        assert_eq!(shown(&sample(2).clips[0]), [9; 16]);
        assert_eq!(sample(3).medium, Medium::Video);
        let expected = train_indices(20, 10.0, 1, || 0.5).unwrap()[0];
        assert_eq!(shown(&sample(3).clips[0]), expected);
        let skip = samples[4].as_ref().unwrap_err();
        assert_eq!(skip.reason, Reason::NoText);
        assert!(skip.key.ends_with("sub/2.JPEG"), "{}", skip.key);
    }
    let no_text = SourceConfig {
        text: false,
        ..config(Format::Webdataset, root.join("shards/00.tar"))
    };
    let samples = all(&no_text, 0.0);
    assert_eq!((samples.len(), &samples[4].text), (5, &Text::None));
}

#[test]
fn ranges_of_archives() {
    let folder = TempDir::new().unwrap();
    let root = folder.path();
    let archive = tar(&[("0.jpg", &jpeg(200, 5)), ("0.txt", b"x")]);
    for shard in ["008", "010"] {
        text(root.join(format!("s{shard}.tar")), &archive);
    }
    let source = open(&config(Format::Webdataset, root.join("s{008..010}.tar"))).unwrap();
    assert_eq!(source.groups(), [0..1, 1..2]);
    let [missing] = source.passed_over() else {
        panic!("one is missing")
    };
    assert_eq!(missing.reason, Reason::PassedOver);
    assert!(missing.key.ends_with("s009.tar"));
    // A loader counts and logs it.
    let log = root.join("skipped.jsonl");
    let mixed = MixedSource {
        name: "shards".into(),
        samples: Box::new(source),
        weight: 1.0,
        batch: 2,
    };
    let settings = LoaderConfig {
        log: Some(log.clone()),
        ..LoaderConfig::default()
    };
    let mut loader = Loader::new(vec![mixed], settings).unwrap();
    assert_eq!(loader.next().unwrap().unwrap().samples.len(), 2);
    assert_eq!(loader.skipped(), [("shards".into(), Reason::PassedOver, 1)]);
    assert!(fs::read_to_string(&log).unwrap().contains("s009.tar"));
    let error = open(&config(Format::Webdataset, root.join("t{1..2}.tar"))).unwrap_err();
    assert!(error.to_string().contains("t1.tar"), "{error}");
    let error = open(&config(Format::Webdataset, root.join("t{1..x}.tar"))).unwrap_err();
    assert!(error.to_string().contains("neither a range"), "{error}");
}

#[test]
fn questions_in_every_form() {
    let folder = TempDir::new().unwrap();
    let root = folder.path();
    video(root.join("v.mp4"), 40, 8.0);
    gif(root.join("g.gif"), 60, 10.0);
    picture(root.join("p.png"), 7);
    let lines = r#"
{"video": "v.mp4", "question": "<video>\nWhat <video>is it?", "answer": "<video>\nA film."}
{"video": "g.gif", "questions": ["What?", "Where?<video>\n"], "answers": ["A film.", "Here."]}
{"image": "p.png", "questions": ["What?"], "answers": ["Grey."]}
{"image": "p.png", "data": ["<image>\nWhat?", "Grey.", "Why?", "So."]}
{"image": "v.mp4", "question": "What?", "answer": "The first frame."}
"#;
    let path = text(root.join("q.jsonl"), lines);
    let samples = all(&config(Format::Questions, path), 0.5);
    let expected = [
        turns(&[("What <video>is it?", "<video>\nA film.")]),
        turns(&[("What?", "A film."), ("Where?", "Here.")]),
        turns(&[("What?", "Grey.")]),
        turns(&[("<image>\nWhat?", "Grey."), ("Why?", "So.")]),
        turns(&[("What?", "The first frame.")]),
    ];
    let texts: Vec<_> = samples.iter().map(|sample| sample.text.clone()).collect();
    assert_eq!(texts, expected);
    // Five seconds are three clips over the whole film; a GIF counts as 24 frames per second.
    for (sample, (count, fps, clips)) in samples.iter().zip([(40, 8.0, 3), (60, 24.0, 2)]) {
        let expected = spread_indices(count, fps, 20, || 0.5).unwrap();
        let shown: Vec<_> = sample.clips.iter().map(shown).collect();
        assert_eq!(shown, expected);
        assert_eq!((sample.medium, expected.len()), (Medium::Video, clips));
    }
    for (sample, number) in samples[2..].iter().zip([7, 7, 0]) {
        assert_eq!(sample.medium, Medium::Image);
        assert_eq!(sample.clips.len(), 1);
        assert_eq!(shown(&sample.clips[0]), [number; 16]);
    }
}

#[test]
fn folders_of_videos() {
    let folder = TempDir::new().unwrap();
    let root = folder.path();
    video(root.join("b/2.mp4"), 16, 8.0);
    video(root.join("a.mp4"), 16, 8.0);
    picture(root.join("b/1.png"), 4);
    picture(root.join("b/.hidden.png"), 4);
    text(root.join("b/notes.txt"), "none");
    #[cfg(unix)]
    std::os::unix::fs::symlink(root, root.join("b/loop")).unwrap();
    let source = open(&config(Format::Videos, root)).unwrap();
    let samples = read(&source, 0.0);
    let keys: Vec<_> = samples
        .into_iter()
        .map(|sample| {
            let sample = sample.unwrap();
            assert_eq!(sample.text, Text::None);
            sample.key
        })
        .collect();
    let expected =
        ["a.mp4", "b/1.png", "b/2.mp4"].map(|name| root.join(name).display().to_string());
    assert_eq!(keys, expected);
    assert_eq!(source.passed_over().len(), usize::from(cfg!(unix)));
}

#[test]
fn stories() {
    let folder = TempDir::new().unwrap();
    let root = folder.path();
    video(root.join("v.mp4"), 56, 8.0);
    let lines = r#"{"instruction": "Tell.", "scenes": [
        {"video": "v.mp4", "start": 1.5, "text": "one"},
        {"video": "v.mp4", "start": 1, "end": 5, "text": "two"},
        {"video": "v.mp4", "text": "three"}], "ending": "The end."}
{"scenes": [{"video": "v.mp4", "start": 7.5, "text": "late"}]}
{"scenes": [{"video": "v.mp4", "start": 5, "end": 1, "text": "backwards"}]}"#
        .replace(",\n ", ", ")
        .replace("[\n ", "[ ");
    let path = text(root.join("s.jsonl"), lines);
    let read = read(&open(&config(Format::Story, &path)).unwrap(), 0.5);
    let sample = read[0].as_ref().unwrap();
    assert_eq!(
        sample.text,
        Text::Story {
            instruction: Some("Tell.".into()),
            scenes: ["one", "two", "three"].map(String::from).to_vec(),
            ending: "The end.".into(),
        }
    );
    let shown: Vec<_> = sample.clips.iter().map(shown).collect();
    // From 1.5 s; half way of frames 8 to 39; half way of all.
    let expected = [12..28, 16..32, 20..36].map(|frames| frames.collect::<Vec<_>>());
    assert_eq!(shown, expected);
    let reason = |index: usize| read[index].as_ref().unwrap_err().reason;
    assert_eq!(
        (reason(1), reason(2)),
        (Reason::TooShort, Reason::Malformed)
    );
    let short = SourceConfig {
        max_clips: Some(2),
        ..config(Format::Story, &path)
    };
    assert_eq!(reasons(&open(&short).unwrap())[0], Some(Reason::TooLong));
}

#[test]
fn filters() {
    let folder = TempDir::new().unwrap();
    let root = folder.path();
    let write = |name: &str, width: usize, height: usize, count: usize| {
        let frame = divot_data::Frame::filled(width, height, [90; 3]).unwrap();
        divot_data::write_mp4(root.join(name), &vec![frame; count], 8.0).unwrap();
    };
    write("a.mp4", 98, 200, 24);
    write("b.mp4", 100, 334, 24);
    write("c.mp4", 100, 332, 8);
    write("d.mp4", 400, 100, 80);
    let reasons_of = |filter: &str| {
        let config = format!("format = \"videos\"\npath = {root:?}\n{filter}");
        reasons(&open(&toml::from_str(&config).unwrap()).unwrap())
    };
    use Reason::{Aspect, TooLong, TooShort, TooSmall};
    let expected = [Some(TooSmall), Some(Aspect), None, Some(Aspect)];
    assert_eq!(reasons_of(""), expected);
    let expected = [None, None, Some(TooShort), None];
    assert_eq!(
        reasons_of("filter = { min_side = 1, min_aspect = 0, min_frames = 9 }"),
        expected
    );
    let expected = [None, None, Some(TooShort), Some(TooLong)];
    let filter = "filter = { min_side = 1, min_aspect = 0, min_seconds = 2, max_seconds = 9.5 }";
    assert_eq!(reasons_of(filter), expected);

    // Pictures in archives have 200 pixels at least.
    let archive = tar(&[
        ("0.jpg", &jpeg(199, 5)),
        ("0.txt", b"x"),
        ("1.jpg", &jpeg(200, 5)),
        ("1.txt", b"x"),
    ]);
    let path = text(root.join("a.tar"), archive);
    let source = open(&config(Format::Webdataset, path)).unwrap();
    assert_eq!(reasons(&source), [Some(TooSmall), None]);
}

#[test]
fn frames_may_be_squeezed() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("half.png");
    let mut picture = divot_data::Frame::filled(400, 200, [0; 3]).unwrap();
    for row in picture.rgb.chunks_exact_mut(1200) {
        row[..300].fill(255);
    }
    divot_data::write_png(&path, &picture).unwrap();
    // A quarter is white: cropping cuts it off.
    for (squeezed, white) in [(false, 0.0), (true, 0.25)] {
        let config = SourceConfig {
            keep_aspect: Some(!squeezed),
            ..config(Format::Videos, &path)
        };
        let mean = all(&config, 0.0)[0].clips[0].frames()[0].mean_rgb()[0] / 255.0;
        assert!((mean - white).abs() < 0.02, "{squeezed} {mean}");
    }
}

#[test]
fn a_configuration_is_read_strictly() {
    let read = |text: &str| toml::from_str::<SourceConfig>(text);
    let text = "format = \"webdataset\"\npath = [\"a.tar\", \"b.tar\"]\nfilter.min_side = 64\n";
    let config = read(text).unwrap();
    assert_eq!((config.format, config.path.len()), (Format::Webdataset, 2));
    assert_eq!((config.max_clips(), config.text), (1, true));
    assert_eq!(
        read("format = \"panda\"\npath = \"a\"").unwrap().format,
        Format::Csv
    );
    for wrong in [
        "path = \"a\"",
        "format = \"video\"\npath = \"a\"",
        "format = \"videos\"\npath = 3",
        "format = \"videos\"\npath = \"a\"\nclips = 3",
        "format = \"videos\"\npath = \"a\"\nfilter.side = 3",
    ] {
        let error = read(wrong).unwrap_err();
        println!("{error}");
    }
    for wrong in [
        "format = \"videos\"",
        "format = \"videos\"\npath = []",
        "format = \"videos\"\npath = \"a\"\nmax_clips = 0",
        "format = \"videos\"\npath = \"a\"\nfilter.min_aspect = 3.0",
        "format = \"videos\"\npath = \"a\"\nfilter = { min_seconds = 3.0, max_seconds = 2 }",
        "format = \"videos\"\npath = \"a\"\ncolumns = { video = \"a\", caption = \"b\" }",
    ] {
        let error = open(&read(wrong).unwrap()).unwrap_err().to_string();
        assert!(error.contains("; ") && !error.contains('\n'), "{error}");
        assert!(!error.contains("no such file"), "{error}");
    }
}
