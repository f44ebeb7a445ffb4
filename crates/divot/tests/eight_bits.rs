//! Weights that are stored in 8 or 4 bits.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData, f16};
use divot::checkpoint::{Checkpoint, Part, WEIGHTS};
use divot::convert::{Job, ReleasedConfig, convert};
use divot::language::{Layout, Projection, Quantization};
use divot::weights::{
    Saver, Source, StoredType, TensorSpec, Weights, WeightsError, load_module, write_safetensors,
};
use divot::{OpenLlm, VideoLlm};
use safetensors::{Dtype, SafeTensors};

#[derive(Module, Debug)]
struct Network {
    linear: Linear,
    conv: Conv2d,
    /// Rows that blocks of 32 do not divide.
    table: Embedding,
    /// Too few rows, too few values, an odd number of values.
    short: Linear,
    small: Linear,
    odd: Embedding,
    norm: LayerNorm,
}

impl Network {
    fn new(device: &Device) -> Self {
        Self {
            linear: LinearConfig::new(96, 40).init(device),
            conv: Conv2dConfig::new([8, 64], [3, 3]).init(device),
            table: EmbeddingConfig::new(75, 16).init(device),
            short: LinearConfig::new(24, 50).init(device),
            small: LinearConfig::new(32, 8).init(device),
            odd: EmbeddingConfig::new(33, 33).init(device),
            norm: LayerNormConfig::new(40).init(device),
        }
    }
}

/// The parameters that are rounded: name, rows, columns.
const ROUNDED: [(&str, usize, usize); 3] = [
    ("conv.weight", 64, 8 * 9),
    ("linear.weight", 96, 40),
    ("table.weight", 75, 16),
];

fn values(module: &impl Module) -> BTreeMap<String, TensorData> {
    #[derive(Default)]
    struct Collect(divot::weights::ParamPath, BTreeMap<String, TensorData>);
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }

        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.exit();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.insert(self.0.path(), param.val().into_data());
        }
    }
    let mut collect = Collect::default();
    module.visit(&mut collect);
    collect.1
}

fn floats(data: &TensorData) -> Vec<f32> {
    data.iter().collect()
}

#[test]
fn modules_come_back_within_half_a_step() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let saved = Network::new(&device);
    let mut calls = Vec::new();
    Saver::new(&path, StoredType::Q8)
        .metadata("format", "test")
        .add("net.", saved.clone())
        .finish_with(|done, total| {
            calls.push((done, total));
            ControlFlow::Continue(())
        })
        .unwrap();
    let params = values(&saved);
    assert_eq!(calls.len(), params.len());
    let (done, total) = calls[calls.len() - 1];
    assert_eq!(done, total);

    // What other programs see: steps and scales, and f16 for the rest, all of them aligned.
    let file = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    assert_eq!(tensors.len(), params.len() + ROUNDED.len());
    for (name, view) in tensors.tensors() {
        let short = name.strip_prefix("net.").unwrap();
        let of = short.strip_suffix(".scale").unwrap_or(short);
        let rounded = ROUNDED.iter().any(|(name, ..)| *name == of);
        let expected = match rounded && of == short {
            true => Dtype::I8,
            false => Dtype::F16,
        };
        assert_eq!(view.dtype(), expected, "{name}");
        let size = expected.bitsize() / 8;
        let offset = view.data().as_ptr() as usize - file.as_ptr() as usize;
        assert_eq!(offset % size, 0, "{name}");
    }

    // What we see: the parameters.
    let mut weights = Weights::open(&path).unwrap();
    let names: Vec<String> = params.keys().map(|name| format!("net.{name}")).collect();
    assert_eq!(weights.names().collect::<Vec<_>>(), names);
    let count: u64 = params.values().map(|data| data.num_elements() as u64).sum();
    assert_eq!(weights.bytes_as(Some(FloatDType::F32)), 4 * count);
    assert_eq!(weights.bytes_as(None), 2 * count);
    let loaded = weights
        .load(
            "net.",
            Network::new(&device),
            &device,
            Some(FloatDType::F32),
        )
        .unwrap();
    weights.finish().unwrap();
    let loaded = values(&loaded);
    let scale = |name: &str| -> Vec<f32> {
        let view = tensors.tensor(&format!("net.{name}.scale")).unwrap();
        let (scales, _) = view.data().as_chunks();
        scales
            .iter()
            .map(|raw| f16::from_le_bytes(*raw).to_f32())
            .collect()
    };
    for (name, data) in &params {
        let (exact, found) = (floats(data), floats(&loaded[name]));
        match ROUNDED.iter().find(|(rounded, ..)| rounded == name) {
            None => {
                let halves = exact.iter().map(|x| f16::from_f32(*x).to_f32());
                assert_eq!(halves.collect::<Vec<_>>(), found, "{name}");
            }
            Some((_, rows, columns)) => {
                let scales = scale(name);
                assert_eq!(scales.len(), rows.div_ceil(32) * columns);
                for (i, (exact, found)) in exact.iter().zip(&found).enumerate() {
                    let scale = scales[i / columns / 32 * columns + i % columns];
                    let error = (exact - found).abs();
                    assert!(error <= 0.50001 * scale, "{name}: {exact} became {found}");
                    // A value is a whole number of steps, to the bit.
                    assert_eq!((found / scale).round() * scale, *found);
                }
                assert_ne!(exact, found);
            }
        }
    }

    // Without a type it is f16, and so is what conversion and training read.
    let mut weights = Weights::open(&path).unwrap();
    let halves = weights
        .load("net.", Network::new(&device), &device, None)
        .unwrap();
    let source = Source::open(&path).unwrap();
    assert_eq!(source.tensors().len(), params.len());
    for (name, data) in values(&halves) {
        let tensor = source.get(&format!("net.{name}")).unwrap();
        let rounded = ROUNDED.iter().any(|(rounded, ..)| *rounded == name);
        assert_eq!(tensor.stored_type(), if rounded { "q8" } else { "f16" });
        let read = tensor.read().unwrap();
        assert_eq!(read.dtype(), DType::F16);
        assert_eq!(
            read,
            loaded[&name].clone().convert_dtype(DType::F16),
            "{name}"
        );
        assert_eq!(data.convert_dtype(DType::F16), read);
    }
}

