//! The display order of H.264 pictures, from their headers only (ITU-T H.264, 8.2.1).

use std::collections::BTreeMap;

use rust_h264::nal::{NalUnit, NalUnitType};
use rust_h264::pps::{Pps, parse_pps};
use rust_h264::slice::{SliceHeader, SliceType, parse_slice_header};
use rust_h264::sps::{Sps, parse_sps};

use super::changes_pictures;
use super::references::References;

/// Bytes of a slice that contain its header, including weights and reordering commands.
const HEADER_BYTES: usize = 2048;

/// Position in the display order: the number of the period, and the picture order count in it. All pictures
/// before a period are shown before its first picture.
pub(crate) type Key = (u32, i32);

/// Properties of a picture, from its first slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Picture {
    pub key: Key,
    /// Whether it is the second field of a frame whose first field was the last picture.
    pub second_field: bool,
    /// Whether the fast decoder decodes it as the standard says.
    pub fast: bool,
}

/// Computes picture order counts for a stream in decoding order.
#[derive(Default)]
pub(crate) struct PictureOrder {
    sps: BTreeMap<u32, Sps>,
    pps: BTreeMap<u32, Pps>,
    period: u32,
    /// High and low part of the last reference picture's count.
    previous: (i32, u32),
    /// Frame number of the last picture, and the offset added by wrapping.
    frame_num: (u32, i32),
    /// Frame number and parity of a first field.
    field: Option<(u32, bool)>,
    references: References,
}

