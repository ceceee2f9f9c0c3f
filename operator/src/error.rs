//! What keeps a reconcile from its end. It is tried again.

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
}
