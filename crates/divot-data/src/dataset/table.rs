//! Samples that are records of CSV files. Only where each record begins is kept in memory.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use csv::{Position, Reader, StringRecord};

use super::sample::{Reason, Skip};
use crate::{Error, Result};

/// A CSV file whose records were found.
#[derive(Debug)]
pub(super) struct Table {
    pub path: PathBuf,
    columns: Columns,
    /// Where each sample's record begins, its line, and which of its captions it is.
    rows: Vec<(u64, u32, u16)>,
}

/// Where the fields are.
#[derive(Debug, Clone, Copy)]
struct Columns {
    media: Media,
    caption: usize,
    /// Panda-70M's time stamps: a caption for each.
    timestamp: Option<usize>,
}

/// How a record names its file.
#[derive(Debug, Clone, Copy)]
enum Media {
    /// By its path.
    Path(usize),
    /// By its name without `.mp4`.
    Name(usize),
    /// By a folder and a name without `.mp4`.
    Folder(usize, usize),
}

/// A sample of a table.
pub(super) struct Row {
    pub key: String,
    pub media: String,
    pub caption: String,
    /// The part of the video that the caption is about, in seconds.
    pub seconds: Option<[f64; 2]>,
}

impl Table {
    /// Finds the records of a file.
    pub fn index(path: &Path) -> Result<Self> {
        let wrong = |problem: String| Error::Argument(format!("{}: {problem}", path.display()));
        let file = File::open(path).map_err(|error| Error::read(path, error))?;
        let mut reader = Reader::from_reader(BufReader::new(file));
        let header = reader
            .headers()
            .map_err(|error| wrong(format!("has no header ({error}); name its columns")))?
            .clone();
        let columns = Columns::of(&header).ok_or_else(|| {
            wrong(
                "has no column `video`, `image`, `videoid`, `video_id` or `videoID`, or no column \
                 `caption` or `name`; name its columns so"
                    .to_owned(),
            )
        })?;
        let mut rows = Vec::new();
        let mut record = StringRecord::new();
        loop {
            let position = reader.position().clone();
            match reader.read_record(&mut record) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if error.is_io_error() => {
                    return Err(wrong(format!("cannot be read ({error}); check the file")));
                }
                // It is named when it is read.
                Err(_) => record.clear(),
            }
            let captions = match columns.timestamp {
                Some(_) => list(record.get(columns.caption).unwrap_or_default())
                    .map_or(1, |captions| captions.len()),
                None => 1,
            };
            for number in 0..captions.min(usize::from(u16::MAX)) {
                rows.push((position.byte(), position.line() as u32, number as u16));
            }
        }
        Ok(Self {
            path: path.to_path_buf(),
            columns,
            rows,
        })
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Reads a sample.
    pub fn read(&self, index: usize) -> Result<Row, Skip> {
        let (offset, line, number) = self.rows[index];
        let number = usize::from(number);
        let mut key = format!("{}:{line}", self.path.display());
        if self.columns.timestamp.is_some() {
            key = format!("{key}[{number}]");
        }
        let skip = |reason, message: &str| Skip {
            key: key.clone(),
            reason,
            message: message.to_owned(),
        };
        let unreadable = |error: csv::Error| skip(Reason::Malformed, &error.to_string());
        let file =
            File::open(&self.path).map_err(|error| skip(Reason::Missing, &error.to_string()))?;
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .from_reader(BufReader::new(file));
        let mut position = Position::new();
        position.set_byte(offset).set_line(u64::from(line));
        reader.seek(position).map_err(unreadable)?;
        let mut record = StringRecord::new();
        reader.read_record(&mut record).map_err(unreadable)?;

        let field = |column: usize| {
            let field = record.get(column).map(str::trim);
            field.ok_or_else(|| skip(Reason::Malformed, "a field is missing"))
        };
        let media = match self.columns.media {
            Media::Path(column) => field(column)?.to_owned(),
            Media::Name(column) => format!("{}.mp4", field(column)?),
            Media::Folder(folder, column) => format!("{}/{}.mp4", field(folder)?, field(column)?),
        };
        let caption = field(self.columns.caption)?;
        let (caption, seconds) = match self.columns.timestamp {
            None => (caption.to_owned(), None),
            Some(column) => {
                let item = |column: &str| {
                    let items = list(column)?;
                    items.into_iter().nth(number)
                };
                let caption = item(caption).and_then(Item::text);
                let times = item(field(column)?).and_then(Item::times);
                let wrong = || skip(Reason::Malformed, "a caption has no time stamp");
                let (caption, times) = caption.zip(times).ok_or_else(wrong)?;
                (caption, Some(times))
            }
        };
        Ok(Row {
            key,
            media,
            caption,
            seconds,
        })
    }
}

