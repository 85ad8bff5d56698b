//! Points in time as PostgreSQL's log, RFC 3339 and people write them, in microseconds since 1970.

use crate::error::{Error, Result};

const SECOND: i64 = 1_000_000;

/// Days since 1970 of a day of the Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // The calendar repeats every 400 years (146,097 days), counted from 1 March 0000.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let year_of_era = year.rem_euclid(400);
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Year, month and day of a day since 1970.
pub fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// `2013-02-07T21:53:01.000000`, to which `+00:00` belongs when it is UTC. Always of the same length, so
/// that it sorts as text.
pub fn iso(micros: i64) -> String {
    let (seconds, fraction) = (micros.div_euclid(SECOND), micros.rem_euclid(SECOND));
    let (year, month, day) = civil(seconds.div_euclid(86_400));
    let second = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:06}")
}

/// The time that stands at the beginning of `text` as `2013-02-07 21:53:01`, perhaps with a fraction, and
/// how many bytes it takes. Without a zone: as if it were UTC.
pub fn clock(text: &str) -> Option<(i64, usize)> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = bytes.get(from..to)?;
        digits.iter().try_fold(0i64, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
    };
    let marks = [(4, b"-"), (7, b"-"), (13, b":"), (16, b":")];
    if !marks.iter().all(|(at, mark)| bytes.get(*at) == Some(&mark[0])) || !matches!(bytes[10], b' ' | b'T') {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let fits = (1..=12).contains(&month) && (1..=31).contains(&day);
    // 60 is a leap second.
    if !fits || hour > 24 || minute > 59 || second > 60 {
        return None;
    }
    let mut micros = (days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second) * SECOND;
    let mut length = 19;
    if bytes.get(length) == Some(&b'.') {
        let digits = bytes[length + 1..].iter().take_while(|b| b.is_ascii_digit()).count();
        let fraction: String = text[length + 1..length + 1 + digits].chars().take(6).collect();
        micros += format!("{fraction:0<6}").parse::<i64>().ok()?;
        length += 1 + digits;
    }
    Some((micros, length))
}

/// Microseconds east of UTC for what stands for a zone: `UTC`, `GMT`, or an offset such as `+02`, `+0530`,
/// `-03:30`. Other abbreviations mean different things in different places, so nothing is guessed.
pub fn zone_offset(zone: &str) -> Option<i64> {
    if ["UTC", "GMT", "UCT", "Z"].iter().any(|known| zone.eq_ignore_ascii_case(known)) {
        return Some(0);
    }
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let digits = zone[1..].replace(':', "");
    if !matches!(digits.len(), 2 | 4) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let hours: i64 = digits[..2].parse().ok()?;
    let minutes: i64 = digits.get(2..).filter(|rest| !rest.is_empty()).map_or(Some(0), |m| m.parse().ok())?;
    Some(sign * (hours * 3600 + minutes * 60) * SECOND)
}

/// What `--since` was given: RFC 3339 (without a zone it is UTC, as everything that is printed), or `90s`,
/// `10m`, `2h`, `1d`: so long before `now`.
pub fn since(text: &str, now: i64) -> Result<i64> {
    let bad = || Error::SinceText { text: text.to_owned() };
    if let Some((micros, length)) = clock(text) {
        let zone = text[length..].trim();
        let offset = if zone.is_empty() { Some(0) } else { zone_offset(zone) };
        return offset.map(|offset| micros - offset).ok_or_else(bad);
    }
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => return Err(bad()),
    };
    let number: i64 = text[..text.len() - 1].parse().map_err(|_| bad())?;
    let back = number.checked_mul(unit * SECOND).filter(|back| *back >= 0).ok_or_else(bad)?;
    now.checked_sub(back).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_dates_are_inverse() {
        for day in (-800_000..800_000).step_by(97) {
            let (year, month, date) = civil(day);
            assert_eq!(days(year, month, date), day, "{year}-{month}-{date}");
        }
        assert_eq!(days(2000, 2, 29) * 86_400, 951_782_400);
    }

    #[test]
    fn clocks() {
        let (micros, length) = clock("2013-02-07 21:53:01.5 UTC [3]").unwrap();
        assert_eq!((iso(micros).as_str(), length), ("2013-02-07T21:53:01.500000", 21));
        assert_eq!(clock("2013-02-07T21:53:01Z").unwrap().1, 19);
        for wrong in ["", "2013-02-07", "2013-02-07 21:53", "2013-13-07 21:53:01", "ä013-02-07 21:53:01"] {
            assert_eq!(clock(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn zones() {
        let hours = |zone| zone_offset(zone).map(|micros| micros / SECOND);
        assert_eq!(hours("UTC"), Some(0));
        assert_eq!(hours("+02"), Some(7200));
        assert_eq!(hours("-0330"), Some(-12_600));
        assert_eq!(hours("+05:30"), Some(19_800));
        for unknown in ["CET", "IST", "", "+", "+1", "+ü1"] {
            assert_eq!(hours(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn since_is_a_time_or_a_while() {
        let now = 1_795_191_420 * SECOND;
        let text = |what: &str| since(what, now).map(iso).map_err(|e| e.to_string());
        assert_eq!(text("10m").unwrap(), "2026-11-20T16:07:00.000000");
        assert_eq!(text("1d").unwrap(), "2026-11-19T16:17:00.000000");
        assert_eq!(text("2026-11-20T16:17:00Z").unwrap(), "2026-11-20T16:17:00.000000");
        assert_eq!(text("2026-11-20T16:17:00.25+02:00").unwrap(), "2026-11-20T14:17:00.250000");
        assert_eq!(text("2026-11-20 16:17:00").unwrap(), "2026-11-20T16:17:00.000000");
        for wrong in
            ["", "m", "10", "-5m", "yesterday", "2026-11-20T16:17:00 CET", "9223372036854775807d", "1ü"]
        {
            assert!(text(wrong).is_err(), "{wrong}");
        }
    }
}