#[test]
fn what_cannot_be_rounded_is_named() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for (value, words) in [(1e8, ["1000000", "q8"]), (f32::NAN, ["NaN", "element 70"])] {
        let mut weights = vec![0.5f32; 64 * 16];
        weights[70] = value;
        let data = TensorData::new(weights, [64, 16]);
        let linear = Linear {
            weight: Param::from_tensor(Tensor::from_data(data, &device)),
            bias: None,
        };
        let saved = Saver::new(&path, StoredType::Q8).add("x.", linear).finish();
        says(saved, &path, &[&["`x.weight`"], &words[..]].concat());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

/// Checks that an error is one line with the file and each of the words.
#[track_caller]
fn says<T>(result: Result<T, WeightsError>, file: &Path, words: &[&str]) {
    let line = result.err().expect("an error").to_string();
    assert!(!line.contains('\n'), "{line}");
    for word in [&[file.to_str().unwrap()], words].concat() {
        assert!(line.contains(word), "`{word}` is not in: {line}");
    }
}

/// Writes a matrix `weight` of 8 bits, [64, 16], with these scales beside it.
fn write_matrix(path: &Path, encoding: Option<&str>, scales: Option<TensorData>) {
    let steps: Vec<i8> = (0..64 * 16).map(|i| (i % 7) as i8 - 3).collect();
    let mut tensors = vec![("weight", TensorData::new(steps, [64, 16]))];
    tensors.extend(scales.map(|scales| ("weight.scale", scales)));
    let specs: Vec<_> = tensors
        .iter()
        .map(|(name, data)| TensorSpec {
            name: (*name).to_owned(),
            shape: data.shape().to_vec(),
            dtype: data.dtype(),
        })
        .collect();
    let encoding = encoding.map(|name| ("divot_encoding".to_owned(), name.to_owned()));
    let metadata = encoding.into_iter().collect();
    write_safetensors(path, &specs, &metadata, |i| Ok(tensors[i].1.clone())).unwrap();
}

fn halves(shape: [usize; 2], value: f32) -> TensorData {
    let count = shape[0] * shape[1];
    TensorData::new(vec![f16::from_f32(value); count], shape)
}

fn matrix(device: &Device) -> Linear {
    LinearConfig::new(64, 16).with_bias(false).init(device)
}

#[test]
fn damaged_files_say_what_is_wrong_with_them() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let good = halves([2, 16], 0.25);
    write_matrix(&path, Some("q8"), Some(good.clone()));
    let loaded = load_module(matrix(&device), &path, None, &device).unwrap();
    assert_eq!(
        floats(&loaded.weight.val().into_data())[..4],
        [-0.75, -0.5, -0.25, 0.0]
    );

    // Everything about shapes and names is found before a tensor is read.
    let scales_of_f32 = good.clone().convert_dtype(DType::F32);
    for (encoding, scales, words) in [
        (
            "q8",
            None,
            &["`weight` lacks its scales, `weight.scale`"][..],
        ),
        (
            "q8",
            Some(halves([2, 15], 1.0)),
            &["`weight.scale`", "[2, 15]", "[2, 16]"],
        ),
        (
            "q8",
            Some(halves([16, 2], 1.0)),
            &["`weight.scale`", "[16, 2]", "[2, 16]"],
        ),
        ("q8", Some(scales_of_f32), &["`weight.scale`", "f32", "f16"]),
        ("q3", Some(good.clone()), &["`q3`", "newer version"]),
    ] {
        write_matrix(&path, Some(encoding), scales);
        says(Weights::open(&path), &path, words);
        says(Source::open(&path), &path, words);
    }

    // Programs that do not know of 8 bits see this too.
    write_matrix(&path, None, None);
    let loaded = load_module(matrix(&device), &path, None, &device);
    says(loaded, &path, &["`weight`", "i8 where floats are expected"]);
    write_matrix(&path, Some("q8"), Some(good));
    let wide = LinearConfig::new(64, 32).with_bias(false).init(&device);
    let loaded = load_module(wide, &path, None, &device);
    says(loaded, &path, &["`weight`", "[64, 16]", "[64, 32]"]);
    let packed = |shape| {
        let mut weights = Weights::open(&path).unwrap();
        weights.load_packed("weight", shape, Quantization::Q8, |_, _| {
            ControlFlow::Continue(())
        })
    };
    says(
        packed([32, 32]),
        &path,
        &["`weight`", "[64, 16]", "[32, 32]"],
    );

    for bad in [f32::NAN, f32::INFINITY] {
        write_matrix(&path, Some("q8"), Some(halves([2, 16], bad)));
        let words = ["`weight.scale`", "element 0", "broken"];
        let loaded = load_module(matrix(&device), &path, None, &device);
        says(loaded, &path, &words);
        says(packed([64, 16]), &path, &words);
        let source = Source::open(&path).unwrap();
        says(source.get("weight").unwrap().read(), &path, &words);
    }
    // f16 cannot hold what these become.
    write_matrix(&path, Some("q8"), Some(halves([2, 16], 60000.0)));
    let loaded = load_module(matrix(&device), &path, None, &device);
    says(loaded, &path, &["`weight`", "-180000", "f16"]);
    let loaded = load_module(matrix(&device), &path, Some(FloatDType::F32), &device);
    assert_eq!(
        floats(&loaded.unwrap().weight.val().into_data())[0],
        -180000.0
    );
}

