//! Everything that we do not decode ourselves, through the `ffmpeg` and `ffprobe` programs.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::{DEFAULT_FPS, Error, Frame, Result};

/// Packets at the end of a video that may yield no picture.
const STAND_INS: usize = 16;

/// Where the two programs are; plain names are looked up on the PATH.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub ffmpeg: PathBuf,
    pub ffprobe: PathBuf,
}

/// What `ffprobe` says of the first video track.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    pub codec: String,
    pub frames: usize,
    pub fps: f64,
    pub width: usize,
    pub height: usize,
}

impl Programs {
    /// Describes the video. `codec` is the best name so far, for the error messages.
    pub fn probe(&self, path: &Path, codec: &str) -> Result<Probe> {
        let entries = "stream=codec_name,width,height,avg_frame_rate,r_frame_rate,nb_read_packets\
                       :stream_tags=rotate:stream_side_data=rotation";
        let mut command = Command::new(&self.ffprobe);
        command
            .args(["-v", "error", "-select_streams", "v:0", "-count_packets"])
            .args(["-show_entries", entries])
            .args(["-of", "default=noprint_wrappers=1", "-i"])
            .arg(input(path));
        let run = Run::start(path, codec, &self.ffprobe, command)?;
        let mut text = String::new();
        let run = run.finish(|pipe| pipe.read_to_string(&mut text).map(|_| ()))?;
        run.check()?;

        let value = |key: &str| {
            text.lines()
                .filter_map(|line| line.split_once('='))
                .find(|(k, v)| *k == key && *v != "N/A")
                .map(|(_, v)| v.trim())
        };
        let number = |key| {
            value(key)
                .and_then(|v| v.parse::<usize>().ok())
                .unwrap_or(0)
        };
        let (mut width, mut height) = (number("width"), number("height"));
        let frames = number("nb_read_packets");
        if width == 0 || height == 0 || frames == 0 {
            return Err(Error::Empty {
                path: path.to_path_buf(),
            });
        }
        // ffmpeg turns the frames upright by itself.
        let degrees = value("rotation").or(value("TAG:rotate"));
        if degrees
            .and_then(|d| d.parse::<f64>().ok())
            .is_some_and(|d| d.abs() as i64 % 180 == 90)
        {
            (width, height) = (height, width);
        }
        let rate = |key| value(key).and_then(ratio);
        Ok(Probe {
            codec: value("codec_name").unwrap_or(codec).to_owned(),
            frames,
            fps: rate("avg_frame_rate")
                .or(rate("r_frame_rate"))
                .unwrap_or(DEFAULT_FPS),
            width,
            height,
        })
    }

    /// Decodes the wanted frames and hands them over one by one.
    ///
    /// Packets are what `ffprobe` counts, and a few at the end may yield no picture; the last
    /// picture stands in for those.
    pub fn decode(
        &self,
        path: &Path,
        probe: &Probe,
        wanted: &BTreeSet<usize>,
        each: &mut dyn FnMut(usize, Frame) -> Result<()>,
    ) -> Result<()> {
        let terms: Vec<_> = wanted.iter().map(|i| format!("eq(n,{i})")).collect();
        // One frame out for one in, whatever its time stamp was.
        let filter = format!("select='{}',settb=1/25,setpts=N", terms.join("+"));
        let mut command = Command::new(&self.ffmpeg);
        command
            .args(["-v", "error", "-nostdin", "-i"])
            .arg(input(path))
            .args(["-map", "0:v:0", "-vf", &filter, "-r", "25"])
            .args(["-frames:v", &wanted.len().to_string()])
            .args(["-pix_fmt", "rgb24", "-f", "rawvideo", "-"]);
        let run = Run::start(path, &probe.codec, &self.ffmpeg, command)?;

        let mut rgb = vec![0; probe.width * probe.height * 3];
        let mut missing = wanted.iter().copied().peekable();
        let mut any = false;
        let mut outcome = Ok(());
        let run = run.finish(|pipe| {
            while let Some(&index) = missing.peek() {
                match pipe.read_exact(&mut rgb) {
                    Ok(()) => {}
                    Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
                    Err(e) => return Err(e),
                }
                missing.next();
                outcome = Frame::new(probe.width, probe.height, rgb.clone())
                    .and_then(|frame| each(index, frame));
                any = true;
                if outcome.is_err() {
                    break;
                }
            }
            Ok(())
        })?;
        outcome?;
        let Some(&first) = missing.peek() else {
            return Ok(());
        };
        run.check()?;
        if !any || first + STAND_INS < probe.frames {
            return Err(run.failed(&format!("no frame {first} came out")));
        }
        missing
            .try_for_each(|index| each(index, Frame::new(probe.width, probe.height, rgb.clone())?))
    }
}

/// A program at work, and after it.
struct Run<'a> {
    path: &'a Path,
    codec: &'a str,
    program: &'a Path,
    child: Child,
    /// A file rather than a pipe: nobody reads it while the frames are read.
    messages: File,
    success: bool,
}

