//! Checksums. A file is kept only if it matches the hub's checksum.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::UNIX_EPOCH;

use sha1::Sha1;
use sha2::Sha256;
use sha2::digest::{Digest, DynDigest};

use super::HubError;
use super::cache::{Item, create_parent, length};
use super::transfer::{CHUNK, tell};
use crate::progress::{Step, Watch};

/// Verifies a file of the cache, and removes it if it does not match the hub's checksum.
pub(super) fn accept(item: &Item, path: &Path, watch: &mut Watch<'_>) -> Result<(), HubError> {
    if verify(item, path, watch)? {
        return Ok(());
    }
    let size = length(path);
    fs::remove_file(path).map_err(HubError::io("remove it", path))?;
    Err(HubError::Damaged {
        file: item.title(),
        size,
        checksum: item.etag.clone(),
    })
}

/// Returns whether the file at `path` has the item's checksum. The result is stored beside the contents.
/// The file is read again only if its size or modification time changes.
pub(super) fn verify(item: &Item, path: &Path, watch: &mut Watch<'_>) -> Result<bool, HubError> {
    if length(path) != item.size {
        return Ok(false);
    }
    // Servers other than the hub may use any names.
    let Some(mut hasher) = hasher(&item.etag, item.size) else {
        return Ok(true);
    };
    let marker = item.beside("verified");
    let stamp = stamp(path);
    let known = fs::read_to_string(&marker).unwrap_or_default();
    if stamp.is_some() && known.lines().any(|line| Some(line) == stamp.as_deref()) {
        return Ok(true);
    }
    let read = |error| HubError::io("read it", path)(error);
    let mut file = File::open(path).map_err(read)?;
    let mut chunk = vec![0; CHUNK];
    let mut done = 0;
    loop {
        tell(watch, item.progress(Step::Verify, done))?;
        match file.read(&mut chunk).map_err(read)? {
            0 => break,
            read => {
                hasher.update(&chunk[..read]);
                done += read as u64;
            }
        }
    }
    let sum = hasher.finalize();
    let sum: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    if sum != item.etag {
        return Ok(false);
    }
    // Without the marker, the file is only read again next time.
    if let Some(stamp) = stamp
        && create_parent(&marker).is_ok()
    {
        let _ = fs::write(&marker, format!("{known}{stamp}\n"));
    }
    Ok(true)
}

/// Returns the hash function of a checksum. The hub uses SHA-256 for large files and git's SHA-1 for
/// others.
pub(super) fn hasher(etag: &str, size: u64) -> Option<Box<dyn DynDigest>> {
    if !etag
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    {
        return None;
    }
    match etag.len() {
        64 => Some(Box::new(Sha256::new())),
        40 => Some(Box::new(Sha1::new_with_prefix(format!("blob {size}\0")))),
        _ => None,
    }
}

/// Returns the size and the modification time of a file.
pub(super) fn stamp(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    let time = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(format!("{} {}", metadata.len(), time.as_nanos()))
}
