//! The writers' loop: gather what is in hand, commit it, acknowledge it.
//!
//! Batches are driven by commits: a free writer takes what is there. It lingers only while the
//! broker may still send more before it gets an acknowledgement.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::batch::Tally;
use crate::decode::{Micros, Reason};
use crate::delivery::Delivery;
use crate::draft::Draft;
use crate::mqtt::session::Shared;
use crate::rebirth;
use crate::settings::Terms;
use crate::store::breaker::Breaker;
use crate::store::dictionary::Dictionary;
use crate::store::sqlstate::AttemptError;
use crate::store::writer::{Committed, Writer};
use crate::trace::context;

/// How long finding or making the series of a batch may take. What was made is found the next time.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(15);

/// A delivery that waits for its series is not looked at more often.
const SHORTEST_DELAY: Duration = Duration::from_millis(50);
/// While nothing is in hand.
const SOME_TIME: Duration = Duration::from_hours(1);

/// How large a batch may grow, and how long it may wait.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rows.
    pub max_rows: usize,
    /// Payload bytes.
    pub max_bytes: usize,
    /// Longest wait of the first delivery while the window is not full.
    pub linger: Duration,
}

/// What the writers share.
#[derive(Debug)]
pub struct Ingest {
    /// Shared with the session.
    pub shared: Arc<Shared>,
    /// How deliveries are read, and how large batches may be.
    pub terms: watch::Receiver<Arc<Terms>>,
    /// Ids of devices and series.
    pub dictionary: Dictionary,
    /// Before every question to the database.
    pub breaker: Arc<Breaker>,
    /// One writer gathers at a time, so that batches are as large as they can be.
    pub turn: tokio::sync::Mutex<()>,
}

impl Ingest {
    /// Gathers and commits, for ever.
    pub async fn run(&self, mut writer: Writer) {
        loop {
            let mut draft = {
                let _turn = self.turn.lock().await;
                let trigger = self.wait().await;
                let draft = self.gather();
                if draft.messages() == 0 {
                    continue;
                }
                self.shared.metrics.batch_trigger.with_label_values(&[trigger]).inc();
                draft
            };
            self.shared.committing.enter(Instant::now());
            self.resolve(&mut draft).await;
            while draft.is_late() {
                draft = self.put_aside(draft);
                self.resolve(&mut draft).await;
            }
            if draft.messages() == 0 {
                self.shared.committing.leave(Instant::now());
                continue;
            }
            let metrics = &self.shared.metrics;
            metrics.batch_size.observe(draft.messages() as f64);
            metrics.batch_rows.observe(draft.rows() as f64);
            metrics.batch_bytes.observe(draft.payload_bytes() as f64);
            writer.commit(draft.finish(), |committed| self.settle(committed)).await;
            self.shared.committing.leave(Instant::now());
        }
    }

