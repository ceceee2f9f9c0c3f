//! The only way a shard's session ends: unsubscribe, drain, end the session, forget the shard.
//!
//! Drained means: every UNSUBACK came, nothing is unacknowledged, and a marker that was published
//! afterwards arrived behind all that the broker had queued.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::mqtt::connection::Lost;
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

/// Why a shard was not retired. Running it again goes on where this ended.
#[derive(Debug, thiserror::Error)]
pub enum RetireError {
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

/// What proved that the queue was empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The marker arrived.
    Marker,
    /// Nothing arrived for the declared time.
    Idle,
}

impl Shard {
    /// Retires the shard. `idle`: how long silence means empty, where publishing is not permitted.
    pub async fn retire(&self, idle: Option<Duration>) -> Result<Proof, RetireError> {
        let mut writers = JoinSet::new();
        self.prepare(&mut writers).await;
        let mut row = match lease::acquire(&self.pool, &self.key, &self.me, Purpose::Retire, false).await? {
            Acquired::Taken(row) => row,
            Acquired::NeedsPreflight | Acquired::Wait { .. } => return Err(RetireError::Superseded),
        };
        // The sessions may have them although the row was lost.
        let filters = self.settings.work.filters();
        let sessions = self.settings.sessions.max(row.sessions.len());
        for session in 0..sessions as u8 {
            row.of(session).extend(filters.iter().cloned());
        }
        self.shared.lanes.use_up_to(sessions);
        let tenure = self.tenure(row);
        let drained = async {
            let mut proof = Proof::Marker;
            for session in 0..sessions as u8 {
                proof = self.retire_session(session, &tenure, idle).await?;
            }
            Ok::<_, RetireError>(proof)
        };
        let proof = tokio::select! {
            proof = drained => proof?,
            _ = tenure.lost() => return Err(RetireError::Superseded),
            () = tenure.keep() => return Err(RetireError::Superseded),
            () = self.beat() => return Err(RetireError::Superseded),
        };
        lease::forget(&self.pool, &self.key, &self.me).await?;
        Ok(proof)
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
