//! Divot-LLM: a decoder that reads video tokens through one projection and predicts them through
//! another.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use divot_gmm::{Head, HeadConfig, SampleOptions, TokenHead};
use divot_nn::ops::{gelu, linear};
use divot_nn::{CheckSizes, Noise, SizeError, check_widths};

use crate::error::LlmError;
use crate::generate::Context;
use crate::lora::LoraConfig;
use crate::mask::Role;
use crate::mistral::{Mistral, MistralConfig};
use crate::prompt::Prompt;

/// How the decoder comes to the features of a clip (the paper's ablation).
#[derive(Config, Debug, Copy, PartialEq, Eq)]
pub enum QueryMechanism {
    /// One feature after another, each predicted where the one before it is read.
    Autoregressive,
    /// All from learned queries, each of which sees those before it.
    Causal,
    /// All from learned queries that see each other, as released.
    Bidirectional,
}

/// Sizes of a [`DivotLlm`].
#[derive(Config, Debug)]
pub struct DivotLlmConfig {
    /// The decoder.
    pub llm: MistralConfig,
    /// What the features are drawn from.
    pub head: HeadConfig,
    /// Tokens of a clip.
    #[config(default = 64)]
    pub num_queries: usize,
    /// How the decoder comes to features.
    #[config(default = "QueryMechanism::Bidirectional")]
    pub query_mechanism: QueryMechanism,
    /// Low-rank adaptation that the weights are trained by and not merged with.
    #[config(default = "None")]
    pub lora: Option<LoraConfig>,
    /// What the loss of the text counts.
    #[config(default = 1.0)]
    pub lm_loss_scale: f64,
    /// What the loss of the features counts.
    #[config(default = 1.0)]
    pub head_loss_scale: f64,
}

impl DivotLlmConfig {
    /// The released sizes.
    pub fn divot() -> Self {
        let head = divot_gmm::GmmConfig::new();
        Self::new(MistralConfig::mistral_7b(), HeadConfig::Gmm(head))
    }

    /// Initialises the model.
    pub fn init(&self, device: &Device) -> DivotLlm {
        let head = self.head.init(device);
        let hidden = self.llm.hidden_size;
        let llm = self.llm.init(device);
        DivotLlm {
            llm: match &self.lora {
                Some(lora) => llm.with_lora(lora),
                None => llm,
            },
            input_proj: FeatureProjection::new(head.dim(), hidden, device),
            output_proj: FeatureProjection::new(hidden, head.params_dim(), device),
            head,
            num_queries: self.num_queries,
            query_mechanism: self.query_mechanism,
            lm_loss_scale: self.lm_loss_scale,
            head_loss_scale: self.head_loss_scale,
            window: self.llm.max_position_embeddings,
        }
    }
}

impl CheckSizes for DivotLlmConfig {
    fn check_sizes(&self) -> Result<(), SizeError> {
        self.llm.check_sizes()?;
        self.head.check_sizes()?;
        if let Some(lora) = &self.lora {
            lora.check_sizes()?;
        }
        check_widths(&[("num_queries", self.num_queries)])
    }
}

/// Linear, GELU, linear: between features and hidden states.
#[derive(Module, Debug)]
pub struct FeatureProjection {
    /// `[input]` → `[output]`.
    pub fc1: Linear,
    /// `[output]` → `[output]`.
    pub fc2: Linear,
}

impl FeatureProjection {
    fn new(input: usize, output: usize, device: &Device) -> Self {
        Self {
            fc1: LinearConfig::new(input, output).init(device),
            fc2: LinearConfig::new(output, output).init(device),
        }
    }

    /// `[batch, tokens, input]` → `[batch, tokens, output]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let bias = self.fc1.bias.as_ref();
        let x = x.cast(bias.map_or(DType::F32, |bias| bias.val().dtype()));
        linear(&self.fc2, gelu(linear(&self.fc1, x)))
    }
}

/// The language model that reads and writes video tokens.
#[derive(Module, Debug)]
pub struct DivotLlm {
    /// The decoder.
    pub llm: Mistral,
    /// Features of the tokenizer to hidden states.
    pub input_proj: FeatureProjection,
    /// Hidden states to the head's parameters.
    pub output_proj: FeatureProjection,
    /// What features are drawn from.
    pub head: Head,
    /// Tokens of a clip.
    pub num_queries: usize,
    #[module(skip)]
    query_mechanism: QueryMechanism,
    lm_loss_scale: f64,
    head_loss_scale: f64,
    window: usize,
}

/// One training sequence, on the host.
#[derive(Debug, Clone, Default)]
pub struct Sequence {
    /// Token ids.
    pub ids: Vec<u32>,
    /// The token that each position should have been predicted as, where that is learned.
    pub labels: Vec<Option<u32>>,
    /// What each position is to attention.
    pub roles: Vec<Role>,
    /// Positions that read features instead of their token's embedding, clip after clip.
    pub inputs: Vec<usize>,
    /// Positions of the clips' tokens to predict, clip after clip.
    pub outputs: Vec<usize>,
}

