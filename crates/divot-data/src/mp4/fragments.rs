//! The samples of a movie fragment (`moof`).

use super::boxes::{Bytes, boxes, find};
use super::{MAX_SAMPLES, Sample, Samples, Timed};

/// Sample flag: decoding cannot start at the sample.
const NOT_SYNC: u32 = 0x1_0000;

/// Adds the samples of track `id` in the `moof` box at byte `at`. Returns `None` if the box is damaged.
pub fn read(
    id: u32,
    movie: &[u8],
    at: u64,
    moof: &[u8],
    samples: &mut Samples,
    length: u64,
) -> Option<()> {
    // Defaults of the whole movie: sample description, duration, size and flags.
    let defaults = find(movie, &[b"mvex"])
        .and_then(|mvex| {
            boxes(mvex)
                .filter(|(name, _)| name == b"trex")
                .find_map(|(_, body)| {
                    let mut b = Bytes(body);
                    b.full()?;
                    let track = b.u32()?;
                    (track == id).then_some((b.u32()?, b.u32()?, b.u32()?, b.u32()?))
                })
        })
        .unwrap_or((1, 0, 0, 0));

    for (_, traf) in boxes(moof).filter(|(name, _)| name == b"traf") {
        let mut tfhd = Bytes(find(traf, &[b"tfhd"])?);
        let (_, flags) = tfhd.full()?;
        if tfhd.u32()? != id {
            continue;
        }
        let base = if flags & 1 != 0 { tfhd.u64()? } else { at };
        let mut optional = |bit: u32, default: u32| {
            if flags & bit != 0 {
                tfhd.u32()
            } else {
                Some(default)
            }
        };
        let description = optional(2, defaults.0)?;
        let default_duration = optional(8, defaults.1)?;
        let default_size = optional(16, defaults.2)?;
        let default_flags = optional(32, defaults.3)?;

        let mut decoded_at = match find(traf, &[b"tfdt"]) {
            Some(tfdt) => {
                let mut b = Bytes(tfdt);
                let (version, _) = b.full()?;
                i64::try_from(b.word(version)?).ok()?
            }
            None => samples
                .list
                .last()
                .map_or(0, |last| last.decoded_at + i64::from(last.duration)),
        };
        let mut offset = base;
        for (_, trun) in boxes(traf).filter(|(name, _)| name == b"trun") {
            let mut b = Bytes(trun);
            let (_, flags) = b.full()?;
            let count = b.u32()?;
            if flags & 1 != 0 {
                offset = base.checked_add_signed(b.i32()?.into())?;
            }
            let mut first_flags = if flags & 4 != 0 { Some(b.u32()?) } else { None };
            if samples.list.len() as u64 + u64::from(count) > length.min(MAX_SAMPLES) {
                return None;
            }
            samples.delayed |= flags & 0x800 != 0;
            for _ in 0..count {
                let mut field = |bit: u32, default: u32| {
                    if flags & bit != 0 {
                        b.u32()
                    } else {
                        Some(default)
                    }
                };
                let duration = field(0x100, default_duration)?;
                let size = field(0x200, default_size)?;
                let own_flags = field(0x400, first_flags.take().unwrap_or(default_flags))?;
                let delay = field(0x800, 0)? as i32;
                samples.list.push(Timed {
                    sample: Sample {
                        offset,
                        size,
                        sync: own_flags & NOT_SYNC == 0,
                        description: description.saturating_sub(1),
                        order: 0,
                    },
                    decoded_at,
                    shown_at: decoded_at.checked_add(delay.into())?,
                    duration,
                });
                decoded_at = decoded_at.checked_add(duration.into())?;
                offset = offset.checked_add(size.into())?;
            }
        }
    }
    Some(())
}
