//! A run of a decoder over consecutive samples.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rust_h264::error::DecodeError;
use rust_h264::nal::{NalUnit, NalUnitType, parse_avcc, parse_sps_info};

use super::decoder::{Decoded, Decoder};
use super::picture_order::{Key, PictureOrder};
use super::sampler::Sampler;
use super::{Stop, Stream, changes_pictures, is_slice};
use crate::yuv::Colour;
use crate::{Error, Frame, Result};

pub(super) struct Run<'a> {
    stream: &'a Stream,
    path: &'a Path,
    decoder: Decoder,
    order: PictureOrder,
    colour: Colour,
    /// Samples in the decoder with their colours, in the order in which their pictures will come out.
    pending: BTreeMap<(Key, usize), (usize, Colour)>,
    /// The remaining wanted frames of each sample.
    places: &'a mut BTreeMap<usize, Vec<usize>>,
    wanted: &'a mut BTreeSet<usize>,
    each: &'a mut dyn FnMut(usize, Frame) -> Result<()>,
}

impl<'a> Run<'a> {
    pub fn new(
        stream: &'a Stream,
        path: &'a Path,
        decoder: Decoder,
        places: &'a mut BTreeMap<usize, Vec<usize>>,
        wanted: &'a mut BTreeSet<usize>,
        each: &'a mut dyn FnMut(usize, Frame) -> Result<()>,
    ) -> Self {
        Self {
            stream,
            path,
            decoder,
            order: PictureOrder::default(),
            colour: Colour::BT601,
            pending: BTreeMap::new(),
            places,
            wanted,
            each,
        }
    }

    /// Decodes the samples from `first` to `last`, as far as wanted ones need them.
    ///
    /// # Errors
    /// [`Stop::Unsupported`] if another decoder may go on. The fast decoder stops so at whatever is not as it
    /// should be.
    pub fn run(mut self, sampler: &mut Sampler<'_>, first: usize, last: usize) -> Result<(), Stop> {
        let mut description = None;
        for i in first..=last {
            let sample = sampler.track.samples[i];
            if description != Some(sample.description) {
                description = Some(sample.description);
                let config = sampler.config(&sample)?;
                for nals in [&config.sps_nals, &config.pps_nals] {
                    self.order.next(nals);
                    self.read_colour(nals)?;
                    for nal in nals {
                        self.feed(nal)?;
                    }
                }
            }
            let data = sampler.read(i)?;
            let nals = parse_avcc(&data, sampler.config(&sample)?.length_size);
            // No picture refers to this one, so it is decoded only if it is wanted.
            let unused = |nal: &NalUnit<'_>| is_slice(nal) && nal.nal_ref_idc == 0;
            if !self.places.contains_key(&i)
                && nals.iter().all(|nal| unused(nal) || !changes_pictures(nal))
            {
                continue;
            }
            // A header that is damaged here is damaged for the decoder too.
            self.read_colour(&nals)?;
            let picture = self.order.next(&nals);
            if self.decoder.is_fast()
                && !(self.pending.is_empty() && picture.is_some_and(|picture| picture.fast))
            {
                return Err(Stop::Unsupported);
            }
            if let Some(picture) = picture
                && !picture.second_field
            {
                self.pending.insert((picture.key, i), (i, self.colour));
            }
            for nal in &nals {
                self.feed(nal)?;
            }
        }
        let decoder = &mut self.decoder;
        let rest = catch_unwind(AssertUnwindSafe(|| decoder.flush()))
            .map_err(|_| self.broken("the decoder gave up"))?;
        rest.into_iter()
            .try_for_each(|picture| self.deliver(picture))?;
        match self.decoder.is_fast() && !self.pending.is_empty() {
            true => Err(Stop::Unsupported),
            false => Ok(()),
        }
    }

    /// Checks the size in sequence headers and keeps their colours for the following pictures.
    fn read_colour(&mut self, nals: &[NalUnit<'_>]) -> Result<()> {
        let headers = nals
            .iter()
            .filter(|nal| nal.nal_unit_type == NalUnitType::Sps);
        for nal in headers {
            let info = parse_sps_info(nal).map_err(|e| self.broken(&e.to_string()))?;
            let (width, height) = (info.coded_width.into(), info.coded_height.into());
            // The coded picture may be up to a macroblock larger than the displayed part.
            let limit = self.stream.max_pixels.saturating_add(1 << 20);
            Error::check_size(self.path, width, height, limit)?;
            self.colour = match (info.matrix, self.stream.track.colour) {
                // 2 is "unspecified".
                (2, Some((matrix, full_range))) => Colour {
                    matrix,
                    full_range: full_range || info.full_range,
                },
                (matrix, _) => Colour {
                    matrix: matrix.into(),
                    full_range: info.full_range,
                },
            };
        }
        Ok(())
    }

    fn feed(&mut self, nal: &NalUnit<'_>) -> Result<(), Stop> {
        if !changes_pictures(nal) {
            return Ok(());
        }
        let decoder = &mut self.decoder;
        // A decoder should not panic on damaged data. If it does, it is not used again.
        match catch_unwind(AssertUnwindSafe(|| decoder.decode(nal))) {
            Ok(Ok(pictures)) => pictures
                .into_iter()
                .try_for_each(|picture| self.deliver(picture)),
            Ok(Err(DecodeError::Unsupported(_))) => Err(Stop::Unsupported),
            Ok(Err(e)) => Err(self.stop(&e.to_string())),
            Err(_) => Err(self.stop("the decoder gave up")),
        }
    }

    /// Stops the fast decoder, or gives up.
    fn stop(&self, what: &str) -> Stop {
        match self.decoder.is_fast() {
            true => Stop::Unsupported,
            false => self.broken(what).into(),
        }
    }

    /// Passes a picture on if it is wanted.
    fn deliver(&mut self, picture: Decoded) -> Result<(), Stop> {
        let Some((_, (sample, colour))) = self.pending.pop_first() else {
            return Err(self.stop("more pictures than samples"));
        };
        if !self.places.contains_key(&sample) {
            return Ok(());
        }
        if picture.size() != self.stream.stored {
            // The size changes midway.
            return Err(Stop::Unsupported);
        }
        let frame = picture
            .to_rgb(colour)
            .ok_or_else(|| self.stop("a picture without content"))?;
        let frame = self.stream.orientation.apply(frame);
        let places = self.places.remove(&sample).unwrap_or_default();
        for &place in &places {
            self.wanted.remove(&place);
        }
        // Mostly there is one place, and nothing is copied.
        let Some((&last, others)) = places.split_last() else {
            return Ok(());
        };
        for &place in others {
            (self.each)(place, frame.clone())?;
        }
        Ok((self.each)(last, frame)?)
    }

    fn broken(&self, what: &str) -> Error {
        let frame = self.wanted.first().copied().unwrap_or(0);
        Error::damaged(
            self.path,
            format!("decoding towards frame {frame} failed ({what})"),
        )
    }
}
