//! Contact sheets of what was made, to be looked at.

use std::io::Write as _;
use std::path::Path;

use anyhow::Result;
use divot_data::{Frame, atomically, contact_sheet, write_png};

/// Clips of a sheet.
const CLIPS: usize = 8;
/// Pixels between frames.
const GAP: usize = 2;

/// What a sheet shows of one clip.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What is said of it, on one line.
    pub text: String,
    /// Rows of frames: the real ones above what was made of them.
    pub rows: Vec<Vec<Frame>>,
}

/// The first clips, and the worst.
#[derive(Debug, Default)]
pub struct Gallery {
    first: Vec<Entry>,
    /// By quality, the worst first.
    worst: Vec<(f64, Entry)>,
}

impl Gallery {
    /// Adds a clip, of which the higher quality is the better.
    pub fn add(&mut self, quality: f64, entry: impl FnOnce() -> Entry) {
        let is_first = self.first.len() < CLIPS;
        let place = self.worst.partition_point(|(other, _)| *other <= quality);
        if !is_first && place >= CLIPS {
            return;
        }
        let entry = entry();
        if is_first {
            self.first.push(entry.clone());
        }
        self.worst.insert(place, (quality, entry));
        self.worst.truncate(CLIPS);
    }

    /// Writes `NAME.png` and `NAME-worst.png` with their texts, if there is a folder for them.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, folder: Option<&Path>, name: &str) -> Result<()> {
        let Some(folder) = folder else {
            return Ok(());
        };
        write(folder, name, &self.first)?;
        let worst: Vec<Entry> = self.worst.iter().map(|(_, entry)| entry.clone()).collect();
        write(folder, &format!("{name}-worst"), &worst)
    }
}

/// Writes `NAME.png` with the rows of entries, and `NAME.md` with their texts.
///
/// # Errors
/// If a file cannot be written.
pub fn write(folder: &Path, name: &str, entries: &[Entry]) -> Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let rows = entries.iter().flat_map(|entry| &entry.rows);
    let rows: Vec<&[Frame]> = rows.map(Vec::as_slice).collect();
    let mut text = String::new();
    // A story may end before its first clip.
    if !rows.is_empty() {
        let sheet = contact_sheet(&rows, GAP)?;
        write_png(folder.join(format!("{name}.png")), &sheet)?;
        text += &format!("![]({name}.png)\n\n");
    }
    for (entry, number) in entries.iter().zip(1..) {
        text += &format!("{number}. {}\n", entry.text);
    }
    write_text(folder, name, &text)
}

/// Writes `NAME.md`.
///
/// # Errors
/// If it cannot be written.
pub fn write_text(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(format!("{name}.md"));
    Ok(atomically(&path, |file| file.write_all(text.as_bytes()))?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_first_and_the_worst_are_kept() {
        let mut gallery = Gallery::default();
        for number in 0..20u8 {
            // The eleventh is the best, and those at both ends are the worst.
            let quality = -f64::from(number.abs_diff(10));
            gallery.add(quality, || Entry {
                text: number.to_string(),
                rows: vec![vec![Frame::filled(4, 4, [number; 3]).unwrap()]],
            });
        }
        let texts = |entries: Vec<&Entry>| -> Vec<u8> {
            entries
                .iter()
                .map(|entry| entry.text.parse().unwrap())
                .collect()
        };
        let first = texts(gallery.first.iter().collect());
        assert_eq!(first, [0, 1, 2, 3, 4, 5, 6, 7]);
        let worst = texts(gallery.worst.iter().map(|(_, entry)| entry).collect());
        assert_eq!(worst, [0, 1, 19, 2, 18, 3, 17, 4]);

        let folder = tempfile::tempdir().unwrap();
        gallery.write(Some(folder.path()), "sheet").unwrap();
        let text = fs::read_to_string(folder.path().join("sheet-worst.md")).unwrap();
        assert!(text.contains("3. 19\n"), "{text}");
        assert!(folder.path().join("sheet.png").is_file());

        let entry = Entry {
            text: "nothing".to_owned(),
            rows: Vec::new(),
        };
        write(folder.path(), "empty", &[entry]).unwrap();
        assert!(!folder.path().join("empty.png").exists());
    }
}
