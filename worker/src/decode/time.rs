//! Times: instants in microseconds, never local times.

use jiff::Timestamp;
use penstock_crds::mapping::TimeUnit;

use super::json::{self, Raw};
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

/// A number of such units since 1970, whole or decimal, floored to microseconds without a double's rounding.
pub fn number(text: &str, unit: TimeUnit) -> Result<Micros, Reject> {
    let (shift, name) = match unit {
        TimeUnit::Seconds => (6, "seconds"),
        TimeUnit::Milliseconds => (3, "milliseconds"),
        TimeUnit::Microseconds => (0, "microseconds"),
        TimeUnit::Nanoseconds => (-3, "nanoseconds"),
        TimeUnit::Rfc3339 => return instant(text),
    };
    scaled(text, shift).and_then(|micros| Micros::try_from(micros).ok()).map_or_else(
        || Err(Reject::whole(Reason::InvalidTime, &format!("'{text}' is not a number of Unix {name}"))),
        bounded,
    )
}

/// Refuses what a timestamp of jiff or PostgreSQL cannot hold.
pub fn bounded(micros: Micros) -> Result<Micros, Reject> {
    Timestamp::from_microsecond(micros)
        .map(|_| micros)
        .map_err(|_| Reject::whole(Reason::InvalidTime, "the time is outside the calendar"))
}

/// A decimal number times 10 to the power of `shift`, floored. `None` where it is no number, or has more
/// than about 38 digits.
pub fn scaled(text: &str, shift: i32) -> Option<i128> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (negative, digits) = mantissa.strip_prefix('-').map_or((false, mantissa), |digits| (true, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let digits = || whole.bytes().chain(fraction.bytes());
    if digits().next().is_none() || !digits().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let point = whole.len() as i64 + i64::from(exponent) + i64::from(shift);
    let (mut value, mut cut, mut place) = (0i128, false, 0i64);
    for digit in digits().map(|byte| i128::from(byte - b'0')) {
        if place < point {
            value = value.checked_mul(10)?.checked_add(digit)?;
        } else {
            cut |= digit != 0;
        }
        place += 1;
    }
    while place < point && value != 0 {
        value = value.checked_mul(10)?;
        place += 1;
    }
    Some(if negative { -value - i128::from(cut) } else { value })
}

impl Message<'_> {
    /// The time of a message that has none: its receipt, where that is allowed.
    pub(super) fn receipt(&self, found: &str) -> Result<Micros, Reject> {
        if self.rules.receive_time {
            return Ok(self.input.received_at);
        }
        let detail = format!("{found}; send one, or set spec.accept.receiveTime: Allow");
        Err(Reject::whole(Reason::MissingTime, &detail))
    }

    /// A time that is an RFC 3339 string, or a number of such units.
    pub(super) fn time(&self, raw: Raw<'_>, unit: TimeUnit) -> Result<Micros, Reject> {
        match json::string(raw) {
            Some(text) => instant(&text),
            None if json::is_null(raw) => self.receipt("the message has no time"),
            None => number(json::get(raw), unit),
        }
    }

    /// A time that is written in this unit alone.
    pub(super) fn time_in(&self, raw: Raw<'_>, unit: TimeUnit, field: &str) -> Result<Micros, Reject> {
        let wrong = |what: &str| Err(Reject::whole(Reason::InvalidTime, &format!("'{field}' {what}")));
        match (json::string(raw), unit) {
            _ if json::is_null(raw) => self.receipt(&format!("there is no time at '{field}'")),
            (Some(text), TimeUnit::Rfc3339) => instant(&text),
            (None, TimeUnit::Rfc3339) => wrong("is no string such as \"2026-11-24T05:10:53.123Z\""),
            (Some(_), _) => wrong("is text, not a number"),
            (None, unit) => number(json::get(raw), unit),
        }
    }

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
    fn unix_times_are_exact() {
        for (text, micros) in [
            ("1.276020076001e+09", 1_276_020_076_001_000),
            ("5E-7", 0),
            ("-5E-7", -1),
            ("0e999999999", 0),
            ("1.000001", 1_000_001),
            ("0.0000019", 1),
            ("-0.0000011", -2),
            ("1795497053", 1_795_497_053_000_000),
        ] {
            assert_eq!(number(text, TimeUnit::Seconds).unwrap(), micros, "{text}");
        }
        for text in ["", ".", "-", "e1", "1e", "1.2.3", "99999999999999", "1e30", "1e999999999", "--1", "0x1"]
        {
            assert!(number(text, TimeUnit::Seconds).is_err(), "{text}");
        }
        for (unit, text) in [
            (TimeUnit::Milliseconds, "1795497053123.4567"),
            (TimeUnit::Microseconds, "1795497053123456.7"),
            (TimeUnit::Nanoseconds, "1795497053123456999"),
            (TimeUnit::Rfc3339, "2026-11-24T05:10:53.123456Z"),
        ] {
            assert_eq!(number(text, unit).unwrap(), 1_795_497_053_123_456, "{text}");
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
