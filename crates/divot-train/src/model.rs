//! The networks of a run: their sizes, and where their weights come from.

use std::path::Path;

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{DType, Device};
use divot::checkpoint::{CONFIG, Part};
use divot::data::sampling::CLIP_FRAMES;
use divot::gmm::{GmmConfig, HeadConfig};
use divot::language::{DivotLlm, DivotLlmConfig, LoraConfig, MistralConfig};
use divot::resampler::{PerceiverResampler, PerceiverResamplerConfig, VideoResamplerConfig};
use divot::unet::{NoiseScheduleConfig, Solver, Spacing, UnetConfig, Vae, VaeConfig};
use divot::vit::{TextTower, TextTowerConfig, VisionTower, VisionTowerConfig};
use divot::{
    Detokenizer, DetokenizerConfig, GuidanceConfig, SamplingConfig, Tokenizer, TokenizerConfig,
};
use divot_nn::{CheckSizes, SizeError, check_divides, check_same};
use serde_json::Value;

use crate::error::{Error, Result};

/// The networks of a run. An objective says which it needs; the others are absent.
#[derive(Module, Debug)]
pub struct Model {
    /// Frames to video tokens.
    pub tokenizer: Option<Tokenizer>,
    /// Video tokens to frames.
    pub detokenizer: Option<Detokenizer>,
    /// The vision tower, where it learns by itself.
    pub vision: Option<VisionTower>,
    /// CLIP's text tower.
    pub text: Option<TextTower>,
    /// The autoencoder, where it learns by itself.
    pub vae: Option<Vae>,
    /// The language model.
    pub llm: Option<DivotLlm>,
    /// DynamiCrafter's image Perceiver: an image's patch tokens to context tokens for each frame.
    pub image: Option<PerceiverResampler>,
    /// The element type of computations. The parameters may have another type.
    #[module(skip)]
    pub dtype: DType,
}

/// The networks that a converted model may hold: their path in [`Model`], their part, and their name in it where
/// the part is made of several. Where networks have the same path, the last one that is there counts.
pub(crate) const PARTS: [(&str, Part, &str); 14] = [
    ("tokenizer.vision", Part::DynamiCrafter, "vision"),
    ("text", Part::DynamiCrafter, "text"),
    ("image", Part::DynamiCrafter, "image"),
    ("detokenizer.unet", Part::DynamiCrafter, "unet"),
    ("detokenizer.vae", Part::DynamiCrafter, "vae"),
    ("tokenizer", Part::Tokenizer, ""),
    ("detokenizer", Part::AdaptedDetokenizer, ""),
    ("detokenizer", Part::Detokenizer, ""),
    ("text", Part::Clip, ""),
    ("llm", Part::Mistral, ""),
    ("llm", Part::Comprehension, ""),
    ("llm", Part::Generation, ""),
    ("llm", Part::Pretrained, ""),
    ("llm", Part::Llm, ""),
];

impl Default for Model {
    /// No network at all.
    fn default() -> Self {
        Self {
            tokenizer: None,
            detokenizer: None,
            vision: None,
            text: None,
            vae: None,
            llm: None,
            image: None,
            dtype: DType::F32,
        }
    }
}

/// Names of the networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// [`Model::tokenizer`].
    Tokenizer,
    /// [`Model::detokenizer`].
    Detokenizer,
    /// [`Model::vision`].
    Vision,
    /// [`Model::text`].
    Text,
    /// [`Model::vae`].
    Vae,
    /// [`Model::llm`].
    Llm,
    /// [`Model::image`].
    Image,
}

impl Network {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::Tokenizer,
        Self::Detokenizer,
        Self::Vision,
        Self::Text,
        Self::Vae,
        Self::Llm,
        Self::Image,
    ];
}

/// Sizes of every network; those that a run does not need are not built.
#[derive(Config, Debug)]
pub struct ModelConfig {
    /// The video tokenizer, with its vision tower.
    pub tokenizer: TokenizerConfig,
    /// The de-tokenizer, with its autoencoder.
    pub detokenizer: DetokenizerConfig,
    /// CLIP's text tower.
    pub text: TextTowerConfig,
    /// The language model.
    pub llm: DivotLlmConfig,
    /// The image Perceiver of stage 0, with as many queries for each of 16 frames as a frame gets tokens.
    pub image: PerceiverResamplerConfig,
}

