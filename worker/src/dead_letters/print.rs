//! Letters for a person and for scripts. Nothing of a device's text reaches a terminal unescaped.

use std::fmt::Write;

use serde_json::{Value, json};

use super::verdict::Verdict;
use crate::decode::Micros;
use crate::store::letter_search::Letter;

/// Digits of a digest that stand for it in a table; `show` takes as many or more.
const SHORT: usize = 12;
/// Longest text of a column.
const WIDE: usize = 60;

/// The head of a table of letters.
pub const HEAD: &str =
    "DIGEST        RECEIVED                     REASON            PART  TENANT            TOPIC, DETAIL";

/// A letter as a line of a table.
pub fn line(letter: &Letter) -> String {
    let mark = if letter.replayed_at.is_some() { " (replayed)" } else { "" };
    format!(
        "{:<SHORT$}  {:<27}  {:<16}  {:>4}  {:<16}  {}: {}{mark}",
        &hex(&letter.digest)[..SHORT],
        instant(letter.received_at),
        letter.reason,
        letter.part.map_or_else(|| "-".to_owned(), |part| part.to_string()),
        short(letter.tenant.as_deref().unwrap_or("-")),
        short(&letter.topic),
        short(&letter.detail),
    )
}

/// A letter as JSON.
pub fn object(letter: &Letter) -> Value {
    json!({
        "digest": hex(&letter.digest),
        "receivedAt": instant(letter.received_at),
        "pipeline": letter.pipeline,
        "tenant": letter.tenant,
        "topic": letter.topic,
        "reason": letter.reason,
        "part": letter.part,
        "detail": letter.detail,
        "replayedAt": letter.replayed_at.map(instant),
        "payloadBytes": letter.payload_bytes,
        "truncated": letter.truncated,
    })
}

/// A letter as JSON, with its payload in base64.
pub fn with_payload(letter: &Letter, payload: &[u8]) -> Value {
    let mut object = object(letter);
    object["payload"] = base64(payload).into();
    object
}

/// All of a letter, for a person.
pub fn page(letter: &Letter, payload: &[u8]) -> String {
    let mut text = String::new();
    for (name, value) in [
        ("digest", hex(&letter.digest)),
        ("received", instant(letter.received_at)),
        ("pipeline", escaped(&letter.pipeline)),
        ("tenant", letter.tenant.as_deref().map_or_else(|| "not known".to_owned(), escaped)),
        ("topic", escaped(&letter.topic)),
        ("reason", letter.reason.clone()),
        ("part", letter.part.map_or_else(|| "the whole message".to_owned(), |part| part.to_string())),
        ("detail", escaped(&letter.detail)),
        ("replayed", letter.replayed_at.map_or_else(|| "no".to_owned(), instant)),
    ] {
        let _ = writeln!(text, "{name:<9} {value}");
    }
    let cut = if letter.truncated { format!(", of which {} are left", payload.len()) } else { String::new() };
    let _ = writeln!(text, "payload   {} bytes{cut}", letter.payload_bytes);
    text + &body(payload)
}

/// The payload as text, or in hexadecimal where it is none.
fn body(payload: &[u8]) -> String {
    match std::str::from_utf8(payload) {
        Ok(text) if !text.contains(|c: char| c.is_control() && !c.is_whitespace()) => format!("{text}\n"),
        _ => payload.chunks(32).fold(String::new(), |text, line| text + &hex(line) + "\n"),
    }
}

/// What became of a letter, as a line.
pub fn verdict_line(letter: &Letter, verdict: &Verdict) -> Option<String> {
    let why = verdict.explain()?;
    let digest = hex(&letter.digest);
    Some(format!(
        "{}  {:<15}  {}: {}",
        &digest[..SHORT],
        verdict.as_str(),
        short(&letter.topic),
        escaped(&why)
    ))
}

/// What became of a letter, as JSON.
pub fn verdict_object(letter: &Letter, verdict: &Verdict) -> Value {
    json!({
        "digest": hex(&letter.digest),
        "topic": letter.topic,
        "reason": letter.reason,
        "part": letter.part,
        "verdict": verdict.as_str(),
        "why": verdict.explain(),
    })
}

fn instant(at: Micros) -> String {
    jiff::Timestamp::from_microsecond(at).map_or_else(|_| format!("{at} µs"), |at| format!("{at:.6}"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut clean, c| {
        if c.is_control() {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
        clean
    })
}

fn short(text: &str) -> String {
    let text = escaped(text);
    match text.char_indices().nth(WIDE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let number =
            chunk.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(number >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (plain, coded) in cases {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xff, 0xef, 0xbf]), "/++/");
    }

    #[test]
    fn a_devices_text_cannot_command_a_terminal() {
        assert_eq!(short("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(body(b"\x1b[2J"), "1b5b324a\n");
        assert_eq!(body("{\"v\": \"é\"}".as_bytes()), "{\"v\": \"é\"}\n");
    }
}
