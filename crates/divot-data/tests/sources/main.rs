//! Training samples from files of every format, sound and broken.

mod archives;
mod files;
mod formats;
mod make;
