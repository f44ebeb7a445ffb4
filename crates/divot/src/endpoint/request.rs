//! What is asked.

use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use divot_data::Frame;
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageFormat, ImageReader};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Endpoint, EndpointError};

/// Quality of frames as JPEG, of 100.
const QUALITY: u8 = 90;

/// A PNG or JPEG image, as its file has it.
#[derive(Clone)]
pub struct Image {
    bytes: Vec<u8>,
    mime: &'static str,
    width: u32,
    height: u32,
}

impl Image {
    /// Takes the bytes of a PNG or JPEG file. Only the header is read here.
    ///
    /// # Errors
    /// If it is neither.
    pub fn new(bytes: Vec<u8>) -> Result<Self, EndpointError> {
        let odd = |problem: &str| EndpointError::Image {
            problem: super::reply::one_line(problem),
        };
        let reader = ImageReader::new(Cursor::new(&bytes))
            .with_guessed_format()
            .map_err(|error| odd(&error.to_string()))?;
        let mime = match reader.format() {
            Some(ImageFormat::Png) => "image/png",
            Some(ImageFormat::Jpeg) => "image/jpeg",
            _ => return Err(odd("another format")),
        };
        let (width, height) = reader
            .into_dimensions()
            .map_err(|error| odd(&error.to_string()))?;
        Ok(Self {
            bytes,
            mime,
            width,
            height,
        })
    }

    /// Encodes a frame of a video as JPEG. The same frame gives the same bytes, and so the same request.
    ///
    /// # Errors
    /// If a side is over 65535 pixels.
    pub fn of_frame(frame: &Frame) -> Result<Self, EndpointError> {
        let mut bytes = Vec::new();
        let (width, height) = (frame.width as u32, frame.height as u32);
        JpegEncoder::new_with_quality(&mut bytes, QUALITY)
            .encode(&frame.rgb, width, height, ExtendedColorType::Rgb8)
            .map_err(|error| EndpointError::Image {
                problem: super::reply::one_line(&error.to_string()),
            })?;
        Ok(Self {
            bytes,
            mime: "image/jpeg",
            width,
            height,
        })
    }

    /// Returns width and height in pixels.
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    fn data_url(&self) -> String {
        let mut url = format!("data:{};base64,", self.mime);
        STANDARD.encode_string(&self.bytes, &mut url);
        url
    }
}

/// A piece of what the user says.
#[derive(Clone)]
pub(super) enum Piece {
    Text(String),
    Image(Image),
}

/// The form of an answer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Format {
    /// Any text.
    Text,
    /// A JSON object (`json_object`). The text should say so too, since some endpoints insist on it.
    Json,
    /// JSON of this schema (`json_schema`), strictly.
    Schema {
        /// The schema's name: letters, digits, `_` and `-`.
        name: String,
        /// The schema.
        schema: Value,
    },
}

/// A question for a model: what the system says, then texts and images of the user.
#[derive(Clone)]
pub struct Request {
    pub(super) system: Option<String>,
    pub(super) user: Vec<Piece>,
    pub(super) max_tokens: u32,
    temperature: Option<f32>,
    seed: Option<u64>,
    format: Format,
}

impl Request {
    /// Creates a request without contents. Its answer has at most `max_tokens` tokens, what a reasoning model
    /// thinks included.
    pub fn new(max_tokens: u32) -> Self {
        Self {
            system: None,
            user: Vec::new(),
            max_tokens,
            temperature: None,
            seed: None,
            format: Format::Text,
        }
    }

    /// Sets what the system says.
    pub fn system(mut self, text: impl Into<String>) -> Self {
        self.system = Some(text.into());
        self
    }

    /// Adds a text of the user.
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.user.push(Piece::Text(text.into()));
        self
    }

    /// Adds an image of the user.
    pub fn image(mut self, image: Image) -> Self {
        self.user.push(Piece::Image(image));
        self
    }

    /// Sets the temperature of sampling. Without it, the endpoint's default counts.
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.temperature = Some(temperature);
        self
    }

    /// Sets the seed of sampling, which not every endpoint respects.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Sets the form of the answer. An answer that is not of the form JSON, if that is asked for, counts as
    /// unusable; that it is of the given schema is the endpoint's promise.
    pub fn format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    pub(super) fn encode(&self, endpoint: &Endpoint) -> Encoded {
        let mut messages = Vec::new();
        if let Some(system) = &self.system {
            messages.push(Message {
                role: "system",
                content: Content::Text(system),
            });
        }
        // Endpoints without vision know only texts.
        let content = match &self.user[..] {
            [Piece::Text(text)] => Content::Text(text),
            pieces => Content::Parts(pieces.iter().map(Part::of).collect()),
        };
        messages.push(Message {
            role: "user",
            content,
        });
        let (max_tokens, max_completion_tokens) = match endpoint.completion_limit {
            false => (Some(self.max_tokens), None),
            true => (None, Some(self.max_tokens)),
        };
        let body = Body {
            model: &endpoint.model,
            messages,
            max_tokens,
            max_completion_tokens,
            temperature: self.temperature,
            seed: self.seed,
            response_format: match &self.format {
                Format::Text => None,
                Format::Json => Some(ResponseFormat::JsonObject),
                Format::Schema { name, schema } => Some(ResponseFormat::JsonSchema {
                    json_schema: Schema {
                        name,
                        strict: true,
                        schema,
                    },
                }),
            },
        };
        let body = serde_json::to_vec(&body).expect("texts and numbers are always JSON");
        let mut hash = Sha256::new();
        hash.update(&endpoint.address);
        hash.update([0]);
        hash.update(&body);
        Encoded {
            key: hash.finalize().into(),
            body,
            is_json: self.format != Format::Text,
        }
    }
}

/// Identifies a request: SHA-256 of the address and the body.
pub(super) type Key = [u8; 32];

/// A request as it is sent.
pub(super) struct Encoded {
    pub key: Key,
    pub body: Vec<u8>,
    pub is_json: bool,
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: Vec<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<ResponseFormat<'a>>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Content<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content<'a> {
    Text(&'a str),
    Parts(Vec<Part<'a>>),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part<'a> {
    Text { text: &'a str },
    ImageUrl { image_url: ImageUrl },
}

impl<'a> Part<'a> {
    fn of(piece: &'a Piece) -> Self {
        match piece {
            Piece::Text(text) => Self::Text { text },
            Piece::Image(image) => Self::ImageUrl {
                image_url: ImageUrl {
                    url: image.data_url(),
                },
            },
        }
    }
}

#[derive(Serialize)]
struct ImageUrl {
    url: String,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResponseFormat<'a> {
    JsonObject,
    JsonSchema { json_schema: Schema<'a> },
}

#[derive(Serialize)]
struct Schema<'a> {
    name: &'a str,
    strict: bool,
    schema: &'a Value,
}