impl Columns {
    fn of(header: &StringRecord) -> Option<Self> {
        let column = |name: &str| header.iter().position(|found| found.trim() == name);
        let by_name = ["videoid", "video_id", "videoID"];
        let by_name = by_name.into_iter().find_map(column);
        let media = match (column("video").or_else(|| column("image")), by_name) {
            (Some(path), _) => Media::Path(path),
            (None, Some(name)) => match column("page_dir") {
                Some(folder) => Media::Folder(folder, name),
                None => Media::Name(name),
            },
            (None, None) => return None,
        };
        Some(Self {
            media,
            caption: column("caption").or_else(|| column("name"))?,
            timestamp: column("timestamp"),
        })
    }
}

/// An item of a list as Python writes it.
#[derive(Debug, PartialEq)]
enum Item {
    Text(String),
    List(Vec<Item>),
}

impl Item {
    fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            Self::List(_) => None,
        }
    }

    /// Start and end of `['0:00:02.169', '0:00:06.006']`, in seconds.
    fn times(self) -> Option<[f64; 2]> {
        let Self::List(items) = self else { return None };
        let [start, end] = items.try_into().ok()?;
        let seconds = |item: Item| {
            item.text()?.split(':').try_fold(0.0, |total, part| {
                Some(60.0 * total + part.parse::<f64>().ok()?)
            })
        };
        let times = [seconds(start)?, seconds(end)?];
        (0.0 <= times[0] && times[0] < times[1]).then_some(times)
    }
}

/// Reads a list of texts and lists as Python writes it.
fn list(text: &str) -> Option<Vec<Item>> {
    let mut characters = text.trim().chars().peekable();
    let items = match item(&mut characters, 0)? {
        Item::List(items) => items,
        Item::Text(_) => return None,
    };
    characters.next().is_none().then_some(items)
}

fn item(text: &mut std::iter::Peekable<std::str::Chars<'_>>, depth: usize) -> Option<Item> {
    match text.next()? {
        '[' if depth < 2 => {
            let mut items = Vec::new();
            loop {
                while text.next_if(|c| *c == ',' || c.is_whitespace()).is_some() {}
                if text.next_if_eq(&']').is_some() {
                    return Some(Item::List(items));
                }
                items.push(item(text, depth + 1)?);
            }
        }
        quote @ ('\'' | '"') => {
            let mut found = String::new();
            loop {
                match text.next()? {
                    '\\' => found.push(match text.next()? {
                        'n' => '\n',
                        't' => '\t',
                        other => other,
                    }),
                    c if c == quote => return Some(Item::Text(found)),
                    c => found.push(c),
                }
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_python_are_read() {
        let times = list("[['0:00:02.169', '0:01:06.5'], ['0:00:10', '0:00:09']]").unwrap();
        let times: Vec<_> = times.into_iter().map(Item::times).collect();
        assert_eq!(times, [Some([2.169, 66.5]), None]);
        let texts = list(r#"['a dog\'s day', "it's, [late]"]"#).unwrap();
        let texts: Vec<_> = texts.into_iter().filter_map(Item::text).collect();
        assert_eq!(texts, ["a dog's day", "it's, [late]"]);
        for wrong in ["", "a", "['a'", "['a'] b", "['a", "[[[['a']]]]", "[1]"] {
            assert_eq!(list(wrong), None, "{wrong}");
        }
    }
}
