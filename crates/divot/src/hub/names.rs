//! Names of files in repositories. They come from the network and are not trusted.

use std::path::{Component, Path};

/// Returns whether a name matches a pattern with at most one `*`.
pub(super) fn fits(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((start, end)) => name
            .strip_prefix(start)
            .is_some_and(|rest| rest.ends_with(end)),
    }
}

/// Returns whether it can be the name of a file, without folders.
pub(super) fn is_plain(name: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=128).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(known)
}

/// Returns whether a name stays inside the folder that it is put into.
pub(super) fn is_inside(name: &str) -> bool {
    let odd = |c: char| c.is_control() || c == '\\' || c == ':';
    let mut components = Path::new(name).components();
    !name.is_empty()
        && !name.contains(odd)
        && components.all(|component| matches!(component, Component::Normal(_)))
}

/// Escapes the name of a file for a URL.
pub(super) fn escaped(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_have_one_star() {
        assert!(fits("tokenizer.model", "tokenizer.*"));
        assert!(fits("llm/a/b.bin", "llm/*"));
        assert!(fits("model-1.safetensors", "model*.safetensors"));
        assert!(!fits("consolidated.safetensors", "model*.safetensors"));
        assert!(!fits("config.json.md", "config.json"));
    }

    #[test]
    fn names_stay_inside() {
        for name in ["a.bin", "a/b c.bin", "..a"] {
            assert!(is_inside(name), "{name}");
        }
        for name in ["", "/a", "../a", "a/../../b", "a\\b", "C:a", "a\nb"] {
            assert!(!is_inside(name), "{name:?}");
        }
        assert!(!is_plain(".."));
        assert!(!is_plain("a/b"));
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escaped("a b/ü#.bin"), "a%20b/%C3%BC%23.bin");
    }
}
