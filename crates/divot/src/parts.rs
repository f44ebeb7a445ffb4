//! The catalogue of the parts of a checkpoint, the released files that each is made from, and where those
//! are published. It is the only place with names of folders and files.

use std::fmt;
use std::path::{Path, PathBuf};

/// Name of the weights in a part's folder.
pub const WEIGHTS: &str = "model.safetensors";
/// Name of the configuration in a part's folder.
pub const CONFIG: &str = "config.json";
/// Name of the text tokenizer in a language model's folder. It is not the video tokenizer, which is
/// [`Part::Tokenizer`].
pub const TEXT_TOKENIZER: &str = "tokenizer.json";
/// Name of the tokens of a mid-grey clip in the video tokenizer's folder.
pub const UNCONDITIONAL: &str = "unconditional.safetensors";

/// A part of a checkpoint: one folder with its configuration and its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The video tokenizer: vision tower, transformers and Perceiver. Video to tokens.
    Tokenizer,
    /// Perceiver, UNet and autoencoder: tokens to video.
    Detokenizer,
    /// The de-tokenizer adapted to features that the language model samples.
    AdaptedDetokenizer,
    /// CLIP's text tower, for CLIP scores.
    Clip,
    /// What stage 0 of training takes from DynamiCrafter: UNet, autoencoder, image Perceiver and CLIP's two
    /// towers. See [`DynamiCrafterConfig`](crate::DynamiCrafterConfig).
    DynamiCrafter,
    /// The language model tuned for comprehension.
    Comprehension,
    /// The language model tuned for generation.
    Generation,
    /// The language model before tuning.
    Pretrained,
    /// Any other language model, trained with or without LoRA.
    Llm,
    /// Mistral-7B with a larger vocabulary, from which pre-training starts.
    Mistral,
}

/// A published file or folder of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    /// The repository on the hub that publishes it.
    pub repository: &'static str,
    /// The sub-folder of the downloads that the repository's files are put into. Empty if they are put
    /// directly into the folder of downloads.
    pub folder: &'static str,
    /// Its path in the folder of downloads, which conversion reads.
    pub path: &'static str,
    /// The names of its files in the repository, which must all exist. A `*` stands for any characters.
    pub files: &'static [&'static str],
    /// Files that are downloaded too if they exist. A `*` stands for any characters.
    pub extras: &'static [&'static str],
    /// Approximate size in MiB.
    pub mebibytes: u64,
}

impl Release {
    /// A file of the repository that publishes Divot.
    const fn divot(
        path: &'static str,
        files: &'static [&'static str],
        extras: &'static [&'static str],
        mebibytes: u64,
    ) -> Self {
        Self {
            repository: "TencentARC/Divot",
            folder: "",
            path,
            files,
            extras,
            mebibytes,
        }
    }
}

const DIVOT_TOKENIZER: Release = Release::divot(
    "Divot_tokenizer_detokenizer/Divot_tokenizer.bin",
    &["Divot_tokenizer_detokenizer/Divot_tokenizer.bin"],
    &[],
    655,
);
const DETOKENIZER_STAGE1: Release = Release::divot(
    "Divot_tokenizer_detokenizer/Divot_detokenizer_stage1.bin",
    &["Divot_tokenizer_detokenizer/Divot_detokenizer_stage1.bin"],
    &[],
    6_100,
);
const DETOKENIZER_STAGE2: Release = Release::divot(
    "Divot_tokenizer_detokenizer/Divot_detokenizer_stage2.bin",
    &["Divot_tokenizer_detokenizer/Divot_detokenizer_stage2.bin"],
    &[],
    6_100,
);
const MISTRAL_TEXT_TOKENIZER: Release = Release::divot(
    "cvlm_mistral_instruct_tokenizer",
    &["cvlm_mistral_instruct_tokenizer/*"],
    &[],
    3,
);
const COMPREHENSION: [Release; 2] = [
    Release::divot(
        "Divot_sft_comp/llm",
        &["Divot_sft_comp/llm/*"],
        &["Divot_sft_comp/*"],
        13_850,
    ),
    Release::divot(
        "Divot_sft_comp/agent/pytorch_model.bin",
        &["Divot_sft_comp/agent/pytorch_model.bin"],
        &[],
        150,
    ),
];
const GENERATION: [Release; 2] = [
    Release::divot(
        "Divot_sft_gen/llm",
        &["Divot_sft_gen/llm/*"],
        &["Divot_sft_gen/*"],
        13_850,
    ),
    Release::divot(
        "Divot_sft_gen/agent/pytorch_model.bin",
        &["Divot_sft_gen/agent/pytorch_model.bin"],
        &[],
        150,
    ),
];
const PRETRAINED: [Release; 2] = [
    Release::divot(
        "Divot_pretrain/llm",
        &["Divot_pretrain/llm/*"],
        &["Divot_pretrain/*"],
        13_850,
    ),
    Release::divot(
        "Divot_pretrain/agent/pytorch_model.bin",
        &["Divot_pretrain/agent/pytorch_model.bin"],
        &[],
        150,
    ),
];
const OPEN_CLIP: Release = Release {
    repository: "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    folder: "CLIP-ViT-H-14-laion2B-s32B-b79K",
    path: "CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_pytorch_model.bin",
    files: &["open_clip_pytorch_model.bin"],
    extras: &[],
    mebibytes: 3_760,
};
const DYNAMICRAFTER: Release = Release {
    repository: "Doubiiu/DynamiCrafter",
    folder: "dynamicrafter_256_v1",
    path: "dynamicrafter_256_v1/model.ckpt",
    files: &["model.ckpt"],
    extras: &[],
    mebibytes: 10_000,
};
/// The same weights are also published as pickles, which are not downloaded.
const MISTRAL: Release = Release {
    repository: "mistralai/Mistral-7B-Instruct-v0.1",
    folder: "Mistral-7B-Instruct-v0.1",
    path: "Mistral-7B-Instruct-v0.1",
    files: &["config.json", "tokenizer.*", "model*.safetensors"],
    extras: &[
        "generation_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "model.safetensors.index.json",
    ],
    mebibytes: 13_850,
};

