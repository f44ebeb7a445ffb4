//! Time and memory of the language model.

use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use clap::ValueEnum;
use divot::checkpoint::{Checkpoint, Part};
use divot::weights::{Saver, StoredType};
use divot::{Noise, OpenLlm, Task, VideoLlm, peak_memory};
use divot_llm::tokenizer::Segment;
use divot_llm::{
    Batch, Context, DivotLlmConfig, Layout, Mistral, MistralConfig, Projection, Quantization, Role,
    Rules, Sequence, TextSampling, TextTokenizer,
};

use super::{Arguments, Work, works};

/// The element type of loaded weights.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
    Q8,
    Q4,
}

impl Dtype {
    pub fn quantization(self) -> Option<Quantization> {
        match self {
            Self::Q8 => Some(Quantization::Q8),
            Self::Q4 => Some(Quantization::Q4),
            _ => None,
        }
    }

    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub fn float(self) -> Option<FloatDType> {
        match self {
            Self::F32 => Some(FloatDType::F32),
            Self::F16 => Some(FloatDType::F16),
            Self::Bf16 => Some(FloatDType::BF16),
            Self::Q8 | Self::Q4 => None,
        }
    }
}

/// A decoder of 0.2 B parameters in Mistral's proportions.
fn mid_size(device: &Device) -> Mistral {
    MistralConfig::new(8192, 1024, 3584, 12, 16, 4).init(device)
}

pub fn prompt(tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| 3 + i % 500).collect()
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// Returns the element type for the weights of `--model`.
fn dtype(arguments: &Arguments) -> Dtype {
    arguments.dtype.unwrap_or(Dtype::Q8)
}

/// Loads the language model of `--model`, if given.
fn load(arguments: &Arguments, device: &Device) -> Result<Option<VideoLlm>> {
    let Some(model) = &arguments.model else {
        return Ok(None);
    };
    let mut checkpoint = Checkpoint::new(model, device);
    if let Some(float) = dtype(arguments).float() {
        checkpoint = checkpoint.with_dtype(float);
    }
    let quantization = dtype(arguments).quantization();
    let llm = OpenLlm::best(&checkpoint, Task::Comprehension)?;
    Ok(Some(llm.load(&mut checkpoint, quantization)?))
}

/// Computes the perplexity of a text: exp of the mean negative log-likelihood of its tokens, in windows
/// of 512.
pub fn perplexity(name: &str, arguments: &Arguments, device: &Device) -> Result<()> {
    let (Some(path), Some(llm)) = (&arguments.text, load(arguments, device)?) else {
        println!("{name:12} skipped: it needs --model and --text");
        return Ok(());
    };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{}: cannot be read as text", path.display()))?;
    let ids = llm.text.encode(&[Segment::Text(&text)])?;
    ensure!(!ids.is_empty(), "{}: holds no text", path.display());
    let (model, bos) = (&llm.model, llm.text.bos());
    let mut total = 0.0;
    for window in ids.chunks(512) {
        let ids: Vec<u32> = std::iter::once(bos).chain(window.iter().copied()).collect();
        let labels = ids.iter().enumerate().map(|(i, &id)| (i > 0).then_some(id));
        let row = Sequence {
            labels: labels.collect(),
            roles: vec![Role::Causal; ids.len()],
            positions: (0..ids.len()).collect(),
            ids,
            ..Sequence::default()
        };
        let batch = Batch {
            sequences: vec![row],
            inputs: None,
            targets: None,
        };
        let loss = model.lm_loss(model.hidden(&batch, llm.dtype), &batch);
        total += loss.sum.into_scalar::<f64>();
    }
    println!(
        "{name:12} {:?}: {:.4} over {} tokens",
        dtype(arguments),
        (total / ids.len() as f64).exp(),
        ids.len()
    );
    Ok(())
}

/// Writes a language model of the released size with random weights, and runs [`tokens`] with it in a new process.
/// What was just written is in the disk cache.
pub fn load_from_disk(arguments: &Arguments) -> Result<()> {
    let dtype = arguments.dtype.unwrap_or(Dtype::Q4);
    let stored = dtype.name().parse::<StoredType>()?;
    let folder = tempfile::tempdir().context("a temporary folder cannot be made")?;
    let mut config = DivotLlmConfig::divot();
    // A text tokenizer is needed, and any will do.
    let mut text = TextTokenizer::train(["how a text tokenizer is trained"].into_iter(), 300)?;
    text.add_divot_tokens()?;
    config.llm.vocab_size = config.llm.vocab_size.max(text.vocab_size());
    let device = Device::flex();
    device.seed(0);
    Checkpoint::new(folder.path(), &device)
        .with_stored_type(stored)
        .save(Part::Llm, &config, config.init(&device), Some(&text))?;
    let arguments = Arguments {
        dtype: Some(dtype),
        model: Some(folder.path().to_owned()),
        ..arguments.clone()
    };
    let status = super::ourselves(Work::LlmLoad, &arguments)?.status()?;
    ensure!(status.success(), "{} failed", Work::LlmLoad.name());
    Ok(())
}

