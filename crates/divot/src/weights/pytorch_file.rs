//! Writes a state dict as `torch.save` does: a zip archive of stored entries, with a pickle that names them.

use std::collections::BTreeSet;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use burn::tensor::{DType, TensorData};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::WeightsError;
use super::new_file::NewFile;
use super::safetensors::TensorSpec;

/// Where PyTorch puts the bytes of tensors, so that it can map them into memory.
const ALIGNMENT: u16 = 64;

/// Writes the tensors `specs` (f32, f16, bf16 or f64) to a PyTorch file at `path`, in their order, as a plain
/// dictionary of names and tensors. `tensor` is called for the data of the `i`-th tensor when it is needed.
///
/// `torch.load` reads the file, with `weights_only` too. If anything fails, nothing is left behind, and an
/// older file stays unchanged.
///
/// # Errors
///
/// If two specs have the same name, PyTorch's files have no name for an element type, a tensor does not match
/// its spec, or the disk is full; those of `tensor`.
pub fn write_pytorch(
    path: &Path,
    specs: &[TensorSpec],
    mut tensor: impl FnMut(usize) -> Result<TensorData, WeightsError>,
) -> Result<(), WeightsError> {
    let pickle = state_dict(specs).map_err(|error| error.in_file(path))?;
    let writing = |error: io::Error| WeightsError::writing(path, error);
    let mut zip = ZipWriter::new(Target {
        file: NewFile::create(path)?,
        failed: false,
    });
    let mut write = |name: &str, bytes: &[u8]| -> io::Result<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .with_alignment(ALIGNMENT)
            .large_file(bytes.len() as u64 >= u64::from(u32::MAX));
        zip.start_file(format!("archive/{name}"), options)?;
        zip.write_all(bytes)
    };
    write("data.pkl", &pickle).map_err(writing)?;
    write("byteorder", b"little").map_err(writing)?;
    for (i, spec) in specs.iter().enumerate() {
        let data = tensor(i)?;
        spec.check(&data).map_err(|error| error.in_file(path))?;
        write(&format!("data/{i}"), data.as_bytes()).map_err(writing)?;
    }
    write("version", b"3\n").map_err(writing)?;
    zip.finish()
        .map_err(|error| writing(error.into()))?
        .file
        .finish()
}

/// A file that swallows everything after the first error. The archive is completed even when it is dropped, and
/// would print another error then.
struct Target {
    file: NewFile,
    failed: bool,
}

impl Target {
    fn unless_failed<T>(
        &mut self,
        swallowed: T,
        act: impl FnOnce(&mut NewFile) -> io::Result<T>,
    ) -> io::Result<T> {
        if self.failed {
            return Ok(swallowed);
        }
        let result = act(&mut self.file);
        self.failed = result.is_err();
        result
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.unless_failed(bytes.len(), |file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.unless_failed((), Write::flush)
    }
}

impl Seek for Target {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.unless_failed(0, |file| file.seek(to))
    }
}

/// Returns the pickle (protocol 2) of a dictionary whose tensors each have a storage of their own, called 0,
/// 1, 2, …
fn state_dict(specs: &[TensorSpec]) -> Result<Vec<u8>, WeightsError> {
    let mut pickle = Pickle(vec![0x80, 2]);
    pickle.0.extend_from_slice(b"}(");
    let mut names = BTreeSet::new();
    for (i, spec) in specs.iter().enumerate() {
        let refused =
            |problem: &str, remedy| Err(WeightsError::tensor(&spec.name, problem, remedy));
        if !names.insert(&spec.name) {
            return refused("is named twice", "give every tensor its own name");
        }
        let storage = match spec.dtype {
            DType::F64 => "DoubleStorage",
            DType::F32 => "FloatStorage",
            DType::F16 => "HalfStorage",
            DType::BF16 => "BFloat16Storage",
            _ => return refused("is no tensor of floats", "convert it to f32, f16 or bf16"),
        };
        if spec.byte_len().is_none() {
            return refused("is larger than any memory", "check its shape");
        }
        let elements: usize = spec.shape.iter().product();
        pickle.text(&spec.name);
        pickle.global("torch._utils", "_rebuild_tensor_v2");
        pickle.tuple(|pickle| {
            pickle.tuple(|pickle| {
                pickle.text("storage");
                pickle.global("torch", storage);
                pickle.text(&i.to_string());
                pickle.text("cpu");
                pickle.int(elements);
            });
            // The storage is what the program makes of this tuple.
            pickle.0.push(b'Q');
            // The offset in it, the shape, the strides, no gradient, no hooks.
            pickle.int(0);
            pickle.tuple(|pickle| spec.shape.iter().for_each(|&side| pickle.int(side)));
            pickle.tuple(|pickle| {
                for axis in 1..=spec.shape.len() {
                    pickle.int(spec.shape[axis..].iter().product());
                }
            });
            pickle.0.push(0x89);
            pickle.global("collections", "OrderedDict");
            pickle.0.extend_from_slice(b")R");
        });
        pickle.0.push(b'R');
    }
    pickle.0.extend_from_slice(b"u.");
    Ok(pickle.0)
}