impl<'a> Run<'a> {
    fn start(
        path: &'a Path,
        codec: &'a str,
        program: &'a Path,
        mut command: Command,
    ) -> Result<Self> {
        let messages = tempfile::tempfile().map_err(|e| Error::write(&std::env::temp_dir(), e))?;
        let stderr = messages
            .try_clone()
            .map_err(|e| Error::write(&std::env::temp_dir(), e))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .map_err(|e| {
                let (path, codec) = (path.to_path_buf(), codec.to_owned());
                if e.kind() == io::ErrorKind::NotFound {
                    return Error::NeedsFfmpeg { path, codec };
                }
                Error::Ffmpeg {
                    path,
                    codec,
                    program: program.display().to_string(),
                    message: e.to_string(),
                }
            })?;
        Ok(Self {
            path,
            codec,
            program,
            child,
            messages,
            success: false,
        })
    }

    /// Reads the output with `read`, then ends the program, which may have more to say.
    fn finish(mut self, read: impl FnOnce(&mut dyn Read) -> io::Result<()>) -> Result<Self> {
        let outcome = match self.child.stdout.take() {
            Some(mut pipe) => read(&mut pipe),
            None => Ok(()),
        };
        // The pipe is closed by now, so the program is about to end, or ends at its next write.
        let status = self.child.wait();
        self.success = status.is_ok_and(|s| s.success());
        outcome.map_err(|e| self.failed(&e.to_string()))?;
        Ok(self)
    }

    /// An error if the program failed.
    fn check(&self) -> Result<()> {
        if self.success {
            Ok(())
        } else {
            Err(self.failed("it gave no reason"))
        }
    }

    /// The error with the last line that the program printed, or else with `reason`.
    fn failed(&self, reason: &str) -> Error {
        let mut text = Vec::new();
        let mut messages = &self.messages;
        let read = messages
            .seek(SeekFrom::Start(0))
            .and_then(|_| messages.read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty());
        Error::Ffmpeg {
            path: self.path.to_path_buf(),
            codec: self.codec.to_owned(),
            program: self.program.display().to_string(),
            message: match (read, line) {
                (Ok(_), Some(line)) => line.to_owned(),
                _ => reason.to_owned(),
            },
        }
    }
}

/// The file as FFmpeg's own protocol spells it, so that no name is taken for an option or a URL.
fn input(path: &Path) -> OsString {
    let mut url = OsString::from("file:");
    url.push(path);
    url
}

/// `30000/1001` as a number; `None` for `0/0`.
fn ratio(text: &str) -> Option<f64> {
    let (numerator, denominator) = text.split_once('/')?;
    let rate = numerator.parse::<f64>().ok()? / denominator.parse::<f64>().ok()?;
    (rate.is_finite() && rate > 0.0).then_some(rate)
}

/// The container, and the codec where its first bytes tell; `None` for a file of no known kind.
pub(crate) fn sniff(head: &[u8]) -> Option<String> {
    let find = |needle: &[u8]| head.windows(needle.len()).position(|w| w == needle);
    let starts = |magic: &[u8]| head.starts_with(magic);
    if starts(&[0x1a, 0x45, 0xdf, 0xa3]) {
        // Matroska names codecs in plain text, as V_VP9 or V_MPEG4/ISO/AVC.
        let codec = find(b"V_").map(|at| {
            let name = |b: &&u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_');
            let name: Vec<u8> = head[at + 2..].iter().take_while(name).copied().collect();
            match &name[..] {
                b"MPEG4/ISO/AVC" => "h264 in Matroska".into(),
                b"MPEGH/ISO/HEVC" => "hevc".into(),
                name => String::from_utf8_lossy(name).to_lowercase(),
            }
        });
        return Some(codec.unwrap_or_else(|| "unknown (in Matroska or WebM)".into()));
    }
    if starts(b"RIFF") && head.get(8..12) == Some(b"AVI ") {
        let handler = find(b"vids").and_then(|at| head.get(at + 4..at + 8));
        let name = handler.map(|h| String::from_utf8_lossy(h).trim().escape_debug().to_string());
        return Some(format!("{} (in AVI)", name.as_deref().unwrap_or("unknown")));
    }
    let transport_stream = head.first() == Some(&0x47) && head.get(188) == Some(&0x47);
    let name = if transport_stream {
        "unknown (in an MPEG transport stream)"
    } else if starts(&[0, 0, 1, 0xba]) || starts(&[0, 0, 1, 0xb3]) {
        "MPEG-1 or MPEG-2"
    } else if starts(&[0, 0, 0, 1]) || starts(&[0, 0, 1]) {
        "unknown (a raw stream)"
    } else if starts(b"FLV") {
        "unknown (in Flash Video)"
    } else if starts(b"OggS") {
        "unknown (in Ogg)"
    } else if starts(&[0x30, 0x26, 0xb2, 0x75]) {
        "unknown (in ASF or WMV)"
    } else if starts(b"YUV4MPEG2") {
        "raw video (YUV4MPEG)"
    } else if starts(b"DKIF") {
        "unknown (in IVF)"
    } else {
        return None;
    };
    Some(name.into())
}
