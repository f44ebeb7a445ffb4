#![doc = include_str!("../README.md")]

mod animation;
pub mod captions;
mod clip;
mod clip_files;
pub mod dataset;
mod error;
mod ffmpeg;
mod frame;
mod gif;
mod h264;
mod images;
pub mod metrics;
mod mp4;
mod mux;
pub mod sampling;
pub mod shots;
mod timeline;
pub mod transform;
mod video;
mod webp;
pub mod world;
mod write;
mod write_mp4;
mod yuv;

pub use clip::{Clip, ClipReader};
pub use clip_files::{ClipFiles, check_output, clip_sheet};
pub use error::{Error, Result};
pub use frame::Frame;
pub use images::{DEFAULT_MAX_PIXELS, read_image};
pub use transform::{Transform, chw_to_clip, chw_to_frame, clip_to_chw};
pub use video::{OpenOptions, Video, VideoInfo};
pub use write::{
    atomically, check_writable, contact_sheet, encode_png, is_own_png, write_gif, write_png,
};
pub use write_mp4::{Mp4Writer, write_mp4};

/// Frame rate of what has none of its own (a still image, a folder of images), in frames per
/// second: that of a clip.
pub const DEFAULT_FPS: f64 = sampling::CLIP_FPS;