    /// Waits until there is a batch to take; says what made it one.
    async fn wait(&self) -> &'static str {
        let Shared { inbox, lanes, .. } = &*self.shared;
        loop {
            inbox.release(Instant::now());
            let Some(oldest) = inbox.oldest() else {
                let due = inbox.next_release().unwrap_or_else(|| Instant::now() + SOME_TIME);
                tokio::select! {
                    () = tokio::time::sleep_until(due.into()) => {}
                    () = inbox.woken() => {}
                }
                continue;
            };
            let Limits { max_rows, linger, .. } = self.terms.borrow().batch;
            let (window, waiting) = (lanes.window(), inbox.len());
            if window.is_full() || waiting >= window.half() {
                return "window";
            }
            if waiting >= max_rows {
                return "size";
            }
            let due = oldest + linger;
            if Instant::now() >= due {
                return "age";
            }
            tokio::select! {
                () = tokio::time::sleep_until(due.into()) => {}
                () = inbox.woken() => {}
            }
        }
    }

    fn terms(&self) -> Arc<Terms> {
        Arc::clone(&self.terms.borrow())
    }

    fn gather(&self) -> Draft {
        let mut draft = Draft::default();
        let now = self.shared.clock.now();
        let terms = self.terms();
        self.dictionary.allow(terms.max_series, terms.new_series_per_minute);
        let Limits { max_rows, max_bytes, .. } = terms.batch;
        while draft.rows() < max_rows && draft.payload_bytes() < max_bytes {
            let Some(delivery) = self.shared.inbox.pop() else { break };
            self.add(&mut draft, delivery, now, &terms);
        }
        let Shared { metrics, .. } = &*self.shared;
        metrics.sequence_gaps.inc_by(draft.gaps());
        if terms.asks_for_births {
            rebirth::ask(draft.asks(), self.shared.client().as_ref(), now, metrics);
        }
        draft
    }

    fn add(&self, draft: &mut Draft, delivery: Delivery, now: Micros, terms: &Terms) {
        let (reading, decoder) = (terms.formats.of(&delivery.topic), &terms.decoder);
        let Some(tracer) = &self.shared.tracer else {
            return draft.add(delivery, now, &self.dictionary, |input| decoder.decode(reading, input));
        };
        let (taken, mut carried) = (Instant::now(), None);
        draft.add(delivery, now, &self.dictionary, |input| {
            let (source, content) = decoder.decode(reading, input);
            carried = context::in_meta(&content);
            (source, content)
        });
        if let Some(delivery) = draft.last() {
            tracer.decoded(delivery, carried, taken);
        }
    }

    /// Lets deliveries wait whose tenant begins series too fast; the others go on without them.
    fn put_aside(&self, draft: Draft) -> Draft {
        let (late, others) = draft.part();
        let now = Instant::now();
        self.shared.metrics.series_delayed.inc_by(late.len() as u64);
        for (delivery, wait) in late {
            self.shared.inbox.defer(delivery, now + wait.max(SHORTEST_DELAY));
        }
        let mut draft = Draft::default();
        let now = self.shared.clock.now();
        let terms = self.terms();
        for delivery in others {
            self.add(&mut draft, delivery, now, &terms);
        }
        draft
    }

    async fn resolve(&self, draft: &mut Draft) {
        while !draft.is_resolved() {
            self.breaker.permit().await;
            let resolved = tokio::time::timeout(RESOLVE_DEADLINE, draft.resolve(&self.dictionary)).await;
            let resolved = match resolved {
                Ok(resolved) => resolved.map_err(AttemptError::from),
                Err(_) => Err(AttemptError::Deadline(RESOLVE_DEADLINE)),
            };
            match resolved {
                Ok(()) => {
                    self.breaker.succeeded();
                    self.shared.metrics.series_cached.set(self.dictionary.cached() as i64);
                }
                Err(error) => {
                    let class = error.class();
                    self.shared.metrics.db_errors.with_label_values(&[class.as_str()]).inc();
                    if self.breaker.open().is_none() {
                        tracing::warn!(class = class.as_str(), %error, "the database does not resolve series; trying again");
                    }
                    self.breaker.failed(class, error.to_string());
                }
            }
        }
    }

    /// After a commit: counts, and acknowledges.
    fn settle(&self, committed: Committed) {
        let Committed { batch, mut outcome, samples_stored, dead_letters, at, attempt } = committed;
        let metrics = &self.shared.metrics;
        self.shared.clock.observe(at);
        metrics.points.inc_by(samples_stored);
        self.shared.flow.committed(&batch, at, &self.terms());

        let latency = metrics.latency.local();
        for row in &batch.samples {
            let micros = at - row.ts;
            if micros < 0 {
                metrics.latency_negative.inc();
            } else {
                latency.observe(micros as f64 / 1e6);
            }
        }
        latency.flush();

        let (mut items, mut types) = (Tally::default(), BTreeMap::new());
        for (_, tally) in &batch.deliveries {
            items += *tally;
            *types.entry(message_type(tally)).or_default() += 1;
        }
        for (message_type, count) in types {
            metrics.messages.with_label_values(&[message_type]).inc_by(count);
        }
        for (kind, count) in items.by_kind() {
            metrics.items.with_label_values(&[kind]).inc_by(count);
        }
        outcome += batch.folded();
        for (name, count) in outcome.by_name() {
            metrics.outcomes.with_label_values(&[name]).inc_by(count);
        }
        for row in &batch.dead {
            metrics.errors.with_label_values(&[row.reason.as_str()]).inc();
            match row.reason {
                Reason::TooLarge => metrics.oversize.inc(),
                Reason::TsWindow => metrics.late.inc(),
                _ => {}
            }
        }
        for (reason, count) in dead_letters {
            metrics.dead_letters.with_label_values(&[&reason]).inc_by(count);
        }
        metrics.committed.inc_by(batch.deliveries.len() as u64);
        let stale = self.shared.lanes.commit(&batch.deliveries.iter().map(|(delivery, _)| delivery));
        metrics.stale_acks.inc_by(stale);
        if let Some(tracer) = &self.shared.tracer {
            tracer.settled(&batch, &attempt, &self.shared.lanes);
        }
    }
}

/// The original service's word for what a message was.
fn message_type(tally: &Tally) -> &'static str {
    match tally {
        Tally { samples: 1.., .. } | Tally { metadata: 1.., .. } => "telem",
        Tally { acks: 1.., .. } => "ack",
        Tally { events: 1.., .. } => "event",
        _ => "other",
    }
}
