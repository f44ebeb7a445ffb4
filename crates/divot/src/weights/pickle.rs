//! Looks a PyTorch file's pickles over for functions that no checkpoint has a reason to name.
//!
//! Reading a checkpoint here never calls anything: `pytorch-reader` knows how to rebuild tensors and
//! keeps every other object as an opaque name. A pickle made to run code would therefore be harmless
//! here and look like a normal checkpoint, until its owner opens it with PyTorch. So it is refused.

use super::{DAMAGED, WeightsError, one_line};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

/// How many pickles a file of PyTorch 0.1.10 to 1.5 starts with: a magic number, the protocol's
/// version, system information, the saved object, the list of storages.
const LEGACY_PICKLES: usize = 5;

/// Refuses the PyTorch file at `path` when one of its pickles names a [`dangerous`] function.
pub(super) fn refuse_code(path: &Path) -> Result<(), WeightsError> {
    let reading = |err| WeightsError::reading(path, err);
    let mut reader = BufReader::new(File::open(path).map_err(reading)?);

    let start = reader.fill_buf().map_err(reading)?;
    if start.get(257..262) == Some(b"ustar") {
        let problem = "written by PyTorch before 0.1.10";
        let remedy = "load it with a current PyTorch and save its state_dict again";
        return Err(WeightsError::file(path, problem, remedy));
    }
    if !start.starts_with(b"PK") {
        // Every pickle of a Python 3 starts with this opcode, text may as well be a pickle's.
        let is_pickle = start.starts_with(b"\x80");
        // A plain pickle is alone in its file, and is followed by nothing that parses.
        for i in 0..LEGACY_PICKLES {
            match scan(&mut reader) {
                Ok(found) => refuse(path, found)?,
                Err(err) if i == 0 => return Err(not_pickle(path, err, is_pickle)),
                Err(_) => break,
            }
        }
        return Ok(());
    }

    let zip_error = |err: zip::result::ZipError| match err {
        zip::result::ZipError::Io(err) if err.kind() != io::ErrorKind::UnexpectedEof => {
            reading(err)
        }
        err => WeightsError::file(path, format!("not a complete zip archive ({err})"), DAMAGED),
    };
    let mut archive = zip::ZipArchive::new(reader).map_err(zip_error)?;
    for i in 0..archive.len() {
        let entry = archive.by_index(i).map_err(zip_error)?;
        if entry.name().map_err(zip_error)?.ends_with(".pkl") {
            let limited = entry.take(pytorch_reader::MAX_PICKLE_SIZE);
            let found =
                scan(&mut BufReader::new(limited)).map_err(|err| not_pickle(path, err, true))?;
            refuse(path, found)?;
        }
    }
    Ok(())
}

fn refuse(path: &Path, found: Option<String>) -> Result<(), WeightsError> {
    match found {
        None => Ok(()),
        Some(callable) => Err(WeightsError::Refused {
            path: path.to_path_buf(),
            callable: one_line(callable),
        }),
    }
}

fn not_pickle(path: &Path, err: io::Error, is_pickle: bool) -> WeightsError {
    let problem = match err.kind() {
        io::ErrorKind::UnexpectedEof if is_pickle => "truncated inside a pickle".to_string(),
        _ if is_pickle => format!("holds a broken pickle ({err})"),
        _ => "neither a PyTorch checkpoint nor a safetensors file".to_string(),
    };
    WeightsError::file(path, problem, DAMAGED)
}

/// Whether no checkpoint has a reason to name this function: it runs programs or code, or fetches
/// them. `getattr` is not among them, although it can reach anything: some Python releases pickle
/// enums through it.
fn dangerous(module: &str, name: &str) -> bool {
    let root = module.split('.').next().unwrap_or(module);
    match root {
        "builtins" | "__builtin__" | "__builtins__" => matches!(
            name,
            "eval"
                | "exec"
                | "execfile"
                | "compile"
                | "open"
                | "input"
                | "__import__"
                | "apply"
                | "globals"
                | "locals"
                | "vars"
                | "setattr"
                | "delattr"
                | "breakpoint"
        ),
        "operator" | "_operator" => matches!(name, "attrgetter" | "methodcaller"),
        "torch" => {
            matches!(module, "torch.hub" | "torch.utils.cpp_extension")
                || (module == "torch.serialization" && name == "load")
                || (module == "torch" && name == "load")
        }
        "numpy" => name == "runstring" || (module == "numpy" && name == "load"),
        _ => matches!(
            root,
            "os" | "posix"
                | "nt"
                | "subprocess"
                | "_posixsubprocess"
                | "sys"
                | "pty"
                | "shutil"
                | "socket"
                | "runpy"
                | "importlib"
                | "imp"
                | "pkgutil"
                | "ctypes"
                | "_ctypes"
                | "webbrowser"
                | "code"
                | "codeop"
                | "commands"
                | "pdb"
                | "bdb"
                | "timeit"
                | "profile"
                | "cProfile"
                | "trace"
                | "pip"
                | "asyncio"
                | "urllib"
                | "urllib2"
                | "http"
                | "httplib"
                | "requests"
                | "aiohttp"
                | "ftplib"
                | "smtplib"
                | "telnetlib"
                | "pickle"
                | "_pickle"
                | "cPickle"
                | "marshal"
                | "pydoc"
                | "ensurepip"
                | "venv"
        ),
    }
}

