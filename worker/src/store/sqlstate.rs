//! What an error of the database means for a batch. Classified by SQLSTATE alone: constraint and
//! chunk names are the server's to choose.

use super::patience::is_catalog_race;

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The database will take the same batch later: a restart, a deadlock, a time-out, the network.
    Retry,
    /// A row is there already (23505): the same batch without it.
    Duplicate,
    /// A row that the database will never take: it is found by halving and becomes a dead letter.
    Poison,
    /// Nothing a row can help: a full disk, a missing table or right. No row is given up for it.
    Stop,
}

impl Class {
    /// A bounded word for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Duplicate => "duplicate",
            Self::Poison => "poison",
            Self::Stop => "stop",
        }
    }

    /// The class of a SQLSTATE; see <https://www.postgresql.org/docs/17/errcodes-appendix.html>.
    pub fn of_sqlstate(code: &str, message: &str) -> Self {
        match code {
            "23505" => Self::Duplicate,
            // A check constraint refuses a row; a table without a partition for it refuses every row.
            "23514" if message.contains("no partition") => Self::Stop,
            // TimescaleDB: the chunk went away or is being made under us.
            "TS503" | "40001" | "40P01" | "40003" | "55P03" | "57014" | "57P01" | "57P02" | "57P03"
            | "57P05" | "25P03" | "25006" | "53200" | "53300" | "25P02" => Self::Retry,
            // A table's rights were changed while a chunk of it was made.
            _ if is_catalog_race(code, message) => Self::Retry,
            "22P03" | "22P04" | "53100" | "53400" => Self::Stop,
            "21000" | "54000" | "54001" => Self::Poison,
            _ => match code.get(..2) {
                Some("08") => Self::Retry,
                Some("22" | "23") => Self::Poison,
                _ => Self::Stop,
            },
        }
    }
}

/// A failed attempt to commit a batch.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The database answered with an error.
    #[error("{code}: {message}")]
    Database {
        /// SQLSTATE.
        code: String,
        /// The server's message; without row values.
        message: String,
    },
    /// The connection failed, or was never made.
    #[error("{0}")]
    Connection(String),
    /// No answer before the attempt's deadline. Whether it is committed is unknown.
    #[error("no answer within {0:?}")]
    Deadline(std::time::Duration),
    /// What had been refused as data is taken now: it was not the data's fault, and all is tried anew.
    #[error("the database takes what it refused before")]
    Relented,
}

impl AttemptError {
    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Database { code, message, .. } => Class::of_sqlstate(code, message),
            Self::Connection(_) | Self::Deadline(_) | Self::Relented => Class::Retry,
        }
    }
}

impl From<sqlx::Error> for AttemptError {
    fn from(error: sqlx::Error) -> Self {
        let sqlx::Error::Database(error) = error else {
            return Self::Connection(error.to_string());
        };
        Self::Database {
            code: error.code().unwrap_or_default().into_owned(),
            message: error.message().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_about_data_give_a_row_up() {
        for code in ["22003", "22021", "22P02", "23514", "23502", "23503", "21000", "54000"] {
            assert_eq!(Class::of_sqlstate(code, ""), Class::Poison, "{code}");
        }
        for code in ["53100", "42P01", "42501", "0A000", "58030", "XX001", "3D000", "22P04", "99999", "", "é"]
        {
            assert_eq!(Class::of_sqlstate(code, ""), Class::Stop, "{code}");
        }
        for code in ["40001", "40P01", "57P01", "08006", "55P03", "53300", "TS503"] {
            assert_eq!(Class::of_sqlstate(code, ""), Class::Retry, "{code}");
        }
        assert_eq!(Class::of_sqlstate("23505", ""), Class::Duplicate);
    }

    #[test]
    fn a_race_for_a_row_of_the_catalog_passes() {
        assert_eq!(Class::of_sqlstate("XX000", "tuple concurrently updated"), Class::Retry);
        assert_eq!(Class::of_sqlstate("XX000", "cache lookup failed for relation 1"), Class::Stop);
    }

    #[test]
    fn a_missing_partition_is_the_tables_fault_not_the_rows() {
        let message = "no partition of relation \"sample\" found for row";
        assert_eq!(Class::of_sqlstate("23514", message), Class::Stop);
    }
}
