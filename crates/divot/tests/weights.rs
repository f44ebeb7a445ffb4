//! Reads, converts, saves and loads weights, and tests every way in which this can fail.
//!
//! PyTorch files are built here byte by byte, so that damaged and hostile ones can be built too.

use burn::module::{Module, Param, ParamId};
use burn::nn::conv::{Conv1d, Conv1dConfig};
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData, f16};
use divot::weights::{
    Saver, Source, TensorSpec, Weights, WeightsError, convert_tensor, load_module, module_layout,
    write_safetensors,
};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use zip::write::SimpleFileOptions;

// ---------------------------------------------------------------------------------------------
// Files
// ---------------------------------------------------------------------------------------------

/// A pickle under construction, protocol 2 as `torch.save` writes it.
#[derive(Clone)]
struct Pickle(Vec<u8>);

impl Pickle {
    fn new() -> Self {
        Self(vec![0x80, 2])
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(self, text: &str) -> Self {
        let len = (text.len() as u32).to_le_bytes();
        self.raw(b"X").raw(&len).raw(text.as_bytes())
    }

    fn int(self, value: i32) -> Self {
        self.raw(b"J").raw(&value.to_le_bytes())
    }

    fn ints(self, values: &[usize]) -> Self {
        let pickle = values
            .iter()
            .fold(self.raw(b"("), |p, &value| p.int(value as i32));
        pickle.raw(b"t")
    }

    /// `_rebuild_tensor_v2` on a contiguous storage of class `kind`.
    fn tensor(self, kind: &str, key: usize, shape: &[usize]) -> Self {
        let numel: usize = shape.iter().product();
        let mut stride = vec![1; shape.len()];
        for i in (1..shape.len()).rev() {
            stride[i - 1] = stride[i] * shape[i];
        }
        self.raw(b"ctorch._utils\n_rebuild_tensor_v2\n((")
            .text("storage")
            .raw(format!("ctorch\n{kind}\n").as_bytes())
            .text(&key.to_string())
            .text("cpu")
            .int(numel as i32)
            .raw(b"tQ")
            .int(0)
            .ints(shape)
            .ints(&stride)
            .raw(b"\x89ccollections\nOrderedDict\n)RtR")
    }

    /// A dictionary of `entries`, f32 tensors whose storages are numbered from 0.
    fn state_dict(self, entries: &[(&str, &[usize])]) -> Self {
        let pickle = entries
            .iter()
            .enumerate()
            .fold(self.raw(b"}("), |p, (key, (name, shape))| {
                p.text(name).tensor("FloatStorage", key, shape)
            });
        pickle.raw(b"u")
    }

    fn finish(self) -> Vec<u8> {
        self.raw(b".").0
    }
}

/// Returns the storages of [`Pickle::state_dict`]: 0, 1, 2, ... in every tensor.
fn storages(entries: &[(&str, &[usize])]) -> Vec<Vec<u8>> {
    let storage = |(_, shape): &(&str, &[usize])| {
        let numel: usize = shape.iter().product();
        (0..numel).flat_map(|i| (i as f32).to_le_bytes()).collect()
    };
    entries.iter().map(storage).collect()
}

/// Builds a file as `torch.save` writes it since version 1.6.
fn torch_zip(pickle: &[u8], storages: &[Vec<u8>]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut entry = |name: String, bytes: &[u8]| {
        zip.start_file(name, options).unwrap();
        zip.write_all(bytes).unwrap();
    };
    entry("archive/data.pkl".into(), pickle);
    entry("archive/byteorder".into(), b"little");
    for (i, storage) in storages.iter().enumerate() {
        entry(format!("archive/data/{i}"), storage);
    }
    entry("archive/version".into(), b"3\n");
    zip.finish().unwrap().into_inner()
}

/// Builds a file as `torch.save` wrote it before version 1.6.
fn torch_legacy(pickle: &[u8], storages: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Pickle::new()
        .raw(b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19")
        .finish();
    file.extend(Pickle::new().int(1001).finish());
    let info = Pickle::new().raw(b"}(").text("little_endian");
    file.extend(info.raw(b"\x88u").finish());
    file.extend(pickle);
    let keys =
        (0..storages.len()).fold(Pickle::new().raw(b"]("), |p, key| p.text(&key.to_string()));
    file.extend(keys.raw(b"e").finish());
    for storage in storages {
        file.extend((storage.len() as u64 / 4).to_le_bytes());
        file.extend(storage);
    }
    file
}

const ENTRIES: [(&str, &[usize]); 3] = [
    ("blocks.0.weight", &[3, 2]),
    ("blocks.0.bias", &[3]),
    ("scale", &[]),
];

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn put(folder: &tempfile::TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// Writes a safetensors file of f32 tensors.
fn put_safetensors(path: &Path, tensors: &[(&str, Vec<usize>, Vec<f32>)]) {
    let specs: Vec<_> = tensors
        .iter()
        .map(|(name, shape, _)| TensorSpec {
            name: name.to_string(),
            shape: shape.clone(),
            dtype: DType::F32,
        })
        .collect();
    write_safetensors(path, &specs, &BTreeMap::new(), |i| {
        Ok(TensorData::new(tensors[i].2.clone(), tensors[i].1.clone()))
    })
    .unwrap();
}

fn names(source: &Source) -> Vec<&str> {
    source
        .tensors()
        .map(|tensor| tensor.name.as_str())
        .collect()
}

/// Returns the message of an error, which must be one line and name the file.
#[track_caller]
fn message<T>(result: Result<T, WeightsError>, file: &Path) -> String {
    let Err(err) = result else {
        panic!("no error");
    };
    let message = err.to_string();
    assert!(!message.contains('\n'), "{message:?}");
    assert!(message.contains(file.to_str().unwrap()), "{message}");
    message
}

#[track_caller]
fn assert_contains(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "no {part:?} in {message:?}");
    }
}

// ---------------------------------------------------------------------------------------------
// Reading released checkpoints
// ---------------------------------------------------------------------------------------------

#[test]
fn zip_and_legacy_checkpoints_are_read() {
    let dir = folder();
    let pickle = Pickle::new().state_dict(&ENTRIES).finish();
    for (name, bytes) in [
        // The extension does not matter.
        ("zip.ckpt", torch_zip(&pickle, &storages(&ENTRIES))),
        (
            "legacy.safetensors.bin",
            torch_legacy(&pickle, &storages(&ENTRIES)),
        ),
    ] {
        let path = put(&dir, name, bytes);
        let source = Source::open(&path).unwrap();
        assert_eq!(
            names(&source),
            ["blocks.0.bias", "blocks.0.weight", "scale"]
        );
        let weight = source.get("blocks.0.weight").unwrap();
        assert_eq!((&weight.shape[..], weight.dtype), (&[3, 2][..], DType::F32));
        assert_eq!(weight.file, path);
        let data = weight.read().unwrap();
        assert_eq!(data.as_slice::<f32>().unwrap(), [0., 1., 2., 3., 4., 5.]);
        let scale = source.get("scale").unwrap().read().unwrap();
        assert!(scale.shape().as_slice().is_empty());
        assert!(source.get("other").is_none());
    }
}

#[test]
fn every_element_type_is_read() {
    let dir = folder();
    let kinds = [
        ("DoubleStorage", DType::F64),
        ("FloatStorage", DType::F32),
        ("HalfStorage", DType::F16),
        ("BFloat16Storage", DType::BF16),
        ("LongStorage", DType::I64),
        ("IntStorage", DType::I32),
        ("ByteStorage", DType::U8),
    ];
    let mut pickle = Pickle::new().raw(b"}(");
    let mut storages = Vec::new();
    for (key, (kind, dtype)) in kinds.iter().enumerate() {
        pickle = pickle.text(kind).tensor(kind, key, &[2]);
        storages.push(vec![0; 2 * dtype.size()]);
    }
    let path = put(
        &dir,
        "a.pt",
        torch_zip(&pickle.raw(b"u").finish(), &storages),
    );
    let source = Source::open(&path).unwrap();
    for (kind, dtype) in kinds {
        let tensor = source.get(kind).unwrap();
        assert_eq!(tensor.dtype, dtype);
        assert_eq!(tensor.read().unwrap().dtype(), dtype);
    }
}

#[test]
fn training_checkpoints_are_unwrapped() {
    let dir = folder();
    for key in ["state_dict", "model", "module", "model_state_dict", "ema"] {
        let pickle = Pickle::new()
            .raw(b"}(")
            .text("epoch")
            .int(3)
            .text("callbacks")
            // An object of an unknown class, with a state.
            .raw(b"clightning.callbacks\nModelCheckpoint\n)\x81}(")
            .text("best")
            .raw(b"Nub")
            .text(key)
            .state_dict(&ENTRIES)
            .text("optimizer_states")
            .raw(b"](}(")
            .text("exp_avg")
            .tensor("FloatStorage", 1, &[3])
            .raw(b"ueu");
        let path = put(
            &dir,
            "last.ckpt",
            torch_zip(&pickle.finish(), &storages(&ENTRIES)),
        );
        let source = Source::open(&path).unwrap();
        assert_eq!(
            names(&source),
            ["blocks.0.bias", "blocks.0.weight", "scale"],
            "{key}"
        );
    }
}

#[test]
fn prefixes_go_only_when_every_tensor_has_them() {
    let dir = folder();
    let cases: [(&[&str], &[&str], &str); 4] = [
        (&["module.a", "module.b"], &["a", "b"], "module."),
        (
            &["module.model.a", "module.model.b.c"],
            &["a", "b.c"],
            "module.model.",
        ),
        (
            &["model.a", "lm_head.weight"],
            &["lm_head.weight", "model.a"],
            "",
        ),
        (&["_forward_module.a"], &["a"], "_forward_module."),
    ];
    for (stored, expected, prefix) in cases {
        let entries: Vec<(&str, &[usize])> = stored.iter().map(|&name| (name, &[1][..])).collect();
        let pickle = Pickle::new().state_dict(&entries).finish();
        let path = put(&dir, "a.bin", torch_zip(&pickle, &storages(&entries)));
        let source = Source::open(&path).unwrap();
        assert_eq!(names(&source), expected);
        assert_eq!(source.stripped_prefix(), prefix);
    }
}

#[test]
fn pickles_that_would_run_code_are_refused_and_not_run() {
    let dir = folder();
    let target = dir.path().join("ran");
    let call = |pickle: Pickle| {
        pickle
            .raw(b"cposix\nsystem\n(")
            .text(&format!("touch {}", target.display()))
            .raw(b"tR")
    };
    let beside = call(Pickle::new().raw(b"}(").text("x"))
        .text("state_dict")
        .state_dict(&ENTRIES)
        .raw(b"u");
    // The function is called first and its result dropped. A valid state dict remains.
    let dropped = call(Pickle::new()).raw(b"0").state_dict(&ENTRIES);
    for pickle in [
        beside.finish(),
        dropped.finish(),
        call(Pickle::new()).finish(),
    ] {
        for bytes in [
            torch_zip(&pickle, &storages(&ENTRIES)),
            torch_legacy(&pickle, &storages(&ENTRIES)),
            pickle.clone(),
        ] {
            let path = put(&dir, "evil.bin", bytes);
            let message = message(Source::open(&path), &path);
            assert_contains(
                &message,
                &["refused: would run code (os.system)", "nothing was run"],
            );
        }
    }
    assert!(!target.exists());
}

#[test]
fn files_that_are_no_checkpoint_say_so() {
    let dir = folder();
    let pickle = Pickle::new().state_dict(&ENTRIES).finish();
    let good = torch_zip(&pickle, &storages(&ENTRIES));
    let legacy = torch_legacy(&pickle, &storages(&ENTRIES));
    let safetensors = dir.path().join("good.safetensors");
    put_safetensors(&safetensors, &[("a", vec![4], vec![0.; 4])]);
    let safetensors = fs::read(safetensors).unwrap();

    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty.bin", vec![], "empty"),
        ("text.bin", b"hello".to_vec(), "neither"),
        ("page.bin", b"<!DOCTYPE html>".to_vec(), "web page"),
        (
            "lfs.bin",
            b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
            "Git LFS",
        ),
        (
            "cut.bin",
            good[..good.len() / 2].to_vec(),
            "not a complete zip",
        ),
        (
            "cut.pt",
            legacy[..legacy.len() - 5].to_vec(),
            "beyond the end",
        ),
        ("head.pt", legacy[..60].to_vec(), ""),
        ("pickle.bin", pickle[..20].to_vec(), "truncated"),
        (
            "cut.safetensors",
            safetensors[..safetensors.len() - 1].to_vec(),
            "truncated",
        ),
        ("head.safetensors", safetensors[..20].to_vec(), "truncated"),
        ("five.safetensors", safetensors[..5].to_vec(), "truncated"),
        (
            "empty-header.safetensors",
            [&0u64.to_le_bytes()[..], b"{"].concat(),
            "not a safetensors file",
        ),
        (
            "long.safetensors",
            [&safetensors[..], &[0]].concat(),
            "1 bytes too long",
        ),
        (
            "header.safetensors",
            [&8u64.to_le_bytes()[..], b"{\"a\":1} "].concat(),
            "header is invalid",
        ),
        (
            "none.bin",
            torch_zip(&Pickle::new().raw(b"}").finish(), &[]),
            "holds no tensors",
        ),
        (
            "list.bin",
            torch_zip(&Pickle::new().raw(b"]").finish(), &[]),
            "a list",
        ),
        (
            "object.bin",
            torch_zip(&Pickle::new().raw(b"cmy\nThing\n)\x81").finish(), &[]),
            "my.Thing",
        ),
    ];
    for (name, bytes, part) in cases {
        let path = put(&dir, name, bytes);
        let message = message(Source::open(&path), &path);
        assert_contains(&message, &[part]);
    }
    let path = dir.path().join("absent.bin");
    assert_contains(&message(Source::open(&path), &path), &["cannot find it"]);
}