/// The name a person knows the function by: Python pickles `os.system` as `posix.system`.
fn display_name(module: &str, name: &str) -> String {
    match module {
        "posix" | "nt" => format!("os.{name}"),
        "__builtin__" => format!("builtins.{name}"),
        _ => format!("{module}.{name}"),
    }
}

/// Reads one pickle to its end and returns the first dangerous function it names, if any.
///
/// Opcodes are stepped over, nothing is built. Two strings pushed right before `STACK_GLOBAL` are
/// followed, through the memo too, because that is how newer protocols name a function; a name put
/// together in any other way is reported as such.
fn scan(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    // What the last opcodes pushed, newest last, since the last one that did anything else.
    let mut pushed: Vec<Option<String>> = Vec::new();
    let mut memo: HashMap<u32, Option<String>> = HashMap::new();

    loop {
        let opcode = u8::from_le_bytes(bytes(reader)?);
        let push = match opcode {
            b'.' => return Ok(None),
            // GLOBAL and INST: module and name as two lines.
            b'c' | b'i' => {
                let (module, name) = (line(reader)?, line(reader)?);
                if dangerous(&module, &name) {
                    return Ok(Some(display_name(&module, &name)));
                }
                None
            }
            // STACK_GLOBAL: module and name as the last two values.
            0x93 => {
                let name = pushed.pop().flatten();
                let module = pushed.pop().flatten();
                match (module, name) {
                    (Some(module), Some(name)) if dangerous(&module, &name) => {
                        return Ok(Some(display_name(&module, &name)));
                    }
                    (Some(_), Some(_)) => None,
                    _ => return Ok(Some("a function whose name is hidden".to_string())),
                }
            }

            // Strings: text to the end of the line, or a length and that many bytes.
            b'S' => Some(line(reader)?.trim_matches(['\'', '"']).to_string()),
            b'V' => Some(line(reader)?),
            b'U' | 0x8c => Some(text::<1>(reader)?),
            b'T' | b'X' => Some(text::<4>(reader)?),
            0x8d => Some(text::<8>(reader)?),

            // Memo: PUT, BINPUT, LONG_BINPUT, MEMOIZE keep the last value and push nothing.
            b'p' | b'q' | b'r' | 0x94 => {
                let key = match opcode {
                    b'p' => parse(&line(reader)?)?,
                    b'q' => u8::from_le_bytes(bytes(reader)?).into(),
                    b'r' => u32::from_le_bytes(bytes(reader)?),
                    _ => memo.len() as u32,
                };
                memo.insert(key, pushed.last().cloned().flatten());
                continue;
            }
            // GET, BINGET, LONG_BINGET push what was kept.
            b'g' | b'h' | b'j' => {
                let key = match opcode {
                    b'g' => parse(&line(reader)?)?,
                    b'h' => u8::from_le_bytes(bytes(reader)?).into(),
                    _ => u32::from_le_bytes(bytes(reader)?),
                };
                memo.get(&key).cloned().flatten()
            }
            // PROTO and FRAME do nothing to the stack.
            0x80 => {
                skip(reader, 1)?;
                continue;
            }
            0x95 => {
                skip(reader, 8)?;
                continue;
            }

            // Everything else is stepped over, and makes what was pushed before it unknown.
            _ => {
                match opcode {
                    // Text to the end of the line: INT, LONG, FLOAT, PERSID.
                    b'I' | b'L' | b'F' | b'P' => drop(line(reader)?),
                    // A fixed number of bytes: integers, floats, extension codes.
                    b'K' | 0x82 => skip(reader, 1)?,
                    b'M' | 0x83 => skip(reader, 2)?,
                    b'J' | 0x84 => skip(reader, 4)?,
                    b'G' => skip(reader, 8)?,
                    // A length and that many bytes: integers, bytes, byte arrays.
                    b'C' | 0x8a => skip_counted::<1>(reader)?,
                    b'B' | 0x8b => skip_counted::<4>(reader)?,
                    0x8e | 0x96 => skip_counted::<8>(reader)?,
                    // Nothing follows the opcode.
                    b'('
                    | b'0'
                    | b'1'
                    | b'2'
                    | b'N'
                    | b'Q'
                    | b'R'
                    | b'a'
                    | b'b'
                    | b'd'
                    | b'e'
                    | b'l'
                    | b'o'
                    | b's'
                    | b't'
                    | b'u'
                    | b')'
                    | b']'
                    | b'}'
                    | 0x81
                    | 0x85..=0x89
                    | 0x8f..=0x92
                    | 0x97
                    | 0x98 => {}
                    _ => {
                        let problem = format!("0x{opcode:02x} is no pickle opcode");
                        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
                    }
                }
                pushed.clear();
                // Some of these push a value, which is not a string.
                pushed.push(None);
                continue;
            }
        };
        pushed.push(push);
        if pushed.len() > 2 {
            pushed.remove(0);
        }
    }
}

