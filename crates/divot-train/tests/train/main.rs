//! Tests of training at sizes at which a step takes a fraction of a second.

mod common;
mod dynamicrafter;
mod objectives;
mod recipes;