#[test]
fn damaged_tensors_are_named() {
    let dir = folder();
    let pickle = Pickle::new().state_dict(&ENTRIES).finish();
    let mut bytes = torch_zip(&pickle, &storages(&ENTRIES));
    // 5.0, the last element of the first storage.
    let five = bytes.windows(4).position(|w| w == 5f32.to_le_bytes());
    bytes[five.unwrap()] ^= 1;
    let path = put(&dir, "a.bin", bytes);
    let source = Source::open(&path).unwrap();
    let tensor = source.get("blocks.0.weight").unwrap();
    assert_contains(
        &message(tensor.read(), &path),
        &["`blocks.0.weight`", "checksum"],
    );

    // A storage that is not in the archive.
    let path = put(&dir, "b.bin", torch_zip(&pickle, &storages(&ENTRIES)[..2]));
    let source = Source::open(&path).unwrap();
    let tensor = source.get("scale").unwrap();
    assert_contains(&message(tensor.read(), &path), &["`scale`", "not found"]);

    // A file that is truncated after it was opened.
    let path = dir.path().join("c.safetensors");
    put_safetensors(&path, &[("a", vec![4], vec![0.; 4])]);
    let source = Source::open(&path).unwrap();
    let len = fs::metadata(&path).unwrap().len();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(len - 4).unwrap();
    assert_contains(
        &message(source.get("a").unwrap().read(), &path),
        &["`a`", "damaged"],
    );
}

