//! Checkpoints that PyTorch wrote (`checkpoints/make.py`): weights with various objects beside them.

use std::fs;
use std::io::{Cursor, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::FloatDType;
use divot::checkpoint::Part;
use divot::convert::{Job, ReleasedConfig, convert};
use divot::weights::Source;

fn checkpoint(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/checkpoints")
        .join(name)
}

#[track_caller]
fn refused(path: &Path) -> String {
    let line = Source::open(path).unwrap_err().to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains(path.to_str().unwrap()), "{line}");
    line
}

/// Every tensor equals PyTorch's, bit for bit, whatever objects are beside it.
#[test]
fn weights_are_read_and_the_rest_is_passed_over() {
    let expected = Source::open(&checkpoint("expected.safetensors")).unwrap();
    for (name, absent) in [
        ("plain.pt", 0),
        ("training.pt", 0),
        ("mixed.pt", 0),
        ("protocol4.pt", 0),
        // PyTorch's old format does not have this type.
        ("legacy.pt", 1),
    ] {
        let source = Source::open(&checkpoint(name)).unwrap();
        let mut found = 0;
        for expected in expected.tensors() {
            let Some(tensor) = source.get(&expected.name) else {
                continue;
            };
            found += 1;
            assert_eq!(tensor.shape, expected.shape, "{name}: {}", expected.name);
            assert_eq!(tensor.dtype, expected.dtype, "{name}: {}", expected.name);
            let (ours, theirs) = (tensor.read().unwrap(), expected.read().unwrap());
            assert_eq!(
                ours.as_bytes(),
                theirs.as_bytes(),
                "{name}: {}",
                expected.name
            );
        }
        assert_eq!(found + absent, expected.tensors().len(), "{name}");
    }
}

/// Tensors that cannot be read are named when they are requested.
#[test]
fn what_cannot_be_read_says_what_it_is() {
    let source = Source::open(&checkpoint("mixed.pt")).unwrap();
    for (name, what) in [
        ("sparse", "_rebuild_sparse_tensor"),
        ("csr", "_rebuild_sparse_tensor"),
        ("quantised", "_rebuild_qtensor"),
        ("complex", "ComplexFloatStorage"),
        ("fp8", "float8_e4m3fn"),
        ("settings", "somewhere.training.Settings"),
        ("optimizer", "AdamW"),
        ("when", "datetime"),
    ] {
        assert!(source.get(name).is_none(), "{name}");
        let found = source.unreadable(name);
        assert!(
            found.is_some_and(|found| found.contains(what)),
            "{name}: {found:?}"
        );
    }
    assert_eq!(source.unreadable("plain"), None);
    assert_eq!(source.unreadable("absent"), None);
}

#[test]
fn modules_and_scripts_are_refused() {
    let module = refused(&checkpoint("module.pt"));
    assert!(
        module.contains("torch.nn.modules.linear.Linear"),
        "{module}"
    );
    assert!(module.contains("state_dict()"), "{module}");
    let script = refused(&checkpoint("script.pt"));
    assert!(script.contains("TorchScript"), "{script}");
}

/// The fixture's tokenizer with objects beside it that no weight needs.
#[test]
fn the_cases_convert_like_the_fixture() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let cases = root.join("../shared/cases");
    if !cases.is_dir() {
        eprintln!("skipped: {} is not there", cases.display());
        return;
    }
    let fixture = root.join("tests/fixture");
    let released =
        Source::open(&fixture.join("pretrained/Divot_tokenizer_detokenizer/Divot_tokenizer.bin"))
            .unwrap();
    let sizes = ReleasedConfig::read(&fixture.join("config.json")).unwrap();
    let clip =
        fixture.join("pretrained/CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_pytorch_model.bin");
    for name in ["defaultdict.pt", "deque.pt", "tuplekey.pt"] {
        let path = cases.join(name);
        let source = Source::open(&path).unwrap();
        for tensor in released.tensors() {
            let found = source.get(&tensor.name).unwrap();
            assert_eq!(found.read().unwrap(), tensor.read().unwrap(), "{name}");
        }
        let to = tempfile::tempdir().unwrap();
        let job = Job::of(Part::Tokenizer, &[&path, &clip]);
        convert(&job, &sizes, to.path(), FloatDType::F16, |_| {
            ControlFlow::Continue(())
        })
        .unwrap();
    }
}