#[test]
fn packed_weights_are_the_stored_ones_to_the_bit() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    // Rounding again would give these blocks another scale: their largest step is 3.
    let scales: Vec<f16> = (0..32).map(|i| f16::from_f32(0.1 + i as f32)).collect();
    write_matrix(&path, Some("q8"), Some(TensorData::new(scales, [2, 16])));
    let mut weights = Weights::open(&path).unwrap();
    let absent = weights.load_packed("bias", [64, 16], Quantization::Q8, |_, _| {
        ControlFlow::Continue(())
    });
    assert!(absent.unwrap().is_none());
    let other = weights.load_packed("weight", [64, 16], Quantization::Q4, |_, _| {
        ControlFlow::Continue(())
    });
    assert!(other.unwrap().is_none());
    let stop = weights.load_packed("weight", [64, 16], Quantization::Q8, |done, total| {
        assert!(done == total && total == 64 * 16 + 64);
        ControlFlow::Break(())
    });
    assert!(matches!(stop, Err(WeightsError::Stopped)));
    let packed = weights
        .load_packed("weight", [64, 16], Quantization::Q8, |_, _| {
            ControlFlow::Continue(())
        })
        .unwrap()
        .unwrap();
    weights.finish().unwrap();

    let exact = load_module(matrix(&device), &path, Some(FloatDType::F32), &device);
    let exact = floats(&exact.unwrap().weight.val().into_data());
    assert_eq!(packed.weights(), exact);
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixture")
}

fn convert_llm(to: &Path, stored: StoredType) {
    let pretrained = fixture().join("pretrained");
    let from = [
        pretrained.join("Divot_sft_gen/llm"),
        pretrained.join("Divot_sft_gen/agent/pytorch_model.bin"),
        pretrained.join("cvlm_mistral_instruct_tokenizer"),
    ];
    let sizes = ReleasedConfig::read(&fixture().join("config.json")).unwrap();
    let job = Job::of(Part::Llm, &from);
    convert(&job, &sizes, to, stored, |_| ControlFlow::Continue(())).unwrap();
}

