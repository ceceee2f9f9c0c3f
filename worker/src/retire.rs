//! The only way a shard's session ends: unsubscribe, drain, end the session, forget the shard.
//!
//! Drained means: every UNSUBACK came, nothing is unacknowledged, and a marker that was published
//! afterwards arrived behind all that the broker had queued.

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
use crate::tenure::Tenure;

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
            if !known && !self.has_sessions(sessions).await? {
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
    async fn has_sessions(&self, sessions: u8) -> Result<bool, RetireError> {
        for session in 0..sessions {
            let options = self.broker().of_session(session);
            if visit::log_in(&options).await?.session_present {
                return Ok(true);
            }
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
        let marker = marker(&options);
        let (orders, mut orders_seen) = watch::channel(Order::Consume([marker.topic.clone()].into()));
        let session = self.session(lane, Some(marker));
        let drain = async {
            let proof = match &session.marker {
                Some(marker) => self.drain(lane, tenure, marker, idle).await,
                None => Ok(Proof::Idle),
            };
            // Also without a proof: what is in hand is committed, and the session kept.
            orders.send_replace(Order::Settle);
            proof
        };
        let (proof, end) = tokio::join!(drain, session.run(tenure, &mut orders_seen));
        if end == End::Superseded {
            return Err(RetireError::Superseded);
        }
        let proof = proof?;
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
        let quiet = || session.acks.window().unacked == 0;
        let received = || session.received.load(Ordering::Relaxed);
        while tenure.filters_of(lane) != [marker.topic.clone()] || !session.link().connected {
            tokio::time::sleep(LOOK).await;
        }
        tracing::info!(session = lane, "unsubscribed; draining");
        let nonce = uuid::Uuid::new_v4().to_string();
        let (mut seen, mut since) = (received(), Instant::now());
        let mut published = None;
        loop {
            // Again when all is quiet: a full queue may have dropped the first one.
            if published.is_none_or(|at: Instant| at.elapsed() > MARK_AGAIN && since.elapsed() > MARK_AGAIN) {
                self.publish_marker(marker, &nonce).await;
                published = Some(Instant::now());
            }
            if quiet() && marker.seen.borrow().as_deref() == Some(nonce.as_str()) {
                return Ok(Proof::Marker);
            }
            if received() != seen || !quiet() {
                (seen, since) = (received(), Instant::now());
            }
            match idle {
                Some(idle) if since.elapsed() >= idle => return Ok(Proof::Idle),
                None if since.elapsed() >= MARKER_PATIENCE => {
                    return Err(RetireError::NoMarker { topic: marker.topic.clone() });
                }
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }
}
