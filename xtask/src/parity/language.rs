//! Sections of a fixture about the language model.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use burn::module::Module;
use burn::tensor::{DType, Device, FloatDType, Tensor};
use divot::checkpoint::{Checkpoint, Part};
use divot::convert::{Job, Lora, ReleasedConfig, convert};
use divot::{Noise, OpenLlm, VideoLlm};
use divot_gmm::{GaussianMixture, GmmConfig, SampleOptions};
use divot_llm::{
    Context, DivotLlm, KvCache, Layout, Medium, Prompt, Quantization, Role, Rules, Sequence,
    SequenceBuilder, Shown, TextSampling,
};
use divot_train::Model;
use divot_train::objective::Language;
use serde_json::Value;

use super::{Parity, means, norm};

/// The element type of fixtures.
const COMPUTED: DType = DType::F32;

/// Limits of the relative error of the scores with quantised weights: a few quantisation steps. Inputs are rounded to
/// 8 bits too.
const QUANTIZED_LIMITS: [(Quantization, &str, f64); 2] = [
    (Quantization::Q8, "q8", 4e-2),
    (Quantization::Q4, "q4", 0.5),
];

impl Parity {
    fn load_llm(&self, device: &Device, quantization: Option<Quantization>) -> Result<VideoLlm> {
        let mut checkpoint = Checkpoint::new(self.models.path(), device);
        Ok(OpenLlm::open(&checkpoint, Part::Generation)?.load(&mut checkpoint, quantization)?)
    }

    pub(super) fn gmm(&self) -> Result<()> {
        let device = self.device.clone().autodiff();
        let params = self.tensor_on::<3>("gmm/params", &device)?.require_grad();
        let targets = self.tensor_on::<3>("gmm/targets", &device)?;
        let head = GmmConfig::new()
            .with_num_components(self.number("gmm", "num_components")? as usize)
            .with_dim(targets.dims()[2])
            .init();
        let mixture = head.mixture(params.clone(), 1.0);
        self.compare("gmm/means", mixture.means.clone(), self.limits.networks)?;
        self.compare(
            "gmm/variances",
            mixture.variances.clone(),
            self.limits.networks,
        )?;
        self.compare("gmm/logits", mixture.logits.clone(), self.limits.networks)?;
        self.compare("gmm/expected", mixture.expected(), self.limits.networks)?;
        let nll = mixture.nll(targets).mean();
        self.compare("gmm/nll", nll.clone(), self.limits.networks)?;
        let gradients = nll.backward();
        let gradient = params.grad(&gradients).context("params have no gradient")?;
        self.compare("gmm/grad_params", gradient, self.limits.gradients)?;
        self.gmm_draws(&mixture)
    }

    /// Samples one token 200,000 times and reports how many standard errors the worst statistic is off.
    fn gmm_draws(&self, mixture: &GaussianMixture) -> Result<()> {
        const DRAWS: usize = 200_000;
        const AT_ONCE: usize = 2_000;
        let device = &self.device;
        let [_, _, components, dim] = mixture.means.dims();
        let one = |x: Tensor<4>| x.narrow(0, 0, 1).narrow(1, 0, 1).inner();
        let (means, variances) = (one(mixture.means.clone()), one(mixture.variances.clone()));
        let logits = mixture
            .logits
            .clone()
            .narrow(0, 0, 1)
            .narrow(1, 0, 1)
            .inner();
        let floats = |x: Tensor<4>| x.into_data().iter::<f64>().collect::<Vec<_>>();
        let (m, v) = (floats(means.clone()), floats(variances.clone()));
        let scores: Vec<f64> = logits.to_data().iter().collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
        let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp() / total).collect();

