//! A caption as words.

/// What separates a word from the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Break {
    None,
    Comma,
    Sentence,
}

/// A word of a caption.
#[derive(Debug)]
pub(super) struct Token<'a> {
    /// As in the caption.
    pub text: &'a str,
    /// In lower case.
    pub lower: String,
    pub before: Break,
    /// Whether it has a possessive 's.
    pub possessive: bool,
    /// Whether it is a name by its capital letter.
    pub name: bool,
}

/// Splits a caption into words. Hyphens separate, and "she's" is two words.
pub(super) fn tokens(caption: &str) -> Vec<Token<'_>> {
    let mut tokens: Vec<Token<'_>> = Vec::new();
    let mut before = Break::Sentence;
    let mut rest = caption;
    while let Some(start) = rest.find(char::is_alphanumeric) {
        before = stronger(before, &rest[..start]);
        rest = &rest[start..];
        let end = rest
            .find(|c: char| !c.is_alphanumeric() && !is_apostrophe(c))
            .unwrap_or(rest.len());
        let text = rest[..end].trim_end_matches(is_apostrophe);
        push(&mut tokens, text, before);
        before = Break::None;
        rest = &rest[text.len()..];
    }
    mark_names(&mut tokens);
    tokens
}

fn is_apostrophe(letter: char) -> bool {
    matches!(letter, '\'' | '’')
}

fn stronger(before: Break, gap: &str) -> Break {
    if before == Break::Sentence || gap.contains(['.', '!', '?', ';', ':', '\n', '|']) {
        Break::Sentence
    } else if before == Break::Comma
        || gap.contains([',', '(', ')', '–', '—', '"', '“', '”', '/'])
        || gap.contains(" -")
    {
        Break::Comma
    } else {
        Break::None
    }
}

fn push<'a>(tokens: &mut Vec<Token<'a>>, text: &'a str, before: Break) {
    let token = |text: &'a str, lower: &str, before, possessive| Token {
        text,
        lower: lower.to_owned(),
        before,
        possessive,
        name: false,
    };
    let lower = text.to_lowercase().replace('’', "'");
    let word = |ending: usize| {
        &text[..text
            .char_indices()
            .rev()
            .nth(ending - 1)
            .map_or(0, |(at, _)| at)]
    };
    if let Some(stem) = lower.strip_suffix("'s") {
        let contraction = matches!(
            stem,
            "he" | "she" | "it" | "who" | "that" | "there" | "here" | "what"
        );
        tokens.push(token(word(2), stem, before, !contraction));
        if contraction {
            tokens.push(token(text, "is", Break::None, false));
        }
    } else if let Some(stem) = lower.strip_suffix("'re") {
        tokens.push(token(word(3), stem, before, false));
        tokens.push(token(text, "are", Break::None, false));
    } else {
        tokens.push(token(text, &lower, before, false));
    }
}

/// Capitals name something unless they begin a sentence, or most words have them, as titles do.
fn mark_names(tokens: &mut [Token<'_>]) {
    let capital = |token: &Token<'_>| token.text.starts_with(char::is_uppercase);
    let inside = |token: &&Token<'_>| token.before != Break::Sentence && token.lower.len() > 3;
    let long = tokens.iter().filter(inside).count();
    let capitals = tokens
        .iter()
        .filter(inside)
        .filter(|token| capital(token))
        .count();
    if 2 * capitals > long && long > 1 {
        return;
    }
    for token in tokens {
        token.name = token.before != Break::Sentence && capital(token);
    }
}