/// A training batch.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Sequences; shorter ones are padded at their end.
    pub sequences: Vec<Sequence>,
    /// Features to read, `[clips, tokens, width]`, in the order of the sequences' `inputs`.
    pub inputs: Option<Tensor<3>>,
    /// Features to predict, `[clips, tokens, width]`, in the order of the sequences' `outputs`.
    pub targets: Option<Tensor<3>>,
}

/// What a batch costs.
#[derive(Debug, Clone)]
pub struct Losses {
    /// The scaled sum.
    pub total: Tensor<1>,
    /// Cross-entropy of the text, averaged over the tokens that are learned.
    pub lm: Tensor<1>,
    /// The head's loss of the features; 0 where there are none.
    pub head: Tensor<1>,
}

impl DivotLlm {
    /// Positions that the model has.
    pub fn window(&self) -> usize {
        self.window
    }

    /// Width of a token.
    pub fn token_dim(&self) -> usize {
        self.head.dim()
    }

    /// The losses of a batch.
    ///
    /// # Panics
    /// If features and positions are not as many, or a clip that is predicted one feature after another
    /// has nothing before it.
    pub fn forward(&self, batch: &Batch, noise: &mut Noise) -> Losses {
        let device = self.llm.norm.gamma.device();
        let length = batch
            .sequences
            .iter()
            .map(|s| s.ids.len())
            .max()
            .unwrap_or(0);
        let rows = batch.sequences.len();
        let places = |positions: fn(&Sequence) -> &[usize]| -> Vec<usize> {
            let sequences = batch.sequences.iter().enumerate();
            sequences
                .flat_map(|(row, s)| positions(s).iter().map(move |p| row * length + p))
                .collect()
        };
        let (inputs, outputs) = (places(|s| &s.inputs), places(|s| &s.outputs));

        let ids: Vec<i32> = batch
            .sequences
            .iter()
            .flat_map(|s| padded(&s.ids, length, 0).map(|id| id as i32))
            .collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [rows, length]), &device);
        let mut embeds = self.llm.embed(ids);
        if let Some(features) = &batch.inputs {
            embeds = replace(embeds, &inputs, self.input_proj.forward(features.clone()));
        }
        let autoregressive = self.query_mechanism == QueryMechanism::Autoregressive;
        if let Some(features) = &batch.targets
            && autoregressive
        {
            embeds = replace(embeds, &outputs, self.input_proj.forward(features.clone()));
        }
        let roles: Vec<Vec<Role>> = batch
            .sequences
            .iter()
            .map(|s| {
                padded(&s.roles, length, Role::Padding)
                    .map(|role| self.role(role))
                    .collect()
            })
            .collect();
        let hidden = self.llm.forward(embeds, &roles, None);
        let [_, _, width] = hidden.dims();
        let hidden = hidden.reshape([rows * length, width]);

        let lm = self.lm_loss(&hidden, batch, length);
        let head = match &batch.targets {
            None => Tensor::zeros([1], &device),
            Some(targets) => {
                let before = usize::from(autoregressive);
                let seen = outputs.iter().map(|place| {
                    let seen = place.checked_sub(before);
                    seen.expect("the first feature is predicted where `<frame>` is read")
                });
                let [clips, tokens, _] = targets.dims();
                let hidden = select(hidden, seen.collect()).reshape([clips, tokens, width]);
                let params = self.output_proj.forward(hidden);
                self.head.loss(params, targets.clone(), noise).mean()
            }
        };
        Losses {
            total: lm.clone() * self.lm_loss_scale + head.clone() * self.head_loss_scale,
            lm,
            head,
        }
    }

    /// Queries see each other only if the model's do.
    fn role(&self, role: Role) -> Role {
        match role {
            Role::Query { .. } if self.query_mechanism != QueryMechanism::Bidirectional => {
                Role::Causal
            }
            role => role,
        }
    }

    /// Scores are computed only where something is learned.
    fn lm_loss(&self, hidden: &Tensor<2>, batch: &Batch, length: usize) -> Tensor<1> {
        let device = hidden.device();
        let learned = batch.sequences.iter().enumerate().flat_map(|(row, s)| {
            let next = s.labels.iter().skip(1).enumerate();
            next.filter_map(move |(position, label)| Some((row * length + position, (*label)?)))
        });
        let (places, labels): (Vec<usize>, Vec<u32>) = learned.unzip();
        if places.is_empty() {
            return Tensor::zeros([1], &device);
        }
        let count = places.len();
        let hidden = select(hidden.clone(), places).unsqueeze_dim::<3>(0);
        let scores = self.llm.logits(hidden).squeeze_dim::<2>(0);
        let labels: Vec<i32> = labels.into_iter().map(|id| id as i32).collect();
        let labels = Tensor::<2, Int>::from_data(TensorData::new(labels, [count, 1]), &device);
        log_softmax(scores, 1).gather(1, labels).mean().neg()
    }

    /// Reads a prompt into a context, its clips' features in the order of their places.
    ///
    /// `features` are `[clips, tokens, width]`.
    ///
    /// # Errors
    /// If the features do not fit the prompt or the model, or the window has no room.
    pub fn read(
        &self,
        context: &mut Context,
        prompt: &Prompt,
        features: Option<Tensor<3>>,
    ) -> Result<(), LlmError> {
        let Some(&last) = prompt.ids.last() else {
            return Err(LlmError::Empty("prompt"));
        };
        let tokens = context.len() + prompt.ids.len();
        if tokens >= self.window {
            return Err(LlmError::TooLong {
                tokens,
                window: self.window,
            });
        }
        let expected = [prompt.clips.len(), self.num_queries, self.token_dim()];
        let found = match &features {
            Some(features) => features.dims(),
            None => [0, expected[1], expected[2]],
        };
        if found != expected {
            return Err(LlmError::Features {
                found: found.to_vec(),
                tokens: self.num_queries,
                width: self.token_dim(),
            });
        }
        let mut embeds = self.llm.embed_ids(&prompt.ids);
        if let Some(features) = features {
            let places: Vec<usize> = prompt
                .clips
                .iter()
                .flat_map(|&start| start..start + self.num_queries)
                .collect();
            embeds = replace(embeds, &places, self.input_proj.forward(features));
        }
        context.read(&self.llm, embeds, last);
        Ok(())
    }

    /// Draws the features of the clip that begins behind the context, whose last token is `<frame>`:
    /// `[1, tokens, width]`, in f32. The context stays what it was.
    ///
    /// `frames` are the ids of the clip's tokens.
    ///
    /// # Errors
    /// If the window has no room.
    pub fn predict_clip(
        &self,
        context: &mut Context,
        frames: &[u32],
        options: &SampleOptions,
        noise: &mut Noise,
    ) -> Result<Tensor<3>, LlmError> {
        let start = context.len();
        if start + frames.len() > self.window {
            return Err(LlmError::TooLong {
                tokens: start + frames.len(),
                window: self.window,
            });
        }
        let features = if self.query_mechanism == QueryMechanism::Autoregressive {
            let mut features = Vec::with_capacity(frames.len());
            for &frame in frames {
                let hidden = context.hidden().expect("<frame> was read").clone();
                let params = self.output_proj.forward(hidden);
                let feature = self.head.sample(params, options, noise);
                let embeds = self.input_proj.forward(feature.clone());
                context.read(&self.llm, embeds, frame);
                features.push(feature);
            }
            Tensor::cat(features, 1)
        } else {
            let role = self.role(Role::Query { block: start });
            let embeds = self.llm.embed_ids(frames);
            let hidden = context.read_with(&self.llm, embeds, vec![role; frames.len()]);
            self.head
                .sample(self.output_proj.forward(hidden), options, noise)
        };
        context.truncate(start);
        Ok(features.cast(DType::F32))
    }
}

