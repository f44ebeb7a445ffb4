//! Finding the files of a source.

use std::fs;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::sample::{Reason, Skip};
use crate::{Error, Result};

/// Most files that a pattern may name.
const MAX_NAMES: usize = 1 << 20;

/// The files at `paths`, and those below folders whose names end in one of `endings`, sorted within each
/// folder. Hidden ones are left out. What cannot be searched is added to `passed_over`.
pub(super) fn find(
    paths: &[PathBuf],
    endings: &[&str],
    passed_over: &mut Vec<Skip>,
) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        let kind = fs::metadata(path).map_err(|error| Error::read(path, error))?;
        if kind.is_file() {
            found.push(path.clone());
            continue;
        }
        if !kind.is_dir() {
            let path = path.to_path_buf();
            let what = "neither a file nor a folder";
            return Err(Error::NotAFile { path, what });
        }
        // Links are followed; one that leads back is an error of its own.
        let folder = WalkDir::new(path).follow_links(true).sort_by_file_name();
        let is_hidden = |name: &[u8]| name.first() == Some(&b'.');
        let entries = folder.into_iter().filter_entry(|entry| {
            entry.depth() == 0 || !is_hidden(entry.file_name().as_encoded_bytes())
        });
        for entry in entries {
            match entry {
                Ok(entry) if entry.file_type().is_file() => {
                    let name = entry.file_name().to_string_lossy().to_lowercase();
                    if endings.iter().any(|ending| name.ends_with(ending)) {
                        found.push(entry.into_path());
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    let path = error.path().unwrap_or(path);
                    passed_over.push(skip(path, error.to_string()));
                }
            }
        }
    }
    Ok(found)
}

/// The paths that patterns stand for: `{000..012}` is each number, `{a,b}` each text. A pattern's files that
/// do not exist are added to `passed_over`.
pub(super) fn expand(paths: &[PathBuf], passed_over: &mut Vec<Skip>) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        let is_pattern = path.to_string_lossy().contains('{') && !path.exists();
        if !is_pattern {
            found.push(path.clone());
            continue;
        }
        let mut names = Vec::new();
        expand_text("", &path.to_string_lossy(), &mut names).map_err(|what| {
            Error::Argument(format!(
                "{}: {what}; write a range as `{{0000..0127}}`, and a list as `{{a,b}}`",
                path.display()
            ))
        })?;
        for name in names {
            let path = PathBuf::from(name);
            match path.exists() {
                true => found.push(path),
                false => passed_over.push(skip(&path, "there is no such archive")),
            }
        }
    }
    Ok(found)
}

/// A file that is passed over.
pub(super) fn skip(path: &Path, message: impl Into<String>) -> Skip {
    Skip {
        key: path.display().to_string(),
        reason: Reason::PassedOver,
        message: message.into(),
    }
}

fn expand_text(before: &str, text: &str, names: &mut Vec<String>) -> Result<(), String> {
    let Some((head, rest)) = text.split_once('{') else {
        if names.len() == MAX_NAMES {
            return Err(format!("names more than {MAX_NAMES} archives"));
        }
        names.push(format!("{before}{text}"));
        return Ok(());
    };
    let (range, tail) = rest.split_once('}').ok_or("a brace is not closed")?;
    let wrong = || format!("`{{{range}}}` is neither a range nor a list");
    if range.contains(',') {
        return range
            .split(',')
            .try_for_each(|item| expand_text(&format!("{before}{head}{item}"), tail, names));
    }
    let (first, last) = range.split_once("..").ok_or_else(wrong)?;
    let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse::<u64>().map_err(|_| wrong()),
        false => Err(wrong()),
    };
    let (start, end, width) = (number(first)?, number(last)?, first.len());
    if end < start {
        return Err(wrong());
    }
    (start..=end)
        .try_for_each(|number| expand_text(&format!("{before}{head}{number:0width$}"), tail, names))
}

/// The path of a file that an annotation names, which stays inside `folder`.
pub(super) fn inside(folder: &Path, name: &str) -> Option<PathBuf> {
    use std::path::Component;
    let name = Path::new(name);
    let climbs = name.components().any(|part| part == Component::ParentDir);
    let path = folder.join(name);
    (!climbs && path.starts_with(folder)).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(pattern: &str) -> Result<Vec<String>, String> {
        let mut names = Vec::new();
        expand_text("", pattern, &mut names).map(|()| names)
    }

    #[test]
    fn patterns_are_expanded() {
        assert_eq!(
            names("a{08..11}.tar").unwrap(),
            ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
        );
        assert_eq!(names("{x,y}/{1..2}").unwrap(), ["x/1", "x/2", "y/1", "y/2"]);
        assert_eq!(names("a.tar").unwrap(), ["a.tar"]);
        for wrong in [
            "{1..",
            "{1}",
            "{2..1}",
            "{-1..2}",
            "{a..c}",
            "{0..99999999999}",
            "{1..}",
        ] {
            assert!(names(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn annotations_stay_inside() {
        let folder = Path::new("/data/videos");
        assert_eq!(inside(folder, "a/b.mp4").unwrap(), folder.join("a/b.mp4"));
        assert_eq!(
            inside(folder, "/data/videos/a.mp4").unwrap(),
            folder.join("a.mp4")
        );
        for out in [
            "../a.mp4",
            "a/../../b.mp4",
            "/etc/passwd",
            "/data/videos/../x",
        ] {
            assert_eq!(inside(folder, out), None, "{out}");
        }
    }
}
