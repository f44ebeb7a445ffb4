use std::ops::ControlFlow;

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use divot_data::sampling::TOKENIZER_FRAMES;
use divot_data::shots::Shot;
use divot_data::{Clip, ClipReader, Frame, Video, clip_to_chw};
use divot_nn::{CheckSizes, SizeError, check_same, check_widths};
use divot_resampler::{VideoResampler, VideoResamplerConfig};
use divot_vit::{VisionTower, VisionTowerConfig, normalize, preprocess};

use crate::checkpoint::{Checkpoint, Part};
use crate::error::{Error, Result};

/// Sizes of the Divot tokenizer.
#[derive(Config, Debug)]
pub struct TokenizerConfig {
    /// The vision tower.
    pub vision: VisionTowerConfig,
    /// The networks after the vision tower.
    pub resampler: VideoResamplerConfig,
    /// Height and width to which video frames are cropped, in pixels.
    #[config(default = 256)]
    pub frame_size: usize,
}

/// The Divot tokenizer, which converts five frames of a two-second clip to 64 continuous tokens (paper,
/// section 3.1.3).
#[derive(Module, Debug)]
pub struct Tokenizer {
    /// OpenCLIP's ViT-H/14, frozen in every stage of training.
    pub vision: VisionTower,
    /// Temporal transformer, pooling, spatial-temporal transformer and Perceiver Resampler.
    pub resampler: VideoResampler,
    /// Height and width of the vision tower's images, in pixels.
    pub image_size: usize,
    /// Height and width to which video frames are cropped, in pixels.
    pub frame_size: usize,
    /// The element type of computations. The weights may have another type.
    #[module(skip)]
    pub dtype: DType,
}

impl TokenizerConfig {
    /// The released tokenizer: 803.7 M parameters.
    pub fn divot() -> Self {
        Self::new(VisionTowerConfig::vit_h_14(), VideoResamplerConfig::divot())
    }

    /// Returns a reader of clips for the tokenizer.
    pub fn clip_reader(&self) -> ClipReader {
        ClipReader::of_size(self.frame_size)
    }

    /// Initialises the tokenizer with random weights.
    pub fn init(&self, device: &Device) -> Tokenizer {
        Tokenizer {
            vision: self.vision.init(device),
            resampler: self.resampler.init(device),
            image_size: self.vision.image_size,
            frame_size: self.frame_size,
            dtype: DType::F32,
        }
    }
}

impl CheckSizes for TokenizerConfig {
    fn check_sizes(&self) -> Result<(), SizeError> {
        self.vision.check_sizes()?;
        self.resampler.check_sizes()?;
        check_widths(&[("frame_size", self.frame_size)])?;
        check_same(
            ("the vision tower's width", self.vision.width),
            ("the resampler's input_dim", self.resampler.input_dim),
        )?;
        // A clip has these five frames.
        check_same(
            ("the resampler's frames", self.resampler.frames),
            ("the number of a clip's frames", TOKENIZER_FRAMES.len()),
        )
    }
}

impl Tokenizer {
    /// Loads [`Part::Tokenizer`].
    ///
    /// # Errors
    /// If a file is missing, damaged, or does not fit the configuration beside it.
    pub fn load(checkpoint: &mut Checkpoint<'_>) -> Result<(Self, TokenizerConfig)> {
        let config: TokenizerConfig = checkpoint.config(Part::Tokenizer)?;
        let module = config.init(checkpoint.device());
        let mut tokenizer = checkpoint.load(Part::Tokenizer, module)?;
        let weights = tokenizer.vision.class_embedding.val().dtype();
        tokenizer.dtype = checkpoint.compute_dtype(weights);
        Ok((tokenizer, config))
    }

    /// Computes the video tokens of clips.
    ///
    /// `frames`: `[batch, 5, 3, height, width]`, RGB in [-1, 1], frames 0, 4, 8, 12 and 15 of a
    /// clip of 16 at 8 fps. Returns `[batch, tokens, width]`, in f32; released: 64 tokens
    /// of width 256.
    pub fn tokenize(&self, frames: Tensor<5>) -> Tensor<3> {
        self.resampler
            .forward(self.patch_tokens(frames))
            .cast(DType::F32)
    }

