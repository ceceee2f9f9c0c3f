//! Conditions by the API conventions: a time that changes only with the status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Longest message: the API server takes 32,768 characters, and nobody reads so many.
const LONGEST: usize = 1024;

/// What a condition says.
#[derive(Debug, Clone)]
pub struct Say {
    /// `True`, `False`, or `Unknown` if none.
    pub holds: Option<bool>,
    /// One bounded word.
    pub reason: String,
    /// For a person.
    pub message: String,
}

impl Say {
    /// It holds, or not.
    pub fn that(holds: bool, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { holds: Some(holds), reason: reason.into(), message: message.into() }
    }
}

/// Sets a condition.
pub fn set(conditions: &mut Vec<Condition>, kind: &str, say: &Say, generation: Option<i64>, now: Time) {
    let status = match say.holds {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let mut next = Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: word(&say.reason),
        message: say.message.chars().take(LONGEST).collect(),
        observed_generation: generation,
        last_transition_time: now,
    };
    match conditions.iter_mut().find(|condition| condition.type_ == kind) {
        None => conditions.push(next),
        Some(before) => {
            if before.status == next.status {
                next.last_transition_time = before.last_transition_time.clone();
            }
            *before = next;
        }
    }
}

/// A reason that the API server takes: letters, digits and `_`, a letter first.
fn word(reason: &str) -> String {
    let word: String = reason
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' })
        .take(100)
        .collect();
    if word.starts_with(|c: char| c.is_ascii_alphabetic()) { word } else { format!("r{word}") }
}

/// The condition of a kind.
pub fn get<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}