#[test]
fn sharded_checkpoints_are_read() {
    let dir = folder();
    let index = dir.path().join("model.safetensors.index.json");
    let shard = |number| {
        dir.path()
            .join(format!("model-0000{number}-of-00002.safetensors"))
    };
    put_safetensors(&shard(1), &[("model.a", vec![1], vec![1.])]);
    put_safetensors(&shard(2), &[("lm_head", vec![1], vec![2.])]);

    // Without an index, the file names determine which files belong together.
    assert_eq!(
        names(&Source::open(dir.path()).unwrap()),
        ["lm_head", "model.a"]
    );
    let json = r#"{"metadata": {"total_size": 8}, "weight_map": {
        "model.a": "model-00001-of-00002.safetensors", "lm_head": "model-00002-of-00002.safetensors"}}"#;
    fs::write(&index, json).unwrap();
    for path in [dir.path(), &index] {
        let source = Source::open(path).unwrap();
        assert_eq!(names(&source), ["lm_head", "model.a"]);
        assert_eq!(source.get("lm_head").unwrap().file, shard(2));
    }

    fs::write(&index, json.replace("\"lm_head\"", "\"other\"")).unwrap();
    assert_contains(
        &message(Source::open(&index), &index),
        &["do not hold", "`other`"],
    );
    fs::write(&index, json.replace("model-00001", "../model-00001")).unwrap();
    assert_contains(
        &message(Source::open(&index), &index),
        &["not a file beside it"],
    );
    fs::write(&index, "{}").unwrap();
    assert_contains(&message(Source::open(&index), &index), &["weight_map"]);
    fs::write(&index, json).unwrap();

    put_safetensors(
        &shard(2),
        &[
            ("lm_head", vec![1], vec![2.]),
            ("model.a", vec![1], vec![1.]),
        ],
    );
    let both = message(Source::open(&index), &shard(2));
    assert_contains(&both, &["`model.a`", "is also in", "model-00001-of"]);

    fs::remove_file(shard(2)).unwrap();
    assert_contains(&message(Source::open(&index), &shard(2)), &["is missing"]);
    fs::remove_file(&index).unwrap();
    assert_contains(
        &message(Source::open(dir.path()), &shard(2)),
        &["is missing"],
    );
}

