//! Snowflake's values as people read them. Those of dates and times are numbers on the wire.

const DAY: i64 = 24 * 3600;
/// Dates from here to there have four digits for the year, more or less; others are shown as the numbers that they are.
const DAYS: std::ops::RangeInclusive<i64> = -1_000_000..=4_000_000;
const NANOS: i128 = 1_000_000_000;

/// A value of a result in JSON, where all are texts. `kind` is the column's type.
pub fn of_json(kind: &str, text: &str) -> String {
    let value = match kind {
        "date" => text.parse().ok().and_then(date),
        "time" => nanoseconds(text).and_then(time),
        "timestamp_ntz" | "timestamp_ltz" => nanoseconds(text).and_then(timestamp),
        "timestamp_tz" => text.split_once(' ').and_then(|(instant, zone)| {
            zoned(nanoseconds(instant)?, zone.parse::<i64>().ok()?.checked_sub(DAY / 60)?)
        }),
        "boolean" => Some(if matches!(text, "1" | "true" | "TRUE") { "true" } else { "false" }.to_owned()),
        _ => None,
    };
    value.unwrap_or_else(|| text.to_owned())
}

/// Days since the epoch, as a date.
pub fn date(days: i64) -> Option<String> {
    if !DAYS.contains(&days) {
        return None;
    }
    // The calendar repeats itself every 400 years, here counted from a 1st of March.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    Some(format!("{year:04}-{month:02}-{day:02}"))
}

/// Nanoseconds since midnight.
pub fn time(nanos: i128) -> Option<String> {
    let seconds = i64::try_from(nanos.div_euclid(NANOS)).ok()?;
    let fraction = nanos.rem_euclid(NANOS);
    let fraction = if fraction == 0 {
        String::new()
    } else {
        format!(".{fraction:09}").trim_end_matches('0').to_owned()
    };
    let is_one = (0..DAY).contains(&seconds);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    is_one.then(|| format!("{hours:02}:{minutes:02}:{seconds:02}{fraction}"))
}

/// Nanoseconds since the epoch.
pub fn timestamp(nanos: i128) -> Option<String> {
    let a_day = i128::from(DAY) * NANOS;
    let day = date(i64::try_from(nanos.div_euclid(a_day)).ok()?)?;
    Some(format!("{day} {}", time(nanos.rem_euclid(a_day))?))
}

/// The same, shown with an offset from UTC, in minutes.
pub fn zoned(nanos: i128, offset: i64) -> Option<String> {
    let local = timestamp(nanos.checked_add(i128::from(offset) * 60 * NANOS)?)?;
    let (sign, minutes) = (if offset < 0 { '-' } else { '+' }, offset.unsigned_abs());
    Some(format!("{local} {sign}{:02}:{:02}", minutes / 60, minutes % 60))
}

/// A number with `scale` digits after the point.
pub fn decimal(unscaled: i128, scale: usize) -> String {
    let digits = unscaled.unsigned_abs().to_string();
    let sign = if unscaled < 0 { "-" } else { "" };
    // Snowflake's numbers have 38 digits.
    if scale == 0 || scale > 38 {
        return format!("{sign}{digits}");
    }
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    format!("{sign}{whole}.{fraction}")
}

/// Seconds with a fraction.
fn nanoseconds(text: &str) -> Option<i128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds = whole.parse::<i64>().ok()?;
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction: i128 = format!("{fraction:0<9}").parse().ok()?;
    let whole_nanos = i128::from(seconds) * NANOS;
    Some(if whole.starts_with('-') { whole_nanos - fraction } else { whole_nanos + fraction })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_times_are_shown_as_such() {
        for (kind, text, shown) in [
            ("date", "0", "1970-01-01"),
            ("date", "19782", "2024-02-29"),
            ("date", "-719162", "0001-01-01"),
            ("date", "99999999999999", "99999999999999"),
            ("time", "3661.500000000", "01:01:01.5"),
            ("time", "-1", "-1"),
            ("timestamp_ntz", "1709210096.000000000", "2024-02-29 12:34:56"),
            ("timestamp_ntz", "-0.500000000", "1969-12-31 23:59:59.5"),
            ("timestamp_ltz", "1709210096.123456789", "2024-02-29 12:34:56.123456789"),
            ("timestamp_tz", "1709210096.000000000 1530", "2024-02-29 14:04:56 +01:30"),
            ("timestamp_tz", "1709210096.000000000 960", "2024-02-29 04:34:56 -08:00"),
            ("timestamp_tz", "x 9223372036854775807", "x 9223372036854775807"),
            ("boolean", "1", "true"),
            ("fixed", "12.50", "12.50"),
            ("text", "1", "1"),
        ] {
            assert_eq!(of_json(kind, text), shown, "{kind} {text}");
        }
    }

    #[test]
    fn numbers_have_their_point() {
        assert_eq!(decimal(1250, 2), "12.50");
        assert_eq!(decimal(-5, 3), "-0.005");
        assert_eq!(decimal(7, 0), "7");
        assert_eq!(decimal(i128::MIN, 38).split('.').next(), Some("-1"));
    }
}
