//! An allocator that keeps the memory of freed tensors for the next ones.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::{Mutex, PoisonError};

/// Smallest block that is kept when it is freed, in bytes.
const LARGE: usize = 1 << 16;
/// Alignment of kept blocks: a cache line.
const ALIGN: usize = 64;
/// Smallest block that is aligned to the system's large pages, in bytes.
const HUGE: usize = 4 << 20;
/// Size of a large page, in bytes.
const PAGE: usize = 2 << 20;
/// Maximum memory that is kept, in bytes.
const LIMIT: usize = 1 << 30;
/// Maximum number of blocks that are kept.
const SLOTS: usize = 1024;

/// An allocator for programs that compute on the CPU. It keeps up to 1 GiB of freed tensors.
///
/// The system's allocator returns every large block to the kernel. The next tensor then gets new pages, each
/// of which the kernel zeroes first, which can take as long as a layer.
///
/// A program sets its allocator once, in its own crate; libraries should not:
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: divot_nn::Recycler = divot_nn::Recycler;
/// ```
#[derive(Debug)]
pub struct Recycler;

impl Recycler {
    /// Frees all that is kept, of every thread. This pays after work whose sizes do not come again, such as loading. It
    /// does nothing in a program with another allocator.
    pub fn release() {
        loop {
            let mut kept = kept();
            if kept.count == 0 {
                return;
            }
            let last = kept.count - 1;
            let block = kept.remove(last);
            drop(kept);
            // SAFETY: the block was kept, and no longer is.
            unsafe { free(block) };
        }
    }
}

/// Freed blocks, in the order in which they were freed.
static KEPT: Mutex<Kept> = Mutex::new(Kept {
    blocks: [(0, 0); SLOTS],
    count: 0,
    bytes: 0,
});

struct Kept {
    /// Address and size.
    blocks: [(usize, usize); SLOTS],
    count: usize,
    bytes: usize,
}

impl Kept {
    fn remove(&mut self, i: usize) -> (usize, usize) {
        let block = self.blocks[i];
        self.blocks.copy_within(i + 1..self.count, i);
        self.count -= 1;
        self.bytes -= block.1;
        block
    }

    /// Takes the most recently freed block of this size.
    fn take(&mut self, size: usize) -> Option<*mut u8> {
        let i = (0..self.count).rev().find(|i| self.blocks[*i].1 == size)?;
        Some(self.remove(i).0 as *mut u8)
    }

    /// Returns whether a block of this size can be kept without freeing another.
    fn fits(&self, size: usize) -> bool {
        self.count < SLOTS && self.bytes + size <= LIMIT
    }

    fn put(&mut self, pointer: *mut u8, size: usize) {
        self.blocks[self.count] = (pointer as usize, size);
        self.count += 1;
        self.bytes += size;
    }
}

fn kept() -> std::sync::MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the layout of the block that is allocated for `layout`, or `None` if such blocks are not kept.
/// Sizes are rounded up by at most an eighth, so that tensors of similar size can use the same block.
fn large(layout: Layout) -> Option<Layout> {
    if layout.size() < LARGE || layout.align() > ALIGN {
        return None;
    }
    let step = layout.size().next_power_of_two() / 16;
    let size = layout.size().checked_next_multiple_of(step)?;
    Layout::from_size_align(size, alignment(size)).ok()
}

fn alignment(size: usize) -> usize {
    if size < HUGE { ALIGN } else { PAGE }
}

/// Frees a block.
///
/// # Safety
/// It was kept, so that it was allocated with this size and its alignment, and no longer is.
unsafe fn free((address, size): (usize, usize)) {
    // SAFETY: as the caller promises.
    unsafe {
        let layout = Layout::from_size_align_unchecked(size, alignment(size));
        System.dealloc(address as *mut u8, layout);
    }
}

/// Allocates a new block, in large pages if the system supports them. The kernel then maps far fewer pages,
/// and the processor looks up far fewer.
///
/// # Safety
/// The layout was returned by [`large`].
unsafe fn fresh(layout: Layout) -> *mut u8 {
    // SAFETY: the layout is not empty.
    let block = unsafe { System.alloc(layout) };
    #[cfg(target_os = "linux")]
    if layout.size() >= HUGE && !block.is_null() {
        use rustix::mm::{Advice, madvise};
        // SAFETY: the block is new, and this is only advice. After an error, nothing has changed.
        let _ = unsafe { madvise(block.cast(), layout.size(), Advice::LinuxHugepage) };
    }
    block
}

