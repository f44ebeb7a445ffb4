//! Broken files: each sample is used or left out for the right reason, and nothing else is touched.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use divot_data::dataset::{Format, Reason, Samples, Source};
use divot_data::{Frame, write_png};
use tempfile::TempDir;

use crate::make::*;

use Reason::{Changed, Malformed, Missing, NoText, TooLarge, TooMuchText, Undecodable};

/// All files below a folder.
fn below(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(below(&path));
        }
        found.insert(path);
    }
    found
}

/// Five samples of a picture and a caption.
fn five() -> Vec<u8> {
    let picture = jpeg(200, 5);
    let names: Vec<_> = (0..5)
        .map(|i| [format!("{i}.jpg"), format!("{i}.txt")])
        .collect();
    let files = names.iter().flat_map(|[image, text]| {
        [
            (image.as_str(), &picture[..]),
            (text.as_str(), b"a caption"),
        ]
    });
    tar(&files.collect::<Vec<_>>())
}

/// Where the content of a file in an archive begins.
fn place(archive: &[u8], name: &str) -> usize {
    let name = format!("{name}\0");
    let mut blocks = archive.chunks(512);
    512 * blocks
        .position(|block| block.starts_with(name.as_bytes()))
        .unwrap()
        + 512
}

fn webdataset(path: impl Into<PathBuf>) -> divot_data::Result<Source> {
    open(&config(Format::Webdataset, path))
}

#[test]
fn archives_that_end_too_early() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.tar");
    let archive = five();
    let cases = [
        ("within a header", place(&archive, "3.jpg") - 100, 3),
        ("within a picture", place(&archive, "3.jpg") + 10, 3),
        ("within a text", place(&archive, "3.txt") + 3, 3),
        ("within the first", 700, 0),
        ("within the first header", 100, 0),
        ("before the end mark", place(&archive, "4.txt") + 512, 5),
    ];
    for (name, length, samples) in cases {
        for packed in [false, true] {
            let cut = &archive[..length];
            fs::write(&path, if packed { gzip(cut) } else { cut.to_vec() }).unwrap();
            let source = webdataset(&path);
            if samples == 0 {
                let error = source.unwrap_err().to_string();
                assert!(error.contains("a.tar") && !error.contains('\n'), "{error}");
                continue;
            }
            let source = source.unwrap();
            assert_eq!(reasons(&source), vec![None; samples], "{name} {packed}");
            let damaged = usize::from(samples < 5);
            assert_eq!(source.passed_over().len(), damaged, "{name} {packed}");
        }
    }
}

#[test]
fn compressed_archives_that_break_off() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.tar.gz");
    // Noise does not get smaller, so half of the file is about half of the samples.
    let noise: Vec<u8> = (0..100_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let picture = jpeg(200, 5);
    let names: Vec<_> = (0..10)
        .map(|i| [".jpg", ".txt", ".bin"].map(|end| format!("{i}{end}")))
        .collect();
    let files = names.iter().flat_map(|[image, text, other]| {
        [
            (&**image, &picture[..]),
            (&**text, b"x"),
            (&**other, &noise[..]),
        ]
    });
    let packed = gzip(&tar(&files.collect::<Vec<_>>()));
    fs::write(&path, &packed[..packed.len() / 2]).unwrap();
    let source = webdataset(&path).unwrap();
    assert!((3..8).contains(&source.len()), "{}", source.len());
    assert_eq!(reasons(&source), vec![None; source.len()]);
    let [damage] = source.passed_over() else {
        panic!("one damage")
    };
    assert_eq!(damage.reason, Reason::PassedOver);

    let mut flipped = packed.clone();
    flipped[packed.len() / 2] ^= 0xff;
    fs::write(&path, flipped).unwrap();
    let source = webdataset(&path).unwrap();
    assert_eq!(reasons(&source), vec![None; source.len()]);
    assert_eq!(source.passed_over().len(), 1);

    // Not compressed at all but for its first bytes.
    fs::write(&path, b"\x1f\x8bnothing").unwrap();
    assert!(webdataset(&path).is_err());
    // Several compressed parts one after another, as parallel compressors write.
    let archive = five();
    let parts: Vec<u8> = archive.chunks(3000).flat_map(gzip).collect();
    fs::write(&path, parts).unwrap();
    assert_eq!(reasons(&webdataset(&path).unwrap()), [None; 5]);
}

#[test]
fn damaged_headers_end_an_archive() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.tar");
    let mut archive = five();
    let header = place(&archive, "2.jpg") - 512;
    // A size that is no number, and one beyond any file.
    for size in [b"garbage....", b"77777777777"] {
        archive[header + 124..header + 135].copy_from_slice(size);
        let mut known = tar::Header::new_old();
        known
            .as_mut_bytes()
            .copy_from_slice(&archive[header..header + 512]);
        known.set_cksum();
        archive[header..header + 512].copy_from_slice(known.as_bytes());
        fs::write(&path, &archive).unwrap();
        let source = webdataset(&path).unwrap();
        assert_eq!(reasons(&source), [None; 2]);
        assert_eq!(source.passed_over().len(), 1);
    }
    archive[header + 150] ^= 1;
    fs::write(&path, &archive).unwrap();
    assert_eq!(reasons(&webdataset(&path).unwrap()), [None; 2]);
}