#[test]
fn folders_are_searched() {
    let dir = folder();
    let empty = message(Source::open(dir.path()), dir.path());
    assert_contains(&empty, &["holds no .safetensors"]);

    let pickle = Pickle::new().state_dict(&ENTRIES).finish();
    let bytes = torch_zip(&pickle, &storages(&ENTRIES));
    put(&dir, "training_args.bin", b"no weights");
    put(&dir, "config.json", b"{}");
    put(&dir, "pytorch_model.bin", &bytes);
    assert_eq!(Source::open(dir.path()).unwrap().tensors().len(), 3);

    put(&dir, "another.bin", &bytes);
    let two = message(Source::open(dir.path()), dir.path());
    assert_contains(&two, &["several checkpoints", "another.bin"]);

    // The same weights in both formats.
    put_safetensors(
        &dir.path().join("model.safetensors"),
        &[("a", vec![1], vec![1.])],
    );
    assert_eq!(names(&Source::open(dir.path()).unwrap()), ["a"]);

    let dir = folder();
    let entry = |name: &'static str| -> Vec<(&str, &[usize])> { vec![(name, &[1])] };
    for (file, name) in [("pytorch_model-0.bin", "a"), ("pytorch_model-1.bin", "b")] {
        let pickle = Pickle::new().state_dict(&entry(name)).finish();
        put(&dir, file, torch_zip(&pickle, &storages(&entry(name))));
    }
    assert_eq!(names(&Source::open(dir.path()).unwrap()), ["a", "b"]);
}