    /// Computes the frozen part: patch tokens of every frame, `[batch, 5, 3, height, width]` →
    /// `[batch, 5, patches, width]`.
    pub fn patch_tokens(&self, frames: Tensor<5>) -> Tensor<4> {
        let [batch, count, channels, height, width] = frames.dims();
        let frames = frames.reshape([batch * count, channels, height, width]);
        let patches = self.vision.patch_tokens(self.images(frames));
        let [_, positions, features] = patches.dims();
        patches.reshape([batch, count, positions, features])
    }

    /// Computes the tokens of an all-zero (mid-grey) clip, `[1, tokens, width]`. They are the condition of
    /// the unconditional branch of guidance. Saving a tokenizer stores them with the weights, and
    /// [`Checkpoint::unconditional`] reads them.
    pub fn unconditional(&self) -> Tensor<3> {
        let device = self.vision.class_embedding.device();
        let size = self.frame_size;
        // All frames are the same for the vision tower, so it runs on one.
        let patches = self.patch_tokens(Tensor::zeros([1, 1, 3, size, size], &device));
        self.still(patches.squeeze_dim(1))
    }

    /// Computes [`unconditional`](Self::unconditional) of a saved tokenizer with the same result. Memory
    /// holds one layer of the vision tower, or the networks after the tower, at a time.
    ///
    /// `on_layer` is called after each of them, and may stop the computation.
    ///
    /// # Errors
    /// Those of [`load`](Self::load), or [`Error::Stopped`].
    pub(crate) fn unconditional_by_layers(
        checkpoint: &mut Checkpoint<'_>,
        mut on_layer: impl FnMut() -> ControlFlow<()>,
    ) -> Result<Tensor<3>> {
        let config: TokenizerConfig = checkpoint.config(Part::Tokenizer)?;
        let device = checkpoint.device().clone();
        let mut loading = checkpoint.loading(Part::Tokenizer)?;
        let dtype = loading.dtype();

        // Parameters take no memory until they are filled.
        let mut tokenizer = config.init(&device);
        let blocks = std::mem::take(&mut tokenizer.vision.blocks);
        tokenizer.vision = loading.fill("vision.", tokenizer.vision, dtype)?;
        let size = config.frame_size;
        let images = tokenizer.images(Tensor::zeros([1, 3, size, size], &device));
        let blocks = blocks.into_iter().enumerate().map(|(i, block)| {
            let block = loading.fill(&format!("vision.blocks.{i}."), block, dtype)?;
            match on_layer() {
                ControlFlow::Continue(()) => Ok(block),
                ControlFlow::Break(()) => Err(Error::Stopped),
            }
        });
        let tokens = tokenizer.vision.tokens_by(images, blocks)?;
        let patches = tokens.narrow(1, 1, config.vision.patches());
        tokenizer.resampler = loading.fill("resampler.", tokenizer.resampler, dtype)?;
        loading.finish()?;
        Ok(tokenizer.still(patches))
    }

    /// Computes the tokens of a clip whose frames all have the patch tokens `[1, patches, width]`.
    fn still(&self, patches: Tensor<3>) -> Tensor<3> {
        let patches = patches
            .unsqueeze_dim::<4>(1)
            .repeat_dim(1, TOKENIZER_FRAMES.len());
        self.resampler.forward(patches).cast(DType::F32)
    }

    /// Returns a reader of clips for this tokenizer.
    pub fn clip_reader(&self) -> ClipReader {
        ClipReader::of_size(self.frame_size)
    }

    /// Computes the video tokens of one clip: `[1, tokens, width]`, in f32.
    pub fn tokenize_clip(&self, clip: &Clip) -> Tensor<3> {
        self.tokenize(self.frames(clip.sparse()))
    }