/// The bytes of a pickle.
struct Pickle(Vec<u8>);

impl Pickle {
    fn text(&mut self, text: &str) {
        self.0.push(b'X');
        self.0.extend_from_slice(&(text.len() as u32).to_le_bytes());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn global(&mut self, module: &str, name: &str) {
        self.0
            .extend_from_slice(format!("c{module}\n{name}\n").as_bytes());
    }

    fn int(&mut self, value: usize) {
        match i32::try_from(value) {
            Ok(value) => {
                self.0.push(b'J');
                self.0.extend_from_slice(&value.to_le_bytes());
            }
            // Sizes of files are far below the sign.
            Err(_) => {
                self.0.extend_from_slice(&[0x8a, 8]);
                self.0.extend_from_slice(&(value as u64).to_le_bytes());
            }
        }
    }

    fn tuple(&mut self, items: impl FnOnce(&mut Self)) {
        self.0.push(b'(');
        items(self);
        self.0.push(b't');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Source;

    fn specs() -> Vec<TensorSpec> {
        [
            ("model.a", vec![2, 3], DType::F32),
            ("scalar", vec![], DType::F32),
            ("half", vec![4], DType::F16),
            ("brain", vec![2, 1, 2], DType::BF16),
            ("double", vec![1], DType::F64),
        ]
        .map(|(name, shape, dtype)| TensorSpec {
            name: name.to_owned(),
            shape,
            dtype,
        })
        .into()
    }

    fn data(spec: &TensorSpec) -> TensorData {
        let count = spec.shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count).map(|i| i as f32 - 1.5).collect();
        TensorData::new(values, spec.shape.clone()).convert_dtype(spec.dtype)
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.bin");
        let specs = specs();
        write_pytorch(&path, &specs, |i| Ok(data(&specs[i]))).expect("it is written");
        let source = Source::open(&path).expect("it is read");
        assert_eq!(source.tensors().len(), specs.len());
        for spec in &specs {
            let tensor = source.get(&spec.name).expect("it is there");
            assert_eq!((&tensor.shape, tensor.dtype), (&spec.shape, spec.dtype));
            assert_eq!(tensor.read().expect("its bytes"), data(spec));
        }
        // The same weights give the same bytes, and nothing else is left.
        let first = std::fs::read(&path).expect("the file");
        write_pytorch(&path, &specs, |i| Ok(data(&specs[i]))).expect("it is written");
        assert_eq!(std::fs::read(&path).expect("the file"), first);
        assert_eq!(std::fs::read_dir(folder.path()).expect("it").count(), 1);
    }

    #[test]
    fn a_failure_leaves_the_older_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.bin");
        std::fs::write(&path, "older").expect("a file");
        let mut specs = specs();
        let wrong = data(&specs[1]);
        let error = write_pytorch(&path, &specs, |_| Ok(wrong.clone())).expect_err("a scalar");
        assert!(error.to_string().contains("model.a"), "{error}");
        specs[1].name = "half".to_owned();
        let error = write_pytorch(&path, &specs, |i| Ok(data(&specs[i]))).expect_err("named twice");
        assert!(
            error.to_string().contains("`half` is named twice"),
            "{error}"
        );
        specs[2].name = "int".to_owned();
        specs[2].dtype = DType::I32;
        let error = write_pytorch(&path, &specs, |i| Ok(data(&specs[i]))).expect_err("integers");
        assert!(error.to_string().contains("no tensor of floats"), "{error}");
        assert_eq!(std::fs::read(&path).expect("the file"), b"older");
        assert_eq!(std::fs::read_dir(folder.path()).expect("it").count(), 1);
    }
}
