use std::ops::ControlFlow;

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use divot_data::sampling::{
    TOKENIZER_FRAMES, comprehend_indices, reconstruct_indices_from, tokenizer_indices,
};
use divot_data::transform::frame_to_chw;
use divot_data::{Transform, Video};
use divot_nn::{CheckSizes, SizeError, check_same, check_widths};
use divot_resampler::{VideoResampler, VideoResamplerConfig};
use divot_vit::{VisionTower, VisionTowerConfig, preprocess};

use crate::checkpoint::{Checkpoint, Part};
use crate::error::Result;
use crate::reconstruct::Clip;
use crate::weights::WeightsError;

/// Sizes of the Divot tokenizer.
#[derive(Config, Debug)]
pub struct TokenizerConfig {
    /// The vision tower.
    pub vision: VisionTowerConfig,
    /// What follows it.
    pub resampler: VideoResamplerConfig,
    /// Height and width that video frames are cut to, in pixels.
    #[config(default = 256)]
    pub frame_size: usize,
}

/// The Divot tokenizer: five frames of a two-second clip in, 64 continuous tokens out (paper,
/// section 3.1.3).
#[derive(Module, Debug)]
pub struct Tokenizer {
    /// OpenCLIP's ViT-H/14, frozen in every stage of training.
    pub vision: VisionTower,
    /// Temporal transformer, pooling, spatial-temporal transformer and Perceiver Resampler.
    pub resampler: VideoResampler,
    /// Height and width of the images the vision tower wants, in pixels.
    pub image_size: usize,
    /// Height and width that video frames are cut to, in pixels.
    pub frame_size: usize,
}

impl TokenizerConfig {
    /// The released tokenizer: 803.7 M parameters.
    pub fn divot() -> Self {
        Self::new(VisionTowerConfig::vit_h_14(), VideoResamplerConfig::divot())
    }

    /// Initialises the tokenizer with random weights.
    pub fn init(&self, device: &Device) -> Tokenizer {
        Tokenizer {
            vision: self.vision.init(device),
            resampler: self.resampler.init(device),
            image_size: self.vision.image_size,
            frame_size: self.frame_size,
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
        // A clip is read as these five frames.
        check_same(
            ("the resampler's frames", self.resampler.frames),
            ("the number of a clip's frames", TOKENIZER_FRAMES.len()),
        )
    }
}

impl Tokenizer {
    /// Loads the part of that name.
    ///
    /// # Errors
    /// If a file is missing, damaged, or does not fit the configuration beside it.
    pub fn load(checkpoint: &mut Checkpoint<'_>) -> Result<(Self, TokenizerConfig)> {
        let config: TokenizerConfig = checkpoint.config(Part::Tokenizer)?;
        let module = config.init(checkpoint.device());
        Ok((checkpoint.load(Part::Tokenizer, module)?, config))
    }

    /// Video tokens of clips.
    ///
    /// `frames`: `[batch, 5, 3, height, width]`, RGB in [-1, 1], frames 0, 4, 8, 12 and 15 of a
    /// clip of 16 at 8 fps. Returns `[batch, 64, 256]`, in f32.
    pub fn tokenize(&self, frames: Tensor<5>) -> Tensor<3> {
        self.resampler
            .forward(self.patch_tokens(frames))
            .cast(DType::F32)
    }

    /// The frozen half: patch tokens of every frame, `[batch, 5, 3, height, width]` → `[batch, 5,
    /// patches, width]`.
    pub fn patch_tokens(&self, frames: Tensor<5>) -> Tensor<4> {
        let [batch, count, channels, height, width] = frames.dims();
        let frames = frames.reshape([batch * count, channels, height, width]);
        let images = preprocess(frames, self.image_size);
        let patches = self.vision.patch_tokens(images.cast(self.dtype()));
        let [_, positions, features] = patches.dims();
        patches.reshape([batch, count, positions, features])
    }

    /// Tokens of an all-zero (mid-grey) clip, `[1, 64, 256]`: the condition of the unconditional
    /// branch of guidance. A conversion stores them with the weights, where
    /// [`Checkpoint::unconditional`] finds them.
    pub fn unconditional(&self) -> Tensor<3> {
        let device = self.vision.class_embedding.device();
        let size = self.frame_size;
        // All frames are the same to the vision tower, so it sees one.
        let patches = self.patch_tokens(Tensor::zeros([1, 1, 3, size, size], &device));
        let patches = patches.repeat_dim(1, TOKENIZER_FRAMES.len());
        self.resampler.forward(patches).cast(DType::F32)
    }

