//! One transaction per batch, tried until it is committed.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};
use tokio::sync::{Mutex, watch};

use super::breaker::Breaker;
use super::marks::Marks;
use super::sqlstate::{AttemptError, Class};
use super::transaction::{self, Path};
use crate::batch::{Batch, Outcome};
use crate::decode::{Micros, Reason};
use crate::metrics::Metrics;
use crate::settings::Access;

/// How long an attempt may take. A large batch on a slow database may need longer, so each attempt
/// that runs into its deadline doubles the next one's.
const FIRST_DEADLINE: Duration = Duration::from_secs(10);
const LONGEST_DEADLINE: Duration = Duration::from_mins(2);

/// What to try next after an attempt that its deadline ended. What is too much for the longest one may be
/// so for ever: half of it.
fn outlasted(deadline: Duration, part: Batch, parts: &mut Vec<Batch>) -> Batch {
    if deadline < LONGEST_DEADLINE || part.deliveries.len() < 2 {
        return part;
    }
    let (first, second) = part.split();
    parts.push(second);
    first
}

/// Writes batches over a connection of its own, which is never used again after an error: what the
/// server still has to say on it is unknown.
#[derive(Debug)]
pub struct Writer {
    /// How to reach the database now.
    access: watch::Receiver<Access>,
    /// Namespace and name of the pipeline, for dead letters.
    pipeline: Arc<str>,
    breaker: Arc<Breaker>,
    metrics: Metrics,
    session: Option<Session>,
    /// How the next batch is stored, by what the last one was like.
    path: Path,
    /// Writers take turns while repeats come: what one of them writes, the next must see.
    turn: Arc<Mutex<Marks>>,
    deadline: Duration,
}

/// A connection, and a buffer for it.
#[derive(Debug)]
pub struct Session {
    /// The connection.
    pub connection: PgConnection,
    /// Reused from batch to batch.
    pub buffer: Vec<u8>,
}

/// A committed batch.
#[derive(Debug)]
pub struct Committed {
    /// The batch; its dead letters include those that the database made necessary.
    pub batch: Batch,
    /// What became of its items.
    pub outcome: Outcome,
    /// Samples written.
    pub samples_stored: u64,
    /// Dead letters written, by reason.
    pub dead_letters: Vec<(String, u64)>,
    /// The database's clock right before the commit.
    pub at: Micros,
    /// When the attempt that committed it began and ended.
    pub attempt: Range<Instant>,
}

/// What a transaction wrote, before it is committed.
#[derive(Debug, Default)]
pub struct Written {
    /// What became of the items.
    pub outcome: Outcome,
    /// Samples written.
    pub samples_stored: u64,
    /// Dead letters written, by reason.
    pub dead_letters: Vec<(String, u64)>,
    /// Samples that lost to another value, or that the database refuses.
    pub refused: Vec<super::rows::DeadRow>,
    /// Of the batch's samples those that the database refuses: their places.
    pub suspects: Vec<i32>,
    /// The database's clock.
    pub at: Micros,
}

impl Written {
    /// What comes next is likely to be of the same kind.
    fn next_path(&self) -> Path {
        if self.refused.iter().any(|row| row.reason == Reason::Database) {
            Path::Staged
        } else if self.outcome.deduplicated > 0 || !self.refused.is_empty() {
            Path::Sifted
        } else {
            Path::Direct
        }
    }
}

impl Writer {
    /// A writer that connects when it has a batch.
    pub fn new(
        access: watch::Receiver<Access>,
        pipeline: Arc<str>,
        breaker: Arc<Breaker>,
        metrics: Metrics,
        turn: Arc<Mutex<Marks>>,
    ) -> Self {
        Self {
            access,
            pipeline,
            breaker,
            metrics,
            session: None,
            path: Path::Direct,
            turn,
            deadline: FIRST_DEADLINE,
        }
    }

