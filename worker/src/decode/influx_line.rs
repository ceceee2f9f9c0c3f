//! InfluxDB line protocol: `measurement,tag=value field=1.5,other=7i 1795497053000000000`.
//!
//! A point is `measurement.field`, or `measurement.field{tag=value,…}` with the tags in order of their keys:
//! what InfluxDB keeps apart stays apart. A line that cannot be read is one dead letter.

use std::borrow::Cow;

use penstock_crds::mapping::TimeUnit;

use super::reject::{Reason, Reject};
use super::{Content, Message, Micros, Sample, Value, json, time, value};

pub fn decode<'a>(message: &Message<'a>, unit: TimeUnit, content: &mut Content<'a>) -> Result<(), Reject> {
    let mut reader = Reader { text: message.text, at: 0, line: 1 };
    let mut part = 0;
    while reader.skip_blank() {
        let (start, number) = (reader.at, reader.line);
        let read = reader.line().and_then(|line| Ok((instant(message, &line, unit)?, line)));
        match read {
            Ok((ts, line)) => {
                // Once for all fields, of which there may be as many as tags.
                let tags = in_braces(&line.tags);
                for (key, value) in line.fields {
                    content.add(part, sample(part, ts, [&line.measurement, &key, &tags], value));
                    part += 1;
                }
            }
            Err(reject) => {
                if reader.at == start || !reader.at_line_end() {
                    reader.skip_line();
                }
                let detail = format!("line {number}: {}", reject.detail);
                content.rejects.push(Reject::part(part, reject.reason, &detail));
                part += 1;
            }
        }
    }
    if part == 0 {
        return Err(Reject::whole(Reason::InvalidField, "the message has no line beside comments"));
    }
    Ok(())
}

struct Line<'a> {
    measurement: Cow<'a, str>,
    tags: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    fields: Vec<(Cow<'a, str>, Result<Value<'a>, Reject>)>,
    time: Option<&'a str>,
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