    /// [`unconditional`](Self::unconditional) of the part of that name, with the weights of one layer
    /// of the vision tower, or of one of the networks after it, in memory at a time. The numbers are the same.
    ///
    /// `on_layer` is told after each of them, and may stop it.
    ///
    /// # Errors
    /// Those of [`load`](Self::load), or [`WeightsError::Stopped`].
    pub(crate) fn unconditional_by_layers(
        checkpoint: &mut Checkpoint<'_>,
        mut on_layer: impl FnMut() -> ControlFlow<()>,
    ) -> Result<Tensor<3>> {
        let config: TokenizerConfig = checkpoint.config(Part::Tokenizer)?;
        let device = checkpoint.device().clone();
        let mut loading = checkpoint.loading(Part::Tokenizer)?;
        let dtype = loading.dtype();
        let mut go_on = || match on_layer() {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(WeightsError::Stopped),
        };

        // Parameters take no memory before they are filled.
        let mut vision = config.vision.init(&device);
        let blocks = std::mem::take(&mut vision.blocks);
        let vision = loading.fill("vision.", vision, dtype)?;
        let size = config.frame_size;
        let images = preprocess(
            Tensor::zeros([1, 3, size, size], &device),
            config.vision.image_size,
        );
        let mut x = vision.embed(images.cast(vision.class_embedding.val().dtype()));
        for (i, block) in blocks.into_iter().enumerate() {
            let block = loading.fill(&format!("vision.blocks.{i}."), block, dtype)?;
            x = block.forward(x, false);
            go_on()?;
        }
        let patches = x.narrow(1, 1, config.vision.patches());
        let patches = patches
            .unsqueeze_dim::<4>(1)
            .repeat_dim(1, TOKENIZER_FRAMES.len());

        let mut first = config.resampler.init(&device);
        first.temporal = loading.fill("resampler.temporal.", first.temporal, dtype)?;
        let x = first.pool(first.temporal(patches));
        drop(first);
        go_on()?;
        let rest = config.resampler.init(&device);
        let norm = loading.fill("resampler.norm.", rest.norm, dtype)?;
        let x = norm.forward(x);
        let layer = loading.fill("resampler.spatial_temporal.", rest.spatial_temporal, dtype)?;
        let x = layer.forward(x);
        drop(layer);
        go_on()?;
        let x = match rest.resampler {
            Some(layer) => {
                let layer = loading.fill("resampler.resampler.", layer, dtype)?;
                layer.forward(x)
            }
            None => x,
        };
        if let Some(layer) = rest.log_variance {
            loading.fill("resampler.log_variance.", layer, dtype)?;
        }
        loading.finish()?;
        Ok(x.cast(DType::F32))
    }

    /// Reads the clip of a video that starts at `start` seconds, cut to the model's square.
    ///
    /// # Errors
    /// If the video cannot be decoded, or `start` lies past its end.
    pub fn read_clip(&self, video: &Video, start: f64) -> Result<Clip> {
        let info = video.info();
        let indices = reconstruct_indices_from(info.frames, info.fps, start)?;
        let transform = Transform {
            size: self.frame_size,
            ..Transform::default()
        };
        // One frame at a time: the video's own may be large.
        let mut frames = vec![None; indices.len()];
        video.visit(&indices, |position, frame| {
            frames[position] = Some(transform.frame(frame)?);
            Ok(())
        })?;
        Clip::new(frames.into_iter().flatten().collect())
    }

    /// Video tokens of a whole video, in clips of two seconds: `[clips, 64, 256]`, in f32. A video of
    /// more than `max_clips` clips gives that many, spread evenly; the released system reads 20.
    ///
    /// One clip is in memory at a time. `on_clip` is told how many of how many are done, and may stop
    /// it: `None` then.
    ///
    /// # Errors
    /// If the video cannot be decoded, or `max_clips` is 0.
    pub fn tokenize_video(
        &self,
        video: &Video,
        max_clips: usize,
        mut on_clip: impl FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<Tensor<3>>> {
        let info = video.info();
        let clips = comprehend_indices(info.frames, info.fps, max_clips)?;
        let mut tokens = Vec::with_capacity(clips.len());
        for (done, clip) in clips.iter().enumerate() {
            let frames = self.read_frames(video, &tokenizer_indices(clip))?;
            tokens.push(self.tokenize(frames));
            if on_clip(done + 1, clips.len()).is_break() {
                return Ok(None);
            }
        }
        Ok(Some(Tensor::cat(tokens, 0)))
    }

    /// Video tokens of one picture, the first frame: `[1, 64, 256]`, in f32. A clip shows it all along.
    ///
    /// # Errors
    /// If it cannot be decoded.
    pub fn tokenize_image(&self, image: &Video) -> Result<Tensor<3>> {
        let frames = self.read_frames(image, &[0; TOKENIZER_FRAMES.len()])?;
        Ok(self.tokenize(frames))
    }

    /// Frames of a video, cut to the model's square: `[1, frames, 3, height, width]` in [-1, 1].
    fn read_frames(&self, video: &Video, indices: &[usize]) -> Result<Tensor<5>> {
        let transform = Transform {
            size: self.frame_size,
            ..Transform::default()
        };
        let pixels = 3 * self.frame_size * self.frame_size;
        let mut values = vec![0f32; indices.len() * pixels];
        video.visit(indices, |position, frame| {
            let frame = frame_to_chw(&transform.frame(frame)?);
            values[position * pixels..][..pixels].copy_from_slice(&frame);
            Ok(())
        })?;
        let shape = Shape::new([1, indices.len(), 3, self.frame_size, self.frame_size]);
        let device = self.vision.class_embedding.device();
        Ok(Tensor::from_data(TensorData::new(values, shape), &device))
    }

    fn dtype(&self) -> DType {
        self.vision.class_embedding.val().dtype()
    }
}