        // An extra dimension identifies the component of each sample.
        let places: Vec<f32> = (0..components).map(|i| 1e3 * i as f32).collect();
        let places = Tensor::<1>::from_floats(places.as_slice(), device);
        let places = places.reshape([1, 1, components, 1]);
        let sampled = GaussianMixture {
            means: Tensor::cat(vec![means, places.clone()], 3).repeat_dim(1, AT_ONCE),
            variances: Tensor::cat(vec![variances, places.ones_like()], 3).repeat_dim(1, AT_ONCE),
            logits: logits.repeat_dim(1, AT_ONCE),
        };
        let mut noise = Noise::new(3);
        let (mut sums, mut squares) = (vec![0f64; dim], vec![0f64; dim]);
        let mut counts = vec![0f64; components];
        let mean: Vec<f64> = (0..dim)
            .map(|j| (0..components).map(|i| weights[i] * m[i * dim + j]).sum())
            .collect();
        for _ in 0..DRAWS / AT_ONCE {
            let values: Vec<f64> = sampled.sample(&mut noise).into_data().iter().collect();
            for token in values.chunks_exact(dim + 1) {
                for j in 0..dim {
                    let off = token[j] - mean[j];
                    sums[j] += off;
                    squares[j] += off * off;
                }
                counts[(token[dim] / 1e3).round() as usize] += 1.0;
            }
        }
        let count = DRAWS as f64;
        let moment = |j: usize, f: &dyn Fn(f64, f64) -> f64| -> f64 {
            (0..components)
                .map(|i| weights[i] * f(m[i * dim + j] - mean[j], v[i * dim + j]))
                .sum()
        };
        let mut worst = [0f64; 3];
        for j in 0..dim {
            let second = moment(j, &|d, v| v + d * d);
            let fourth = moment(j, &|d, v| 3.0 * v * v + 6.0 * v * d * d + d.powi(4));
            worst[0] = worst[0].max((sums[j] / count).abs() / (second / count).sqrt());
            let error = ((fourth - second * second) / count).sqrt();
            worst[1] = worst[1].max((squares[j] / count - second).abs() / error);
        }
        for i in 0..components {
            let p = weights[i];
            let error = (p * (1.0 - p) / count).sqrt();
            worst[2] = worst[2].max((counts[i] / count - p).abs() / error);
        }
        for (what, worst) in ["means", "variances", "components"].iter().zip(worst) {
            let name = format!("gmm: {what} of draws, standard errors");
            self.report(&name, &[DRAWS, dim], worst, 4.0);
        }
        Ok(())
    }

    pub(super) fn llm(&self) -> Result<()> {
        let llm = self.load_llm(&self.device, None)?;
        let logits = self.logits(&llm.model)?;
        self.compare("llm/logits", logits.clone(), self.limits.networks)?;
        for (quantization, name, limit) in QUANTIZED_LIMITS {
            let quantized = self.load_llm(&self.device, Some(quantization))?;
            let ours = self.logits(&quantized.model)?;
            // If blocks of 32 do not divide the widths, nothing is quantised and the scores are equal.
            if ours.to_data() != logits.to_data() {
                self.compare_as("llm/logits", &format!("llm/logits in {name}"), ours, limit)?;
            }
        }

        // Queries that see each other: in one pass, and behind a prompt in the cache.
        let ids = self.ids("llm/gen_ids")?.remove(0);
        let mask = self.integers("llm/gen_attention_mask")?;
        let roles = Role::of_released(&mask, llm.model.num_queries);
        let decoder = &llm.model.llm;
        let layout = Layout::new(vec![roles.clone()]);
        let hidden = decoder.forward(decoder.embed_ids(&ids, COMPUTED), &layout, None);
        self.compare("llm/gen_hidden", hidden.clone(), self.limits.networks)?;

        let start = mask.iter().position(|&m| m == -1).context("no queries")?;
        let queries = mask.iter().filter(|&&m| m == -1).count();
        let params = llm
            .model
            .output_proj
            .forward(hidden.narrow(1, start, queries));
        self.compare("llm/gen_gmm_params", params, self.limits.networks)?;

        let mut cache = KvCache::new(decoder.layers.len(), 1);
        let pieces = [0..start / 2, start / 2..start, start..ids.len()];
        let hidden = pieces.map(|piece| {
            let embeds = decoder.embed_ids(&ids[piece.clone()], COMPUTED);
            let layout = Layout::new(vec![roles[piece].to_vec()]);
            decoder.forward(embeds, &layout, Some(&mut cache))
        });
        let hidden = Tensor::cat(hidden.to_vec(), 1);
        let name = "llm/gen_hidden through the cache";
        self.compare_as("llm/gen_hidden", name, hidden, self.limits.networks)
    }

    fn logits(&self, model: &DivotLlm) -> Result<Tensor<3>> {
        let ids = self.ids("llm/ids")?.remove(0);
        let embeds = model.llm.embed_ids(&ids, COMPUTED);
        let hidden = model
            .llm
            .forward(embeds, &Layout::causal(1, ids.len()), None);
        Ok(model.llm.logits(hidden))
    }

    pub(super) fn agent_comp(&self) -> Result<()> {
        self.agent("agent_comp")
    }

    pub(super) fn agent_gen(&self) -> Result<()> {
        self.agent("agent_gen")
    }

    /// Compares training rows, the losses of their batch, and the gradients.
    fn agent(&self, section: &str) -> Result<()> {
        let device = self.device.clone().autodiff();
        let llm = self.load_llm(&device, None)?;
        let name = |tensor: &str| format!("{section}/{tensor}");
        let features = self.tensor_on::<4>(&name("video_embeds"), &device)?;
        let (ids, masks) = (
            self.ids(&name("input_ids"))?,
            self.rows(&name("attention_mask"))?,
        );
        let sequences: Vec<Sequence> = ids
            .iter()
            .zip(&masks)
            .map(|(ids, mask)| rebuilt(&llm, ids, mask))
            .collect::<Result<_>>()?;

        let length = ids.first().map_or(0, Vec::len);
        type Column = fn(&Sequence) -> Vec<i64>;
        let columns: [(&str, Column); 5] = [
            ("input_ids", |row| {
                row.ids.iter().copied().map(i64::from).collect()
            }),
            ("labels", |row| {
                let labels = row.labels.iter();
                labels.map(|label| label.map_or(-100, i64::from)).collect()
            }),
            ("attention_mask", |row| {
                row.roles.iter().map(|role| role.released()).collect()
            }),
            ("ids_cmp_mask", |row| marked(row.len(), &row.inputs)),
            ("ids_gen_mask", |row| marked(row.len(), &row.outputs)),
        ];
        for (tensor, column) in columns {
            let theirs = self.rows(&name(tensor))?;
            let ours = sequences.iter().map(|row| {
                let fits = row.len() <= length;
                fits.then(|| column(&row.padded(length)))
            });
            let wrong = ours
                .zip(theirs)
                .filter(|(ours, theirs)| ours.as_ref() != Some(theirs));
            let wrong = wrong.count() as f64;
            self.report(&name(tensor), &[ids.len(), length], wrong, 0.0);
        }

        let (clips, features) = self.clips(name, features)?;
        let features = move |_: &Model| features;
        let prepared = Language::prepared(sequences, clips, features, Noise::new(0));
        let model = Model {
            llm: Some(llm.model),
            ..Model::default()
        };
        let [lm, head] = means(prepared, &model)?;
        self.compare(&name("lm_loss"), lm.clone(), self.limits.networks)?;
        self.compare(&name("gmm_loss"), head.clone(), self.limits.networks)?;

        let mut gradients = (lm + head).backward();
        let model = model.llm();
        for (part, norm) in [
            ("input", norm(&model.input_proj, &mut gradients)),
            ("llm", norm(&model.llm, &mut gradients)),
            ("output", norm(&model.output_proj, &mut gradients)),
        ] {
            self.compare_values(
                &name(&format!("grad_norm_{part}")),
                vec![norm],
                self.limits.gradients,
            )?;
        }
        Ok(())
    }

    /// Selects the clips that rows read or predict from `[rows, clips, tokens, width]`. Returns how many each row
    /// has, and all of them, `[selected, tokens, width]`.
    fn clips(
        &self,
        name: impl Fn(&str) -> String,
        features: Tensor<4>,
    ) -> Result<(Vec<usize>, Tensor<3>)> {
        let [rows, clips, tokens, width] = features.dims();
        let all = features.reshape([rows * clips, tokens, width]);
        let read = self.integers(&name("embeds_cmp_mask"))?;
        let predicted = self.integers(&name("embeds_gen_mask"))?;
        let marks: Vec<bool> = read
            .iter()
            .zip(&predicted)
            .map(|(read, predicted)| *read != 0 || *predicted != 0)
            .collect();
        let counts = marks
            .chunks(clips.max(1))
            .map(|row| row.iter().filter(|mark| **mark).count());
        let selected = marks.iter().enumerate().filter(|(_, mark)| **mark);
        let selected: Vec<Tensor<3>> = selected
            .map(|(clip, _)| all.clone().narrow(0, clip, 1))
            .collect();
        ensure!(!selected.is_empty(), "no row has a clip");
        Ok((counts.collect(), Tensor::cat(selected, 0)))
    }

    /// Compares a greedy answer, with the cache and by reading everything again for each token.
    pub(super) fn comprehend(&self) -> Result<()> {
        let llm = self.load_llm(&self.device, None)?;
        let (model, decoder) = (&llm.model, &llm.model.llm);
        let ids = self.ids("comprehend/input_ids")?.remove(0);
        let marked = self.rows("comprehend/ids_cmp_mask")?.remove(0);
        let features = self
            .tensor::<4>("comprehend/video_embeds")?
            .squeeze_dim::<3>(0);
        let clips: Vec<usize> = (1..ids.len())
            .filter(|&i| marked[i] != 0 && marked[i - 1] == 0)
            .collect();
        let prompt = Prompt { ids, clips };
        let greedy = self.integers("comprehend/greedy_ids")?;

        let mut context = Context::new(decoder, 1, COMPUTED);
        model.read(&mut context, &prompt, Some(features.clone()))?;
        let hidden = context.hidden().context("nothing was read")?.clone();
        let logits = decoder.logits(hidden).squeeze_dim::<2>(1);
        self.compare("comprehend/last_logits", logits, self.limits.networks)?;

        let sampling = TextSampling::greedy().with_max_new_tokens(greedy.len());
        let order = llm.tokens.order();
        let rules = Rules {
            sampling: &sampling,
            stop: &[],
            order: Some(&order),
            window: model.window(),
        };
        let noise = &mut Noise::new(0);
        let go_on = |_| ControlFlow::Continue(());
        let remembered = decoder.generate(&mut context, rules, noise, go_on)?.ids;
        self.compare_ids("comprehend/greedy_ids", &remembered)?;

        let once = TextSampling::greedy().with_max_new_tokens(1);
        let rules = Rules {
            sampling: &once,
            ..rules
        };
        let mut longer = prompt.clone();
        for _ in 0..greedy.len() {
            let mut context = Context::new(decoder, 1, COMPUTED);
            model.read(&mut context, &longer, Some(features.clone()))?;
            let next = decoder.generate(&mut context, rules, noise, go_on)?;
            longer.ids.extend(next.ids);
        }
        let repeated = &longer.ids[prompt.ids.len()..];
        let wrong = repeated
            .iter()
            .zip(&remembered)
            .filter(|(a, b)| a != b)
            .count();
        let name = "comprehend/greedy_ids without the cache";
        self.report(name, &[repeated.len()], wrong as f64, 0.0);
        self.draws(&llm, &prompt)
    }

    /// Compares what a seed samples on this device and on the CPU: text and features must be the same. Rounding to TF32
    /// changes some of the words that are drawn, and with them all that follows.
    fn draws(&self, llm: &VideoLlm, prompt: &Prompt) -> Result<()> {
        if divot::device::is_cuda(&self.device) {
            return Ok(());
        }
        let cpu = divot::device::select("cpu")?;
        let elsewhere = self.load_llm(&cpu, None)?;
        let draw = |llm: &VideoLlm, device: &Device| -> Result<(Vec<u32>, Tensor<3>)> {
            let (model, noise) = (&llm.model, &mut Noise::new(7));
            let features = self.tensor_on::<4>("comprehend/video_embeds", device)?;
            let mut context = Context::new(&model.llm, 1, COMPUTED);
            model.read(&mut context, prompt, Some(features.squeeze_dim::<3>(0)))?;
            let sampling = TextSampling::new()
                .with_temperature(1.0)
                .with_top_p(1.0)
                .with_max_new_tokens(32);
            let rules = Rules {
                sampling: &sampling,
                stop: &[],
                order: None,
                window: model.window(),
            };
            let go_on = |_| ControlFlow::Continue(());
            let text = model.llm.generate(&mut context, rules, noise, go_on)?;
            let options = SampleOptions::new();
            let frames = &llm.tokens.features;
            let clip = model.predict_clip(&mut context, frames, &options, noise)?;
            Ok((text.ids, clip))
        };
        let (ours, clip) = draw(llm, &self.device)?;
        let (theirs, expected) = draw(&elsewhere, &cpu)?;
        let wrong = ours.iter().zip(&theirs).filter(|(a, b)| a != b).count();
        self.report(
            "comprehend: tokens drawn, as on the CPU",
            &[ours.len()],
            wrong as f64,
            0.0,
        );
        let name = "comprehend: features drawn, as on the CPU";
        self.compare_pair(
            name,
            clip.into_data(),
            expected.into_data(),
            self.limits.networks,
        )
    }

    /// Compares LoRA beside its weights, merged during conversion, and merged after loading.
    pub(super) fn lora(&self) -> Result<()> {
        let pretrained = self.dir.join("pretrained");
        let alpha = Some(self.number("lora", "lora_alpha")?);
        let sizes = ReleasedConfig::read(&self.dir.join("config.json"))?;
        let sources: [PathBuf; 3] = [
            pretrained.join("Divot_lora"),
            pretrained.join("Divot_sft_gen/llm"),
            pretrained.join("cvlm_mistral_instruct_tokenizer"),
        ];
        let load = |lora: Lora| -> Result<DivotLlm> {
            let folder = tempfile::tempdir()?;
            let job = Job {
                lora,
                ..Job::of(Part::Llm, &sources)
            };
            convert(&job, &sizes, folder.path(), FloatDType::F32, |_| {
                ControlFlow::Continue(())
            })?;
            let mut checkpoint = Checkpoint::new(folder.path(), &self.device);
            let llm = OpenLlm::open(&checkpoint, Part::Llm)?;
            Ok(llm.load(&mut checkpoint, None)?.model)
        };
        let beside = load(Lora::Keep { alpha })?;
        self.compare("lora/logits", self.logits(&beside)?, self.limits.networks)?;
        let folded = load(Lora::Merge { alpha })?;
        self.compare(
            "lora/merged_logits",
            self.logits(&folded)?,
            self.limits.networks,
        )?;
        ensure!(
            beside.num_params() > folded.num_params(),
            "the low-rank matrices are still there"
        );
        let mut folded = beside;
        folded.llm = folded.llm.merge_lora();
        let logits = self.logits(&folded)?;
        let name = "lora/merged_logits after loading";
        self.compare_as("lora/merged_logits", name, logits, self.limits.networks)
    }

    /// Compares the ids of texts, special tokens included.
    pub(super) fn prompts(&self) -> Result<()> {
        let path = self.dir.join("prompts.json");
        if self.io.get("llm/ids").is_none() {
            return Ok(());
        }
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{}: cannot be read", path.display()))?;
        let cases: Vec<Value> = serde_json::from_str(&text)?;
        let llm = self.load_llm(&self.device, None)?;
        for (number, case) in cases.iter().enumerate() {
            let text = case["text"].as_str().context("prompts.json: text")?;
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone())?;
            let ours = llm.text.encode_with_special(text)?;
            let wrong = f64::from(u8::from(ours != ids));
            self.report(&format!("prompts/{number}"), &[ids.len()], wrong, 0.0);
            if let Some((what, prompt)) = asked(&llm, text)? {
                let bos = llm.text.bos();
                let theirs: Vec<u32> = std::iter::once(bos).chain(ids).collect();
                let wrong = f64::from(u8::from(prompt.ids != theirs));
                let name = format!("prompts/{number} as {what}");
                self.report(&name, &[theirs.len()], wrong, 0.0);
            }
        }
        Ok(())
    }

    /// Reads integers of `[rows, columns]`.
    fn rows(&self, name: &str) -> Result<Vec<Vec<i64>>> {
        let data = self.data(name)?;
        let columns = *data.shape().last().context("a table without columns")?;
        let values: Vec<i64> = data.iter::<i64>().collect();
        Ok(values.chunks(columns).map(<[i64]>::to_vec).collect())
    }

    fn ids(&self, name: &str) -> Result<Vec<Vec<u32>>> {
        let rows = self.rows(name)?.into_iter();
        Ok(rows
            .map(|row| row.into_iter().map(|id| id as u32).collect())
            .collect())
    }

    /// Counts the tokens that differ.
    fn compare_ids(&self, name: &str, ours: &[u32]) -> Result<()> {
        let theirs = self.integers(name)?;
        let same = ours
            .iter()
            .zip(&theirs)
            .filter(|(a, b)| i64::from(**a) == **b);
        let wrong = theirs.len().max(ours.len()) - same.count();
        self.report(name, &[theirs.len()], wrong as f64, 0.0);
        Ok(())
    }
}

