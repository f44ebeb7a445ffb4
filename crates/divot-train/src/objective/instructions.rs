//! Phrasings of instructions, of which training takes one at random (FACTS: "Training data").
//!
//! The caption follows a phrasing for generation; the clips stand before one for captions.

/// All of them, from which a text tokenizer may learn their words.
pub fn instructions() -> impl Iterator<Item = &'static str> {
    let all: [&[&str]; 4] = [&VIDEOS, &IMAGES, &VIDEO_CAPTIONS, &IMAGE_CAPTIONS];
    all.into_iter().flatten().copied()
}

/// Asks for a video.
pub const VIDEOS: [&str; 18] = [
    "Generate a video of",
    "Create a video of",
    "Make a video of",
    "Produce a video of",
    "Show me a video of",
    "Give me a video of",
    "I want to see a video of",
    "I would like a video of",
    "Please generate a video of",
    "Please make a video that shows",
    "Generate a clip of",
    "Make a short clip of",
    "Create a short video showing",
    "Can you make a video of",
    "Could you show me a clip of",
    "Render a video of",
    "Film this for me:",
    "A video of",
];

/// Asks for an image.
pub const IMAGES: [&str; 22] = [
    "Generate an image of",
    "Create an image of",
    "Make an image of",
    "Produce an image of",
    "Show me an image of",
    "Give me an image of",
    "I want to see an image of",
    "I would like an image of",
    "Please generate an image of",
    "Please make a picture that shows",
    "Generate a picture of",
    "Make a picture of",
    "Create a picture showing",
    "Can you make an image of",
    "Could you show me a picture of",
    "Show me a photo of",
    "Generate a photo of",
    "Take a photo of",
    "Draw",
    "Render an image of",
    "Picture this for me:",
    "An image of",
];

/// Asks for the caption of a video.
pub const VIDEO_CAPTIONS: [&str; 6] = [
    "Describe the video.",
    "Describe this video briefly.",
    "What happens in the video?",
    "What does this video show?",
    "Write a caption for the video.",
    "Give a short description of this clip.",
];

/// Asks for the caption of an image.
pub const IMAGE_CAPTIONS: [&str; 6] = [
    "Describe the image.",
    "Describe this image briefly.",
    "What is in the image?",
    "What does this picture show?",
    "Write a caption for the image.",
    "Give a short description of this picture.",
];
