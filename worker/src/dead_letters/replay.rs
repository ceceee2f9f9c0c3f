//! Messages of dead letters decoded again with the manifest's rules of today, and stored as the live
//! path stores them. The letters are marked in the same transaction, and every row has a key made from
//! the message alone, so that replaying twice stores nothing twice.
//!
//! Times are judged by the time of receipt, so that a replay's outcome does not depend on its day.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sqlx::PgConnection;
use tokio::sync::{Semaphore, watch};

use super::verdict::Verdict;
use crate::batch::Outcome;
use crate::decode::{self, Micros, Reject};
use crate::delivery::{Delivery, InHand};
use crate::draft::Draft;
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::store::births;
use crate::store::breaker::Breaker;
use crate::store::connection;
use crate::store::dictionary::Dictionary;
use crate::store::letter_search::{self, Filter, Letter};
use crate::store::letters::{self, Digest};
use crate::store::rows::ReplayRow;
use crate::store::sqlstate::Class;
use crate::store::writer::{Committed, Writer};

/// Letters that are looked at together.
const PAGE: i64 = 500;
/// How long a database may be away before the replay ends.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(200);

/// Why a replay ended early. What was done is done, and another replay goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The database failed or refused.
    #[error("the database: {0}")]
    Database(#[from] sqlx::Error),
    /// The database does not take a batch.
    #[error("the database does not take a batch: {0}")]
    Refused(String),
    /// What became of a letter could not be written.
    #[error("the output: {0}")]
    Output(#[from] std::io::Error),
    /// The parts could not be put together.
    #[error("metrics: {0}")]
    Assembly(#[from] prometheus::Error),
}

/// What a replay has done so far.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Messages decoded again.
    pub messages: u64,
    /// Letters by verdict, in the order of [`Verdict::WORDS`].
    pub letters: [u64; Verdict::WORDS.len()],
    /// What became of the messages' items.
    pub outcome: Outcome,
}

/// A letter and what became of it.
pub type Told<'a> = &'a mut dyn FnMut(&Letter, &Verdict) -> std::io::Result<()>;

/// A message with all its letters.
#[derive(Debug)]
struct Message {
    /// Its letters that are not replayed yet.
    open: Vec<Letter>,
    /// When it was first received.
    received_at: Micros,
}

type MessageKey = (String, Digest);

/// Replays letters of one pipeline.
#[derive(Debug)]
pub struct Replay {
    settings: Settings,
    dictionary: Dictionary,
    breaker: Arc<Breaker>,
    writer: Writer,
    metrics: Metrics,
    hand: Arc<Semaphore>,
    /// Messages that keep a letter: later pages hold it again.
    seen: HashSet<MessageKey>,
    /// What was done so far.
    pub summary: Summary,
}

impl Replay {
    /// A replay by the rules of these settings; nothing is connected yet.
    pub fn new(settings: Settings) -> Result<Self, ReplayError> {
        let metrics = Metrics::new()?;
        let breaker = Arc::new(Breaker::new(metrics.breaker.clone()));
        let pool = connection::pool(settings.access.database.clone());
        Ok(Self {
            dictionary: Dictionary::new(pool, settings.terms.max_series),
            writer: Writer::new(
                watch::channel(settings.access.clone()).1,
                Arc::clone(&settings.pipeline),
                Arc::clone(&breaker),
                metrics.clone(),
                Arc::default(),
            ),
            breaker,
            metrics,
            hand: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            seen: HashSet::new(),
            summary: Summary::default(),
            settings,
        })
    }

    /// Replays the open letters that match, at most `limit`. `told` hears of each letter of their
    /// messages, `progress` how many letters were looked at.
    pub async fn run(
        &mut self,
        connection: &mut PgConnection,
        filter: &Filter,
        limit: Option<u64>,
        told: Told<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), ReplayError> {
        // Data that came before its birth is named by what is known now.
        births::teach(&self.settings.terms.decoder, connection).await?;
        let filter = Filter { open: Some(true), ..filter.clone() };
        let (mut after, mut looked_at) = (None, 0);
        loop {
            let size = limit.map_or(PAGE, |limit| PAGE.min((limit - looked_at) as i64));
            if size == 0 {
                return Ok(());
            }
            let page = letter_search::page(connection, &filter, after, size).await?;
            let Some(last) = page.last() else { return Ok(()) };
            (after, looked_at) = (Some(last.place()), looked_at + page.len() as u64);
            let mut keys: Vec<MessageKey> = Vec::new();
            for letter in page {
                let key = (letter.topic, letter.payload_digest);
                if !self.seen.contains(&key) && !keys.contains(&key) {
                    keys.push(key);
                }
            }
            self.messages(connection, &keys, told).await?;
            progress(looked_at);
        }
    }

    /// Replays whole messages, in the order of their receipt.
    async fn messages(
        &mut self,
        connection: &mut PgConnection,
        keys: &[MessageKey],
        told: Told<'_>,
    ) -> Result<(), ReplayError> {
        let mut messages: HashMap<MessageKey, Message> = HashMap::new();
        for letter in letter_search::of_messages(connection, keys).await? {
            let message = messages
                .entry((letter.topic.clone(), letter.payload_digest))
                .or_insert_with(|| Message { open: Vec::new(), received_at: letter.received_at });
            if letter.replayed_at.is_none() {
                message.open.push(letter);
            }
        }
        let mut waiting: Vec<(&MessageKey, Message)> = Vec::new();
        let mut bytes = 0;
        for key in keys {
            let Some(message) = messages.remove(key) else { continue };
            bytes += message.open.first().map_or(0, |letter| letter.payload_bytes as usize);
            waiting.push((key, message));
            if bytes >= self.settings.terms.batch.max_bytes {
                self.commit(connection, std::mem::take(&mut waiting), told).await?;
                bytes = 0;
            }
        }
        self.commit(connection, waiting, told).await
    }

    /// Decodes the messages and commits them, with the marks of their letters.
    async fn commit(
        &mut self,
        connection: &mut PgConnection,
        messages: Vec<(&MessageKey, Message)>,
        told: Told<'_>,
    ) -> Result<(), ReplayError> {
        let digests: Vec<Digest> = messages.iter().map(|((_, digest), _)| *digest).collect();
        let payloads: HashMap<Digest, Vec<u8>> =
            letter_search::payloads(connection, &digests).await?.into_iter().collect();
        let (mut draft, mut letters) = (Draft::default(), Vec::new());
        for ((topic, digest), message) in messages {
            let Some(payload) = payloads.get(digest) else { continue };
            if let Some(unfit) = unfit(topic, payload, &message.open) {
                for letter in &message.open {
                    self.tell(letter, &unfit, told)?;
                }
                continue;
            }
            letters.push(message.open);
            let delivery = self.delivery(topic, payload, message.received_at)?;
            let reading = self.settings.terms.formats.of(topic.as_bytes());
            draft.add(delivery, message.received_at, &self.dictionary, |input| {
                self.settings.terms.decoder.decode(reading, input)
            });
            if draft.rows() >= self.settings.terms.batch.max_rows {
                self.store(std::mem::take(&mut draft), std::mem::take(&mut letters), told).await?;
            }
        }
        self.store(draft, letters, told).await
    }

    /// A message as if it came now; as one that came before.
    fn delivery(&self, topic: &str, payload: &[u8], received_at: Micros) -> Result<Delivery, ReplayError> {
        let budget = Arc::clone(&self.hand).try_acquire_owned();
        let budget = budget.map_err(|error| ReplayError::Refused(error.to_string()))?;
        Ok(Delivery {
            lane: 0,
            epoch: 0,
            seq: None,
            tenant: decode::tenant(self.settings.terms.decoder.layout(), topic.as_bytes()).map(Into::into),
            topic: Bytes::copy_from_slice(topic.as_bytes()),
            payload: Bytes::copy_from_slice(payload),
            dup: true,
            received_at,
            arrived: Instant::now(),
            // Told by its first bytes: the content type is not kept.
            compression: None,
            claimed: None,
            told: Vec::new(),
            parent: None,
            trace: None,
            in_hand: InHand::new(budget, self.metrics.in_flight.clone()),
        })
    }

    /// Commits a draft. `letters`: the open ones of each delivery, in the draft's order.
    async fn store(
        &mut self,
        mut draft: Draft,
        letters: Vec<Vec<Letter>>,
        told: Told<'_>,
    ) -> Result<(), ReplayError> {
        if draft.messages() == 0 {
            return Ok(());
        }
        while !draft.is_resolved() {
            draft.resolve(&self.dictionary).await?;
        }
        let mut batch = draft.finish();
        batch.replayed = (0..)
            .zip(&letters)
            .flat_map(|(delivery, of_message)| {
                of_message.iter().map(move |letter| ReplayRow { delivery, digest: letter.digest })
            })
            .collect();
        // Halving may commit the messages in several parts.
        let mut rejects: BTreeMap<(Bytes, Bytes), Vec<Reject>> = BTreeMap::new();
        let mut outcome = Outcome::default();
        let commit = self.writer.commit(batch, |committed: Committed| {
            outcome += committed.outcome;
            outcome += committed.batch.folded();
            for (delivery, _) in &committed.batch.deliveries {
                rejects.entry((delivery.topic.clone(), delivery.payload.clone())).or_default();
            }
            for row in &committed.batch.dead {
                let Some((delivery, _)) = committed.batch.deliveries.get(row.delivery as usize) else {
                    continue;
                };
                let reject = Reject { part: row.part, reason: row.reason, detail: row.detail.clone() };
                rejects.entry((delivery.topic.clone(), delivery.payload.clone())).or_default().push(reject);
            }
        });
        unless_stuck(&self.breaker, commit).await?;
        self.summary.outcome += outcome;
        self.summary.messages += letters.len() as u64;
        let by_message: HashMap<(&[u8], Digest), &[Reject]> = rejects
            .iter()
            .map(|((topic, payload), rejects)| ((&topic[..], blake3::hash(payload).into()), &rejects[..]))
            .collect();
        for letter in letters.iter().flatten() {
            let key = (letter.topic.as_bytes(), letter.payload_digest);
            let rejects = by_message.get(&key).copied().unwrap_or_default();
            let verdict = Verdict::of(&letter.reason, letter.part, rejects);
            self.tell(letter, &verdict, told)?;
        }
        Ok(())
    }

    fn tell(&mut self, letter: &Letter, verdict: &Verdict, told: Told<'_>) -> Result<(), ReplayError> {
        if let Some(place) = Verdict::WORDS.iter().position(|word| *word == verdict.as_str()) {
            self.summary.letters[place] += 1;
        }
        if *verdict != Verdict::Replayed {
            self.seen.insert((letter.topic.clone(), letter.payload_digest));
        }
        Ok(told(letter, verdict)?)
    }
}

/// Why a message cannot be decoded again: its letters' digests tell whether its bytes are the original's.
fn unfit(topic: &str, payload: &[u8], open: &[Letter]) -> Option<Verdict> {
    if open.iter().any(|letter| letter.truncated) {
        return Some(Verdict::Truncated);
    }
    let original = |letter: &Letter| {
        letters::digest(topic.as_bytes(), payload, &letter.reason, letter.part) == letter.digest
    };
    (!open.iter().all(original)).then_some(Verdict::TopicLost)
}

/// Waits for the work, unless the database refuses, or is away for too long.
async fn unless_stuck<T>(breaker: &Breaker, work: impl Future<Output = T>) -> Result<T, ReplayError> {
    let started = Instant::now();
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            () = tokio::time::sleep(LOOK) => match breaker.open() {
                Some((Class::Stop, why)) => return Err(ReplayError::Refused(why)),
                Some((_, why)) if started.elapsed() > PATIENCE => return Err(ReplayError::Refused(why)),
                _ => {}
            }
        }
    }
}