fn wrong(detail: &str) -> Reject {
    Reject::whole(Reason::ParseError, detail)
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn at_line_end(&self) -> bool {
        matches!(self.text.as_bytes().get(self.at..), None | Some([] | [b'\n', ..] | [b'\r', b'\n', ..]))
    }

    fn skip_spaces(&mut self) {
        while self.peek() == Some(b' ') {
            self.at += 1;
        }
    }

    fn skip_line(&mut self) {
        while !matches!(self.peek(), None | Some(b'\n')) {
            self.at += 1;
        }
    }

    /// Skips to the next line with something in it. False at the end.
    fn skip_blank(&mut self) -> bool {
        while let Some(byte) = self.peek() {
            match byte {
                b'\n' => {
                    self.line += 1;
                    self.at += 1;
                }
                b' ' | b'\t' | b'\r' => self.at += 1,
                b'#' => self.skip_line(),
                _ => return true,
            }
        }
        false
    }

    fn line(&mut self) -> Result<Line<'a>, Reject> {
        let measurement = self.name(b", ");
        if measurement.is_empty() {
            return Err(wrong("the measurement is missing"));
        }
        let mut tags = Vec::new();
        while self.peek() == Some(b',') {
            self.at += 1;
            let key = self.name(b",= ");
            self.expect(b'=', "a tag has no '='")?;
            let tag = self.name(b",= ");
            if key.is_empty() || tag.is_empty() {
                return Err(wrong("a tag's key or value is empty"));
            }
            tags.push((key, tag));
        }
        tags.sort();
        if tags.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(Reject::whole(Reason::InvalidField, "a tag stands twice"));
        }
        self.expect(b' ', "there are no fields")?;
        self.skip_spaces();
        let mut fields: Vec<(Cow<'a, str>, _)> = Vec::new();
        loop {
            let key = self.name(b",= ");
            self.expect(b'=', "a field has no '='")?;
            if key.is_empty() {
                return Err(wrong("a field's key is empty"));
            }
            let value = self.value(&key)?;
            fields.push((key, value));
            if self.peek() != Some(b',') {
                break;
            }
            self.at += 1;
        }
        let mut seen = std::collections::HashSet::with_capacity(fields.len());
        if fields.iter().any(|(key, _)| !seen.insert(key)) {
            return Err(Reject::whole(Reason::InvalidField, "a field stands twice"));
        }
        self.skip_spaces();
        let time = (!self.at_line_end()).then(|| self.token(b" "));
        self.skip_spaces();
        if !self.at_line_end() {
            return Err(wrong("something follows the time"));
        }
        Ok(Line { measurement, tags, fields, time })
    }

    fn expect(&mut self, byte: u8, otherwise: &str) -> Result<(), Reject> {
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        Err(wrong(otherwise))
    }

    /// Text up to one of the bytes or the line's end.
    fn token(&mut self, ends: &[u8]) -> &'a str {
        let start = self.at;
        while !self.at_line_end() && self.peek().is_some_and(|byte| !ends.contains(&byte)) {
            self.at += 1;
        }
        &self.text[start..self.at]
    }

    /// A name up to one of the bytes, which a backslash escapes.
    fn name(&mut self, ends: &[u8]) -> Cow<'a, str> {
        let (start, bytes) = (self.at, self.text.as_bytes());
        let mut plain: Option<String> = None;
        let mut from = start;
        while !self.at_line_end() && self.peek().is_some_and(|byte| !ends.contains(&byte)) {
            if self.peek() == Some(b'\\') && bytes.get(self.at + 1).is_some_and(|next| ends.contains(next)) {
                plain.get_or_insert_default().push_str(&self.text[from..self.at]);
                from = self.at + 1;
                self.at += 1;
            }
            self.at += 1;
        }
        let rest = &self.text[from..self.at];
        match plain {
            None => Cow::Borrowed(rest),
            Some(text) => Cow::Owned(text + rest),
        }
    }

    /// A field's value. `Err` where the line cannot be read on; within, where the value alone is wrong.
    fn value(&mut self, key: &str) -> Result<Result<Value<'a>, Reject>, Reject> {
        if self.peek() == Some(b'"') {
            return Ok(text(self.quoted()?, key));
        }
        let token = self.token(b", ");
        Ok(match token {
            "t" | "T" | "true" | "True" | "TRUE" => Ok(Value::Bool(true)),
            "f" | "F" | "false" | "False" | "FALSE" => Ok(Value::Bool(false)),
            _ => number(token, key).map(Value::Num),
        })
    }

    /// A string in quotes, in which a backslash escapes quotes and backslashes. It may hold line breaks.
    fn quoted(&mut self) -> Result<Cow<'a, str>, Reject> {
        let bytes = self.text.as_bytes();
        let mut at = self.at + 1;
        let mut from = at;
        let mut plain: Option<String> = None;
        loop {
            match bytes.get(at) {
                None => return Err(wrong("a string has no end")),
                Some(b'"') => break,
                Some(b'\\') if matches!(bytes.get(at + 1), Some(b'"' | b'\\')) => {
                    plain.get_or_insert_default().push_str(&self.text[from..at]);
                    from = at + 1;
                    at += 2;
                }
                Some(_) => at += 1,
            }
        }
        self.line += self.text[self.at..at].matches('\n').count();
        self.at = at + 1;
        let rest = &self.text[from..at];
        Ok(plain.map_or(Cow::Borrowed(rest), |text| Cow::Owned(text + rest)))
    }
}

fn text<'a>(text: Cow<'a, str>, key: &str) -> Result<Value<'a>, Reject> {
    if text.len() > value::MAX_TEXT {
        let detail = format!("'{key}' has {} bytes; {} are allowed", text.len(), value::MAX_TEXT);
        return Err(Reject::whole(Reason::TooLong, &detail));
    }
    if text.contains('\0') {
        let detail = format!("'{key}' holds NUL, which a database cannot store");
        return Err(Reject::whole(Reason::InvalidEncoding, &detail));
    }
    Ok(Value::Text(text))
}