    /// Computes the video tokens of a whole video, in clips of two seconds: `[clips, tokens, width]`, in
    /// f32. A video with more than `max_clips` clips gives this many, spread evenly. The released system
    /// reads 20.
    ///
    /// The file is read once, and one clip is in memory at a time. `on_clip` is called with the number of
    /// finished clips and the total, and may stop the work.
    ///
    /// # Errors
    /// If the video cannot be decoded, or `max_clips` is 0; [`Error::Stopped`] if `on_clip` stops it.
    pub fn tokenize_video(
        &self,
        video: &Video,
        max_clips: usize,
        mut on_clip: impl FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Tensor<3>> {
        let mut tokens = Vec::new();
        let flow =
            self.clip_reader()
                .read_all_sparse(video, max_clips, |number, count, frames| {
                    tokens.push(self.tokenize(self.frames(frames)));
                    on_clip(number + 1, count)
                })?;
        match flow {
            ControlFlow::Continue(()) => Ok(Tensor::cat(tokens, 0)),
            ControlFlow::Break(()) => Err(Error::Stopped),
        }
    }

    /// Computes CLIP's feature of a frame: the class token, projected and scaled to length one. The cosine of two
    /// features, their product, says how alike the frames are.
    ///
    /// # Errors
    /// If the frame is so narrow that it cannot be cut to a square.
    pub fn image_feature(&self, frame: &Frame) -> divot_data::Result<Vec<f32>> {
        let frame = self.clip_reader().transform.frame(frame)?;
        let frames = self.frames(clip_to_chw(std::slice::from_ref(&frame))?);
        let features = self
            .vision
            .image_features(self.images(frames.squeeze_dim(0)));
        let features = normalize(features.cast(DType::F32));
        Ok(features.into_data().iter::<f32>().collect())
    }

    /// Computes how alike neighbouring shots are: the cosine of the [features](Self::image_feature) of a frame near the
    /// end of each shot and of one near the beginning of the next, a twentieth of the shot away. Returns one for each pair
    /// of neighbours, from -1 to 1.
    ///
    /// These are the frames that Panda-70M compares, by ImageBind, whose vision tower is OpenCLIP's ViT-H too.
    ///
    /// The file is read once. `each` is called with the number of pairs that are done, and may stop the work.
    ///
    /// # Errors
    /// If the video cannot be decoded; [`Error::Stopped`] if `each` stops it.
    pub fn similarities(
        &self,
        video: &Video,
        shots: &[Shot],
        mut each: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<f64>> {
        let at = |shot: &Shot, twentieths: usize| {
            let last = shot.frames.len() - 1;
            shot.frames.start + last * twentieths / 20
        };
        let ends = |pair: &[Shot]| [at(&pair[0], 19), at(&pair[1], 1)];
        let indices: Vec<usize> = shots.windows(2).flat_map(ends).collect();
        let mut features: Vec<Option<Vec<f32>>> = vec![None; indices.len()];
        let mut similarities = vec![f64::NAN; indices.len() / 2];
        let mut done = 0;
        let flow = video.visit_until(&indices, |position, frame| {
            let feature = self.image_feature(frame)?;
            match features[position ^ 1].take() {
                None => features[position] = Some(feature),
                Some(other) => {
                    let products = feature.iter().zip(&other).map(|(a, b)| f64::from(a * b));
                    similarities[position / 2] = products.sum();
                    done += 1;
                }
            }
            Ok(each(done))
        })?;
        match flow {
            ControlFlow::Continue(()) => Ok(similarities),
            ControlFlow::Break(()) => Err(Error::Stopped),
        }
    }

    /// Uploads the frames of one clip to the device, `[1, frames, 3, height, width]`.
    fn frames(&self, (values, shape): (Vec<f32>, [usize; 4])) -> Tensor<5> {
        let device = self.vision.class_embedding.device();
        let data = TensorData::new(values, Shape::new(shape));
        Tensor::<4>::from_data(data, &device).unsqueeze_dim(0)
    }

    /// Preprocesses frames for the vision tower: `[images, 3, height, width]` in [-1, 1] →
    /// `[images, 3, image_size, image_size]`.
    fn images(&self, frames: Tensor<4>) -> Tensor<4> {
        preprocess(frames, self.image_size).cast(self.dtype)
    }
}
