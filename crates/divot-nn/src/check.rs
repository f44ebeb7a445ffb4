use std::fmt;
use std::ops::RangeInclusive;

/// Why a configuration is invalid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeError(String);

impl SizeError {
    /// Creates an error with this message, which names the field and its value.
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

/// A configuration whose sizes can be checked, because it may come from a file.
pub trait CheckSizes {
    /// Checks every size. A network of a valid configuration can be initialised without a panic.
    ///
    /// # Errors
    /// The first invalid size.
    fn check_sizes(&self) -> Result<(), SizeError>;
}

/// Checks widths, numbers of heads and the like: each must be from 1 to 65,536.
///
/// # Errors
/// The first size out of range.
pub fn check_widths(widths: &[(&str, usize)]) -> Result<(), SizeError> {
    check_range(widths, 1..=65_536)
}

/// Checks numbers of blocks: each must be from 0 to 1,000.
///
/// # Errors
/// The first number out of range.
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

/// Checks a size that must be even.
///
/// # Errors
/// If it is odd.
pub fn check_even(name: &str, size: usize) -> Result<(), SizeError> {
    match size.is_multiple_of(2) {
        true => Ok(()),
        false => Err(SizeError::new(format!("{name} is {size}, an odd number"))),
    }
}

/// Checks that one size divides another, as heads divide a width and groups divide channels.
///
/// # Errors
/// If `part` is 0 or does not divide `whole`.
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

/// Checks that two sizes are equal, as the width of one network's output and of the next one's input.
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
