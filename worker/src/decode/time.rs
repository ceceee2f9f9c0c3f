//! Times: instants in microseconds, never local times.

use jiff::Timestamp;

use super::reject::{Reason, Reject};
use super::{Message, Micros, Rules};

/// An RFC 3339 instant, floored to microseconds.
pub fn instant(text: &str) -> Result<Micros, Reject> {
    let timestamp: Timestamp = text.parse().map_err(|_| {
        let hint = if text.contains(['Z', 'z', '+']) || text.matches('-').count() > 2 {
            ""
        } else {
            " It has no offset."
        };
        Reject::whole(
            Reason::InvalidTime,
            &format!("'{text}' is not an instant; write it as 2026-11-24T05:10:53.123Z.{hint}"),
        )
    })?;
    Ok(Micros::try_from(timestamp.as_nanosecond().div_euclid(1000)).unwrap_or(Micros::MAX))
}

/// Unix seconds, whole or decimal, floored to microseconds without a double's rounding.
pub fn unix_seconds(text: &str) -> Result<Micros, Reject> {
    let wrong = || Reject::whole(Reason::InvalidTime, &format!("'{text}' is not a number of Unix seconds"));
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.len() > 12
        || fraction.len() > 30
        || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit())
    {
        return Err(wrong());
    }
    let seconds: Micros = whole.parse().map_err(|_| wrong())?;
    let micros: Micros = format!("{fraction:0<6}")[..6].parse().map_err(|_| wrong())?;
    let cut = fraction.get(6..).is_some_and(|rest| rest.bytes().any(|b| b != b'0'));
    let value = seconds * 1_000_000 + micros;
    let value = if sign < 0 { -value - Micros::from(cut) } else { value };
    // What a timestamp of both jiff and PostgreSQL can hold.
    Timestamp::from_microsecond(value).map(|_| value).map_err(|_| wrong())
}

impl Message<'_> {
    /// Refuses a time outside the accept window.
    pub(super) fn accept(&self, ts: Micros) -> Result<Micros, Reject> {
        self.rules.accept(self.input.now, ts)
    }
}

impl Rules {
    /// Refuses a time outside the accept window around now.
    pub(super) fn accept(&self, now: Micros, ts: Micros) -> Result<Micros, Reject> {
        let age = i128::from(now) - i128::from(ts);
        let (max_age, max_ahead) = (self.max_age, self.max_ahead);
        let outside = |what: &str, limit: std::time::Duration| {
            let detail = format!(
                "the time is {} s {what}; the accept window allows {} s",
                age.abs() / 1_000_000,
                limit.as_secs()
            );
            Err(Reject::whole(Reason::TsWindow, &detail))
        };
        if age > max_age.as_micros() as i128 {
            outside("old", max_age)
        } else if -age > max_ahead.as_micros() as i128 {
            outside("ahead", max_ahead)
        } else {
            Ok(ts)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_floor_to_microseconds_also_before_1970() {
        for (text, micros) in [
            ("1970-01-01T00:00:00.0000019Z", 1),
            ("1969-12-31T23:59:59.9999991Z", -1),
            ("1970-01-01T01:00:00+01:00", 0),
            ("2026-11-24T05:10:53.123456Z", 1_795_497_053_123_456),
        ] {
            assert_eq!(instant(text).unwrap(), micros, "{text}");
        }
    }

    #[test]
    fn a_time_without_an_offset_is_no_instant() {
        for text in ["2026-11-24T05:10:53", "2026-11-24", "", "yesterday", "1795497053"] {
            assert_eq!(instant(text).unwrap_err().reason, Reason::InvalidTime, "{text}");
        }
    }

    #[test]
    fn unix_seconds_are_exact() {
        for (text, micros) in [
            ("1.000001", 1_000_001),
            ("0.0000019", 1),
            ("-0.0000011", -2),
            ("1795497053", 1_795_497_053_000_000),
        ] {
            assert_eq!(unix_seconds(text).unwrap(), micros, "{text}");
        }
        for text in ["", "1e9", "1.2.3", "99999999999999", "--1"] {
            assert!(unix_seconds(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn an_instant_is_read_back(micros in -62_000_000_000_000_000i64..250_000_000_000_000_000) {
            let text = Timestamp::from_microsecond(micros).unwrap().to_string();
            prop_assert_eq!(instant(&text).unwrap(), micros);
        }
    }
}
