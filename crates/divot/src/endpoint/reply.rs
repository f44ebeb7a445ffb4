//! What an endpoint sends back, and what it means.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Usage;

/// Characters of a message that are repeated in errors.
const REPEATED: usize = 200;

/// A model's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The text, never empty.
    pub text: String,
    /// Why the model ended, as the endpoint says: `stop`, or `length` if the text was cut off at the limit of
    /// the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<String>,
    /// The tokens of this request, if the endpoint counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Whether it came without a request, from the cache or from the same request of another job.
    #[serde(skip)]
    pub cached: bool,
}

impl Answer {
    /// Returns whether the text was cut off at the limit of the request.
    pub fn is_cut(&self) -> bool {
        self.finish.as_deref() == Some("length")
    }

    /// Reads the text as JSON.
    ///
    /// # Errors
    /// If it is not JSON, or of another form than `T`.
    pub fn json<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(&self.text)
    }
}

/// Why a reply with status 200 holds no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unusable {
    pub reason: String,
    /// Whether another try may help.
    pub may_pass: bool,
    /// What it cost nevertheless.
    pub usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Value>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
    refusal: Option<String>,
}

/// Reads the body of a reply with status 200. `is_json` says whether JSON was asked for.
pub(super) fn read(body: &[u8], is_json: bool) -> Result<Answer, Unusable> {
    let unusable = |reason: &str, may_pass, usage| {
        Err(Unusable {
            reason: reason.to_owned(),
            may_pass,
            usage,
        })
    };
    let Ok(reply) = serde_json::from_slice::<Reply>(body) else {
        return unusable("the reply is not that of a chat", true, None);
    };
    let usage = reply.usage.as_ref().and_then(|usage| {
        let count = |name| usage.get(name).and_then(Value::as_u64);
        Some(Usage {
            input: count("prompt_tokens")?,
            output: count("completion_tokens").unwrap_or(0),
        })
    });
    let Some(choice) = reply.choices.into_iter().next() else {
        let reason = match reply.error.as_ref().and_then(message_of) {
            Some(message) => format!("the reply holds no choice: {message}"),
            None => "the reply holds no choice".to_owned(),
        };
        return unusable(&reason, true, usage);
    };
    let text = choice.message.content.unwrap_or_default();
    let finish = choice.finish_reason;
    let is_usable = !text.trim().is_empty()
        && (!is_json || serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok());
    if is_usable {
        return Ok(Answer {
            text,
            finish,
            usage,
            cached: false,
        });
    }
    match (finish.as_deref(), choice.message.refusal) {
        (_, Some(refusal)) => {
            let reason = format!("the model refuses: {}", one_line(&refusal));
            unusable(&reason, false, usage)
        }
        (Some("content_filter"), _) => {
            unusable("the endpoint filtered the answer out", false, usage)
        }
        (Some("length"), _) => unusable(
            "the answer was cut off before it said anything of use; allow it more tokens",
            false,
            usage,
        ),
        _ if text.trim().is_empty() => unusable("the answer is empty", true, usage),
        _ => unusable("the answer is not JSON", true, usage),
    }
}

/// Returns the message and the code in the body of an error.
pub(super) fn error_in(body: &[u8]) -> (Option<String>, Option<String>) {
    let Ok(body) = serde_json::from_slice::<Value>(body) else {
        return (None, None);
    };
    let error = body.get("error").unwrap_or(&body);
    let code = ["code", "type"]
        .iter()
        .find_map(|name| error.get(name)?.as_str());
    (message_of(error), code.map(str::to_owned))
}

/// Finds the message in an error, which servers write in several ways.
fn message_of(error: &Value) -> Option<String> {
    let message = error
        .as_str()
        .or_else(|| error.get("message")?.as_str())
        .or_else(|| error.get("detail")?.as_str())?;
    Some(one_line(message))
}

/// Brings a text from outside onto one line.
pub(super) fn one_line(text: &str) -> String {
    text.trim().replace(char::is_control, " ")
}

/// Hides the key in a message from outside, and shortens the message.
pub(super) fn repeatable(message: &str, key: Option<&str>) -> String {
    let hidden = match key {
        // A shorter one is the "none" or "EMPTY" that a local server is given, and may be a word.
        Some(key) if key.len() >= 8 => message.replace(key, "…"),
        _ => message.to_owned(),
    };
    match hidden.char_indices().nth(REPEATED) {
        Some((end, _)) => format!("{}…", &hidden[..end]),
        None => hidden,
    }
}