/// Builds a training row from the texts of a fixture's row.
fn rebuilt(llm: &VideoLlm, ids: &[u32], mask: &[i64]) -> Result<Sequence> {
    const ASKED: &str = "Generate a video of";
    let (text, tokens) = (&llm.text, &llm.tokens);
    let ids = &ids[..mask.iter().filter(|mark| **mark != 0).count()];
    let rows = SequenceBuilder {
        text,
        tokens,
        max_length: ids.len(),
    };
    let [open, close] = tokens.marks(Medium::Video);
    let start = ids.iter().position(|&id| id == open);
    let end = ids.iter().rposition(|&id| id == close);
    let (start, end) = start.zip(end).context("a row without a video")?;
    if mask.contains(&-1) {
        let prompt = text.decode(&ids[1..start], false)?;
        let caption = prompt
            .strip_prefix(&format!("[INST] {ASKED} "))
            .and_then(|rest| rest.strip_suffix(" [/INST]\n"));
        return Ok(match caption {
            Some(caption) => rows.generation(Medium::Video, Some(ASKED), caption)?,
            None => rows.generation(Medium::Video, None, &prompt)?,
        });
    }
    let clips = ids.iter().filter(|&&id| id == tokens.clip).count();
    let caption = text.decode(&ids[end + 1..ids.len() - 1], false)?;
    Ok(rows.caption(Shown::Video(clips), None, &caption)?)
}

