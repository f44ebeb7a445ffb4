//! What the fast decoder decodes as the standard says.

use std::collections::VecDeque;

use rust_h264::pps::Pps;
use rust_h264::slice::{SliceHeader, SliceType};
use rust_h264::sps::Sps;

/// The short-term reference pictures of a stream, in decoding order.
#[derive(Default)]
pub(super) struct References {
    /// Frame number and picture order count.
    kept: VecDeque<(u32, i32)>,
    /// Frame number of the last one.
    last: Option<u32>,
    /// Whether all that a picture can refer to is here.
    complete: bool,
}

impl References {
    /// Takes the header of the next picture, a frame of one slice. Returns whether [`Decoder::Fast`] decodes it like
    /// every other decoder. The fast one reads less of what the standard has than it accepts.
    ///
    /// [`Decoder::Fast`]: super::decoder::Decoder::Fast
    pub fn fast(
        &mut self,
        (sps, pps): (&Sps, &Pps),
        header: &SliceHeader,
        (idr, reference): (bool, bool),
        count: i32,
    ) -> bool {
        let whole = 1 << (sps.log2_max_frame_num_minus4 + 4).min(16);
        let most = sps.max_num_ref_frames.max(1) as usize;
        if idr {
            self.kept.clear();
            self.last = None;
            self.complete = true;
        }
        // Where decoding begins within a stream, the first pictures may name references before it.
        self.complete |= self.kept.len() >= most;
        let named = header
            .num_ref_idx_l0_active
            .max(header.num_ref_idx_l1_active);
        let known = self.complete || named as usize <= self.kept.len();
        let follows = self
            .last
            .is_none_or(|last| header.frame_num == last.wrapping_add(1) % whole);
        // With references before and after it, a B picture has two different lists of them.
        let between = self.kept.iter().any(|&(_, other)| other < count)
            && self.kept.iter().any(|&(_, other)| other > count);
        let mut marks = !header.long_term_reference_flag
            && header.adaptive_ref_pic_marking != header.mmco_ops.is_empty();
        for &(command, difference) in &header.mmco_ops {
            marks &= command == 1;
            let dropped = header.frame_num.wrapping_sub(difference).wrapping_sub(1) % whole;
            self.kept.retain(|&(number, _)| number != dropped);
        }
        if reference {
            while !header.adaptive_ref_pic_marking && self.kept.len() >= most {
                self.kept.pop_front();
            }
            self.kept.push_back((header.frame_num, count));
            self.last = Some(header.frame_num);
        }
        let b_fits = between && header.direct_spatial_mv_pred_flag && sps.profile_idc != 66;
        follows
            && known
            && marks
            && (header.slice_type != SliceType::B || b_fits)
            && most <= 16
            && header.first_mb_in_slice == 0
            && !header.field_pic_flag
            && sps.pic_order_cnt_type != 1
            && !sps.gaps_in_frame_num_value_allowed_flag
            && (sps.frame_crop_left_offset, sps.frame_crop_top_offset) == (0, 0)
            && pps.second_chroma_qp_index_offset == pps.chroma_qp_index_offset
            && !pps.redundant_pic_cnt_present_flag
    }
}