#[test]
fn links_and_climbing_names() {
    let folder = TempDir::new().unwrap();
    let inner = folder.path().join("in");
    fs::create_dir(&inner).unwrap();
    let mut archive = tar::Builder::new(Vec::new());
    for kind in [tar::EntryType::Symlink, tar::EntryType::Link] {
        for (name, target) in [("loop.jpg", "loop.jpg"), ("out.jpg", "/etc/passwd")] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            archive.append_link(&mut header, name, target).unwrap();
        }
    }
    let mut links = archive.into_inner().unwrap();
    links.truncate(links.len() - 1024);
    let picture = jpeg(200, 5);
    let files = tar(&[
        ("../../up.jpg", &picture),
        ("../../up.txt", b"x"),
        ("/tmp/root.jpg", &picture),
        ("/tmp/root.txt", b"x"),
        ("a/./../b.jpg", &picture),
        ("a/./../b.txt", b"x"),
        ("loop.txt", b"x"),
    ]);
    links.extend(files);
    text(inner.join("a.tar"), &links);
    text(inner.join("b.tgz"), gzip(&links));
    let before = below(folder.path());
    let source = webdataset(&inner).unwrap();
    assert_eq!(reasons(&source), [None; 6]);
    assert_eq!(below(folder.path()), before);
    assert!(!Path::new("/tmp/root.jpg").exists());
}

#[test]
fn long_names_take_no_memory() {
    let folder = TempDir::new().unwrap();
    // A name of 4 MB, and then a sound sample.
    let mut archive = tar::Builder::new(Vec::new());
    let name = vec![b'n'; 4 << 20];
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(name.len() as u64);
    header.set_cksum();
    archive.append(&header, &name[..]).unwrap();
    let mut archive = archive.into_inner().unwrap();
    archive.truncate(archive.len() - 1024);
    archive.extend(five());
    let path = text(folder.path().join("a.tar"), archive);
    // The name belongs to the first picture, whose name has no extension then.
    let source = webdataset(path).unwrap();
    assert_eq!(reasons(&source), [None; 4]);
}

#[test]
fn files_of_archives_may_be_broken() {
    let folder = TempDir::new().unwrap();
    let picture = jpeg(200, 5);
    let long = vec![b'a'; (1 << 20) + 1];
    let png = folder.path().join("p.png");
    write_png(&png, &Frame::filled(200, 200, [1; 3]).unwrap()).unwrap();
    let png = fs::read(png).unwrap();
    let archive = tar(&[
        ("0.jpg", b""),
        ("0.txt", b"x"),
        ("1.mp4", b""),
        ("1.txt", b"x"),
        ("2.png", &png[..png.len() / 2]),
        ("2.txt", b"x"),
        ("3.jpg", &picture),
        ("3.txt", &long),
        ("4.jpg", &picture),
        ("4.txt", b"\xff\xfe"),
        ("5.jpg", &picture),
        ("5.txt", b" \n"),
        ("6.jpg", &picture),
        ("6.json", br#"{"caption": 3}"#),
        ("7.jpg", &picture),
        ("7.json", br#"{"caption": "a", "caption": "b"}"#),
        ("8.jpg", &picture),
        ("8.json", br#"{"url": "u"}"#),
        ("9.jpg", b"plain text instead of a picture"),
        ("9.txt", b"x"),
        ("a.jpg", &picture),
        ("a.txt", b"sound"),
    ]);
    let path = text(folder.path().join("a.tar"), archive);
    let expected = [
        Some(Undecodable),
        Some(Undecodable),
        Some(Undecodable),
        Some(TooMuchText),
        Some(Malformed),
        Some(NoText),
        Some(Malformed),
        Some(Malformed),
        Some(NoText),
        Some(Undecodable),
        None,
    ];
    let source = webdataset(path).unwrap();
    assert_eq!(reasons(&source), expected);
    // Messages name the archive and the file in it, not a temporary file.
    for skip in read(&source, 0.0).into_iter().filter_map(Result::err) {
        assert!(skip.key.contains("a.tar: "), "{}", skip.key);
        let temporary = std::env::temp_dir().join(".tmp").display().to_string();
        assert!(
            !skip.message.contains(&temporary) || skip.message.contains("a.tar"),
            "{}",
            skip.message
        );
    }
}

#[test]
fn archives_that_change_or_vanish() {
    let folder = TempDir::new().unwrap();
    for packed in [false, true] {
        let path = folder.path().join("a.tar");
        let archive = five();
        let write = |archive: &[u8]| {
            let bytes = if packed {
                gzip(archive)
            } else {
                archive.to_vec()
            };
            fs::write(&path, bytes).unwrap();
        };
        write(&archive);
        let source = webdataset(&path).unwrap();
        let mut shifted = archive[..place(&archive, "1.jpg") - 512].to_vec();
        shifted.extend(tar(&[("x.bin", &[0; 700])]));
        shifted.extend(&archive[place(&archive, "1.jpg") - 512..]);
        write(&shifted);
        let changed = Some(Changed);
        assert_eq!(reasons(&source), [None, changed, changed, changed, changed]);
        let source = webdataset(&path).unwrap();
        write(&archive[..600]);
        assert!(reasons(&source).iter().all(|reason| *reason == changed));
        fs::remove_file(&path).unwrap();
        let source = webdataset_gone(&path, &write, &archive);
        assert_eq!(reasons(&source), [Some(Missing); 5]);
    }
}

/// A source whose archive was deleted after it was indexed.
fn webdataset_gone(path: &Path, write: &dyn Fn(&[u8]), archive: &[u8]) -> Source {
    write(archive);
    let source = webdataset(path).unwrap();
    fs::remove_file(path).unwrap();
    source
}

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