/// A float, or an integer with `i` or `u` behind it.
fn number(token: &str, key: &str) -> Result<f64, Reject> {
    let wrong = |what: &str| Reject::whole(Reason::InvalidValue, &format!("'{key}' {what}"));
    let integer = match token.as_bytes().last() {
        Some(b'i') => Some(token.trim_end_matches('i').parse::<i64>().is_ok()),
        Some(b'u') => Some(token.trim_end_matches('u').parse::<u64>().is_ok()),
        _ => None,
    };
    let digits = match integer {
        Some(true) => &token[..token.len() - 1],
        Some(false) => return Err(wrong("is no integer of 64 bits")),
        None => token,
    };
    let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(digits);
    if !unsigned.starts_with(|c: char| c == '.' || c.is_ascii_digit()) {
        return Err(wrong("is no number, truth value or string in quotes"));
    }
    json::number(digits.strip_prefix('+').unwrap_or(digits))
        .map_err(|(reason, what)| Reject::whole(reason, &format!("'{key}' {what}")))
}

fn instant(message: &Message<'_>, line: &Line<'_>, unit: TimeUnit) -> Result<Micros, Reject> {
    let ts = match line.time {
        None => message.receipt("the line has no time")?,
        Some(text) if text.parse::<i64>().is_ok() => time::number(text, unit)?,
        Some(text) => {
            return Err(Reject::whole(Reason::InvalidTime, &format!("'{text}' is no whole number")));
        }
    };
    message.accept(ts)
}

/// The tags as they stand at the end of a point's name. In them a backslash stands before what would
/// read as the end of a key or tag.
fn in_braces(tags: &[(Cow<'_, str>, Cow<'_, str>)]) -> String {
    fn push_escaped(text: &mut String, word: &str) {
        for c in word.chars() {
            if matches!(c, '\\' | ',' | '=' | '{' | '}') {
                text.push('\\');
            }
            text.push(c);
        }
    }
    let mut text = String::new();
    for (key, tag) in tags {
        text.push(if text.is_empty() { '{' } else { ',' });
        push_escaped(&mut text, key);
        text.push('=');
        push_escaped(&mut text, tag);
    }
    if !text.is_empty() {
        text.push('}');
    }
    text
}

fn sample<'a>(
    part: u32,
    ts: Micros,
    [measurement, key, tags]: [&str; 3],
    value: Result<Value<'a>, Reject>,
) -> Result<Sample<'a>, Reject> {
    let value = value?;
    let what = "point's name";
    value::name_length(measurement.len() + 1 + key.len() + tags.len(), what)?;
    let point = value::name(Cow::Owned(format!("{measurement}.{key}{tags}")), what)?;
    Ok(Sample { part, point, ts, value, unit: None, quality: 0 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Keys and tags as they were before they were put in braces.
    fn read_back(text: &str) -> Vec<String> {
        let mut words = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '{' | ',' | '=' => words.push(String::new()),
                '}' => assert_eq!(chars.next(), None),
                '\\' => words.last_mut().unwrap().extend(chars.next()),
                c => words.last_mut().unwrap().push(c),
            }
        }
        words
    }

    proptest! {
        #[test]
        fn tags_can_be_read_back_from_a_points_name(
            tags in prop::collection::vec(("[aé ,={}\\\\]{1,4}", "[aé ,={}\\\\]{1,4}"), 0..4),
        ) {
            let written = in_braces(&tags.iter().map(|(key, tag)| (key.into(), tag.into())).collect::<Vec<_>>());
            let words: Vec<String> = tags.into_iter().flat_map(|(key, tag)| [key, tag]).collect();
            prop_assert_eq!(read_back(&written), words, "{}", written);
        }
    }
}
