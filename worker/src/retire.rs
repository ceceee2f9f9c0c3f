//! The only way a shard's session ends: unsubscribe, drain, end the session, forget the shard.
//!
//! Drained means: every UNSUBACK came, nothing is in hand, and a marker that was published afterwards
//! arrived behind all that the broker had queued, by the connection that is open now: a new one brings again
//! what was not acknowledged (MQTT-4.4.0-1). Without a connection nothing is proved.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use penstock_crds::report::{Proof, RetireReport};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::mqtt::connection::Lost;
use crate::mqtt::lanes::MAX_SESSIONS;
use crate::mqtt::options::Options;
use crate::mqtt::session::{End, Marker, Order};
use crate::mqtt::visit;
use crate::shard::Shard;
use crate::store::lease::{self, Acquired, LeaseError};
use crate::store::lease_rules::Purpose;
use crate::tenure::{Superseded, Tenure};

/// How long the marker may take behind an emptied queue.
const MARKER_PATIENCE: Duration = Duration::from_secs(20);
const MARK_AGAIN: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(50);

/// Below it every session at its end has a topic for its marker.
pub(crate) const RETIRE_TOPIC: &str = "penstock/retire/";

/// The marker of a session.
pub(crate) fn marker(options: &Options) -> Marker {
    Marker { topic: format!("{RETIRE_TOPIC}{}", options.client_id), seen: watch::Sender::new(None) }
}

/// Whether the topic is that of the marker of the session with this client id.
pub(crate) fn is_marker(topic: &[u8], client_id: &str) -> bool {
    topic.strip_prefix(RETIRE_TOPIC.as_bytes()) == Some(client_id.as_bytes())
}

/// How long the database has at first.
const DATABASE_PATIENCE: Duration = Duration::from_mins(1);
/// Filters that are unsubscribed although nothing tells that they are subscribed.
const MOST_UNKNOWN: usize = 1000;

/// Why a shard was not retired. Running it again goes on where this ended.
#[derive(Debug, thiserror::Error)]
pub enum RetireError {
    /// The database cannot be used.
    #[error("the database: {0}")]
    Database(String),
    /// Nothing is known of the lease.
    #[error("the lease: {0}")]
    Lease(#[from] LeaseError),
    /// The broker failed or refused.
    #[error("the broker: {0}")]
    Broker(#[from] Lost),
    /// Another worker took the lease.
    #[error("another worker took the shard over")]
    Superseded,
    /// No proof that the queue is empty.
    #[error(
        "the marker on {topic} did not arrive within {MARKER_PATIENCE:?}; allow this login to publish and subscribe \
         there, or declare with --idle how long silence means empty"
    )]
    NoMarker {
        /// Where it was published.
        topic: String,
    },
}

impl From<Superseded> for RetireError {
    fn from(_: Superseded) -> Self {
        Self::Superseded
    }
}

impl RetireError {
    /// A bounded word for why.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Database(_) | Self::Lease(LeaseError::Database(_) | LeaseError::Deadline) => {
                "database_away"
            }
            Self::Lease(LeaseError::Superseded) | Self::Superseded => "superseded",
            Self::Lease(LeaseError::OutdatedPlan { .. }) => "outdated_plan",
            Self::Broker(lost) => lost.reason(),
            Self::NoMarker { .. } => "no_marker",
        }
    }
}

