use std::fmt;
use std::ops::RangeInclusive;

/// Why a network of these sizes cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeError(String);

impl SizeError {
    /// Says what is wrong.
    pub fn new(problem: impl Into<String>) -> Self {
        Self(problem.into())
    }
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SizeError {}

/// A configuration that may come from a file, and so may hold anything.
pub trait CheckSizes {
    /// Finds out whether a network can be initialised so; initialising one that cannot panics.
    ///
    /// # Errors
    /// The first size that cannot be.
    fn check_sizes(&self) -> Result<(), SizeError>;
}

/// Widths, heads and the like: from 1 to 65,536.
///
/// # Errors
/// The first that is not.
pub fn check_widths(widths: &[(&str, usize)]) -> Result<(), SizeError> {
    check_range(widths, 1..=65_536)
}

/// Numbers of blocks: from 0 to 1,000.
///
/// # Errors
/// The first that is not.
pub fn check_depths(depths: &[(&str, usize)]) -> Result<(), SizeError> {
    check_range(depths, 0..=1_000)
}

fn check_range(sizes: &[(&str, usize)], range: RangeInclusive<usize>) -> Result<(), SizeError> {
    match sizes.iter().find(|(_, size)| !range.contains(size)) {
        None => Ok(()),
        Some((name, size)) => Err(SizeError::new(format!(
            "{name} is {size}, not from {} to {}",
            range.start(),
            range.end()
        ))),
    }
}

/// Heads divide widths, groups divide channels, and so on.
///
/// # Errors
/// If `part` is zero or does not divide `whole`.
pub fn check_divides(
    (part_name, part): (&str, usize),
    (whole_name, whole): (&str, usize),
) -> Result<(), SizeError> {
    if part == 0 || !whole.is_multiple_of(part) {
        return Err(SizeError::new(format!(
            "{part_name} ({part}) does not divide {whole_name} ({whole})"
        )));
    }
    Ok(())
}

/// What one network gives and the next takes.
///
/// # Errors
/// If they differ.
pub fn check_same(
    (left_name, left): (&str, usize),
    (right_name, right): (&str, usize),
) -> Result<(), SizeError> {
    if left != right {
        return Err(SizeError::new(format!(
            "{left_name} is {left} but {right_name} is {right}"
        )));
    }
    Ok(())
}