impl ModelConfig {
    /// Whether training these networks draws dropout.
    pub(crate) fn has_dropout(&self, networks: &[Network]) -> bool {
        networks.iter().any(|network| match network {
            Network::Detokenizer => self.detokenizer.unet.dropout > 0.0,
            Network::Llm => self
                .llm
                .lora
                .as_ref()
                .is_some_and(|lora| lora.dropout > 0.0),
            _ => false,
        })
    }

    /// The preset of that name.
    pub fn preset(name: &str) -> Option<Self> {
        match name {
            "divot" => Some(Self::divot()),
            "small" => Some(Self::small()),
            "tiny" => Some(Self::tiny()),
            _ => None,
        }
    }

    /// Names of the presets.
    pub const PRESETS: [&str; 3] = ["divot", "small", "tiny"];

    /// The released sizes.
    pub fn divot() -> Self {
        Self::new(
            TokenizerConfig::divot(),
            DetokenizerConfig::divot(),
            TextTowerConfig::vit_h_14(),
            DivotLlmConfig::divot().with_lora(Some(LoraConfig::new())),
            PerceiverResamplerConfig::new(16 * 16, 1280, 1024, 1024)
                .with_depth(4)
                .with_heads(12),
        )
    }

    /// A model for clips of 64 x 64 pixels that learns on a CPU.
    pub fn small() -> Self {
        let vision = VisionTowerConfig::new(64, 8, 192, 6, 3, 128);
        let resampler = VideoResamplerConfig::new(192, 192, 192)
            .with_temporal_depth(1)
            .with_temporal_heads(3)
            .with_spatial_temporal_depth(2)
            .with_spatial_temporal_heads(3)
            .with_resampler_depth(2)
            .with_resampler_heads(3)
            .with_token_dim(32);
        let tokenizer = TokenizerConfig::new(vision, resampler).with_frame_size(64);
        let context = PerceiverResamplerConfig::new(125, 32, 192, 128)
            .with_depth(2)
            .with_heads(3);
        let unet = UnetConfig::new(64, vec![1, 2], 128)
            .with_num_res_blocks(1)
            .with_attention_resolutions(vec![1, 2])
            .with_head_dim(32)
            .with_dropout(0.0);
        let vae = VaeConfig::new()
            .with_channels(32)
            .with_channel_mult(vec![1, 2, 2, 2])
            .with_num_res_blocks(1);
        let detokenizer = DetokenizerConfig::new(context, unet, vae, NoiseScheduleConfig::new())
            .with_latent_size([8, 8]);
        let text = TextTowerConfig::new(77, 49408, 128, 4, 2, 128);
        let decoder =
            MistralConfig::new(32_262, 256, 704, 6, 8, 4).with_max_position_embeddings(4096);
        let head = HeadConfig::Gmm(GmmConfig::new().with_dim(32));
        let llm = DivotLlmConfig::new(decoder, head);
        let image = PerceiverResamplerConfig::new(16 * 16, 192, 192, 128)
            .with_depth(2)
            .with_heads(3);
        Self::new(tokenizer, detokenizer, text, llm, image)
    }

