//! Numbers with units, for people.

use std::time::Duration;

/// A number of bytes in KiB, MiB, GiB: three digits where that says enough.
pub(crate) fn bytes(count: u64) -> String {
    const STEPS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut divisor: u64 = 1;
    while count / divisor >= 1024 && unit + 1 < STEPS.len() {
        divisor *= 1024;
        unit += 1;
    }
    let tenths = tenths(count, divisor);
    match (unit, tenths) {
        (0, _) => format!("{count} B"),
        (_, 0..100) => format!("{}.{} {}", tenths / 10, tenths % 10, STEPS[unit]),
        _ => format!("{} {}", (tenths + 5) / 10, STEPS[unit]),
    }
}

/// `count / divisor` in tenths, without overflow.
fn tenths(count: u64, divisor: u64) -> u64 {
    (count / divisor) * 10 + (count % divisor) * 10 / divisor
}

/// A time in ms, or in s from ten seconds on.
pub(crate) fn time(duration: Duration) -> String {
    let micros = duration.as_micros();
    match micros {
        0..100_000 => format!("{}.{} ms", micros / 1000, micros / 100 % 10),
        100_000..10_000_000 => format!("{} ms", micros / 1000),
        _ => format!("{}.{} s", micros / 1_000_000, micros / 100_000 % 10),
    }
}

/// `1 process`, `2 processes`.
pub(crate) fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A moment, in nanoseconds since 1970, as `2026-01-31 12:00:00 UTC`.
pub(crate) fn moment(nanoseconds: i64) -> String {
    let seconds = nanoseconds.div_euclid(1_000_000_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // The civil calendar from days, counted in eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::{bytes, moment, time};
    use std::time::Duration;

    #[test]
    fn bytes_have_units() {
        let cases =
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (10 * 1024, "10 KiB"), (412 << 20, "412 MiB")];
        for (count, expected) in cases {
            assert_eq!(bytes(count), expected);
        }
        assert_eq!(bytes(u64::MAX), "16777216 TiB");
    }

    #[test]
    fn times_have_units() {
        assert_eq!(time(Duration::from_micros(11_840)), "11.8 ms");
        assert_eq!(time(Duration::from_millis(940)), "940 ms");
        assert_eq!(time(Duration::from_millis(12_340)), "12.3 s");
    }

    #[test]
    fn moments_are_civil() {
        assert_eq!(moment(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(moment(951_782_400_000_000_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(moment(-1), "1969-12-31 23:59:59 UTC");
    }
}