/// Returns a vector of `length` with 1 at `indices` and 0 elsewhere.
fn marked(length: usize, indices: &[usize]) -> Vec<i64> {
    let mut marks = vec![0; length];
    for &index in indices {
        marks[index] = 1;
    }
    marks
}

/// Builds the prompt of a fixture's text from its parts, as users do. Returns `None` for other texts.
fn asked(llm: &VideoLlm, text: &str) -> Result<Option<(&'static str, Prompt)>> {
    let Some(inner) = text
        .strip_prefix("[INST] ")
        .and_then(|rest| rest.strip_suffix(" [/INST]\n"))
    else {
        return Ok(None);
    };
    if let Some(caption) = inner.strip_prefix("Generate a video of ") {
        return Ok(Some(("a caption", Prompt::generation(&llm.text, caption)?)));
    }
    let clip: String = (0..llm.model.num_queries)
        .map(|i| format!("<frame_{i:05}>"))
        .collect();
    let clip = format!("<frame>{clip}</frame>");
    for (open, close, what) in [
        ("<vid>", "</vid>", "a question about a video"),
        ("<img>", "</img>", "a question about an image"),
    ] {
        if let Some(rest) = inner.strip_prefix(open)
            && let Some((clips, question)) = rest.split_once(close)
            && clips == clip.repeat(clips.matches("<frame>").count())
            && !clips.is_empty()
        {
            let shown = match open {
                "<img>" => Shown::Image,
                _ => Shown::Video(clips.matches("<frame>").count()),
            };
            let prompt = Prompt::question(&llm.text, &llm.tokens, shown, question)?;
            return Ok(Some((what, prompt)));
        }
    }
    Ok(None)
}