    /// A model for clips of 64 x 64 pixels of the synthetic world, which two cores train in a day. A clip is 32
    /// tokens.
    pub fn tiny() -> Self {
        let vision = VisionTowerConfig::new(64, 8, 128, 4, 2, 64);
        let resampler = VideoResamplerConfig::new(128, 128, 128)
            .with_temporal_depth(1)
            .with_temporal_heads(2)
            .with_pool_size(4)
            .with_spatial_temporal_depth(2)
            .with_spatial_temporal_heads(2)
            .with_resampler_depth(2)
            .with_resampler_heads(2)
            .with_tokens(32)
            .with_token_dim(32);
        let tokenizer = TokenizerConfig::new(vision, resampler).with_frame_size(64);
        let context = PerceiverResamplerConfig::new(48, 32, 128, 128)
            .with_depth(2)
            .with_heads(2);
        // The first transformer over time has heads of its own. Eight of them would be the widest of the network.
        let unet = UnetConfig::new(32, vec![2, 3], 128)
            .with_in_channels(8)
            .with_out_channels(8)
            .with_num_res_blocks(1)
            .with_attention_resolutions(vec![1, 2])
            .with_head_dim(32)
            .with_init_attn_heads(2)
            .with_primary_context(32)
            .with_dropout(0.0);
        // Four channels keep too little of shapes that are as small as two latents.
        let vae = VaeConfig::new()
            .with_latent_channels(8)
            .with_channels(64)
            .with_channel_mult(vec![1, 2])
            .with_num_res_blocks(1)
            .with_patch_size(4);
        // Of one to twenty steps from pure noise, two came nearest to the clips without blurring objects away.
        let sampling = SamplingConfig::new()
            .with_steps(2)
            .with_solver(Solver::Ddim { eta: 0.0 })
            .with_spacing(Some(Spacing::UniformTrailing));
        let detokenizer = DetokenizerConfig::new(context, unet, vae, NoiseScheduleConfig::new())
            .with_latent_size([8, 8])
            .with_sampling(sampling)
            .with_guidance(GuidanceConfig::new().with_scale(1.0));
        let text = TextTowerConfig::new(32, 49408, 128, 2, 2, 64);
        let decoder =
            MistralConfig::new(1024, 192, 384, 6, 6, 2).with_max_position_embeddings(1024);
        let head = HeadConfig::Gmm(GmmConfig::new().with_num_components(8).with_dim(32));
        let llm = DivotLlmConfig::new(decoder, head).with_num_queries(32);
        let image = PerceiverResamplerConfig::new(16 * 8, 128, 128, 128)
            .with_depth(2)
            .with_heads(2);
        Self::new(tokenizer, detokenizer, text, llm, image)
    }

    /// Sizes of the parts that are in a checkpoint's folder; the others are the released ones.
    ///
    /// # Errors
    /// If it has none of the parts, or a configuration cannot be read.
    pub fn of_checkpoint(folder: &Path) -> Result<Self> {
        let mut sizes = json(&Self::divot());
        let mut found = false;
        for (network, part, name) in PARTS {
            let path = part.folder(folder).join(CONFIG);
            if !path.exists() {
                continue;
            }
            let text = std::fs::read(&path).map_err(|error| Error::io(&path, error))?;
            let refused = |problem: String| Error::run(&path, problem, "convert it again");
            let mut config: Value = serde_json::from_slice(&text)
                .map_err(|error| refused(format!("is no configuration ({error})")))?;
            if !name.is_empty() {
                let named = config.get_mut(name).map(Value::take);
                config = named.ok_or_else(|| refused(format!("has no sizes of `{name}`")))?;
            }
            if let Some(place) = sizes.pointer_mut(&format!("/{}", network.replace('.', "/"))) {
                *place = config;
            }
            found = true;
        }
        if !found {
            return Err(Error::run(
                folder,
                "holds no converted model",
                format!(
                    "name a checkpoint's folder or one of {}",
                    Self::PRESETS.join(", ")
                ),
            ));
        }
        let text = sizes.to_string();
        Self::load_binary(text.as_bytes()).map_err(|error| {
            Error::run(
                folder,
                format!("has other configurations ({error})"),
                "convert it again",
            )
        })
    }

    /// These sizes with `changes` put over them, which have the form of the configuration.
    ///
    /// # Errors
    /// A name that the configuration does not have, a value of another kind, or sizes that do not fit
    /// together: the dotted key, and what is wrong.
    pub fn with_changes(&self, changes: &toml::Table) -> Result<Self, (String, String)> {
        let mut sizes = json(self);
        merge(&mut sizes, &toml::Value::Table(changes.clone()), "model")?;
        let text = sizes.to_string();
        let refused = |problem: String| ("model".to_owned(), problem);
        let changed = Self::load_binary(text.as_bytes())
            .map_err(|error| refused(format!("a size is of another kind: {error}")))?;
        // A variant that took the place of another was not looked at before.
        merge(
            &mut json(&changed),
            &toml::Value::Table(changes.clone()),
            "model",
        )?;
        let checked = changed.check_sizes();
        checked.map_err(|error| refused(format!("an invalid configuration: {error}")))?;
        Ok(changed)
    }

