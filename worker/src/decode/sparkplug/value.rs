//! A metric's value by its declared data type.

use super::super::Value;
use super::super::reject::Reason;
use super::super::value::MAX_TEXT;
use super::proto::{self, Metric};

/// Of OPC: good. Penstock's good is 0.
const GOOD: u64 = 192;
/// What 0, OPC's bad, becomes.
const BAD: i16 = 1;
/// Of a value that is null, where no property tells.
const STALE: i16 = 500;

/// Names of the data types by their numbers; their specification is Sparkplug 3.0, 6.4.16.
const TYPES: [&str; 20] = [
    "Unknown", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float", "Double",
    "Boolean", "String", "DateTime", "Text", "UUID", "DataSet", "Bytes", "File", "Template",
];

/// The data type's name.
pub fn type_name(datatype: u32) -> &'static str {
    TYPES.get(datatype as usize).copied().unwrap_or("array or other")
}

/// The value, if it is of the data type. A null is no error: it is stored as no value.
pub fn value(datatype: u32, metric: &Metric) -> Result<Value<'static>, (Reason, String)> {
    use proto::Value::{Boolean, Double, Float, Long, Text};
    if metric.is_null == Some(true) {
        return Ok(Value::Null);
    }
    let name = type_name(datatype);
    match (datatype, &metric.value) {
        (0, _) => {
            Err((Reason::InvalidField, "neither the metric nor a birth tells its data type".to_owned()))
        }
        (1..=8, Some(value)) => integer(datatype, value)
            .ok_or_else(|| (Reason::InvalidValue, format!("the value is no {name}")))
            .and_then(exact)
            .map(Value::Num),
        (9 | 10, Some(Float(number))) => finite(f64::from(*number)),
        (9 | 10, Some(Double(number))) => finite(*number),
        (11, Some(Boolean(truth))) => Ok(Value::Bool(*truth)),
        // As Unix milliseconds, so that it can be computed with.
        (13, Some(Long(millis))) => exact((*millis as i64).into()).map(Value::Num),
        (12 | 14 | 15, Some(Text(text))) => self::text(text).map(|text| Value::Text(text.into())),
        (1..=15, Some(_)) => Err((Reason::InvalidValue, format!("the value is no {name}"))),
        (1..=15, None) => {
            Err((Reason::InvalidValue, format!("there is no value, and is_null is not set ({name})")))
        }
        _ => Err((
            Reason::InvalidValue,
            format!("a value of the data type {datatype} ({name}) cannot be stored"),
        )),
    }
}

/// An integer in its range. Encoders differ: negative ones come in two's complement of 32 bits or of
/// the type's own, and UInt32 as either of the two fields.
fn integer(datatype: u32, value: &proto::Value) -> Option<i128> {
    let (raw, signed) = match value {
        proto::Value::Int(raw) => (u64::from(*raw), i64::from(*raw as i32)),
        proto::Value::Long(raw) => (*raw, *raw as i64),
        _ => return None,
    };
    let bits = [8, 16, 32, 64][(datatype as usize - 1) % 4];
    if datatype > 4 {
        return (bits == 64 || raw >> bits == 0).then_some(raw.into());
    }
    let half = 1i128 << (bits - 1);
    let (raw, signed) = (i128::from(raw), i128::from(signed));
    if (-half..half).contains(&signed) {
        Some(signed)
    } else {
        (half..2 * half).contains(&raw).then_some(raw - 2 * half)
    }
}

fn exact(integer: i128) -> Result<f64, (Reason, String)> {
    let number = integer as f64;
    if number as i128 == integer {
        return Ok(number);
    }
    Err((
        Reason::OutOfRange,
        format!("{integer} is an integer that a double cannot hold exactly; send it as text"),
    ))
}

fn finite(number: f64) -> Result<Value<'static>, (Reason, String)> {
    if number.is_finite() {
        return Ok(Value::Num(number));
    }
    Err((Reason::InvalidValue, format!("{number} is no finite number")))
}

fn text(bytes: &[u8]) -> Result<String, (Reason, String)> {
    if bytes.len() > MAX_TEXT {
        return Err((Reason::TooLong, format!("the text has {} bytes; {MAX_TEXT} are allowed", bytes.len())));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err((Reason::InvalidEncoding, "the text is not UTF-8, or holds NUL".to_owned())),
    }
}

