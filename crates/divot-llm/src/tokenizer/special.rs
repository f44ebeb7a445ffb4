//! The names of special tokens.

/// The token for text that is not in the vocabulary.
pub(super) const UNK: &str = "<unk>";
/// The token at the start of a text.
pub(super) const BOS: &str = "<s>";
/// The token at the end of a text.
pub(super) const EOS: &str = "</s>";
/// SentencePiece's character for a space.
pub(super) const SPACE: char = '\u{2581}';

/// Number of `<frame_…>` tokens that Divot adds.
const FRAMES: usize = 256;

/// Returns the tokens that Divot adds to Mistral's: `<img> </img> <vid> </vid> <frame> </frame>` and
/// `<frame_00000>` to `<frame_00255>`.
pub fn divot_tokens() -> impl Iterator<Item = String> {
    ["<img>", "</img>", "<vid>", "</vid>", "<frame>", "</frame>"]
        .into_iter()
        .map(String::from)
        .chain((0..FRAMES).map(|index| format!("<frame_{index:05}>")))
}
