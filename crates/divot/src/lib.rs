//! Divot: a diffusion-powered video tokenizer, in Rust