/// Penstock's quality from the property `Quality`: 0 is good, 1 bad, others as they came.
pub fn quality(metric: &Metric) -> i16 {
    let told = metric.properties.as_ref().and_then(|properties| {
        let place = properties.keys.iter().position(|key| key == b"Quality")?;
        let value = properties.values.get(place)?;
        value.int.map(u64::from).or(value.long)
    });
    match told {
        Some(0) => BAD,
        Some(GOOD) => 0,
        Some(other) => i16::try_from(other).unwrap_or(i16::MAX),
        None if metric.is_null == Some(true) => STALE,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::Value::{Boolean, Double, Float, Int, Long, Text};

    fn of(datatype: u32, value: proto::Value) -> Result<Value<'static>, Reason> {
        super::value(datatype, &Metric { value: Some(value), ..Metric::default() })
            .map_err(|(reason, _)| reason)
    }

    #[test]
    fn each_data_type_is_read_as_encoders_write_it() {
        for (datatype, value, expected) in [
            (1, Int(0xffff_ffff), -1.0),
            (1, Int(0xff), -1.0),
            (1, Int(127), 127.0),
            (2, Int(0xffff_8000), -32_768.0),
            (2, Int(0x8000), -32_768.0),
            (3, Int(0x8000_0000), -2_147_483_648.0),
            (3, Long(0xffff_ffff), -1.0),
            (3, Long(u64::MAX), -1.0),
            (4, Long(u64::MAX), -1.0),
            (4, Int(7), 7.0),
            (5, Int(255), 255.0),
            (6, Int(65_535), 65_535.0),
            (7, Int(u32::MAX), 4_294_967_295.0),
            (7, Long(4_294_967_295), 4_294_967_295.0),
            (8, Long(1 << 60), 1_152_921_504_606_846_976.0),
            (9, Float(0.5), 0.5),
            (9, Double(0.1), 0.1),
            (10, Double(-1e300), -1e300),
            (13, Long(1_795_497_053_123), 1_795_497_053_123.0),
        ] {
            assert_eq!(of(datatype, value.clone()), Ok(Value::Num(expected)), "{datatype} {value:?}");
        }
        assert_eq!(of(11, Boolean(true)), Ok(Value::Bool(true)));
        for datatype in [12, 14, 15] {
            assert_eq!(of(datatype, Text(b"a".to_vec())), Ok(Value::Text("a".into())));
        }
    }

    #[test]
    fn what_is_not_of_its_type_is_refused() {
        for (datatype, value, reason) in [
            (1, Int(256), Reason::InvalidValue),
            (2, Int(0x0001_0000), Reason::InvalidValue),
            (3, Long(1 << 40), Reason::InvalidValue),
            (5, Int(256), Reason::InvalidValue),
            (5, Int(u32::MAX), Reason::InvalidValue),
            (7, Long(1 << 32), Reason::InvalidValue),
            (8, Long((1 << 53) + 1), Reason::OutOfRange),
            (4, Long((1 << 53) + 1), Reason::OutOfRange),
            (3, Float(1.0), Reason::InvalidValue),
            (9, Int(1), Reason::InvalidValue),
            (9, Float(f32::NAN), Reason::InvalidValue),
            (10, Double(f64::INFINITY), Reason::InvalidValue),
            (11, Int(1), Reason::InvalidValue),
            (12, Int(1), Reason::InvalidValue),
            (12, Text(b"\xff".to_vec()), Reason::InvalidEncoding),
            (12, Text(b"a\0".to_vec()), Reason::InvalidEncoding),
            (14, Text(vec![b'x'; MAX_TEXT + 1]), Reason::TooLong),
            (0, Int(1), Reason::InvalidField),
            (16, Int(1), Reason::InvalidValue),
            (19, Int(1), Reason::InvalidValue),
            (99, Int(1), Reason::InvalidValue),
        ] {
            assert_eq!(of(datatype, value.clone()), Err(reason), "{datatype} {value:?}");
        }
        assert_eq!(value(3, &Metric::default()).unwrap_err().0, Reason::InvalidValue);
        assert_eq!(value(19, &Metric::default()).unwrap_err().0, Reason::InvalidValue);
    }

    #[test]
    fn quality_is_0_where_it_is_good() {
        let with = |int| {
            let value = proto::PropertyValue { int: Some(int), ..Default::default() };
            let properties = proto::PropertySet { keys: vec![b"Quality".to_vec()], values: vec![value] };
            quality(&Metric { properties: Some(properties), ..Metric::default() })
        };
        assert_eq!((with(192), with(0), with(500)), (0, 1, 500));
        assert_eq!(quality(&Metric::default()), 0);
        assert_eq!(quality(&Metric { is_null: Some(true), ..Metric::default() }), 500);
    }
}