/// Reads the checkpoints of the fixture that `DIVOT_FIXTURE` names, or of the project's own.
#[test]
fn the_fixture_is_read() {
    let fixture = std::env::var_os("DIVOT_FIXTURE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixture"),
        PathBuf::from,
    );
    let pretrained = fixture.join("pretrained");
    for (path, name) in [
        (
            "CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_pytorch_model.bin",
            "visual.conv1.weight",
        ),
        ("Divot_tokenizer_detokenizer/Divot_tokenizer.bin", ""),
        (
            "Divot_tokenizer_detokenizer/Divot_detokenizer_stage1.bin",
            "diffusion_model.input_blocks.0.0.weight",
        ),
    ] {
        let source = Source::open(&pretrained.join(path)).unwrap();
        assert!(
            name.is_empty() || source.get(name).is_some(),
            "{path}: {name}"
        );
        for tensor in source.tensors() {
            let data = tensor.read().unwrap();
            assert_eq!(data.num_elements(), tensor.shape.iter().product::<usize>());
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Modules
// ---------------------------------------------------------------------------------------------

#[derive(Module, Debug)]
enum Norm {
    Layer(LayerNorm),
    #[allow(dead_code)]
    Linear(Linear),
}

#[derive(Module, Debug)]
struct Network {
    embedding: Embedding,
    layers: Vec<Linear>,
    norm: Norm,
    pair: (Linear, Conv1d),
    latents: Param<Tensor<3>>,
    extra: Option<Linear>,
}

/// Returns a parameter that fails the test if it is initialised.
fn untouchable<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    let shape = shape.into();
    Param::uninitialized(
        ParamId::new(),
        |_, _| panic!("a parameter was initialised"),
        device.clone(),
        true,
        shape,
    )
}

fn linear(input: usize, output: usize, device: &Device) -> Linear {
    Linear {
        weight: untouchable([input, output], device),
        bias: Some(untouchable([output], device)),
    }
}

fn network(device: &Device) -> Network {
    Network {
        embedding: EmbeddingConfig::new(5, 4).init(device),
        layers: (0..2)
            .map(|_| LinearConfig::new(4, 3).init(device))
            .collect(),
        norm: Norm::Layer(LayerNormConfig::new(4).init(device)),
        pair: (
            LinearConfig::new(3, 2).with_bias(false).init(device),
            Conv1dConfig::new(2, 3, 1).init(device),
        ),
        latents: Param::from_tensor(Tensor::ones([1, 2, 3], device)),
        extra: None,
    }
}

#[test]
fn layouts_name_every_parameter() {
    let layout: Vec<_> = module_layout(&network(&Device::default()))
        .into_iter()
        .map(|spec| (spec.path, spec.container, spec.shape))
        .collect();
    let expected: [(&str, &str, &[usize]); 11] = [
        ("embedding.weight", "Struct:Embedding", &[5, 4]),
        ("layers.0.weight", "Struct:Linear", &[4, 3]),
        ("layers.0.bias", "Struct:Linear", &[3]),
        ("layers.1.weight", "Struct:Linear", &[4, 3]),
        ("layers.1.bias", "Struct:Linear", &[3]),
        ("norm.gamma", "Struct:LayerNorm", &[4]),
        ("norm.beta", "Struct:LayerNorm", &[4]),
        ("pair.0.weight", "Struct:Linear", &[3, 2]),
        ("pair.1.weight", "Struct:Conv1d", &[3, 2, 1]),
        ("pair.1.bias", "Struct:Conv1d", &[3]),
        ("latents", "Struct:Network", &[1, 2, 3]),
    ];
    let expected: Vec<_> = expected
        .iter()
        .map(|(path, container, shape)| (path.to_string(), container.to_string(), shape.to_vec()))
        .collect();
    assert_eq!(layout, expected);
}

#[test]
fn layouts_and_loading_initialise_nothing() {
    let device = Device::default();
    // Sixteen terabytes.
    let huge = linear(1 << 21, 1 << 21, &device);
    assert_eq!(module_layout(&huge)[0].shape, [1 << 21, 1 << 21]);

    let dir = folder();
    let path = dir.path().join("model.safetensors");
    put_safetensors(
        &path,
        &[
            ("weight", vec![2, 3], vec![1.; 6]),
            ("bias", vec![3], vec![2.; 3]),
        ],
    );
    let module = linear(2, 3, &device);
    let id = module.weight.id;
    let loaded = load_module(module, &path, None, &device).unwrap();
    assert_eq!(loaded.weight.id, id);
    assert_eq!(
        loaded.weight.val().into_data().as_slice::<f32>().unwrap(),
        [1.; 6]
    );
}

#[test]
fn linear_weights_are_transposed_and_others_not() {
    let device = Device::default();
    let layout = module_layout(&network(&device));
    let spec = |path: &str| layout.iter().find(|spec| spec.path == path).unwrap();
    let count = |shape: &[usize]| {
        let numel: usize = shape.iter().product();
        TensorData::new((0..numel).map(|i| i as f32).collect(), shape.to_vec())
    };
    let convert = |shape: &[usize], path| {
        let data = convert_tensor(count(shape), spec(path), DType::F32).unwrap();
        assert_eq!(data.shape().as_slice(), spec(path).shape);
        data.try_to_vec::<f32>().unwrap()
    };
    // [output, input] = [2, 3], and as convolutions of size one.
    for shape in [&[2, 3][..], &[2, 3, 1], &[2, 3, 1, 1]] {
        assert_eq!(convert(shape, "pair.0.weight"), [0., 3., 1., 4., 2., 5.]);
    }
    assert_eq!(convert(&[3, 2], "pair.1.weight"), [0., 1., 2., 3., 4., 5.]);
    assert_eq!(convert(&[2, 3], "latents"), [0., 1., 2., 3., 4., 5.]);
    assert_eq!(
        convert(&[5, 4], "embedding.weight")[..5],
        [0., 1., 2., 3., 4.]
    );

    let err = convert_tensor(count(&[3, 2]), spec("pair.0.weight"), DType::F32);
    let message = err.unwrap_err().to_string();
    assert_contains(&message, &["`pair.0.weight`", "[3, 2]", "[2, 3]"]);
}

#[test]
fn values_that_do_not_survive_conversion_are_errors() {
    let layout = module_layout(&network(&Device::default()));
    let spec = layout
        .iter()
        .find(|spec| spec.path == "norm.gamma")
        .unwrap();
    let convert = |values: [f32; 4], dtype| {
        let data = TensorData::new(values.to_vec(), [4]);
        convert_tensor(data, spec, dtype).map_err(|err| err.to_string())
    };
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let nan = convert([0., 1., f32::NAN, 2.], dtype).unwrap_err();
        assert_contains(&nan, &["`norm.gamma`", "NaN", "element 2"]);
        let infinite = convert([0., f32::NEG_INFINITY, 1., 2.], dtype).unwrap_err();
        assert_contains(&infinite, &["-inf", "element 1"]);
    }
    let large = convert([0., 1., 2., -70000.], DType::F16).unwrap_err();
    assert_contains(&large, &["-70000", "element 3", "f16", "use bf16"]);
    assert!(convert([0., 1., 2., -70000.], DType::BF16).is_ok());
    // 65519.99 rounds to the largest f16, 65520 to infinity.
    assert!(convert([65519.99, 0., 0., 0.], DType::F16).is_ok());
    assert!(convert([65520., 0., 0., 0.], DType::F16).is_err());
    assert!(convert([f32::MAX, 0., 0., 0.], DType::BF16).is_err());

    let ints = convert_tensor(TensorData::new(vec![1i64; 4], [4]), spec, DType::F32);
    assert_contains(&ints.unwrap_err().to_string(), &["i64", "floats"]);
    let wide = TensorData::new(vec![1e300f64; 4], [4]);
    assert_contains(
        &convert_tensor(wide, spec, DType::F32)
            .unwrap_err()
            .to_string(),
        &["f32 cannot"],
    );
}

