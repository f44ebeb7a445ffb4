//! Broken archives: each sample is used or left out for the right reason, and nothing else is touched.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use divot_data::dataset::{Format, Reason, Samples, Source};
use divot_data::{Frame, write_png};
use tempfile::TempDir;

use crate::make::*;

use Reason::{Changed, Malformed, Missing, NoText, TooMuchText, Undecodable};

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
    let absolute = "/divot-outside.jpg".to_owned();
    let files = tar(&[
        ("../../up.jpg", &picture),
        ("../../up.txt", b"x"),
        (&*absolute, &picture),
        ("/divot-outside.txt", b"x"),
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
    assert!(!Path::new(&absolute).exists());
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
        let message = skip
            .message
            .replace(&folder.path().display().to_string(), "");
        let temporary = std::env::temp_dir().display().to_string();
        assert!(!message.contains(&temporary), "{message}");
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