impl Shard {
    /// Retires the shard, unless a newer plan than this generation's is followed. `idle`: how long silence
    /// means empty, where publishing is not permitted.
    pub async fn retire(
        &self,
        plan: Option<i64>,
        idle: Option<Duration>,
    ) -> Result<RetireReport, RetireError> {
        let mut writers = JoinSet::new();
        tokio::time::timeout(DATABASE_PATIENCE, self.prepare(&mut writers))
            .await
            .map_err(|_| RetireError::Database(self.lease.explain().1))?;
        let purpose = Purpose::Retire { plan };
        let mut row = match lease::acquire(&self.pool, &self.key, &self.me, purpose, false).await? {
            Acquired::Taken(row) => row,
            Acquired::NeedsPreflight | Acquired::Wait { .. } => return Err(RetireError::Superseded),
        };
        let sessions = self.settings.sessions.max(row.sessions.len()).min(MAX_SESSIONS) as u8;
        let known = !row.existed.is_empty() || row.sessions.iter().any(|filters| !filters.is_empty());
        // The sessions may have them although the row was lost; a long list is believed where there is one.
        let filters = self.settings.terms.work.filters();
        if !known || filters.len() <= MOST_UNKNOWN {
            for session in 0..sessions {
                row.of(session).extend(filters.iter().cloned());
            }
        }
        self.shared.lanes.use_up_to(sessions.into());
        let tenure = self.tenure(row);
        let ended = async {
            if !known && !self.has_sessions(sessions, &tenure).await? {
                return Ok(Proof::NoSession);
            }
            let mut proof = Proof::Marker;
            for session in 0..sessions {
                proof = self.retire_session(session, &tenure, idle).await?;
            }
            Ok::<_, RetireError>(proof)
        };
        let proof = tokio::select! {
            proof = ended => proof?,
            _ = tenure.lost() => return Err(RetireError::Superseded),
            () = tenure.keep() => return Err(RetireError::Superseded),
            () = self.beat() => return Err(RetireError::Superseded),
        };
        lease::forget(&self.pool, &self.key, &self.me, plan).await?;
        let client_ids = (0..sessions).map(|session| self.broker().of_session(session).client_id).collect();
        Ok(RetireReport { retired: true, proof, client_ids, cut: false })
    }

    /// Whether the broker has one of the sessions. Looking makes those that it does not have, so they are
    /// ended again.
    async fn has_sessions(&self, sessions: u8, tenure: &Tenure) -> Result<bool, RetireError> {
        for session in 0..sessions {
            let options = self.broker().of_session(session);
            tenure.confirmed().await?;
            if visit::log_in(&options).await?.session_present {
                return Ok(true);
            }
            tenure.confirmed().await?;
            visit::end_session(&options).await?;
        }
        Ok(false)
    }

    /// Drains one of the shard's sessions and ends it.
    async fn retire_session(
        &self,
        lane: u8,
        tenure: &Tenure,
        idle: Option<Duration>,
    ) -> Result<Proof, RetireError> {
        let options = self.broker().of_session(lane);
        let marker = Arc::new(marker(&options));
        let (orders, mut orders_seen) = watch::channel(Order::Consume([marker.topic.clone()].into()));
        let session = self.session(lane, Some(Arc::clone(&marker)));
        let drain = async {
            let proof = self.drain(lane, tenure, &marker, idle).await;
            // Also without a proof: what is in hand is committed, and the session kept.
            orders.send_replace(Order::Settle);
            proof
        };
        let (proof, end) = tokio::join!(drain, session.run(tenure, &mut orders_seen));
        if end == End::Superseded {
            return Err(RetireError::Superseded);
        }
        let proof = proof?;
        // Whoever has taken the lease since may use the session.
        tenure.confirmed().await?;
        visit::end_session(&options).await?;
        Ok(proof)
    }

    async fn publish_marker(&self, marker: &Marker, nonce: &str) {
        let options = self.broker().visit("-marker");
        if let Err(lost) = visit::publish(&options, &marker.topic, nonce).await {
            tracing::warn!(reason = lost.reason(), error = %lost, "the marker could not be published");
        }
    }