impl PictureOrder {
    /// Takes the NAL units of a sample and returns the picture that starts in it. Returns `None` if there
    /// is none, or if its header is damaged.
    pub fn next(&mut self, nals: &[NalUnit<'_>]) -> Option<Picture> {
        let mut picture: Option<Picture> = None;
        for nal in nals {
            if let Some(picture) = &mut picture {
                // Other slices, or settings that change between slices.
                picture.fast &= !changes_pictures(nal);
            }
            match nal.nal_unit_type {
                NalUnitType::Sps => {
                    // More bits than these are none of the standard's.
                    if let Ok(sps) = parse_sps(&nal.rbsp)
                        && sps.log2_max_frame_num_minus4 <= 12
                        && sps.log2_max_pic_order_cnt_lsb_minus4 <= 12
                    {
                        self.sps.insert(sps.seq_parameter_set_id, sps);
                    }
                }
                NalUnitType::Pps => {
                    // The length of some lists in a PPS depends on the SPS that it refers to.
                    let pps = parse_pps(&nal.rbsp, None).ok().and_then(|pps| {
                        parse_pps(&nal.rbsp, self.sps.get(&pps.seq_parameter_set_id)).ok()
                    });
                    if let Some(pps) = pps {
                        self.pps.insert(pps.pic_parameter_set_id, pps);
                    }
                }
                NalUnitType::Slice | NalUnitType::SliceIdr if picture.is_none() => {
                    picture = Some(self.picture(nal)?);
                }
                _ => {}
            }
        }
        picture
    }

    fn picture(&mut self, nal: &NalUnit<'_>) -> Option<Picture> {
        let rbsp = &nal.rbsp[..nal.rbsp.len().min(HEADER_BYTES)];
        let pps = self.pps.get(&pps_of(rbsp)?)?;
        let sps = self.sps.get(&pps.seq_parameter_set_id)?;
        let kind = nal.nal_unit_type;
        let (header, _) = parse_slice_header(rbsp, sps, pps, kind, nal.nal_ref_idc).ok()?;
        let idr = kind == NalUnitType::SliceIdr;
        let reference = nal.nal_ref_idc > 0;
        let field = header
            .field_pic_flag
            .then_some((header.frame_num, header.bottom_field_flag));
        let second_field = match (self.field, field) {
            (Some((number, bottom)), Some(field)) => field == (number, !bottom),
            _ => false,
        };
        self.field = if second_field { None } else { field };
        if idr && !second_field {
            self.period += 1;
            self.previous = (0, 0);
            self.frame_num = (0, 0);
        }

        let max_frame_num = 1i32 << (sps.log2_max_frame_num_minus4 + 4).min(16);
        let mut offset = self.frame_num.1;
        if self.frame_num.0 > header.frame_num {
            offset = offset.wrapping_add(max_frame_num);
        }
        let frame = offset.wrapping_add(header.frame_num as i32);
        let mut count = match sps.pic_order_cnt_type {
            0 => {
                let (high, low) = self.by_low_bits(sps, &header);
                if reference {
                    self.previous = (high, low);
                }
                let top = high.wrapping_add(low as i32);
                let bottom = top.wrapping_add(header.delta_pic_order_cnt_bottom);
                if header.field_pic_flag {
                    top
                } else {
                    top.min(bottom)
                }
            }
            1 => by_cycle(sps, &header, frame, reference),
            _ => frame.wrapping_mul(2).wrapping_sub(i32::from(!reference)),
        };
        self.frame_num = (header.frame_num, offset);
        // Command 5 drops all references, and counting starts again.
        if header.mmco_ops.iter().any(|&(command, _)| command == 5) {
            self.period += 1;
            self.previous = (0, 0);
            self.frame_num = (0, 0);
            count = 0;
        }
        let fast = self
            .references
            .fast((sps, pps), &header, (idr, reference), count);
        Some(Picture {
            key: (self.period, count),
            second_field,
            fast,
        })
    }

    /// Returns the high and low part of a count whose low bits are in the stream.
    fn by_low_bits(&self, sps: &Sps, header: &SliceHeader) -> (i32, u32) {
        let wrap = 1u32 << (sps.log2_max_pic_order_cnt_lsb_minus4 + 4).min(30);
        let (high, before) = self.previous;
        let low = header.pic_order_cnt_lsb;
        let high = if low < before && before - low >= wrap / 2 {
            high.wrapping_add(wrap as i32)
        } else if low > before && low - before > wrap / 2 {
            high.wrapping_sub(wrap as i32)
        } else {
            high
        };
        (high, low)
    }
}

/// Returns a count from the cycle of increments in the SPS.
fn by_cycle(sps: &Sps, header: &SliceHeader, frame: i32, reference: bool) -> i32 {
    let cycle = &sps.offset_for_ref_frame;
    let mut frame = if cycle.is_empty() { 0 } else { frame };
    if !reference && frame > 0 {
        frame -= 1;
    }
    let mut expected = 0i32;
    if frame > 0 {
        let (whole, part) = (
            (frame - 1) / cycle.len() as i32,
            (frame - 1) as usize % cycle.len(),
        );
        let sum = |offsets: &[i32]| offsets.iter().fold(0i32, |sum, &o| sum.wrapping_add(o));
        expected = whole
            .wrapping_mul(sum(cycle))
            .wrapping_add(sum(&cycle[..=part]));
    }
    if !reference {
        expected = expected.wrapping_add(sps.offset_for_non_ref_pic);
    }
    let top = expected.wrapping_add(header.delta_pic_order_cnt[0]);
    let to_bottom = sps.offset_for_top_to_bottom_field;
    if header.bottom_field_flag {
        top.wrapping_add(to_bottom)
    } else if header.field_pic_flag {
        top
    } else {
        let bottom = top
            .wrapping_add(to_bottom)
            .wrapping_add(header.delta_pic_order_cnt[1]);
        top.min(bottom)
    }
}

/// Returns the number of the PPS that a slice refers to.
fn pps_of(slice: &[u8]) -> Option<u32> {
    start_of(slice).map(|(_, pps)| pps)
}

/// Returns whether a slice contains only macroblocks that need no other picture.
pub(crate) fn is_intra(slice: &NalUnit<'_>) -> bool {
    matches!(
        start_of(&slice.rbsp[..slice.rbsp.len().min(32)]),
        Some((SliceType::I, _))
    )
}

/// Reads the type and the PPS number of a slice, which are its second and third numbers.
fn start_of(slice: &[u8]) -> Option<(SliceType, u32)> {
    let mut bits = slice
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |i| u32::from(byte >> i & 1)));
    // Exp-Golomb code: the number of zeros equals the number of bits after the first 1.
    let mut number = || {
        let zeros = bits.by_ref().take_while(|&bit| bit == 0).count();
        let mut value = 1u32;
        for _ in 0..zeros {
            value = value.checked_mul(2)? | bits.next()?;
        }
        Some(value - 1)
    };
    number()?;
    let kind = SliceType::from_raw(number()?).ok()?;
    Some((kind, number()?))
}
