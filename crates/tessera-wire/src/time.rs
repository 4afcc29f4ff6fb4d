//! The two spellings of a moment that the wire uses. No clock, no time zones: seconds since 1970 go in and out.

/// Days from 1970-01-01 to the given day of the proleptic Gregorian calendar.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 {
        month_shifted + 3
    } else {
        month_shifted - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn digits(text: &str, from: usize, to: usize) -> Option<i64> {
    let part = text.get(from..to)?;
    if part.bytes().all(|byte| byte.is_ascii_digit()) {
        part.parse().ok()
    } else {
        None
    }
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Seconds of `YYYY-MM-DD<between>hh:mm:ss`, the first 19 characters of `text`.
fn civil(text: &str, between: &[u8]) -> Option<i64> {
    let bytes = text.as_bytes();
    let fixed = |at: usize, allowed: &[u8]| bytes.get(at).is_some_and(|byte| allowed.contains(byte));
    if !(fixed(4, b"-") && fixed(7, b"-") && fixed(10, between) && fixed(13, b":") && fixed(16, b":")) {
        return None;
    }
    let (year, month, day) = (digits(text, 0, 4)?, digits(text, 5, 7)?, digits(text, 8, 10)?);
    let (hour, minute, second) = (digits(text, 11, 13)?, digits(text, 14, 16)?, digits(text, 17, 19)?);
    let valid = (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour <= 23
        && minute <= 59
        && second <= 60;
    valid.then(|| days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

fn print_civil(seconds: i64, between: char) -> String {
    let (year, month, day) = civil_from_days(seconds.div_euclid(86_400));
    let of_day = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}{between}{hour:02}:{minute:02}:{second:02}")
}

/// Seconds since 1970 UTC of an RFC 3339 time. A fraction of a second is cut off. `None` for any other text.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    let seconds = civil(text, b"Tt")?;
    let mut rest = text.get(19..)?;
    if let Some(fraction) = rest.strip_prefix('.') {
        let end = fraction.find(|c: char| !c.is_ascii_digit()).unwrap_or(fraction.len());
        if end == 0 {
            return None;
        }
        rest = fraction.get(end..)?;
    }
    if matches!(rest, "Z" | "z") {
        return Some(seconds);
    }
    let sign = match rest.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    if rest.len() != 6 || rest.as_bytes().get(3) != Some(&b':') {
        return None;
    }
    let (hours, minutes) = (digits(rest, 1, 3)?, digits(rest, 4, 6)?);
    (hours <= 23 && minutes <= 59).then(|| seconds - sign * (hours * 3600 + minutes * 60))
}

/// `YYYY-MM-DDThh:mm:ssZ` of seconds since 1970 UTC.
#[must_use]
pub fn print_rfc3339(seconds: i64) -> String {
    print_civil(seconds, 'T') + "Z"
}

/// Seconds since 1970 of `YYYY-MM-DD hh:mm:ss`, counted in the zone of whoever wrote it. `None` for any other text.
#[must_use]
pub fn parse_local(text: &str) -> Option<i64> {
    if text.len() != 19 { None } else { civil(text, b" ") }
}

/// `YYYY-MM-DD hh:mm:ss` of seconds since 1970 in the writer's zone.
#[must_use]
pub fn print_local(seconds: i64) -> String {
    print_civil(seconds, ' ')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc3339_in_its_forms() {
        assert_eq!(parse_rfc3339("2024-01-12T10:00:00Z"), Some(1_705_053_600));
        assert_eq!(parse_rfc3339("2024-01-12T10:00:00.123456789Z"), Some(1_705_053_600));
        assert_eq!(parse_rfc3339("2024-01-12T12:00:00+02:00"), Some(1_705_053_600));
        assert_eq!(parse_rfc3339("2024-01-12T09:30:00-00:30"), Some(1_705_053_600));
        assert_eq!(parse_rfc3339("2000-02-29T00:00:00Z"), Some(951_782_400));
        for text in [
            "",
            "nonsense",
            "2024-01-12",
            "2024-01-12T10:00:00",
            "2023-02-29T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-01-12T10:00:00.Z",
            "2024-01-12T10:00:00+0200",
            "2024-01-12t10:00:0éZ",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn print_then_parse_is_identity(seconds in -62_135_596_800i64..253_402_300_799) {
            prop_assert_eq!(parse_rfc3339(&print_rfc3339(seconds)), Some(seconds));
            prop_assert_eq!(parse_local(&print_local(seconds)), Some(seconds));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            prop_assert!(parse_rfc3339(&text).is_none() || text.len() >= 20);
            prop_assert!(parse_local(&text).is_none() || text.len() == 19);
        }
    }
}
