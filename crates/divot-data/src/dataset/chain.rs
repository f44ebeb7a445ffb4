//! Files one after another.

/// Files one after another, and the number of each one's first sample.
#[derive(Debug)]
pub(super) struct Chain<T> {
    pub files: Vec<T>,
    pub len: usize,
    firsts: Vec<usize>,
}

impl<T> Chain<T> {
    pub fn new(files: Vec<T>, count: fn(&T) -> usize) -> Self {
        let mut len = 0;
        let firsts = files.iter().map(|file| {
            len += count(file);
            len - count(file)
        });
        Self {
            firsts: firsts.collect(),
            files,
            len,
        }
    }

    /// The file of a sample, and the sample's number in it.
    pub fn at(&self, index: usize) -> (&T, usize) {
        let file = self.firsts.partition_point(|&first| first <= index) - 1;
        (&self.files[file], index - self.firsts[file])
    }
}