    /// Waits until the session has its marker alone and nothing is left of what the broker queued.
    pub(crate) async fn drain(
        &self,
        lane: u8,
        tenure: &Tenure,
        marker: &Marker,
        idle: Option<Duration>,
    ) -> Result<Proof, RetireError> {
        let session = self.shared.lanes.get(lane);
        let look = || Look {
            connected: session.link().connected,
            epoch: session.acks.window().epoch,
            received: session.received.load(Ordering::Relaxed),
            in_hand: session.acks.in_hand(),
        };
        while tenure.filters_of(lane) != [marker.topic.clone()] || !look().connected {
            tokio::time::sleep(LOOK).await;
        }
        tracing::info!(session = lane, "unsubscribed; draining");
        let nonce = uuid::Uuid::new_v4().to_string();
        let mut silence = Silence { last: look(), since: Instant::now() };
        let mut published = None;
        loop {
            // Again when all is quiet: a full queue may have dropped the first one, and a new connection forgets it.
            let again = |at: Instant| at.elapsed() > MARK_AGAIN && silence.since.elapsed() > MARK_AGAIN;
            if published.is_none_or(again) {
                self.publish_marker(marker, &nonce).await;
                published = Some(Instant::now());
            }
            if let Some(quiet) = silence.after(look(), Instant::now()) {
                if marker.seen.borrow().as_deref() == Some(nonce.as_str()) {
                    return Ok(Proof::Marker);
                }
                match idle {
                    Some(idle) if quiet >= idle => return Ok(Proof::Idle),
                    None if quiet >= MARKER_PATIENCE => {
                        return Err(RetireError::NoMarker { topic: marker.topic.clone() });
                    }
                    _ => {}
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// What is seen of a session that is drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    connected: bool,
    epoch: u64,
    received: u64,
    in_hand: usize,
}

/// Since when a session has been quiet, from one look after another.
struct Silence {
    last: Look,
    since: Instant,
}

impl Silence {
    /// How long it has been quiet, if it is: on one connection nothing came, and nothing is in hand.
    fn after(&mut self, look: Look, now: Instant) -> Option<Duration> {
        let quiet = look.connected && look.in_hand == 0;
        if !quiet || look != self.last {
            *self = Self { last: look, since: now };
        }
        quiet.then(|| now.duration_since(self.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::tests::lonely;
    use crate::store::lease::LeaseRow;

    #[test]
    fn silence_begins_anew_with_each_delivery_and_each_connection_and_while_something_is_in_hand() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let quiet = Look { connected: true, epoch: 1, received: 5, in_hand: 0 };
        let mut silence = Silence { last: quiet, since: start };
        let mut after = |look, seconds| silence.after(look, at(seconds)).map(|quiet| quiet.as_secs());
        assert_eq!(after(quiet, 3), Some(3));
        assert_eq!(after(Look { in_hand: 1, ..quiet }, 4), None);
        assert_eq!(after(quiet, 5), Some(0));
        let quiet = Look { received: 6, ..quiet };
        assert_eq!((after(quiet, 7), after(quiet, 9)), (Some(0), Some(2)));
        assert_eq!(after(Look { connected: false, ..quiet }, 20), None);
        assert_eq!(after(quiet, 21), Some(0));
        // One that came and went between two looks.
        assert_eq!((after(quiet, 30), after(Look { epoch: 2, ..quiet }, 31)), (Some(9), Some(0)));
    }

    #[tokio::test]
    async fn silence_without_a_connection_is_no_proof_that_the_queue_is_empty() {
        let shard = lonely();
        let lane = shard.shared.lanes.get(0);
        let marker = marker(&shard.broker());
        let row = LeaseRow { sessions: vec![vec![marker.topic.clone()]], ..LeaseRow::default() };
        let tenure = shard.tenure(row);
        lane.link().connected = true;
        let idle = Duration::from_millis(400);
        let absence = async {
            tokio::time::sleep(idle / 2).await;
            lane.link().connected = false;
            tokio::time::sleep(idle * 3).await;
            lane.link().connected = true;
            Instant::now()
        };
        let (proof, back) = tokio::join!(
            async { (shard.drain(0, &tenure, &marker, Some(idle)).await, Instant::now()) },
            absence
        );
        assert!(matches!(proof.0, Ok(Proof::Idle)));
        assert!(proof.1 + LOOK * 2 >= back + idle, "the absence counted as silence");
    }
}