#[test]
fn every_float_type_is_converted_like_half_does() {
    let layout = module_layout(&LinearConfig::new(70, 130).init(&Device::default()));
    let values: Vec<f32> = (0..70 * 130).map(|i| (i as f32 - 4000.) / 7.).collect();
    let data = TensorData::new(values.clone(), [130, 70]);
    for from in [DType::F64, DType::F32, DType::F16, DType::BF16] {
        let data = data.clone().convert_dtype(from);
        let elements: Vec<f32> = data.iter::<f32>().collect();
        for to in [DType::F32, DType::F16, DType::BF16] {
            let converted = convert_tensor(data.clone(), &layout[0], to).unwrap();
            assert_eq!(converted.dtype(), to);
            let expected = (0..70 * 130).map(|i| elements[(i % 130) * 70 + i / 130]);
            let expected = TensorData::new(expected.collect::<Vec<f32>>(), [70, 130]);
            assert_eq!(converted, expected.convert_dtype(to));
        }
    }
}

fn values(module: &impl Module) -> Vec<TensorData> {
    struct Collect(Vec<TensorData>);
    impl burn::module::ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push(param.val().into_data());
        }
    }
    let mut collect = Collect(Vec::new());
    module.visit(&mut collect);
    collect.0
}

#[test]
fn modules_survive_saving_and_loading_in_every_type() {
    let device = Device::default();
    let dir = folder();
    let path = dir.path().join("model.safetensors");
    let (first, second) = (network(&device), LinearConfig::new(3, 3).init(&device));
    for dtype in [FloatDType::F32, FloatDType::F16, FloatDType::BF16] {
        Saver::new(&path, dtype)
            .metadata("format", "test")
            .add("first.", first.clone())
            .add("second.", second.clone())
            .finish()
            .unwrap();
        for load_as in [None, Some(FloatDType::F32), Some(dtype)] {
            let mut weights = Weights::open(&path).unwrap();
            assert_eq!(weights.metadata()["format"], "test");
            let a = weights
                .load("first.", network(&device), &device, load_as)
                .unwrap();
            let b = LinearConfig::new(3, 3).init(&device);
            let b = weights.load("second.", b, &device, load_as).unwrap();
            weights.finish().unwrap();
            let saved = values(&first).into_iter().chain(values(&second));
            let loaded = values(&a).into_iter().chain(values(&b));
            for (saved, loaded) in saved.zip(loaded) {
                // Vectors are f32 on the CPU, which computes in f32.
                let load_as = match saved.shape().num_dims() {
                    1 => FloatDType::F32,
                    _ => load_as.unwrap_or(dtype),
                };
                let load_as = load_as.into();
                assert_eq!(
                    saved.convert_dtype(dtype.into()).convert_dtype(load_as),
                    loaded
                );
            }
        }
    }
    // The folder contains only the file, with the permissions of any new file.
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&put(&dir, "other", "")));
    }
}