/// Times a prompt and the text after it.
pub fn tokens(name: &str, arguments: &Arguments, device: &Device) -> Result<()> {
    divot_nn::ops::enable_bf16_products(dtype(arguments) == Dtype::Bf16);
    let started = Instant::now();
    let (decoder, computed, what) = match load(arguments, device)? {
        None => (
            mid_size(device),
            DType::F32,
            "0.2 B, random, f32".to_owned(),
        ),
        Some(llm) => {
            let computed = llm.dtype;
            let decoder = llm.model.llm;
            println!(
                "{name:12} loaded in {:.1} s: {:.2} GiB of decoder, peak memory {:.2} GiB",
                started.elapsed().as_secs_f64(),
                gib(size(decoder.clone())),
                gib(peak_memory().unwrap_or(0))
            );
            let what = format!("{:?}", dtype(arguments)).to_lowercase();
            (decoder, computed, what)
        }
    };
    let (prompt, count) = (prompt(256), 16);
    // Run twice and keep the second.
    let mut times = (0.0, 0.0);
    let mut said = Vec::new();
    for _ in 0..2 {
        let mut context = Context::new(&decoder, prompt.len() + count + 1, computed);
        let started = Instant::now();
        context.read(&decoder, decoder.embed_ids(&prompt, computed), 0);
        let first = generate(&decoder, &mut context, 1)?;
        let read = started.elapsed().as_secs_f64();
        context.read(&decoder, decoder.embed_ids(&first, computed), first[0]);
        let started = Instant::now();
        said = generate(&decoder, &mut context, count)?;
        times = (read, started.elapsed().as_secs_f64() / count as f64);
    }
    println!(
        "{name:12} {what}: prompt of {} tokens {:.2} s, {:.1} ms per token, peak memory {:.2} GiB; first tokens {:?}",
        prompt.len(),
        times.0,
        1e3 * times.1,
        gib(peak_memory().unwrap_or(0)),
        &said[..4]
    );
    Ok(())
}

/// Compares the time of a token far into a text with that of a token near its start, and with that of a token whose
/// keys and values are kept in f16. The texts alternate, so that other load on the machine affects all.
pub fn cache(name: &str, device: &Device) -> Result<()> {
    let decoder = mid_size(device);
    let count = 48;
    let texts = [(200, DType::F32), (1400, DType::F32), (1400, DType::F16)];
    let mut texts = texts.map(|(position, kept)| {
        let mut context = Context::new(&decoder, 1, DType::F32).with_cache_dtype(kept);
        context.read(
            &decoder,
            decoder.embed_ids(&prompt(position), DType::F32),
            0,
        );
        (context, Vec::new())
    });
    let capacities = texts.each_ref().map(|(context, _)| context.capacity());
    for _ in 0..count {
        for (context, times) in &mut texts {
            let started = Instant::now();
            context.read(&decoder, decoder.embed_ids(&[7], DType::F32), 7);
            generate(&decoder, context, 1)?;
            times.push(started.elapsed().as_secs_f64());
        }
    }
    let medians = texts.each_mut().map(|(_, times)| {
        times.sort_by(f64::total_cmp);
        1e3 * times[times.len() / 2]
    });
    let after = texts.each_ref().map(|(context, _)| context.capacity());
    ensure!(after == capacities, "a token made the cache grow");
    let ratio = medians[1] / medians[0];
    println!(
        "{name:12} 0.2 B: {:.1} ms a token at position 200, {:.1} ms at 1400: {:.2} times as much (medians); room for {} and {} positions before and after; keys and values in f16: {:.1} ms at 1400",
        medians[0], medians[1], ratio, capacities[0], capacities[1], medians[2]
    );
    ensure!(ratio <= 1.5, "a token far into a text costs too much more");
    Ok(())
}

pub fn generate(decoder: &Mistral, context: &mut Context, count: usize) -> Result<Vec<u32>> {
    let sampling = TextSampling::greedy().with_max_new_tokens(count);
    let rules = Rules {
        sampling: &sampling,
        stop: &[],
        order: None,
        window: usize::MAX,
    };
    let go_on = |_| ControlFlow::Continue(());
    Ok(decoder
        .generate(context, rules, &mut Noise::new(0), go_on)?
        .ids)
}