impl Part {
    /// Every part.
    pub const ALL: [Self; 10] = [
        Self::Tokenizer,
        Self::Detokenizer,
        Self::AdaptedDetokenizer,
        Self::Clip,
        Self::DynamiCrafter,
        Self::Comprehension,
        Self::Generation,
        Self::Pretrained,
        Self::Llm,
        Self::Mistral,
    ];

    /// The parts that convert videos to tokens and back.
    pub const MODEL: [Self; 3] = [Self::Tokenizer, Self::Detokenizer, Self::Clip];

    /// Returns its name, which is also the name of its folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokenizer => "tokenizer",
            Self::Detokenizer => "detokenizer",
            Self::AdaptedDetokenizer => "detokenizer-adapted",
            Self::Clip => "clip",
            Self::DynamiCrafter => "dynamicrafter",
            Self::Comprehension => "llm-comprehension",
            Self::Generation => "llm-generation",
            Self::Pretrained => "llm-pretrained",
            Self::Llm => "llm",
            Self::Mistral => "mistral",
        }
    }

    /// Returns the part with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.name() == name)
    }

    /// Returns its purpose in a few words, for help texts.
    pub fn about(self) -> &'static str {
        match self {
            Self::Tokenizer => "video to tokens",
            Self::Detokenizer => "tokens to video",
            Self::AdaptedDetokenizer => "tokens of the language model to video",
            Self::Clip => "CLIP's text tower, for CLIP scores",
            Self::DynamiCrafter => "where the training of stage 0 starts",
            Self::Comprehension => "language model that describes and answers",
            Self::Generation => "language model that makes videos",
            Self::Pretrained => "language model before tuning",
            Self::Llm => "a language model of your own",
            Self::Mistral => "where the language model's training starts",
        }
    }

    /// Returns whether it is a language model.
    pub fn is_llm(self) -> bool {
        matches!(
            self,
            Self::Comprehension | Self::Generation | Self::Pretrained | Self::Llm | Self::Mistral
        )
    }

    /// Returns its folder in a checkpoint.
    pub fn folder(self, checkpoint: &Path) -> PathBuf {
        checkpoint.join(self.name())
    }

    /// Returns the released files that it is made from, in order of precedence. If two of them contain a
    /// tensor of the same name, the first one counts. Empty for [`Part::Llm`], whose files are the user's.
    pub fn releases(self) -> Vec<Release> {
        match self {
            Self::Tokenizer => vec![DIVOT_TOKENIZER, OPEN_CLIP],
            Self::Detokenizer => vec![DETOKENIZER_STAGE1],
            Self::AdaptedDetokenizer => vec![DETOKENIZER_STAGE2],
            Self::Clip => vec![OPEN_CLIP],
            Self::DynamiCrafter => vec![DYNAMICRAFTER],
            Self::Comprehension => [&COMPREHENSION[..], &[MISTRAL_TEXT_TOKENIZER]].concat(),
            Self::Generation => [&GENERATION[..], &[MISTRAL_TEXT_TOKENIZER]].concat(),
            Self::Pretrained => [&PRETRAINED[..], &[MISTRAL_TEXT_TOKENIZER]].concat(),
            Self::Llm => Vec::new(),
            Self::Mistral => vec![MISTRAL_TEXT_TOKENIZER, MISTRAL],
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_part_has_its_own_name() {
        let names: BTreeSet<_> = Part::ALL.map(Part::name).into();
        assert_eq!(names.len(), Part::ALL.len());
        for part in Part::ALL {
            assert_eq!(Part::from_name(part.name()), Some(part));
        }
    }

    #[test]
    fn every_path_is_one_that_a_download_makes() {
        for release in Part::ALL.into_iter().flat_map(Part::releases) {
            let made = release.files.iter().any(|file| {
                let file = Path::new(release.folder).join(file);
                file.starts_with(release.path)
            });
            assert!(made, "{release:?}");
        }
    }
}