fn llm(folder: &Path, quantization: Option<Quantization>) -> VideoLlm {
    let mut checkpoint = Checkpoint::new(folder, &Device::flex());
    let open = OpenLlm::open(&checkpoint, Part::Llm).unwrap();
    open.load(&mut checkpoint, quantization).unwrap()
}

/// The scores after each token of a text.
fn scores(llm: &VideoLlm) -> Vec<f32> {
    let decoder = &llm.model.llm;
    let ids: Vec<u32> = (5..45).collect();
    let layout = Layout::causal(1, ids.len());
    let hidden = decoder.forward(decoder.embed_ids(&ids, llm.dtype), &layout, None);
    floats(&decoder.logits(hidden).into_data())
}

fn relative_error(found: &[f32], exact: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let difference: f64 = found.iter().zip(exact).map(|(a, b)| square(a - b)).sum();
    (difference / exact.iter().map(|x| square(*x)).sum::<f64>()).sqrt()
}

/// Matrices are packed in the file, so they load as they are with the same bits, and as floats without.
#[test]
fn a_language_model_keeps_its_stored_bits() {
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [exact, in_8, in_4] = folders.each_ref().map(|folder| folder.path());
    convert_llm(exact, StoredType::F32);
    convert_llm(in_8, StoredType::Q8);
    convert_llm(in_4, StoredType::Q4);
    let file = |folder: &Path| folder.join("llm").join(WEIGHTS);
    let size = |folder: &Path| fs::metadata(file(folder)).unwrap().len();
    assert!(size(in_8) < size(exact) / 3 && size(in_4) < size(in_8));
    for (folder, bits) in [
        (exact, None),
        (in_8, Some(Quantization::Q8)),
        (in_4, Some(Quantization::Q4)),
    ] {
        assert_eq!(Weights::open(&file(folder)).unwrap().packed_bits(), bits);
    }
    let weights = Weights::open(&file(in_4)).unwrap();
    assert_eq!(weights.metadata()["divot_encoding"], "packed");

    let expected = scores(&llm(exact, None));
    for (folder, bits, other, limit) in [
        (in_8, Quantization::Q8, Quantization::Q4, [4e-2, 0.3]),
        (in_4, Quantization::Q4, Quantization::Q8, [0.3, 0.3]),
    ] {
        // The values of the stored bits, in f32.
        let plain = llm(folder, None);
        let restored = tempfile::tempdir().unwrap();
        let open = OpenLlm::open(&Checkpoint::new(folder, &Device::flex()), Part::Llm).unwrap();
        Checkpoint::new(restored.path(), &Device::flex())
            .save(
                Part::Llm,
                &open.config,
                plain.model.clone(),
                Some(&plain.text),
            )
            .unwrap();
        assert_eq!(scores(&llm(restored.path(), None)), scores(&plain));
        for (name, found, limit) in [
            ("floats in memory", scores(&plain), limit[0]),
            ("the same bits", scores(&llm(folder, Some(bits))), limit[0]),
            ("other bits", scores(&llm(folder, Some(other))), limit[1]),
        ] {
            let error = relative_error(&found, &expected);
            println!("{bits:?}, {name}: {error:.1e}");
            assert!(error > 1e-4 && error < limit, "{bits:?}, {name}: {error}");
        }
        // The matrices are those that packing the exact weights gives.
        let [stored, made] = [folder, exact].map(|folder| llm(folder, Some(bits)));
        let bytes = |llm: &VideoLlm| match &llm.model.llm.layers[0].mlp.gate_proj {
            Projection::Packed(packed) => packed.packed().to_vec(),
            _ => panic!("not packed"),
        };
        assert!(bytes(&stored) == bytes(&made));
    }
}

#[test]
fn damaged_packed_matrices_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    convert_llm(folder.path(), StoredType::Q4);
    let path = folder.path().join("llm").join(WEIGHTS);
    let mut file = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let name = "llm.layers.0.mlp.gate_proj.weight";
    let data = tensors.tensor(name).unwrap().data().as_ptr();
    let at = data as usize - file.as_ptr() as usize;
    file[at..at + 2].copy_from_slice(&f16::INFINITY.to_le_bytes());
    fs::write(&path, file).unwrap();
    for quantization in [None, Some(Quantization::Q4), Some(Quantization::Q8)] {
        let mut checkpoint = Checkpoint::new(folder.path(), &Device::flex());
        let open = OpenLlm::open(&checkpoint, Part::Llm).unwrap();
        let error = open
            .load(&mut checkpoint, quantization)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(name) && error.contains("scale"), "{error}");
    }
}
