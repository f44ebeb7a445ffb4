//! Questions to an imitation of an OpenAI-compatible endpoint, and every way in which it can fail.
#![cfg(feature = "endpoint")]

mod asking;
mod failing;
mod keeping;
mod stub;
mod usable;