/// Compares the scores of llama.cpp with ours, on the same small weights in f32, 8 and 4 bits. Each quantises them
/// itself, so the errors of both against f32 are compared.
pub fn check(arguments: &Arguments) -> Result<()> {
    let folder = tempfile::tempdir().context("a temporary folder cannot be made")?;
    let [weights, ids, out] =
        ["decoder.safetensors", "ids.json", "scores"].map(|n| folder.path().join(n));
    let device = divot::device::select(&arguments.device)?;
    device.seed(0);
    let decoder = MistralConfig::new(500, 256, 768, 3, 8, 2).init(&device);
    let sizes = [
        ("vocabulary", 500),
        ("width", 256),
        ("inner", 768),
        ("layers", 3),
        ("heads", 8),
        ("key_value_heads", 2),
    ];
    let file = Saver::new(&weights, FloatDType::F32).add("", decoder.clone());
    let file = sizes.iter().fold(file, |file, (name, size)| {
        file.metadata(*name, size.to_string())
    });
    file.finish()?;
    let prompt = prompt(200);
    std::fs::write(&ids, serde_json::to_string(&prompt)?)?;

    let ours = |dtype: Dtype| -> Result<Vec<f32>> {
        let decoder = in_type(decoder.clone(), dtype);
        let embeds = decoder.embed_ids(&prompt, DType::F32);
        let hidden = decoder.forward(embeds, &Layout::causal(1, prompt.len()), None);
        let scores = decoder.logits(hidden).into_data();
        Ok(scores.try_into_vec()?)
    };
    let theirs = |format: &str| -> Result<Vec<f32>> {
        let mut command = super::python(arguments, "peer/llama.py");
        let status = command
            .arg("--scores")
            .args([&weights, &ids, &out])
            .args(["--dtype", format])
            .args(["--threads", &arguments.threads().to_string()])
            .status()
            .context(super::REMEDY)?;
        ensure!(status.success(), "llama.py failed");
        let bytes = std::fs::read(&out)?;
        Ok(bytes
            .as_chunks()
            .0
            .iter()
            .map(|raw| f32::from_le_bytes(*raw))
            .collect())
    };
    let error = |a: &[f32], b: &[f32]| {
        let squares =
            |of: &mut dyn Iterator<Item = f32>| of.map(|x| f64::from(x).powi(2)).sum::<f64>();
        let difference = squares(&mut a.iter().zip(b).map(|(a, b)| a - b));
        (difference / squares(&mut b.iter().copied())).sqrt()
    };
    let exact = ours(Dtype::F32)?;
    let found = theirs("f32")?;
    ensure!(
        found.len() == exact.len(),
        "llama.cpp gave {} scores",
        found.len()
    );
    let agree = error(&found, &exact);
    println!("f32: the scores of llama.cpp differ from ours by {agree:.1e} of their size");
    ensure!(
        agree < 1e-3,
        "llama.cpp and ours compute different decoders"
    );
    for (dtype, format) in [(Dtype::Q8, "q8"), (Dtype::Q4, "q4")] {
        let [ours, theirs] = [ours(dtype)?, theirs(format)?].map(|scores| error(&scores, &exact));
        println!("{format}: ours err by {ours:.4}, those of llama.cpp by {theirs:.4}");
        ensure!(ours <= 1.1 * theirs, "ours err more");
    }
    let mixed = error(&theirs("q4_k_m")?, &exact);
    println!("Q4_K_M: those of llama.cpp err by {mixed:.4}");
    Ok(())
}

/// Casts or quantises a decoder.
pub fn in_type(mut decoder: Mistral, dtype: Dtype) -> Mistral {
    let Some(quantization) = dtype.quantization() else {
        return works::cast(decoder, dtype.float().unwrap_or(FloatDType::F32));
    };
    let on_host = divot::device::is_cpu(&decoder.norm.gamma.device());
    let layers = decoder.layers.iter_mut();
    let projections = layers.flat_map(|layer| layer.projections_mut().map(|(_, slot)| slot));
    for slot in projections.chain([&mut decoder.lm_head]) {
        *slot = slot.clone().quantize(quantization, on_host);
    }
    decoder
}

/// Returns the size of a decoder's weights in bytes.
fn size(mut decoder: Mistral) -> u64 {
    struct Floats(usize);
    impl ModuleVisitor for Floats {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = param.val();
            self.0 += tensor.shape().num_elements() * tensor.dtype().size();
        }
    }
    let mut floats = Floats(0);
    decoder.visit(&mut floats);
    let layers = decoder.layers.iter_mut();
    let projections = layers.flat_map(|layer| layer.projections_mut().map(|(_, p)| p));
    let packed: usize = projections
        .chain([&mut decoder.lm_head])
        .map(|projection| match projection {
            Projection::Packed(packed) => packed.bytes(),
            _ => 0,
        })
        .sum();
    (floats.0 + packed) as u64
}