#[test]
fn ids_and_gradients_are_kept() {
    let device = Device::default().autodiff();
    let dir = folder();
    let path = dir.path().join("model.safetensors");
    let config = LinearConfig::new(2, 2);
    let saved = config.init(&device);
    Saver::new(&path, FloatDType::F32)
        .add("", saved.clone())
        .finish()
        .unwrap();

    let trained = config.init(&device);
    let id = trained.weight.id;
    let trained = load_module(trained, &path, None, &device).unwrap();
    assert_eq!(trained.weight.id, id);
    assert!(trained.weight.val().is_require_grad());
    assert_eq!(values(&trained), values(&saved));

    let frozen = load_module(config.init(&device).no_grad(), &path, None, &device).unwrap();
    assert!(!frozen.weight.val().is_require_grad());

    // A module that is already initialised gets the new values.
    let ready = config.init(&device);
    values(&ready);
    let ready = load_module(ready, &path, None, &device).unwrap();
    assert_eq!(values(&ready), values(&saved));
    assert!(ready.weight.val().is_require_grad());
    // A module that is loaded for inference still knows which parameters to train.
    let plain = config.init(&device.clone().inner());
    let plain = load_module(plain, &path, None, &device.inner()).unwrap();
    assert!(!plain.weight.val().is_require_grad());
    assert!(plain.train().weight.val().is_require_grad());
}

#[test]
fn files_that_do_not_fit_the_module_say_so() {
    let device = Device::default();
    let dir = folder();
    let path = dir.path().join("model.safetensors");
    let load = |tensors: &[(&str, Vec<usize>, Vec<f32>)]| {
        put_safetensors(&path, tensors);
        message(
            load_module(linear(2, 1, &device), &path, None, &device),
            &path,
        )
    };
    let weight = ("weight", vec![2, 1], vec![1.; 2]);
    let bias = ("bias", vec![1], vec![1.]);

    let missing = load(std::slice::from_ref(&weight));
    assert_contains(&missing, &["1 tensor missing: `bias`"]);
    let shape = load(&[weight.clone(), ("bias", vec![2], vec![1.; 2])]);
    assert_contains(&shape, &["`bias`", "[2]", "[1]"]);
    let extra = load(&[weight.clone(), bias.clone(), ("extra", vec![1], vec![1.])]);
    assert_contains(&extra, &["1 tensor that the model does not have: `extra`"]);
    let nan = load(&[("weight", vec![2, 1], vec![1., f32::NAN]), bias.clone()]);
    assert_contains(&nan, &["`weight`", "NaN", "element 1"]);

    let many: Vec<_> = (0..5)
        .map(|_| LinearConfig::new(1, 1).init(&device))
        .collect();
    put_safetensors(&path, std::slice::from_ref(&weight));
    let missing = message(load_module(many, &path, None, &device), &path);
    assert_contains(
        &missing,
        &["10 tensors missing: `0.bias`, `0.weight`, `1.bias` and 7 more"],
    );

    put_safetensors(&path, &[("weight", vec![2, 1], vec![1e5; 2]), bias]);
    let module = linear(2, 1, &device);
    let large = message(
        load_module(module, &path, Some(FloatDType::F16), &device),
        &path,
    );
    assert_contains(&large, &["`weight`", "100000", "bf16"]);

    let specs = ["weight", "bias"].map(|name| TensorSpec {
        name: name.to_string(),
        shape: if name == "bias" { vec![1] } else { vec![2, 1] },
        dtype: DType::I32,
    });
    write_safetensors(&path, &specs, &BTreeMap::new(), |i| {
        Ok(TensorData::zeros::<i32, _>(specs[i].shape.clone()))
    })
    .unwrap();
    let ints = message(
        load_module(linear(2, 1, &device), &path, None, &device),
        &path,
    );
    assert_contains(&ints, &["`weight`", "i32"]);
}

