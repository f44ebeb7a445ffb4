//! Broken lines, tables and videos: each sample is used or left out for the right reason.

use std::fs;
use std::path::Path;

use divot_data::dataset::{Format, Reason, Samples};
use divot_data::{Frame, write_png};
use tempfile::TempDir;

use crate::make::*;

use Reason::{Changed, Malformed, Missing, NoText, TooLarge, TooMuchText, Undecodable};

#[test]
fn broken_lines() {
    let folder = TempDir::new().unwrap();
    let root = folder.path();
    video(root.join("in/v.mp4"), 16, 8.0);
    video(root.join("out.mp4"), 16, 8.0);
    text(root.join("in/empty.mp4"), "");
    text(root.join("in/text.mp4"), "no video");
    fs::create_dir(root.join("in/folder")).unwrap();
    let long = |bytes: usize| {
        format!(
            r#"{{"video": "v.mp4", "caption": "{}"}}"#,
            "a".repeat(bytes)
        )
    };
    let (fits, too_long, way_too_long) = (long(1_000_000), long(1 << 20), long(3 << 20));
    let deep = format!(
        r#"{{"video": "v.mp4", "caption": "x", "more": {}}}"#,
        "[".repeat(100_000)
    );
    let cases: Vec<(&[u8], Option<Reason>)> = vec![
        (br#"{"video": "v.mp4", "caption": "sound"}"#, None),
        (b"no JSON", Some(Malformed)),
        (br#"{"video": "v.mp4", "caption": "cut"#, Some(Malformed)),
        (br#"["v.mp4"]"#, Some(Malformed)),
        (b"null", Some(Malformed)),
        (
            br#"{"video": "v.mp4", "caption": "a", "caption": "b"}"#,
            Some(Malformed),
        ),
        (
            br#"{"video": "v.mp4", "video": "v.mp4", "caption": "b"}"#,
            Some(Malformed),
        ),
        (br#"{"video": "v.mp4", "caption": 3}"#, Some(Malformed)),
        (
            br#"{"video": "v.mp4", "caption": ["a", 3]}"#,
            Some(Malformed),
        ),
        (br#"{"video": 3, "caption": "a"}"#, Some(Malformed)),
        (br#"{"caption": "a"}"#, Some(Malformed)),
        (
            br#"{"video": "v.mp4", "image": "v.mp4", "caption": "a"}"#,
            Some(Malformed),
        ),
        (br#"{"video": "v.mp4", "caption": "a"} {}"#, Some(Malformed)),
        (
            b"{\"video\": \"v.mp4\", \"caption\": \"\xff\"}",
            Some(Malformed),
        ),
        (b"\0\0\0\0", Some(Malformed)),
        (br#"{"video": "v.mp4"}"#, Some(NoText)),
        (br#"{"video": "v.mp4", "caption": null}"#, Some(NoText)),
        (br#"{"video": "v.mp4", "caption": " "}"#, Some(NoText)),
        (br#"{"video": "v.mp4", "caption": []}"#, Some(NoText)),
        (br#"{"video": "none.mp4", "caption": "a"}"#, Some(Missing)),
        (
            br#"{"video": "../out.mp4", "caption": "a"}"#,
            Some(Malformed),
        ),
        (
            br#"{"video": "/etc/passwd", "caption": "a"}"#,
            Some(Malformed),
        ),
        (
            br#"{"video": "https://example.org/a.mp4", "caption": "a"}"#,
            Some(Missing),
        ),
        (
            br#"{"video": "v.mp4\u0000", "caption": "a"}"#,
            Some(Undecodable),
        ),
        (
            br#"{"video": "empty.mp4", "caption": "a"}"#,
            Some(Undecodable),
        ),
        (
            br#"{"video": "text.mp4", "caption": "a"}"#,
            Some(Undecodable),
        ),
        (br#"{"video": "folder", "caption": "a"}"#, Some(Undecodable)),
        (fits.as_bytes(), None),
        (too_long.as_bytes(), Some(TooMuchText)),
        (way_too_long.as_bytes(), Some(TooMuchText)),
        (deep.as_bytes(), Some(Malformed)),
        (br#"{"video": "v.mp4", "caption": "sound"}"#, None),
    ];
    let (lines, expected): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
    let path = text(root.join("in/a.jsonl"), lines.join(&b"\n"[..]));
    let source = open(&config(Format::Captions, &path)).unwrap();
    assert_eq!(reasons(&source), expected);
    let skip = read(&source, 0.0)[1].clone().unwrap_err();
    assert_eq!(skip.key, format!("{}:2", path.display()));
}

#[test]
fn broken_questions() {
    let folder = TempDir::new().unwrap();
    let root = folder.path();
    picture(root.join("p.png"), 7);
    let cases = [
        (
            r#"{"image": "p.png", "question": "a", "answer": "b"}"#,
            None,
        ),
        (r#"{"image": "p.png", "question": "", "answer": "b"}"#, None),
        (r#"{"image": "p.png", "question": "a"}"#, Some(Malformed)),
        (
            r#"{"image": "p.png", "questions": ["a", "b"], "answers": ["c"]}"#,
            Some(Malformed),
        ),
        (
            r#"{"image": "p.png", "data": ["a", "b", "c"]}"#,
            Some(Malformed),
        ),
        (
            r#"{"image": "p.png", "data": ["a", "b"], "question": "a", "answer": "b"}"#,
            Some(Malformed),
        ),
        (r#"{"image": "p.png", "data": ["a", 1]}"#, Some(Malformed)),
        (r#"{"image": "p.png", "data": []}"#, Some(NoText)),
        (
            r#"{"image": "p.png", "questions": [], "answers": []}"#,
            Some(NoText),
        ),
        (r#"{"image": "p.png"}"#, Some(NoText)),
        (
            r#"{"image": "p.png", "question": "a", "answer": "\n"}"#,
            Some(NoText),
        ),
    ];
    let (lines, expected): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
    let path = text(root.join("a.jsonl"), lines.join("\n"));
    let source = open(&config(Format::Questions, path)).unwrap();
    assert_eq!(reasons(&source), expected);
}

#[test]
fn broken_tables() {
    let folder = TempDir::new().unwrap();
    let root = folder.path();
    video(root.join("v.mp4"), 16, 8.0);
    let path = root.join("a.csv");
    let table = format!(
        "video,caption\nv.mp4,sound\n\nv.mp4\nv.mp4,\"  \"\n,a\n../v.mp4,a\n\
         v.mp4,{}\nv.mp4,sound\nv.mp4,\"never ends\n{}",
        "a".repeat(1 << 20),
        "v.mp4,a\n".repeat(300_000)
    );
    fs::write(&path, table).unwrap();
    let source = open(&config(Format::Csv, &path)).unwrap();
    let expected = [
        None,
        Some(Malformed),
        Some(NoText),
        Some(Malformed),
        Some(Malformed),
        Some(TooMuchText),
        None,
        Some(TooMuchText),
    ];
    assert_eq!(reasons(&source), expected);
    let skip = read(&source, 0.0)[2].clone().unwrap_err();
    assert_eq!(skip.key, format!("{}:5", path.display()));

    let panda = "videoID,timestamp,caption\nv,\"[['0:0:0','0:0:1']]\",['a']\n\
                 v,\"[['0:0:0','0:0:1'],['0:0:1','0:0:2']]\",['only one']\nv,no list,['a']\n\
                 v,\"[['0:0:1','0:0:1']]\",['a']\nv,\"[['0:0:0','x']]\",['a']\nv,[],[]\n\
                 v,\"[['0:0:0','0:0:1']]\",['']\nv,\"[['0:0:0','0:0:inf']]\",['a']\n";
    fs::write(&path, panda).unwrap();
    let expected = [
        None,
        Some(Malformed),
        Some(Malformed),
        Some(Malformed),
        Some(Malformed),
        Some(Malformed),
        Some(NoText),
        Some(Malformed),
    ];
    assert_eq!(
        reasons(&open(&config(Format::Csv, &path)).unwrap()),
        expected
    );
    fs::write(&path, b"video,caption\nv.mp4,\xff\nv.mp4,a\n").unwrap();
    assert_eq!(
        reasons(&open(&config(Format::Csv, &path)).unwrap()),
        [Some(Malformed), None]
    );
}

#[test]
fn lines_that_change_or_vanish() {
    let folder = TempDir::new().unwrap();
    let root = folder.path();
    video(root.join("v.mp4"), 16, 8.0);
    let path = root.join("a.jsonl");
    let line = "{\"video\": \"v.mp4\", \"caption\": \"sound\"}\n";
    for (format, head, line) in [
        (Format::Captions, "", line),
        (Format::Csv, "video,caption\n", "v.mp4,sound\n"),
    ] {
        fs::write(&path, format!("{head}{}", line.repeat(3))).unwrap();
        let source = open(&config(format, &path)).unwrap();
        assert_eq!(reasons(&source), [None; 3]);
        // Lines that are added change nothing.
        fs::write(&path, format!("{head}{}", line.repeat(9))).unwrap();
        assert_eq!(reasons(&source), [None; 3]);
        // One is made longer.
        let longer = line.replacen("sound", "sound and long", 1);
        fs::write(&path, format!("{head}{longer}{}", line.repeat(2))).unwrap();
        let reasons_now = reasons(&source);
        assert!(
            reasons_now[1..]
                .iter()
                .all(|reason| *reason == Some(Changed)),
            "{reasons_now:?}"
        );
        fs::write(&path, format!("{head}{}", &line[..4])).unwrap();
        assert!(reasons(&source).iter().all(Option::is_some));
        fs::remove_file(&path).unwrap();
        assert_eq!(reasons(&source), [Some(Missing); 3]);
    }

    let source = open(&config(Format::Videos, root)).unwrap();
    fs::remove_file(root.join("v.mp4")).unwrap();
    assert_eq!(reasons(&source), [Some(Missing)]);
}

#[test]
fn a_source_of_nothing_says_why() {
    let folder = TempDir::new().unwrap();
    let root = folder.path();
    let message = |format, path: &Path| {
        let error = open(&config(format, path)).unwrap_err().to_string();
        println!("{error}");
        assert!(error.contains("; ") && !error.contains('\n'), "{error}");
        error
    };
    let formats = [
        (Format::Videos, "no video or image"),
        (Format::Captions, ".jsonl"),
        (Format::Questions, ".jsonl"),
        (Format::Story, ".jsonl"),
        (Format::Csv, ".csv"),
        (Format::Webdataset, ".tar"),
    ];
    for (format, what) in formats {
        let error = message(format, root);
        assert!(error.contains(what), "{error}");
        assert!(message(format, &root.join("none")).contains("none: no such file"));
    }
    let path = text(root.join("a.jsonl"), "\n \n");
    assert!(message(Format::Captions, &path).contains("empty"));
    let path = text(root.join("b.jsonl"), "\n{\"video\": \"v.mp4\"}\nwrong\n");
    let error = message(Format::Captions, &path);
    assert!(
        error.contains("none of its 2 lines") && error.contains("b.jsonl:2: has no caption"),
        "{error}"
    );
    let path = text(root.join("c.csv"), "");
    assert!(message(Format::Csv, &path).contains("no column"));
    let path = text(root.join("d.csv"), "video,caption\n");
    assert!(message(Format::Csv, &path).contains("empty"));
    let path = text(root.join("e.json"), "{\"sentences\": 3}");
    assert!(message(Format::Csv, &path).contains("sentences"));
    let path = text(
        root.join("f.tar"),
        "no archive, but more than a header has".repeat(30),
    );
    assert!(message(Format::Webdataset, &path).contains("f.tar"));
}

#[test]
fn large_pictures_are_refused_by_their_header() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.png");
    write_png(&path, &Frame::filled(2000, 1000, [1; 3]).unwrap()).unwrap();
    let config = |limit| {
        let mut config = config(Format::Videos, &path);
        config.filter.max_pixels = limit;
        config
    };
    assert_eq!(
        reasons(&open(&config(1_999_999)).unwrap()),
        [Some(TooLarge)]
    );
    assert_eq!(reasons(&open(&config(2_000_000)).unwrap()), [None]);
    // A header of 100,000 x 100,000 pixels and nothing behind it.
    let mut bytes = fs::read(&path).unwrap();
    bytes[16..24].copy_from_slice(&[0, 1, 0x86, 0xa0, 0, 1, 0x86, 0xa0]);
    let mut sum = flate2::Crc::new();
    sum.update(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&sum.sum().to_be_bytes());
    fs::write(&path, &bytes).unwrap();
    assert_eq!(reasons(&open(&config(1 << 27)).unwrap()), [Some(TooLarge)]);
}

#[test]
fn a_clip_of_a_long_video_is_all_that_is_read() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("long.mp4");
    // An hour, of which what is between the first minutes and the last cannot be decoded.
    let frames: Vec<_> = (0..3600).map(|second| frame(second / 60)).collect();
    divot_data::write_mp4(&path, &frames, 1.0).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let start = bytes.windows(4).position(|name| name == b"mdat").unwrap() + 4;
    let length = bytes.len() - start;
    bytes[start + length / 20..start + length * 8 / 10].fill(0);
    fs::write(&path, bytes).unwrap();
    let source = open(&config(Format::Videos, &path)).unwrap();
    let sample = source.read(0, &mut || 0.9).unwrap();
    // The two seconds from 0.9 of the 3598 at which a clip may start: 3238.2 to 3240.2.
    let mut expected = [53; 16];
    expected[15] = 54;
    assert_eq!(shown(&sample.clips[0]), expected);
    let skip = source.read(0, &mut || 0.5).unwrap_err();
    assert_eq!(skip.reason, Undecodable);
}

#[test]
fn damage_of_any_kind_is_a_reason() {
    let folder = TempDir::new().unwrap();
    let root = folder.path();
    picture(root.join("p.png"), 7);
    let archive = five();
    let questions = r#"{"image": "p.png", "questions": ["a", "b"], "answers": ["c", "d"]}"#;
    let panda = "video,timestamp,caption\np.png,\"[['0:0:0','0:0:1'],['1','2']]\",\"['a', 'b']\"\n";
    let seeds: [(Format, &str, Vec<u8>); 6] = [
        (Format::Webdataset, "a.tar", archive.clone()),
        (Format::Webdataset, "a.tgz", gzip(&archive)),
        (
            Format::Captions,
            "a.jsonl",
            "{\"image\": \"p.png\", \"caption\": [\"a\", \"b\"]}\n"
                .repeat(3)
                .into(),
        ),
        (
            Format::Questions,
            "b.jsonl",
            format!("{questions}\n").repeat(3).into(),
        ),
        (
            Format::Csv,
            "a.csv",
            "image,caption\np.png,\"a\"\"b\"\np.png,c\n".into(),
        ),
        (Format::Csv, "b.csv", panda.into()),
    ];
    // A linear congruential generator; its high bits are good.
    let mut state = 1_u64;
    let mut below = |limit: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize % limit
    };
    for (format, name, sound) in seeds {
        let path = root.join(name);
        let (mut opened, mut whole) = (0, 0);
        for _ in 0..150 {
            let mut bytes = sound.clone();
            for _ in 0..1 + below(4) {
                if bytes.is_empty() {
                    break;
                }
                let at = below(bytes.len());
                match below(4) {
                    0 => bytes[at] ^= 1 << below(8),
                    1 => bytes[at] = below(256) as u8,
                    2 => {
                        let end = bytes.len().min(at + below(40));
                        bytes.drain(at..end);
                    }
                    _ => bytes.truncate(at + 1),
                }
            }
            fs::write(&path, bytes).unwrap();
            match open(&config(format, &path)) {
                Ok(source) => {
                    opened += 1;
                    whole += usize::from(reasons(&source).iter().any(Option::is_none));
                }
                Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
            }
        }
        println!("{name}: {opened} of 150 were opened, {whole} had a sample");
        assert!(opened > 10, "{name}");
    }
}
