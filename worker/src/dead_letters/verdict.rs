//! What a replay made of a letter. Pure.

use crate::decode::{Reason, Reject};

/// What a replay made of a letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// What it stood for is stored now, or was already.
    Replayed,
    /// It fails for the same reason, and stays.
    StillFails {
        /// What was found.
        detail: String,
    },
    /// It fails for another reason, under which there is a letter now.
    FailsOtherwise {
        /// The other reason.
        reason: Reason,
        /// What was found.
        detail: String,
    },
    /// Only the beginning of its payload is left.
    Truncated,
    /// Its topic was no text, and is not known any more.
    TopicLost,
}

impl Verdict {
    /// The words, in the order in which they are summed up.
    pub const WORDS: [&str; 5] = ["replayed", "still_fails", "fails_otherwise", "truncated", "topic_lost"];

    /// What became of a letter with this reason and part, when its message was decoded and stored
    /// again with these rejects.
    pub fn of(reason: &str, part: Option<u32>, rejects: &[Reject]) -> Self {
        if let Some(same) = rejects.iter().find(|r| r.part == part && r.reason.as_str() == reason) {
            return Self::StillFails { detail: same.detail.clone() };
        }
        let other = rejects.iter().find(|reject| reject.part == part || reject.part.is_none());
        other.map_or(Self::Replayed, |other| Self::FailsOtherwise {
            reason: other.reason,
            detail: other.detail.clone(),
        })
    }

    /// A bounded word.
    pub const fn as_str(&self) -> &'static str {
        Self::WORDS[match self {
            Self::Replayed => 0,
            Self::StillFails { .. } => 1,
            Self::FailsOtherwise { .. } => 2,
            Self::Truncated => 3,
            Self::TopicLost => 4,
        }]
    }

    /// For a person; `None` where all is well.
    pub fn explain(&self) -> Option<String> {
        match self {
            Self::Replayed => None,
            Self::StillFails { detail } => Some(detail.clone()),
            Self::FailsOtherwise { reason, detail } => Some(format!("now {}: {detail}", reason.as_str())),
            Self::Truncated => {
                Some("only the beginning of the payload is left (spec.deadLetters.maxSize)".to_owned())
            }
            Self::TopicLost => Some("the topic was not UTF-8, so only a part of it is known".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_letter_stays_only_for_its_own_reason_and_part() {
        let rejects =
            [Reject::part(1, Reason::InvalidValue, "text"), Reject::part(2, Reason::Conflict, "another")];
        let word = |reason: Reason, part| Verdict::of(reason.as_str(), part, &rejects).as_str();
        assert_eq!(word(Reason::InvalidValue, Some(1)), "still_fails");
        assert_eq!(word(Reason::InvalidValue, Some(2)), "fails_otherwise");
        assert_eq!(word(Reason::InvalidValue, Some(3)), "replayed");
        // Its parts have letters of their own now.
        assert_eq!(word(Reason::MissingTime, None), "replayed");
        let whole = [Reject::whole(Reason::InvalidTopic, "the layout changed")];
        assert_eq!(Verdict::of("conflict", Some(0), &whole).as_str(), "fails_otherwise");
    }

    fn reject() -> impl Strategy<Value = Reject> {
        (prop::option::of(0u32..4), prop::sample::select(Reason::ALL.to_vec()))
            .prop_map(|(part, reason)| Reject { part, ..Reject::whole(reason, "found") })
    }

    proptest! {
        #[test]
        fn a_letter_is_replayed_only_if_nothing_of_its_part_fails(
            letter in reject(),
            rejects in prop::collection::vec(reject(), 0..4),
        ) {
            let verdict = Verdict::of(letter.reason.as_str(), letter.part, &rejects);
            let stays = rejects.iter().any(|r| (r.part, r.reason) == (letter.part, letter.reason));
            let fails = rejects.iter().any(|r| r.part == letter.part || r.part.is_none());
            prop_assert_eq!(verdict.as_str() == "still_fails", stays);
            prop_assert_eq!(verdict == Verdict::Replayed, !fails);
        }
    }
}
