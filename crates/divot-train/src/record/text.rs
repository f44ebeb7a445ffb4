//! Numbers for people.

/// A number with so many digits, without zeros at the end: `0.2346`, `12.3`, `1e-4`, `1.2e6`.
pub(crate) fn number(value: f64, digits: usize) -> String {
    if !value.is_finite() || value == 0.0 {
        return match value {
            f64::INFINITY => "∞".to_owned(),
            f64::NEG_INFINITY => "-∞".to_owned(),
            _ if value.is_nan() => "NaN".to_owned(),
            _ => "0".to_owned(),
        };
    }
    // Rounded first: 9.9996 has one digit before the point and 10.00 two.
    let rounded = format!("{value:.*e}", digits.saturating_sub(1));
    let (mantissa, exponent) = rounded.split_once('e').unwrap_or((&rounded, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-3..6).contains(&exponent) {
        return format!("{}e{exponent}", trimmed(mantissa));
    }
    let decimals = (digits as i32 - 1 - exponent).max(0) as usize;
    trimmed(&format!("{value:.decimals$}")).to_owned()
}

fn trimmed(number: &str) -> &str {
    match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.'),
        false => number,
    }
}

/// A count in groups of three digits: `100,000`.
pub(crate) fn count(value: usize) -> String {
    let digits = value.to_string();
    let mut grouped = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A time of two units: `45 s`, `3 min 20 s`, `1 h 12 min`, `3 d 4 h`.
pub(crate) fn duration(seconds: f64) -> String {
    // The conversion of what is not finite or too large stays in range.
    let seconds = seconds.round() as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (value, digits, text) in [
            (0.234_56, 4, "0.2346"),
            (9.999_96, 4, "10"),
            (12.34, 3, "12.3"),
            (1e-4, 3, "1e-4"),
            (0.001, 3, "0.001"),
            (-1234.5, 3, "-1234"),
            (100_000.0, 3, "100000"),
            (1.25e6, 3, "1.25e6"),
            (0.0, 3, "0"),
            (f64::NAN, 3, "NaN"),
            (f64::NEG_INFINITY, 3, "-∞"),
        ] {
            assert_eq!(number(value, digits), text);
        }
    }

    #[test]
    fn counts_and_times() {
        assert_eq!(count(0), "0");
        assert_eq!(count(123), "123");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(duration(59.4), "59 s");
        assert_eq!(duration(59.6), "1 min 0 s");
        assert_eq!(duration(3600.0 + 720.0), "1 h 12 min");
        assert_eq!(duration(3.0 * 86400.0 + 4.0 * 3600.0), "3 d 4 h");
        assert_eq!(duration(f64::NAN), "0 s");
        assert!(duration(f64::INFINITY).contains(" d "));
    }
}
