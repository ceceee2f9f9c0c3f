//! What jobs leave as their termination message.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What Kubernetes reads of a termination message.
const MOST: usize = 4096;
/// Texts up to here are kept whole, as long as a list can be cut instead.
const SHORT: usize = 400;

/// What `migrate` and `maintain` found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StoreReport {
    /// `TimescaleDB Community`, `TimescaleDB Apache` or `PostgreSQL`.
    pub edition: String,
    /// Version of the server.
    pub server: String,
    /// Version of TimescaleDB.
    pub timescaledb: Option<String>,
    /// Version of the schema; none without one.
    pub schema_version: Option<i64>,
    /// What of the store's policies this edition cannot do, each beginning with its field.
    pub unsupported: Vec<String>,
    /// Changes to the store's policies that were made, or are to be made by `migrate`.
    pub policies: Vec<String>,
    /// Settings that let a commit be lost, and what else a user should know.
    pub warnings: Vec<String>,
    /// Bytes of all tables and indexes; none without a schema.
    pub size_bytes: Option<u64>,
    /// What `maintain` removed; nothing, if another one runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub removed: Option<Removed>,
    /// Lists or texts are not whole.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Removed {
    /// Chunks of samples.
    pub chunks: u64,
    /// Samples, where they are not in chunks.
    pub samples: u64,
    /// Metadata of messages.
    pub messages: u64,
    /// Events.
    pub events: u64,
    /// Command answers.
    pub command_acks: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Payloads of dead letters of which the beginning is left.
    pub payloads_cut: u64,
    /// Bytes of payloads that are gone with that.
    pub bytes_cut: u64,
}

/// What `retire` did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RetireReport {
    /// The shard's sessions are drained and ended.
    pub retired: bool,
    /// What proved that they were empty.
    pub proof: Proof,
    /// Client ids of the sessions.
    #[serde(default)]
    pub client_ids: Vec<String>,
    /// The list is not whole.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

/// What proved that a queue was empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proof {
    /// A marker arrived behind all that the broker had queued.
    Marker,
    /// Nothing arrived for the declared time.
    Idle,
    /// The broker had no session, and the shard remembered none.
    NoSession,
}

/// Why a job failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failure {
    /// A bounded word.
    pub reason: String,
    /// For a person.
    pub message: String,
}

/// How a job ended: its termination message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Outcome<Report> {
    /// It failed.
    Failed {
        /// Why.
        error: Failure,
    },
    /// It did its work.
    Done(Report),
}

/// A report as a termination message: JSON of at most 4,096 bytes. Lists lose their ends where it is
/// more, and long texts too.
pub fn termination_message(report: &impl Serialize) -> String {
    let mut value = serde_json::to_value(report).unwrap_or_default();
    let mut text = value.to_string();
    while text.len() > MOST && shorten(&mut value) {
        if let Value::Object(fields) = &mut value {
            fields.insert("cut".to_owned(), true.into());
        }
        text = value.to_string();
    }
    text
}

/// Takes something off the largest list or text within. Whether there was one.
fn shorten(value: &mut Value) -> bool {
    match largest(value) {
        Some(Value::Array(items)) => items.pop().is_some(),
        Some(Value::String(text)) => {
            let half = text.floor_char_boundary(text.len() / 2);
            text.truncate(half);
            text.push('…');
            true
        }
        _ => false,
    }
}

/// The largest text that is long, or else the largest list.
fn largest(value: &mut Value) -> Option<&mut Value> {
    fn size(value: &Value) -> usize {
        match value {
            Value::String(text) if text.len() > SHORT => MOST + text.len(),
            Value::Array(items) if !items.is_empty() => value.to_string().len(),
            _ => 0,
        }
    }
    fn within(value: &mut Value) -> Vec<&mut Value> {
        // A list's items are looked at only while one of them is long.
        let leaf = match &*value {
            Value::Object(_) => false,
            Value::Array(items) => items.iter().all(|item| size(item) == 0),
            _ => true,
        };
        let inner: Vec<&mut Value> = match value {
            value if leaf => return vec![value],
            Value::Object(fields) => fields.values_mut().collect(),
            Value::Array(items) => items.iter_mut().collect(),
            _ => Vec::new(),
        };
        inner.into_iter().flat_map(within).collect()
    }
    within(value).into_iter().filter(|found| size(found) > 0).max_by_key(|found| size(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_report_loses_the_ends_of_its_lists_and_stays_json() {
        let report = StoreReport {
            edition: "PostgreSQL".to_owned(),
            unsupported: (0..900).map(|n| format!("spec.rollups[{n}]: not \"here\"")).collect(),
            warnings: vec!["ä".repeat(9000), "short".to_owned()],
            ..StoreReport::default()
        };
        let text = termination_message(&report);
        assert!(text.len() <= MOST && text.len() > MOST / 2, "{} bytes", text.len());
        let Ok(Outcome::Done(read)) = serde_json::from_str::<Outcome<StoreReport>>(&text) else {
            panic!("not a report: {text}")
        };
        assert!(read.cut && !read.unsupported.is_empty() && read.unsupported.len() < 900);
        assert_eq!((&*read.edition, &*read.warnings[1]), ("PostgreSQL", "short"));
    }

    #[test]
    fn a_short_report_is_whole() {
        let report = RetireReport {
            retired: true,
            proof: Proof::Marker,
            client_ids: vec!["plant-0".to_owned()],
            cut: false,
        };
        let text = termination_message(&report);
        assert_eq!(text, r#"{"clientIds":["plant-0"],"proof":"Marker","retired":true}"#);
        assert_eq!(serde_json::from_str::<Outcome<RetireReport>>(&text).unwrap(), Outcome::Done(report));
    }

    #[test]
    fn a_failure_is_told_from_a_report_and_never_longer_than_is_read() {
        let error = Failure { reason: "database_away".to_owned(), message: "\"\n".repeat(9000) };
        let text = termination_message(&Outcome::<StoreReport>::Failed { error });
        assert!(text.len() <= MOST, "{} bytes", text.len());
        let Ok(Outcome::Failed { error }) = serde_json::from_str::<Outcome<StoreReport>>(&text) else {
            panic!("not a failure: {text}")
        };
        assert_eq!(error.reason, "database_away");
    }
}
