//! Which database it is: what it can do follows from that.

use serde::{Serialize, Serializer};

/// Which database it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edition {
    /// TimescaleDB under its community licence, of this version.
    Community(Version),
    /// TimescaleDB under the Apache licence alone.
    Apache,
    /// PostgreSQL without TimescaleDB.
    Plain,
}

/// Major, minor and patch number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// Of a text such as `2.19.3` or `2.30.0-dev`.
    fn of(text: &str) -> Self {
        let mut numbers = text.split(['.', '-']).map(|number| number.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Self(next(), next(), next())
    }
}

impl Edition {
    /// Of the extension's version and licence.
    pub fn of(timescaledb: Option<&str>, licence: Option<&str>) -> Self {
        match (timescaledb, licence) {
            (Some(version), Some("timescale")) => Self::Community(Version::of(version)),
            (Some(_), _) => Self::Apache,
            (None, _) => Self::Plain,
        }
    }

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Community(_) => "TimescaleDB Community",
            Self::Apache => "TimescaleDB Apache",
            Self::Plain => "PostgreSQL",
        }
    }
}

impl Serialize for Edition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_licence_and_the_version_tell_the_edition() {
        let community = Edition::of(Some("2.18.1"), Some("timescale"));
        assert_eq!(community, Edition::Community(Version(2, 18, 1)));
        assert_eq!(Edition::of(Some("2.30.0-dev"), Some("timescale")), Edition::Community(Version(2, 30, 0)));
        assert_eq!(Edition::of(Some("2.19.3"), Some("apache")), Edition::Apache);
        assert_eq!(Edition::of(None, None), Edition::Plain);
        assert!(Version(2, 9, 3) < Version(2, 18, 1));
    }
}
