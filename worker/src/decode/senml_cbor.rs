//! SenML records from CBOR (RFC 8428 §6).

use std::borrow::Cow;

use ciborium::Value as Cbor;

use super::reject::{Reason, Reject};
use super::senml::{Field, Label, Record};

/// Deepest nesting. A pack has 2 levels, a decimal fraction 2 more.
const MAX_DEPTH: usize = 16;
/// A decimal fraction (RFC 8949 §3.4.4).
const DECIMAL_FRACTION: u64 = 4;
/// 2^53: below it the shortest decimal of a whole double is the integer itself.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// The records of a pack.
pub(super) fn records(payload: &[u8]) -> Result<Vec<Record<'static>>, Reject> {
    let wrong = |what: String| Reject::whole(Reason::ParseError, &format!("the CBOR {what}"));
    let mut rest = payload;
    let pack: Cbor = ciborium::de::from_reader_with_recursion_limit(&mut rest, MAX_DEPTH)
        .map_err(|error| wrong(format!("cannot be read: {error}")))?;
    if !rest.is_empty() {
        return Err(wrong(format!("is followed by {} more bytes", rest.len())));
    }
    let Cbor::Array(items) = pack else { return Err(wrong("is no array".to_owned())) };
    items.into_iter().map(record).collect()
}

fn record(item: Cbor) -> Result<Record<'static>, Reject> {
    let Cbor::Map(fields) = item else {
        return Err(Reject::whole(Reason::InvalidField, "a record is no map"));
    };
    let mut record = Record::default();
    for (key, value) in fields {
        let field = field(value);
        match key {
            Cbor::Text(name) => record.named(&name, field)?,
            Cbor::Integer(number) => {
                let number = i128::from(number);
                if let Some((label, ..)) = Label::ALL.iter().find(|(.., known)| *known == number) {
                    record.labelled(*label, field)?;
                }
            }
            _ => return Err(Reject::whole(Reason::InvalidField, "a label is neither a number nor text")),
        }
    }
    Ok(record)
}

fn field(value: Cbor) -> Field<'static> {
    match value {
        Cbor::Integer(number) => Field::Number(Cow::Owned(i128::from(number).to_string())),
        Cbor::Float(number) if number.is_finite() => Field::Number(Cow::Owned(decimal(number))),
        Cbor::Text(text) => Field::Text(Cow::Owned(text)),
        Cbor::Bytes(bytes) => Field::Data(Cow::Owned(base64url(&bytes))),
        Cbor::Bool(truth) => Field::Bool(truth),
        Cbor::Tag(DECIMAL_FRACTION, fraction) => match fraction.as_array().map(Vec::as_slice) {
            Some([Cbor::Integer(exponent), Cbor::Integer(mantissa)]) => {
                let (exponent, mantissa) = (i128::from(*exponent), i128::from(*mantissa));
                Field::Number(Cow::Owned(match exponent {
                    // An integer, which is held to be exact.
                    0 => mantissa.to_string(),
                    _ => format!("{mantissa}e{exponent}"),
                }))
            }
            _ => Field::Other,
        },
        _ => Field::Other,
    }
}

/// The shortest decimal that is this double, so that a time means what its sender wrote.
fn decimal(number: f64) -> String {
    // Above, zeros would stand for digits that the double has, and look like an integer that it is not.
    if number.abs() < EXACT { number.to_string() } else { format!("{number:e}") }
}

/// Base64 with the alphabet for URLs and without padding (RFC 4648 §5).
fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * place) & 63) as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (bytes, text) in
            [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg"), ("fooba", "Zm9vYmE")]
        {
            assert_eq!(base64url(bytes.as_bytes()), text);
        }
        assert_eq!(base64url(&[0xfb, 0xff]), "-_8");
    }
}