fn padded<T: Copy>(values: &[T], length: usize, padding: T) -> impl Iterator<Item = T> {
    let missing = length - values.len();
    values
        .iter()
        .copied()
        .chain(std::iter::repeat_n(padding, missing))
}

/// Rows of a matrix.
fn select(rows: Tensor<2>, places: Vec<usize>) -> Tensor<2> {
    let places: Vec<i32> = places.into_iter().map(|place| place as i32).collect();
    let indices = Tensor::<1, Int>::from_data(places.as_slice(), &rows.device());
    rows.select(0, indices)
}

/// `embeds`, `[batch, tokens, hidden]`, with `features`, `[clips, tokens, hidden]`, at `places` of the
/// sequences laid end to end.
fn replace(embeds: Tensor<3>, places: &[usize], features: Tensor<3>) -> Tensor<3> {
    let [batch, length, hidden] = embeds.dims();
    let [clips, tokens, _] = features.dims();
    assert_eq!(
        clips * tokens,
        places.len(),
        "as many features as places for them"
    );
    let count = batch * length;
    let rows = embeds.reshape([count, hidden]);
    let features = features
        .reshape([clips * tokens, hidden])
        .cast(rows.dtype());
    let mut sources: Vec<usize> = (0..count).collect();
    for (i, &place) in places.iter().enumerate() {
        sources[place] = count + i;
    }
    select(Tensor::cat(vec![rows, features], 0), sources).reshape([batch, length, hidden])
}
