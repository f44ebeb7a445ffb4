//! Fingerprints of what a cache is made of.

use std::fmt::Write;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor};
use divot::weights::ParamPath;
use sha2::{Digest, Sha256};

use crate::model::Model;
use crate::parameters::is_below;
use crate::recipe::Recipe;

/// A fingerprint of a part's sizes and weights.
///
/// Weights count as bf16, so that it does not depend on whether they are held in that type or in f32.
pub(super) fn fingerprint(recipe: &Recipe, model: &Model, part: &str) -> String {
    struct Hashing<'a> {
        path: ParamPath,
        part: &'a str,
        hash: Sha256,
    }
    impl ModuleVisitor for Hashing<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }

        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.exit();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let path = self.path.path();
            if !is_below(&path, self.part) {
                return;
            }
            let data = param.val().into_data().convert_dtype(DType::BF16);
            self.hash.update(path);
            self.hash.update(format!("{:?}", data.shape().as_slice()));
            self.hash.update(data.as_bytes());
        }
    }
    let sizes = &recipe.model;
    let sizes = match part {
        "tokenizer.vision" => serde_json::to_vec(&sizes.tokenizer.vision),
        "tokenizer" => serde_json::to_vec(&sizes.tokenizer),
        _ => serde_json::to_vec(&sizes.detokenizer.vae),
    };
    let mut hashing = Hashing {
        path: ParamPath::default(),
        part,
        hash: Sha256::new(),
    };
    hashing.hash.update(sizes.unwrap_or_default());
    model.visit(&mut hashing);
    hex(hashing.hash)
}

/// A fingerprint of files' names and lengths.
pub(super) fn of_files(files: &[&Path]) -> String {
    let mut hash = Sha256::new();
    for file in files {
        let length = file.metadata().map_or(0, |info| info.len());
        hash.update(file.as_os_str().as_encoded_bytes());
        hash.update(length.to_le_bytes());
    }
    hex(hash)
}

fn hex(hash: Sha256) -> String {
    let mut text = String::new();
    for byte in hash.finalize().iter().take(16) {
        // Writing to a text does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