// SAFETY: a block is allocated by `System` with the layout that `large` returns, or with the caller's where
// it returns none, and is freed with the same layout. It is either kept or in use, never both.
unsafe impl GlobalAlloc for Recycler {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match large(layout) {
            Some(large) => {
                let block = kept().take(large.size());
                // SAFETY: the layout is not empty.
                block.unwrap_or_else(|| unsafe { fresh(large) })
            }
            // SAFETY: as the caller promises.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(large) = large(layout) else {
            // SAFETY: as the caller promises.
            return unsafe { System.alloc_zeroed(layout) };
        };
        let block = kept().take(large.size());
        // SAFETY: the layout is not empty. The block has at least its size and is not in use.
        unsafe {
            let block = block.unwrap_or_else(|| fresh(large));
            if !block.is_null() {
                block.write_bytes(0, layout.size());
            }
            block
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let Some(large) = large(layout) else {
            // SAFETY: as the caller promises.
            return unsafe { System.dealloc(pointer, layout) };
        };
        if large.size() > LIMIT {
            // SAFETY: the block was allocated with this layout.
            return unsafe { System.dealloc(pointer, large) };
        }
        loop {
            let mut kept = kept();
            if kept.fits(large.size()) {
                return kept.put(pointer, large.size());
            }
            let oldest = kept.remove(0);
            drop(kept);
            // SAFETY: the block was kept, and no longer is.
            unsafe { free(oldest) };
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the size is not too large for the alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (large(layout), large(wanted)) {
            // SAFETY: as the caller promises.
            (None, None) => unsafe { System.realloc(pointer, layout, size) },
            (Some(old), Some(new)) if old == new => pointer,
            // SAFETY: both blocks have at least as many bytes as are copied, and the new one is not in use.
            _ => unsafe {
                let new = self.alloc(wanted);
                if !new.is_null() {
                    new.copy_from_nonoverlapping(pointer, layout.size().min(size));
                    self.dealloc(pointer, layout);
                }
                new
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_block_serves_the_next_tensor_of_about_its_size() {
        let layout = |size| Layout::from_size_align(size, 4).unwrap();
        // SAFETY: every block is freed with the layout that it was allocated with.
        unsafe {
            let first = Recycler.alloc(layout(5 * LARGE + 12));
            first.write_bytes(7, 5 * LARGE + 12);
            Recycler.dealloc(first, layout(5 * LARGE + 12));
            let again = Recycler.alloc_zeroed(layout(5 * LARGE + 400));
            assert_eq!(first, again);
            let bytes = std::slice::from_raw_parts(again, 5 * LARGE + 400);
            assert!(bytes.iter().all(|byte| *byte == 0));

            again.write_bytes(3, 5 * LARGE);
            let grown = Recycler.realloc(again, layout(5 * LARGE + 400), 9 * LARGE);
            let shrunk = Recycler.realloc(grown, layout(9 * LARGE), 1000);
            assert!(
                std::slice::from_raw_parts(shrunk, 1000)
                    .iter()
                    .all(|byte| *byte == 3)
            );
            Recycler.dealloc(shrunk, layout(1000));
        }
        // The list of kept blocks belongs to the process, so two tests at once would disturb each other.
        no_more_is_kept_than_the_limit();
    }

    fn no_more_is_kept_than_the_limit() {
        let layout = Layout::from_size_align(LIMIT / 8, 4).unwrap();
        // SAFETY: every block is freed with the layout that it was allocated with.
        unsafe {
            let blocks: Vec<_> = (0..12).map(|_| Recycler.alloc(layout)).collect();
            for block in blocks {
                Recycler.dealloc(block, layout);
            }
        }
        let kept = kept();
        assert!(kept.bytes <= LIMIT && kept.count <= SLOTS);
        assert_eq!(
            kept.bytes,
            kept.blocks[..kept.count].iter().map(|b| b.1).sum::<usize>()
        );
        drop(kept);
        assert!(self::kept().bytes > 0);
        Recycler::release();
        let kept = self::kept();
        assert_eq!((kept.bytes, kept.count), (0, 0));
    }
}
