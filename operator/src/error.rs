//! What keeps a reconcile from its end. It is tried again.

use penstock_crds::report::Reason;

use crate::kinds::Kind;

/// A failed reconcile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused, or could not be reached.
    #[error("the API server: {0}")]
    Api(Box<kube::Error>),
    /// Somebody else wrote at the same time; what is cached is old.
    #[error("{kind} {name} has changed meanwhile", kind = .0.as_str(), name = .1)]
    Changed(Kind, String),
    /// The object is there, and not ours.
    #[error("{kind} {name} exists and does not belong to this object; delete or rename it", kind = .0.as_str(), name = .1)]
    Foreign(Kind, String),
    /// A child is there, and what is kept of it cannot be read: without it the others would be planned wrong.
    #[error("an object that is kept cannot be read: {0}; a restart of the operator reads all anew")]
    Unreadable(std::io::Error),
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

impl Error {
    /// All words of [`Error::reason`].
    pub const REASONS: [&str; 6] =
        ["api_conflict", "api_forbidden", "api_refused", "api_away", "foreign_object", "cache_unreadable"];

    /// One bounded word: of the condition, the metric and the log.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Api(error) => match &**error {
                kube::Error::Api(status) if status.is_conflict() => "api_conflict",
                kube::Error::Api(status) if status.is_forbidden() => "api_forbidden",
                kube::Error::Api(_) => "api_refused",
                _ => "api_away",
            },
            Self::Changed(..) => "api_conflict",
            Self::Foreign(..) => "foreign_object",
            Self::Unreadable(_) => "cache_unreadable",
        }
    }

    /// What does not pass by itself, for a condition: an object of somebody else's, or what the API server will
    /// not take, by its rights, quotas, rules or webhooks.
    pub fn blocked(&self) -> Option<Reason> {
        let why = match self {
            Self::Foreign(..) => self.to_string(),
            Self::Api(error) => match &**error {
                kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422) => {
                    format!("the API server: {}", status.message)
                }
                _ => return None,
            },
            _ => return None,
        };
        Some((self.reason().to_owned(), why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_server_will_not_take_is_told_in_its_own_words_and_what_may_pass_is_not() {
        let said = |code: u16, reason: &str| {
            let status = kube::core::Status::failure("exceeded quota: small", reason).with_code(code);
            Error::from(kube::Error::Api(status.boxed())).blocked()
        };
        let why = || "the API server: exceeded quota: small".to_owned();
        assert_eq!(said(403, "Forbidden"), Some(("api_forbidden".to_owned(), why())));
        // Webhooks refuse with either, and their own reasons.
        for (code, reason) in [(422, "Invalid"), (400, "BadRequest"), (400, ""), (403, "")] {
            assert_eq!(said(code, reason), Some(("api_refused".to_owned(), why())), "{code} {reason}");
        }
        for (code, reason) in [(404, "NotFound"), (409, "Conflict"), (429, "TooManyRequests"), (500, "")] {
            assert_eq!(said(code, reason), None, "{code}");
        }
        let (reason, why) = Error::Foreign(Kind::Service, "x".to_owned()).blocked().unwrap();
        assert!(reason == "foreign_object" && why.starts_with("Service x exists"), "{why}");
    }
}