    /// Checks that clips and their tokens fit the de-tokenizer.
    ///
    /// # Errors
    /// The first sizes that do not.
    pub fn check_clips(&self) -> Result<(), SizeError> {
        check_same(
            (
                "the tokenizer's token_dim",
                self.tokenizer.resampler.output_size()[1],
            ),
            (
                "the de-tokenizer's input_dim",
                self.detokenizer.resampler.input_dim,
            ),
        )?;
        for side in self.detokenizer.frame_size() {
            check_same(
                ("the tokenizer's frame_size", self.tokenizer.frame_size),
                ("the side of frames that the latent_size makes", side),
            )?;
        }
        Ok(())
    }

    /// Checks that the autoencoder takes the frames.
    ///
    /// # Errors
    /// If it does not.
    pub fn check_autoencoder(&self) -> Result<(), SizeError> {
        check_divides(
            (
                "the autoencoder's downsampling",
                self.detokenizer.vae.downsampling(),
            ),
            ("frame_size", self.tokenizer.frame_size),
        )
    }

    /// Checks that the text tower takes texts in CLIP's own vocabulary of `vocabulary` tokens.
    ///
    /// # Errors
    /// The first size that is too small.
    pub fn check_text(&self, vocabulary: usize) -> Result<(), SizeError> {
        let TextTowerConfig {
            vocab_size,
            context_length,
            ..
        } = self.text;
        if vocab_size < vocabulary || context_length < 2 {
            return Err(SizeError::new(format!(
                "the text tower has {vocab_size} tokens and a context_length of {context_length}, \
                 and at least {vocabulary} and 2 are needed"
            )));
        }
        Ok(())
    }

    /// Checks that images and texts have features of one width.
    ///
    /// # Errors
    /// If they do not.
    pub fn check_contrastive(&self) -> Result<(), SizeError> {
        check_same(
            (
                "the vision tower's embed_dim",
                self.tokenizer.vision.embed_dim,
            ),
            ("the text tower's embed_dim", self.text.embed_dim),
        )
    }

    /// Checks that texts and images fit the UNet as stage 0 has them.
    ///
    /// # Errors
    /// The first sizes that do not.
    pub fn check_stage0(&self) -> Result<(), SizeError> {
        for side in self.detokenizer.frame_size() {
            check_same(
                ("frame_size", self.tokenizer.frame_size),
                ("the side of frames that the latent_size makes", side),
            )?;
        }
        let unet = &self.detokenizer.unet;
        let context = ("the UNet's context_dim", unet.context_dim);
        check_same(("the text tower's width", self.text.width), context)?;
        check_same(("the image's output_dim", self.image.output_dim), context)?;
        check_same(
            ("the text tower's context_length", self.text.context_length),
            ("the UNet's primary_context", unet.primary_context),
        )?;
        check_same(
            ("the image's input_dim", self.image.input_dim),
            ("the vision tower's width", self.tokenizer.vision.width),
        )?;
        check_divides(
            ("a clip's frames", CLIP_FRAMES),
            ("the image's queries", self.image.queries),
        )
    }

    /// Builds the networks `wanted`, with random weights.
    pub fn init(&self, wanted: &[Network], device: &Device) -> Model {
        let wanted = |network| wanted.contains(&network);
        Model {
            tokenizer: wanted(Network::Tokenizer).then(|| self.tokenizer.init(device)),
            detokenizer: wanted(Network::Detokenizer).then(|| self.detokenizer.init(device)),
            vision: wanted(Network::Vision).then(|| self.tokenizer.vision.init(device)),
            text: wanted(Network::Text).then(|| self.text.init(device)),
            vae: wanted(Network::Vae).then(|| self.detokenizer.vae.init(device)),
            llm: wanted(Network::Llm).then(|| self.llm.init(device)),
            image: wanted(Network::Image).then(|| self.image.init(device)),
            dtype: DType::F32,
        }
    }
}

impl CheckSizes for ModelConfig {
    fn check_sizes(&self) -> Result<(), SizeError> {
        self.tokenizer.check_sizes()?;
        self.detokenizer.check_sizes()?;
        self.text.check_sizes()?;
        self.llm.check_sizes()?;
        self.image.check_sizes()?;
        Ok(())
    }
}

