//! The environment variables of HuggingFace tools, in the order of precedence of `huggingface_hub`.

use std::path::{Path, PathBuf};

use super::{ENDPOINT, Hub, HubError};

impl Hub {
    /// Creates a hub from the environment variables and the token file.
    ///
    /// # Errors
    /// If no variable names a cache and there is no home folder.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// Like [`from_env`](Self::from_env), but with another lookup of variables. An empty variable counts as
    /// unset.
    ///
    /// # Errors
    /// If no variable names a cache and there is no home folder.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let get = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
        let home = get("HOME").map(PathBuf::from).or_else(std::env::home_dir);
        let path = |name: &str| Some(expand(&get(name)?, home.as_deref(), &get));
        let hf_home = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(home.as_deref()?.join(".cache/huggingface")));
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(hf_home.as_deref()?.join("hub")))
            .ok_or(HubError::NoHome)?;
        let token = get("HF_TOKEN")
            .or_else(|| get("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| {
                let file =
                    path("HF_TOKEN_PATH").or_else(|| Some(hf_home.as_deref()?.join("token")))?;
                std::fs::read_to_string(file).ok()
            })
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty());
        let offline = get("HF_HUB_OFFLINE").or_else(|| get("TRANSFORMERS_OFFLINE"));
        let offline = offline.is_some_and(|value| {
            let value = value.trim().to_ascii_lowercase();
            ["1", "on", "yes", "true"].contains(&value.as_str())
        });
        Ok(Self::new(cache)
            .with_endpoint(get("HF_ENDPOINT").unwrap_or(ENDPOINT.to_owned()))
            .with_token(token)
            .with_offline(offline))
    }
}

/// Expands `~` to the home folder, and `$NAME` and `${NAME}` to variables. Unknown variables stay.
fn expand(path: &str, home: Option<&Path>, get: &impl Fn(&str) -> Option<String>) -> PathBuf {
    let mut expanded = String::new();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('$') {
        expanded += before;
        let (name, length) = match after.strip_prefix('{').and_then(|it| it.split_once('}')) {
            Some((name, _)) => (name, name.len() + 2),
            None => {
                let end = after
                    .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                    .unwrap_or(after.len());
                (&after[..end], end)
            }
        };
        match get(name).filter(|_| !name.is_empty()) {
            Some(value) => expanded += &value,
            None => {
                expanded.push('$');
                expanded += &after[..length];
            }
        }
        rest = &after[length..];
    }
    expanded += rest;
    match (expanded.strip_prefix('~'), home) {
        (Some(""), Some(home)) => home.to_path_buf(),
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(&rest[1..]),
        _ => expanded.into(),
    }
}