#[test]
fn broken_files_of_ours_say_so() {
    let dir = folder();
    let path = dir.path().join("model.safetensors");
    assert_contains(&message(Weights::open(&path), &path), &["cannot find it"]);
    put_safetensors(&path, &[("a", vec![100], vec![1.; 100])]);
    let bytes = fs::read(&path).unwrap();
    for len in [0, 4, 12, bytes.len() - 1] {
        fs::write(&path, &bytes[..len]).unwrap();
        assert_contains(&message(Weights::open(&path), &path), &["truncated"]);
    }
    fs::write(&path, vec![b'x'; 100]).unwrap();
    assert_contains(
        &message(Weights::open(&path), &path),
        &["not a safetensors file"],
    );
    assert_contains(&message(Weights::open(dir.path()), dir.path()), &["folder"]);

    // Truncated between opening and loading.
    fs::write(&path, &bytes).unwrap();
    let mut weights = Weights::open(&path).unwrap();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(200)
        .unwrap();
    #[derive(Module, Debug)]
    struct A {
        a: Param<Tensor<1>>,
    }
    let device = Device::default();
    let a = untouchable([100], &device);
    assert_contains(
        &message(weights.load("", A { a }, &device, None), &path),
        &["cannot read"],
    );
}

// ---------------------------------------------------------------------------------------------
// Writing
// ---------------------------------------------------------------------------------------------

#[test]
fn written_files_are_valid_and_the_same_every_time() {
    let dir = folder();
    let path = dir.path().join("a.safetensors");
    let specs = [
        ("z", DType::F16, vec![3]),
        ("\"quoted\"\n", DType::F32, vec![]),
        ("e", DType::BF16, vec![0, 2]),
    ]
    .map(|(name, dtype, shape)| TensorSpec {
        name: name.to_string(),
        shape,
        dtype,
    });
    let metadata = [("b", "2"), ("a", "1")].map(|(k, v)| (k.to_string(), v.to_string()));
    let write = || {
        write_safetensors(&path, &specs, &metadata.clone().into(), |i| {
            Ok(TensorData::ones::<f32, _>(specs[i].shape.clone()).convert_dtype(specs[i].dtype))
        })
        .unwrap();
        fs::read(&path).unwrap()
    };
    let bytes = write();
    assert_eq!(bytes, write());
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(header_len % 8, 0);

    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), 3);
    let half = file.tensor("z").unwrap();
    assert_eq!(half.dtype(), safetensors::Dtype::F16);
    assert_eq!(
        half.data(),
        [f16::ONE; 3].map(f16::to_le_bytes).as_flattened()
    );
    assert!(file.tensor("\"quoted\"\n").unwrap().shape().is_empty());
    assert_eq!(file.tensor("e").unwrap().shape(), [0, 2]);
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let dir = folder();
    let path = put(&dir, "model.safetensors", "old");
    let spec = |name: &str, shape: &[usize]| TensorSpec {
        name: name.to_string(),
        shape: shape.to_vec(),
        dtype: DType::F32,
    };
    let ones = |shape: &[usize]| TensorData::ones::<f32, _>(shape.to_vec());
    let none = BTreeMap::new();

    let specs = [spec("a", &[2]), spec("b", &[3])];
    let wrong = write_safetensors(&path, &specs, &none, |_| Ok(ones(&[2])));
    assert_contains(&message(wrong, &path), &["`b`", "[2]", "[3]"]);
    let other = Path::new("elsewhere.bin");
    let failed = write_safetensors(&path, &specs, &none, |_| {
        Err(Source::open(other).unwrap_err())
    });
    assert_contains(&message(failed, other), &["cannot find it"]);
    let twice = [spec("a", &[2]), spec("a", &[2])];
    let twice = write_safetensors(&path, &twice, &none, |_| Ok(ones(&[2])));
    assert_contains(&message(twice, &path), &["`a`", "named twice"]);

    let device = Device::default();
    let mut bad = LinearConfig::new(2, 1).init(&device);
    bad.bias = Some(Param::from_tensor(Tensor::from_data([f32::NAN], &device)));
    let bad = Saver::new(&path, FloatDType::F32).add("x.", bad).finish();
    assert_contains(&message(bad, &path), &["`x.bias`", "NaN"]);

    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

    let absent = dir.path().join("absent/model.safetensors");
    let absent_result = write_safetensors(&absent, &[], &none, |_| Ok(ones(&[2])));
    assert_contains(
        &message(absent_result, &absent),
        &["create the folder first"],
    );
}