fn json(config: &impl Config) -> Value {
    serde_json::to_value(config).unwrap_or_default()
}

/// Puts `change` over `value`. An error names the dotted key.
fn merge(value: &mut Value, change: &toml::Value, path: &str) -> Result<(), (String, String)> {
    match (value, change) {
        // Another variant of an enum takes the place of the one that is there.
        (value @ Value::Object(_), toml::Value::Table(changes)) if is_other(value, changes) => {
            let change = serde_json::to_value(changes);
            *value = change.map_err(|error| (path.to_owned(), error.to_string()))?;
            Ok(())
        }
        (Value::Object(fields), toml::Value::Table(changes)) => {
            for (name, change) in changes {
                let path = format!("{path}.{name}");
                let known: Vec<&str> = fields.keys().map(String::as_str).collect();
                let known = known.join(", ");
                let field = fields.get_mut(name).ok_or_else(|| {
                    (
                        path.clone(),
                        format!("`{name}` is no size; there are {known}"),
                    )
                })?;
                merge(field, change, &path)?;
            }
            Ok(())
        }
        (Value::Object(_), _) => Err((path.to_owned(), "is a table of sizes".to_owned())),
        (value, change) => {
            let change = serde_json::to_value(change);
            *value = change.map_err(|error| (path.to_owned(), error.to_string()))?;
            Ok(())
        }
    }
}

/// Whether `value` and `changes` are different variants of an enum, each a table under the variant's name.
fn is_other(value: &Value, changes: &toml::Table) -> bool {
    let variant = |name: &String| name.starts_with(|first: char| first.is_uppercase());
    let Value::Object(fields) = value else {
        return false;
    };
    let mut names = fields.keys().zip(changes.keys());
    fields.len() == 1
        && changes.len() == 1
        && names.all(|(from, to)| from != to && variant(from) && variant(to))
}

impl Model {
    /// Lets each query of a new de-tokenizer's Perceiver start at a token of its own. A mid-grey clip shows what tells
    /// tokens apart in every clip.
    pub(crate) fn with_queries_at_tokens(mut self) -> Self {
        if let (Some(tokenizer), Some(detokenizer)) = (&self.tokenizer, &mut self.detokenizer) {
            let tokens = tokenizer.unconditional().squeeze_dim(0);
            let resampler = detokenizer.resampler.clone();
            detokenizer.resampler = resampler.starting_at(tokens);
        }
        self
    }

    /// The model with computations in `dtype`.
    pub(crate) fn computing_in(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        if let Some(tokenizer) = &mut self.tokenizer {
            tokenizer.dtype = dtype;
        }
        if let Some(detokenizer) = &mut self.detokenizer {
            detokenizer.dtype = dtype;
        }
        self
    }

    // The accessors panic where an objective asks for a network that it did not name.

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.tokenizer.as_ref().expect("the objective names it")
    }

    /// The de-tokenizer.
    pub fn detokenizer(&self) -> &Detokenizer {
        self.detokenizer.as_ref().expect("the objective names it")
    }

    /// The vision tower that learns by itself.
    pub fn vision(&self) -> &VisionTower {
        self.vision.as_ref().expect("the objective names it")
    }

    /// The text tower.
    pub fn text(&self) -> &TextTower {
        self.text.as_ref().expect("the objective names it")
    }

    /// The language model.
    pub fn llm(&self) -> &DivotLlm {
        self.llm.as_ref().expect("the objective names it")
    }

    /// The image Perceiver.
    pub fn image(&self) -> &PerceiverResampler {
        self.image.as_ref().expect("the objective names it")
    }

    /// Height and width of the images that the vision tower wants, in pixels.
    pub fn vision_size(&self) -> usize {
        let vision = self.vision();
        let [.., patch] = vision.patch_embed.weight.dims();
        let patches = vision.positional_embedding.dims()[0] - 1;
        patch * patches.isqrt()
    }

    /// The autoencoder that learns by itself.
    pub fn vae(&self) -> &Vae {
        self.vae.as_ref().expect("the objective names it")
    }
}