    /// Commits the batch, whole or in parts, however long it takes. `done` gets each committed part.
    pub async fn commit(&mut self, mut batch: Batch, mut done: impl FnMut(Committed)) {
        batch.fold();
        // The last one is next: a batch, or what halving left of it.
        let mut parts = vec![batch];
        // Whether the last attempt failed: what the marks take for new may be there.
        let mut in_doubt = false;
        while let Some(mut part) = parts.pop() {
            self.breaker.permit().await;
            let path = if part.is_redelivered() { self.path.max(Path::Sifted) } else { self.path };
            let turn = Arc::clone(&self.turn);
            let mut turn = if path > Path::Direct { Some(turn.lock().await) } else { None };
            let (started, mut none) = (Instant::now(), Marks::default());
            let marks = turn.as_deref_mut().unwrap_or(&mut none);
            if in_doubt {
                marks.doubt();
            }
            match self.attempt(&part, path, marks).await {
                Ok(written) => {
                    in_doubt = false;
                    self.breaker.succeeded();
                    self.deadline = FIRST_DEADLINE;
                    let attempt = started..Instant::now();
                    self.metrics.commit_seconds.observe((attempt.end - attempt.start).as_secs_f64());
                    if path > Path::Direct && !part.samples.is_empty() {
                        self.metrics.staged_batches.inc();
                        self.path = written.next_path();
                        if self.path == Path::Direct { marks.forget() } else { marks.raise(&part.samples) }
                    }
                    part.dead.extend(written.refused);
                    done(Committed {
                        batch: part,
                        outcome: written.outcome,
                        samples_stored: written.samples_stored,
                        dead_letters: written.dead_letters,
                        at: written.at,
                        attempt,
                    });
                }
                Err(error) => {
                    self.settle(&error, path, in_doubt, part, &mut parts);
                    in_doubt = true;
                }
            }
        }
    }

    /// Decides what to try next after an attempt that failed, the first one or one that looked for all.
    fn settle(
        &mut self,
        error: &AttemptError,
        path: Path,
        looked_for_all: bool,
        mut part: Batch,
        parts: &mut Vec<Batch>,
    ) {
        let class = match error.class() {
            // Another writer's row came between; the next look sees it.
            Class::Duplicate if path == Path::Staged => Class::Retry,
            class => class,
        };
        self.metrics.db_errors.with_label_values(&[class.as_str()]).inc();
        match class {
            Class::Retry | Class::Stop => return self.wait(class, error, part, parts),
            Class::Duplicate if path == Path::Direct || !looked_for_all => self.path = Path::Sifted,
            // Staging stores what it can of the samples.
            Class::Duplicate => self.path = Path::Staged,
            Class::Poison if path < Path::Staged && !part.samples.is_empty() => self.path = Path::Staged,
            Class::Poison if part.deliveries.len() > 1 => {
                let (first, second) = part.split();
                parts.push(second);
                part = first;
            }
            Class::Poison => {
                if !part.give_up(Reason::Database, &error.to_string()) {
                    // Also the dead letters alone are refused: it was not the data's fault.
                    return self.wait(Class::Stop, error, part, parts);
                }
            }
        }
        self.breaker.succeeded();
        parts.push(part);
    }

    /// The same again, when the breaker lets it. What was given up is tried again too: an answer from before
    /// the pause says nothing of the time after it.
    fn wait(&mut self, class: Class, error: &AttemptError, mut part: Batch, parts: &mut Vec<Batch>) {
        if let AttemptError::Deadline(deadline) = error {
            part = outlasted(*deadline, part, parts);
            self.deadline = (*deadline * 2).min(LONGEST_DEADLINE);
        }
        part.take_back();
        if self.breaker.open().is_none() {
            tracing::warn!(class = class.as_str(), %error, "the database does not take a batch; trying again");
        }
        self.breaker.failed(class, error.to_string());
        parts.push(part);
    }

    /// One attempt. The connection survives only a success.
    async fn attempt(
        &mut self,
        batch: &Batch,
        path: Path,
        marks: &mut Marks,
    ) -> Result<Written, AttemptError> {
        let mut session = self.session.take();
        let (access, pipeline) = (&self.access, &self.pipeline);
        let attempt = async move {
            let mut session = if let Some(session) = session.take() {
                session
            } else {
                let options = access.borrow().database.clone();
                let connection = PgConnection::connect_with(&options).await?;
                Session { connection, buffer: Vec::new() }
            };
            let written = transaction::run(&mut session, batch, pipeline, path, marks).await?;
            Ok((session, written))
        };
        let (session, written) = tokio::time::timeout(self.deadline, attempt)
            .await
            .unwrap_or(Err(AttemptError::Deadline(self.deadline)))?;
        self.session = Some(session);
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Tally;
    use crate::delivery::Delivery;

    #[test]
    fn a_batch_that_takes_too_long_is_halved_until_it_does_not() {
        let deliveries: Vec<_> = (0..4).map(|_| (Delivery::empty(), Tally::default())).collect();
        let mut part = Batch::default();
        part.deliveries = deliveries;
        let mut parts = Vec::new();
        for (deadline, left) in
            [(FIRST_DEADLINE, 4), (LONGEST_DEADLINE, 2), (LONGEST_DEADLINE, 1), (LONGEST_DEADLINE, 1)]
        {
            part = outlasted(deadline, part, &mut parts);
            assert_eq!(part.deliveries.len(), left);
        }
        let rest: Vec<_> = parts.iter().map(|part| part.deliveries.len()).collect();
        assert_eq!(rest, [2, 1]);
    }
}
