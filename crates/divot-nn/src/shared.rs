//! Buffers that several threads write.

#![allow(unsafe_code)]

/// A buffer that several threads write, each a different part.
#[derive(Clone, Copy)]
pub(crate) struct Shared(pub *mut f32);

// SAFETY: code that writes to the buffer promises that no other thread has the same part.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

#[cfg(feature = "flex")]
impl Shared {
    /// Returns the buffer after its first `count` floats.
    pub fn after(&self, count: usize) -> Self {
        Self(self.0.wrapping_add(count))
    }

    /// # Safety
    /// The slice is within the buffer, and nothing else refers to it.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice<'a>(&self, start: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// Creates a buffer of `len` floats. `fill` must write all of them.
pub(crate) fn uninit(len: usize, fill: impl FnOnce(*mut f32)) -> Vec<f32> {
    let mut buffer = Vec::with_capacity(len);
    fill(buffer.as_mut_ptr());
    // SAFETY: the buffer has this capacity, and `fill` has written all of it.
    unsafe { buffer.set_len(len) };
    buffer
}