/// A tensor that cannot be read is an error only for a part that needs it. The error names it.
#[test]
fn what_a_part_needs_and_cannot_be_read_is_named() {
    let here = tempfile::tempdir().unwrap();
    let path = here.path().join("clip.pt");
    let mut pickle = tensor_pickle(1, &[1], &[1]);
    pickle.pop();
    pickle.extend(b"X\x0f\0\0\0text_projectionctorch._utils\n_rebuild_sparse_tensor\n)Rs.");
    let entries: [(&str, &[u8]); 2] = [("a/data.pkl", &pickle), ("a/data/0", &[0; 4])];
    fs::write(&path, zip(&entries, zip::CompressionMethod::Stored)).unwrap();
    let job = Job::of(Part::Clip, &[&path]);
    let sizes = ReleasedConfig::divot();
    let error = convert(
        &job,
        &sizes,
        &here.path().join("to"),
        FloatDType::F16,
        |_| ControlFlow::Continue(()),
    );
    let line = error.unwrap_err().to_string();
    for word in ["clip.pt", "`text_projection`", "_rebuild_sparse_tensor"] {
        assert!(line.contains(word), "{line} lacks {word}");
    }
}

fn zip(entries: &[(&str, &[u8])], method: zip::CompressionMethod) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(method);
    for (name, bytes) in entries {
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Builds a pickle of `{"a": tensor}`, with a storage of `elements` floats.
fn tensor_pickle(elements: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let ints = |values: &[i32]| {
        let values = values.iter().flat_map(|value| {
            let mut bytes = b"J".to_vec();
            bytes.extend(value.to_le_bytes());
            bytes
        });
        [b"(", &values.collect::<Vec<u8>>()[..], b"t"].concat()
    };
    [
        b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuJ",
        &elements.to_le_bytes()[..],
        b"tQK\0",
        &ints(shape),
        &ints(strides),
        b"\x89NtRs.",
    ]
    .concat()
}

/// Sizes in a file are checked against the file before memory is allocated.
#[test]
fn claimed_sizes_are_checked() {
    let here = tempfile::tempdir().unwrap();
    let path = here.path().join("bomb.pt");
    let stored = zip::CompressionMethod::Stored;
    let huge = i32::MAX;
    // Eight GiB in a storage of four bytes.
    let pickle = tensor_pickle(huge, &[huge], &[1]);
    let entries: [(&str, &[u8]); 2] = [("a/data.pkl", &pickle), ("a/data/0", &[0; 4])];
    fs::write(&path, zip(&entries, stored)).unwrap();
    let source = Source::open(&path).unwrap();
    let line = source.get("a").unwrap().read().unwrap_err().to_string();
    assert!(line.contains("too short"), "{line}");

    // One element repeated 2^62 times, and shapes whose product overflows.
    for shape in [&[huge, huge][..], &[huge, huge, huge]] {
        let pickle = tensor_pickle(1, shape, &vec![0; shape.len()]);
        let entries: [(&str, &[u8]); 2] = [("a/data.pkl", &pickle), ("a/data/0", &[0; 4])];
        fs::write(&path, zip(&entries, stored)).unwrap();
        let line = refused(&path);
        assert!(line.contains("a storage of 1 elements"), "{line}");
    }

    // The old format, with storages beyond the end.
    let legacy = fs::read(checkpoint("legacy.pt")).unwrap();
    for end in [legacy.len() - 1, legacy.len() - 40, 300, 60, 20] {
        fs::write(&path, &legacy[..end]).unwrap();
        refused(&path);
    }
}

/// Dictionaries that refer to each other twice, thirty deep, and one that refers to itself.
#[test]
fn references_do_not_multiply() {
    let here = tempfile::tempdir().unwrap();
    let path = here.path().join("laughs.pt");
    let mut pickle = b"\x80\x02}q\0".to_vec();
    for level in 0..30u8 {
        let (last, next) = (level, level + 1);
        pickle.extend(b"0}q");
        pickle.push(next);
        pickle.extend(b"(X\x01\0\0\0ah");
        pickle.push(last);
        pickle.extend(b"X\x01\0\0\0bh");
        pickle.push(last);
        pickle.push(b'u');
    }
    pickle.push(b'.');
    let entries: [(&str, &[u8]); 1] = [("a/data.pkl", &pickle)];
    fs::write(&path, zip(&entries, zip::CompressionMethod::Deflated)).unwrap();
    let line = refused(&path);
    assert!(line.contains("too many entries"), "{line}");

    let itself = b"\x80\x02}q\0X\x01\0\0\0ah\0s.";
    let entries: [(&str, &[u8]); 1] = [("a/data.pkl", itself)];
    fs::write(&path, zip(&entries, zip::CompressionMethod::Stored)).unwrap();
    refused(&path);
}
