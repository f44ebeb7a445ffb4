//! Lists of texts as Python writes them, which Panda-70M has in its fields.

use std::iter::Peekable;
use std::str::Chars;

/// A text, or a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    List(Vec<Value>),
}

impl Value {
    pub fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            Self::List(_) => None,
        }
    }
}

/// Reads a list of texts, or of lists of texts.
pub(super) fn list(text: &str) -> Option<Vec<Value>> {
    let mut text = text.trim().chars().peekable();
    match value(&mut text, 0)? {
        Value::List(values) if text.next().is_none() => Some(values),
        _ => None,
    }
}

fn value(text: &mut Peekable<Chars<'_>>, depth: usize) -> Option<Value> {
    let skip =
        |text: &mut Peekable<Chars<'_>>| while text.next_if(|c| c.is_whitespace()).is_some() {};
    match text.next()? {
        '[' if depth < 2 => {
            let mut values = Vec::new();
            loop {
                skip(text);
                if text.next_if_eq(&']').is_some() {
                    return Some(Value::List(values));
                }
                values.push(value(text, depth + 1)?);
                skip(text);
                match text.next()? {
                    ',' => {}
                    ']' => return Some(Value::List(values)),
                    _ => return None,
                }
            }
        }
        quote @ ('\'' | '"') => {
            let mut read = String::new();
            loop {
                match text.next()? {
                    '\\' => read.push(escaped(text)?),
                    c if c == quote => return Some(Value::Text(read)),
                    c => read.push(c),
                }
            }
        }
        _ => None,
    }
}

/// The character that stands behind a backslash.
fn escaped(text: &mut Peekable<Chars<'_>>) -> Option<char> {
    let digits = match text.next()? {
        'n' => return Some('\n'),
        'r' => return Some('\r'),
        't' => return Some('\t'),
        'x' => 2,
        'u' => 4,
        'U' => 8,
        c @ ('\\' | '\'' | '"') => return Some(c),
        _ => return None,
    };
    let code = (0..digits).try_fold(0, |code: u32, _| {
        code.checked_mul(16)?
            .checked_add(text.next()?.to_digit(16)?)
    });
    char::from_u32(code?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        let texts = |list: &str| -> Option<Vec<String>> {
            super::list(list)?.into_iter().map(Value::text).collect()
        };
        let read = texts(r#"['a dog\'s day', "it's, [late]", 'caf\xe9\n\u20ac', ]"#).unwrap();
        assert_eq!(read, ["a dog's day", "it's, [late]", "café\n€"]);
        assert_eq!(texts("[]").unwrap(), [""; 0]);
        let nested = list("[['1', '2'], ['3']]").unwrap();
        assert_eq!(nested[1], Value::List(vec![Value::Text("3".into())]));
    }

    #[test]
    fn anything_else_is_none() {
        let deep = "[".repeat(100_000);
        for wrong in [
            "",
            "a",
            "'a'",
            "['a'",
            "['a'] b",
            "['a",
            "[1]",
            "['a' 'b']",
            "[,]",
            "['\\q']",
            "['\\ud800']",
            &deep,
        ] {
            assert_eq!(list(wrong), None, "{wrong:.20}");
        }
    }
}
