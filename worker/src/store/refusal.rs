//! Whether a refusal is the row's own. A database that refuses everything for a while, as one without
//! transaction numbers, says of each row what it says of a bad one. So what became a dead letter is tried
//! once more after the letters, in the same transaction: a database that took the letters takes a good row.

use sqlx::Executor;

use super::marks::Marks;
use super::sqlstate::{AttemptError, Class};
use super::staging;
use super::transaction::{Path, items};
use super::writer::{Session, Written};
use crate::batch::Batch;

/// Ends the attempt with [`AttemptError::Relented`] if anything that was refused is taken now.
pub(super) async fn confirm(
    session: &mut Session,
    batch: &Batch,
    path: Path,
    written: &Written,
) -> Result<(), AttemptError> {
    if !written.suspects.is_empty() {
        staging::confirm(&mut session.connection, &written.suspects).await?;
    }
    let Some(given_up) = batch.given_up() else { return Ok(()) };
    session.connection.execute("SAVEPOINT refused").await?;
    // All that was given up, as it was when it was refused: a refusal may be of several rows together.
    let taken = match items(session, given_up, path, &mut Marks::default()).await {
        // What the commit would look at.
        Ok(_) => session.connection.execute("SET CONSTRAINTS ALL IMMEDIATE").await.map_err(Into::into),
        Err(error) => Err(error),
    };
    refused_again(taken.map(drop))?;
    session.connection.execute("ROLLBACK TO SAVEPOINT refused").await?;
    Ok(())
}

/// Whether what was tried once more is refused as before.
pub(super) fn refused_again(taken: Result<(), AttemptError>) -> Result<(), AttemptError> {
    let Err(error) = taken else { return Err(AttemptError::Relented) };
    match error.class() {
        Class::Poison => Ok(()),
        Class::Duplicate => Err(AttemptError::Relented),
        Class::Retry | Class::Stop => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: &str) -> AttemptError {
        AttemptError::Database { code: code.into(), message: String::new() }
    }

    #[test]
    fn only_the_same_refusal_again_is_the_rows_own() {
        assert!(refused_again(Err(error("54000"))).is_ok());
        for taken in [Ok(()), Err(error("23505"))] {
            assert!(matches!(refused_again(taken), Err(AttemptError::Relented)));
        }
        for code in ["53100", "40P01"] {
            assert!(matches!(refused_again(Err(error(code))), Err(AttemptError::Database { .. })), "{code}");
        }
    }
}
