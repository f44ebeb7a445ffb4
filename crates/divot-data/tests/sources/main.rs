//! Training samples from files of every format, sound and broken.

mod formats;
mod hostile;
mod make;