/// The longest string looked at, in bytes: names of modules and functions are short.
const MAX_NAME: u64 = 1 << 16;

fn bytes<const N: usize>(reader: &mut impl BufRead) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn length<const N: usize>(reader: &mut impl BufRead) -> io::Result<u64> {
    let mut length = [0; 8];
    length[..N].copy_from_slice(&bytes::<N>(reader)?);
    Ok(u64::from_le_bytes(length))
}

fn text<const N: usize>(reader: &mut impl BufRead) -> io::Result<String> {
    let length = length::<N>(reader)?;
    let mut text = Vec::new();
    reader.take(length.min(MAX_NAME)).read_to_end(&mut text)?;
    if (text.len() as u64) < length {
        skip(reader, length - text.len() as u64)?;
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    reader.take(MAX_NAME).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

fn parse(text: &str) -> io::Result<u32> {
    text.parse()
        .map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err))
}

fn skip(reader: &mut impl BufRead, count: u64) -> io::Result<()> {
    if io::copy(&mut reader.take(count), &mut io::sink())? < count {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

fn skip_counted<const N: usize>(reader: &mut impl BufRead) -> io::Result<()> {
    let count = length::<N>(reader)?;
    skip(reader, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan_bytes(bytes: &[u8]) -> Option<String> {
        scan(&mut &bytes[..]).unwrap()
    }

    #[test]
    fn names_are_found_in_every_protocol() {
        // pickle.dumps of an object whose __reduce__ is (os.system, ("true",)).
        let protocol_0 = b"cposix\nsystem\np0\n(Vtrue\np1\ntp2\nRp3\n.";
        let protocol_2 = b"\x80\x02cposix\nsystem\nq\x00X\x04\x00\x00\x00trueq\x01\x85q\x02Rq\x03.";
        let protocol_4 = b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06\
            system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94.";
        for pickle in [&protocol_0[..], protocol_2, protocol_4] {
            assert_eq!(scan_bytes(pickle).as_deref(), Some("os.system"));
        }
    }

    #[test]
    fn a_call_whose_result_is_dropped_is_found() {
        let pickle = b"\x80\x02cbuiltins\nexec\nX\x04\x00\x00\x00pass\x85R0}.";
        assert_eq!(scan_bytes(pickle).as_deref(), Some("builtins.exec"));
    }

    #[test]
    fn a_name_from_the_memo_is_found_and_a_hidden_one_refused() {
        let memo = b"\x8c\x02os\x940\x8c\x06system\x940h\x00h\x01\x93.";
        assert_eq!(scan_bytes(memo).as_deref(), Some("os.system"));
        // The strings are not the last two values when the opcode runs.
        let hidden = b"\x8c\x02os\x8c\x06system\x8c\x01x0\x93.";
        assert!(scan_bytes(hidden).unwrap().contains("hidden"));
    }

    #[test]
    fn what_checkpoints_name_is_allowed() {
        let pickle = b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01\
            ctorch._utils\n_rebuild_tensor_v2\nclightning.callbacks\nModelCheckpoint\n)\x81.";
        assert_eq!(scan_bytes(pickle), None);
    }

    #[test]
    fn truncated_and_foreign_bytes_are_errors() {
        let eof = |bytes: &[u8]| scan(&mut &bytes[..]).unwrap_err().kind();
        assert_eq!(eof(b"\x80\x02ccoll"), io::ErrorKind::UnexpectedEof);
        assert_eq!(eof(b"X\xff\xff\xff\xffab"), io::ErrorKind::UnexpectedEof);
        assert_eq!(eof(b"\xff"), io::ErrorKind::InvalidData);
    }
}
